"""Small files of a bundle in the model store, read as they were signed; how much a folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from appliance.errors import DigestError
from appliance.fsops import read_regular, resolve_inside
from appliance.model_store import StoredBundle


def read_checked(bundle: StoredBundle, path: str) -> bytes:
    """The bytes of one small file of the bundle. Raises DigestError if they are not the signed."""
    (entry,) = (entry for entry in bundle.manifest.files if entry.path == path)
    data = read_regular(resolve_inside(bundle.directory, path), limit=entry.size, name=path)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DigestError(
            f"{path} of {bundle.name} {bundle.version} was altered on this node",
            path=path,
            hint="remove this version and add the bundle again",
        )
    return data


def bytes_below(directory: Path) -> int:
    """Of all files right in it."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
