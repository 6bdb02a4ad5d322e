"""Whether an SQLite file was changed, without asking SQLite.

The first page of a file has a counter that each commit changes (SQLite's "Database File Format",
1.3.7), in the rollback modes before the commit takes effect. So one who read a state, and the
counter while no other could write, has what is in force for as long as the counter is the same.
Reading four bytes is one call of the kernel, a query takes locks and many. Refuses files in the
mode WAL, whose commits leave the counter alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.errors import StorageError

_OFFSET, _BYTES = 24, 4
_VERSIONS_OFFSET = 18
_ROLLBACK = b"\x01\x01"
"""Write and read version of a file that has no WAL."""


class ChangeCounter:
    """The counter of one file, which is there.

    Close it behind every connection of this process to the file: closing a descriptor gives up all
    locks that the process has on it, fcntl(2).
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError, StorageError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if os.pread(self._descriptor, len(_ROLLBACK), _VERSIONS_OFFSET) != _ROLLBACK:
            self.close()
            raise StorageError(f"{path} is not in a rollback mode", hint="restore it from a backup")

    def read(self) -> bytes:
        """The counter now; empty if the file has lost it. Raises OSError."""
        return os.pread(self._descriptor, _BYTES, _OFFSET)

    def close(self) -> None:
        os.close(self._descriptor)
