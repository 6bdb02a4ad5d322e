"""Tests on a real offline node: Debian 12 booted under systemd in a container."""
