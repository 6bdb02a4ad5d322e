"""Where a node keeps the reports of its runs.

Owns the directory and the names in it. Keeps nothing where the command may not write, for a
measurement must not fail because of its record.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from appliance.config import Layout
from appliance.errors import StorageError
from appliance.fsops import make_dirs, write_durable
from installer.bench.report import Report, to_json

_MODE = 0o644


def keep(layout: Layout, report: Report) -> Path | None:
    """Write `report` into the node's history; None if there is no node or no right to.

    Raises StorageError if the disk fails.
    """
    directory = layout.bench
    if not os.access(directory if directory.is_dir() else layout.state, os.W_OK | os.X_OK):
        return None
    path = directory / f"{_stamp(report)}-{_word(report.target.model)}.json"
    try:
        make_dirs(directory, mode=0o755)
        write_durable(path, to_json(report), mode=_MODE)
    except OSError as error:
        raise StorageError(
            f"the report cannot be kept in {directory}: {error.strerror}",
            hint="check the disk's free space; the figures stand above",
        ) from error
    return path


def _stamp(report: Report) -> str:
    return re.sub(r"[^0-9T]", "", report.created.partition("+")[0])


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
