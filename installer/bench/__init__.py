"""`appliance bench`: what a node, or any OpenAI-compatible server, does under a load.

Owns the load, the clock, the figures and how they are shown. Refuses to count tokens itself: a
token is what the server's `usage` says, and a server that says nothing gets no figure in tokens.
"""

from installer.bench.measure import Plan, run
from installer.bench.report import Report

__all__ = ["Plan", "Report", "run"]
