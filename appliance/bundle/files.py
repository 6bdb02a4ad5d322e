"""How the files of a model bundle are called, and how large they may be."""

from __future__ import annotations

import re
from typing import Final

FORMAT: Final = "appliance-bundle/1"
MANIFEST_NAME = "bundle.json"
SIGNATURE_NAME = "model.sig"
MAX_FILE_BYTES = 1_000_000_000
"""No file of a bundle is larger: FAT32-safe, and the unit of resume and of de-duplication."""
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]|[a-z0-9]")


def is_name(text: str) -> bool:
    """Whether `text` can be a bundle's name or version."""
    return _NAME.fullmatch(text) is not None
