"""appliance.pyz and the root of trust inside it, as seen from the node.

Owns the reading of the anchor: the TUF root that came inside the one file whose fingerprint a
person compared. Refuses to take an anchor from anywhere else.
"""

from __future__ import annotations

import zipfile
from importlib.resources import files
from pathlib import Path

from appliance.errors import LayoutError, NotFoundError

NAME = "appliance.pyz"


def embedded_root() -> bytes:
    """The TUF root inside the running appliance.pyz. Raises NotFoundError outside of one."""
    try:
        return files("installer").joinpath("root.json").read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            "this program carries no root of trust of its own",
            hint="run the media's appliance.pyz, whose fingerprint you checked",
        ) from None


def root_of(archive: Path) -> bytes:
    """The TUF root inside the appliance.pyz at `archive`. Raises LayoutError."""
    try:
        with zipfile.ZipFile(archive) as pyz:
            return pyz.read("root.json")
    except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise LayoutError(
            f"{archive.name} is damaged or missing: {error}",
            path=archive.name,
            hint="get fresh media from the packager",
        ) from None
