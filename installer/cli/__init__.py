"""The `appliance` command: one file per noun, registration only.

Owns how results, errors and hints look. Refuses to hold logic: each command calls one function
of the layer below and renders what it returns.
"""

from installer.cli.app import main

__all__ = ["main"]
