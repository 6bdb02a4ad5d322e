"""What graphs of the native operators have to keep to; kernels.h says what is computed."""

from __future__ import annotations

DOMAIN = "appliance"
VERSION = 1
LANES = 16
"""Rows of a packed matrix, or cached keys, that lie side by side."""
DEPTH = 4
"""Bytes of a row that lie together."""
LARGEST_HEAD = 256
"""Numbers of a head."""
LARGEST_INNER = 65_536
"""Numbers of a row that a sum of 32 bits holds the products of: 127 * 255 * 65,536 < 2^31."""
