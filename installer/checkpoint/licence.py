"""The licence a model comes under: its text and its name.

Owns the finding of both. Refuses checkpoints without a licence text: who installs a model must
be able to read what is allowed, without a network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cyclonedx import spdx

from appliance.errors import CheckpointError, UsageError

FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
_CARD = "README.md"
_HEADINGS = (
    (re.compile(r"Apache License\s+Version 2\.0"), "Apache-2.0"),
    (re.compile(r"\AMIT License|\AThe MIT License"), "MIT"),
)


class Texts(Protocol):
    """The files of a checkpoint."""

    def has(self, name: str) -> bool: ...

    def text(self, name: str) -> str:
        """The whole of a small text file. Raises CheckpointError."""
        ...


@dataclass(frozen=True, slots=True)
class Licence:
    """An SPDX identifier (or `LicenseRef-…`) and the text."""

    identifier: str
    text: str


def find_licence(checkpoint: Texts, file: Path | None) -> Licence:
    """The licence in `file`, else in the checkpoint. Raises CheckpointError, UsageError."""
    text = _given_text(file) if file is not None else _own_text(checkpoint)
    if not text.strip():
        raise CheckpointError("the licence text is empty", hint="name its file: --license-file")
    return Licence(_identifier(checkpoint, text), text)


def _given_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the licence file {file} cannot be read: {error}",
            hint="name a UTF-8 text file with --license-file",
        ) from error


def _own_text(checkpoint: Texts) -> str:
    for name in FILES:
        if checkpoint.has(name):
            return checkpoint.text(name)
    raise CheckpointError(
        "the checkpoint has no licence text",
        hint="get the text from the publisher and name its file: --license-file",
    )


def _identifier(checkpoint: Texts, text: str) -> str:
    """What the model card says, else what the text's heading says."""
    card = checkpoint.text(_CARD) if checkpoint.has(_CARD) else ""
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    fields = dict(re.findall(r"^(license|license_name):[ ]*(\S+)", front[1], re.M)) if front else {}
    named = fields.get("license", "").strip("'\"")
    if named in {"", "other", "unknown"}:
        named = fields.get("license_name", "").strip("'\"")
    if named:
        return spdx.fixup_id(named) or _reference(named)
    for heading, identifier in _HEADINGS:
        if heading.search(text[:400].strip()):
            return identifier
    return _reference("see-text")


def _reference(name: str) -> str:
    """SPDX's form for a licence that is not on its list."""
    return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name)
