"""Text that people read beside the media: README.txt on them, the fingerprint sheet apart.

Refuses to put the fingerprint on the media themselves: who can alter the installer there can
alter a fingerprint there as well.
"""

from __future__ import annotations

from installer import pyz
from installer.media.opening import Media
from installer.media.release import describe

_DIGITS = 8


def readme(version: str) -> str:
    """README.txt of the media."""
    return f"""\
Appliance {version}: install media

1. Compare the SHA-256 of {pyz.NAME} with the fingerprint sheet, which came
   to you another way than these media:

       sha256sum {pyz.NAME}

   If one digit differs, stop.

2. As root, on a Linux machine with CPython 3.11, 3.12 or 3.13 on x86-64:

       python3 {pyz.NAME} install DIRECTORY

   DIRECTORY is the one that holds this file. No network is needed or used.

Everything else here is checked by {pyz.NAME} before it is used. Do not add,
rename or change files: the media would then be refused. The documentation is
in docs/.
"""


def fingerprint_sheet(name: str, media: Media, sha256: str) -> str:
    """The sheet for media called `name`, whose installer has the digest `sha256`."""
    groups = [sha256[at : at + _DIGITS] for at in range(0, len(sha256), _DIGITS)]
    models = [describe(bundle) for bundle in media.bundles]
    lines = [f"  {model.name} {model.version}  {model.digest}" for model in models]
    return f"""\
FINGERPRINT SHEET

Media       {name}
Release     {media.release.version}
Signed      {media.targets.issued_at:%Y-%m-%d %H:%M} UTC, media version {media.targets.version}
Import by   {media.targets.expires:%Y-%m-%d}

SHA-256 of {pyz.NAME}:

    {" ".join(groups[:4])}
    {" ".join(groups[4:])}

Print this sheet and bring it to the node another way than the media. There,
run `sha256sum {pyz.NAME}` and compare every group before running the file:

    {sha256}

Models on the media, with the digests that `appliance models list` shows:
{chr(10).join(lines) or "  none"}
"""
