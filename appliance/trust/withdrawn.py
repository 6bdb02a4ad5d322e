"""What the packager has taken back: bundles and releases that nodes should not use any more.

Owns `withdrawn.json`, a TUF target of the top-level targets role, and the answer to whether it
names something. Refuses to stop anything: a node goes on with what it serves and says so, until
its operator changes it; only new use is refused. Kinds and fields that a later release may add are
passed over, so that its media can still be read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from appliance.errors import ConflictError, MetadataError

TARGET = "withdrawn.json"
MAX_REASON = 200
"""Characters; what an audit record's field holds besides the names."""
BUNDLE = "bundle"
RELEASE = "release"


class Withdrawal(msgspec.Struct, frozen=True):
    """One thing that was taken back.

    Attributes:
        kind: BUNDLE or RELEASE.
        name: of a bundle `NAME-VERSION`, as its directory on media is named; of a release
            `VERSION-ID`, or `VERSION` for every release of that version.
        reason: one sentence for operators.
        day: when, as YYYY-MM-DD, UTC.
    """

    kind: str
    name: str
    reason: str
    day: str

    def __str__(self) -> str:
        """For people, with a capital neither at the beginning nor a stop at the end."""
        return f"withdrawn by the packager on {self.day}: {self.reason}"

    def refusal(self, what: str, *, hint: str) -> ConflictError:
        """The error for new use of it; `what` names it."""
        return ConflictError(f"{what} was {self}", hint=hint, code=f"{self.kind}_withdrawn")


class Withdrawn(msgspec.Struct, frozen=True):
    """Everything that was taken back and not given free again."""

    format: Literal["appliance-withdrawn/1"]
    withdrawn: tuple[Withdrawal, ...]

    def bundle(self, name: str, version: str) -> Withdrawal | None:
        """What says that the bundle `name` `version` was taken back, or None."""
        return self._find(BUNDLE, {f"{name}-{version}"})

    def release(self, directory: str) -> Withdrawal | None:
        """What says so of the release `directory`, which is named VERSION-ID, or None."""
        return self._find(RELEASE, {directory, directory.rpartition("-")[0]})

    def _find(self, kind: str, names: set[str]) -> Withdrawal | None:
        found = (one for one in self.withdrawn if one.kind == kind and one.name in names)
        return next(found, None)

    def check_bundle(self, name: str, version: str) -> None:
        """Refuse a bundle that was taken back. Raises ConflictError."""
        if (found := self.bundle(name, version)) is not None:
            raise found.refusal(
                f"{name} {version}",
                hint="use another version; `appliance models list` shows what there is",
            )

    def check_release(self, directory: str) -> None:
        """Refuse a release that was taken back, see `release`. Raises ConflictError."""
        if (found := self.release(directory)) is not None:
            raise found.refusal(f"release {directory}", hint="ask the packager for newer media")


def listing(withdrawn: Iterable[Withdrawal] = ()) -> Withdrawn:
    """The document that lists `withdrawn`."""
    return Withdrawn("appliance-withdrawn/1", tuple(withdrawn))


def encode_withdrawn(withdrawn: Withdrawn) -> bytes:
    """Canonical bytes of a `withdrawn.json`."""
    return msgspec.json.encode(withdrawn)


def decode_withdrawn(data: bytes) -> Withdrawn:
    """Parse a verified `withdrawn.json`. Raises MetadataError."""
    try:
        return msgspec.json.decode(data, type=Withdrawn)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MetadataError(
            f"{TARGET} is not a list of what was withdrawn: {error}",
            path=TARGET,
            hint="get fresh media from the packager",
        ) from None
