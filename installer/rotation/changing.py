"""A trust directory while it is being changed. Owns its lock.

Refuses to begin beside another change, or beside a build of media.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.fsops import exclusive_lock
from installer.keyring import Keyring
from installer.rotation.publish import complete


@contextmanager
def changing(directory: Path) -> Iterator[Keyring]:
    """The trust directory, held against other changes; one that was interrupted is completed.

    Raises NotFoundError, LockedError.
    """
    if not (directory / "metadata").is_dir():
        Keyring(directory)  # says what is wrong
    with exclusive_lock(directory / ".lock"):
        complete(directory)
        yield Keyring(directory)
