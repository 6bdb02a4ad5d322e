"""Which model versions are served: numbered, immutable generations and one pointer.

Owns the history of activations. A generation file is created once and never changed; the
symbolic link `current` moves atomically, so a reader sees the set before or after a change and
a power cut leaves one of the two. Refuses to know what a bundle is: it keeps names and digests.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from appliance.errors import ConflictError, StorageError
from appliance.fsops import create_durable, make_dirs, symlink_durable


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One set of active models."""

    format: Literal["appliance-generation/1"] = "appliance-generation/1"
    number: int
    parent: int
    """The generation that was current when this one was made; 0 if there was none."""
    created: int
    """Unix seconds."""
    models: dict[str, str]
    """Model name -> bundle digest."""


EMPTY = Generation(number=0, parent=0, created=0, models={})
"""What is current before the first activation."""


class Generations:
    """The generations in `directory`, and the pointer beside them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pointer = directory / "current"

    def prepare(self) -> None:
        """Create the directory. Raises OSError."""
        make_dirs(self._directory, mode=0o755)

    def current(self) -> Generation:
        """The generation that is served. Raises StorageError if its file is damaged."""
        try:
            target = self._pointer.readlink()
        except FileNotFoundError:
            return EMPTY
        return self._read(self._directory / target.name)

    def all(self) -> list[Generation]:
        """Every generation, oldest first."""
        return [self._read(path) for path in sorted(self._directory.glob("*.json"))]

    def advance(self, models: Mapping[str, str]) -> Generation:
        """Make `models` the current set; the same set again makes no new generation."""
        parent = self.current()
        if parent.models == models:
            return parent
        generation = Generation(
            number=self._newest() + 1,
            parent=parent.number,
            created=int(time.time()),
            models=dict(models),
        )
        path = self._path(generation.number)
        created = create_durable(path, msgspec.json.encode(generation, order="sorted"), mode=0o644)
        assert created, "the store's lock is held, so nobody else takes this number"
        self._point_at(generation)
        return generation

    def before(self, generation: Generation) -> Generation:
        """The generation that `generation` replaced. Raises ConflictError if it was the first."""
        if generation.parent == EMPTY.number:
            raise ConflictError(
                "there is no earlier generation to go back to",
                hint="`appliance models activate NAME VERSION` chooses a version directly",
            )
        return self._read(self._path(generation.parent))

    def go_back_to(self, generation: Generation) -> None:
        """Make an existing generation the current one again."""
        self._point_at(generation)

    def collect(self) -> None:
        """Delete what a crash left of an unfinished change. Raises OSError."""
        for leftover in self._directory.glob(".*.tmp"):
            leftover.unlink()

    def _point_at(self, generation: Generation) -> None:
        symlink_durable(self._pointer, self._path(generation.number).name)

    def _newest(self) -> int:
        return max((int(path.stem) for path in self._directory.glob("*.json")), default=0)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:08d}.json"

    def _read(self, path: Path) -> Generation:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Generation)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StorageError(
                f"the model generation {path} cannot be read: {error}",
                hint="restore it from a backup, or activate the models again",
            ) from error
