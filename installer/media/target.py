"""The extra programs of one kind of node, as the media say them: `appliance/cuda13.json`.

Owns the form of that document. Its wheels are listed in `release.json` among the files as well,
so that a release that knows nothing of targets verifies such media and installs the processor's
programs from them. Refuses wheels that the release does not list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from appliance.errors import LayoutError
from installer.media.release import ReleaseFile, ReleaseWheel

CUDA13: Final = "cuda13"
NAMES = (CUDA13,)
"""What `media build --target` knows."""
_TENSORRT = "tensorrt_cu13_libs-"


class TargetWheel(ReleaseWheel, frozen=True, kw_only=True):
    """A wheel of the target; `unpacked` is the size of the files in it, in bytes."""

    unpacked: int


class TargetPrograms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node of this kind installs besides the wheels of every node, from its own lock."""

    format: Literal["appliance-target/1"] = "appliance-target/1"
    name: Literal["cuda13"]
    wheels: tuple[TargetWheel, ...]

    def wheels_for(self, python: str) -> tuple[TargetWheel, ...]:
        """The wheels that CPython `python` ("3.11") installs."""
        return tuple(wheel for wheel in self.wheels if python in wheel.pythons)

    @property
    def has_tensorrt(self) -> bool:
        """Whether the packager gave TensorRT's libraries."""
        return any(wheel.path.startswith(f"{self.name}/{_TENSORRT}") for wheel in self.wheels)


def document_of(name: str) -> str:
    """The TUF target that holds the document of target `name`."""
    return f"appliance/{name}.json"


def lock_of(name: str) -> str:
    """The TUF target that holds the hash lock of the environment of target `name`."""
    return f"appliance/{name}.txt"


def encode(programs: TargetPrograms) -> bytes:
    """Canonical bytes of `programs`."""
    return msgspec.json.encode(programs, order="sorted")


def decode(data: bytes, name: str, files: Iterable[ReleaseFile]) -> TargetPrograms:
    """Parse the verified document of target `name` of a release with `files`.

    Raises LayoutError.
    """
    try:
        programs = msgspec.json.decode(data, type=TargetPrograms)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(name, str(error)) from None
    if encode(programs) != data or programs.name != name:
        raise _bad(name, "it is not in canonical form")
    listed = {(file.path, file.size, file.sha256) for file in files}
    for wheel in programs.wheels:
        if (wheel.path, wheel.size, wheel.sha256) not in listed:
            raise _bad(name, f"the release does not list {wheel.path}")
    return programs


def _bad(name: str, reason: str) -> LayoutError:
    path = f"targets/{document_of(name)}"
    return LayoutError(
        f"{path} is not valid: {reason}", path=path, hint="get fresh media from the packager"
    )
