"""Which releases have proved themselves on this node: the one that serves, and the one before.

Owns `install/releases.json`, written whole and atomically. A directory of a release says only that
it was staged: an update that failed leaves one too, and the link `current` says what starts, not
what has proved itself. Refuses to know how a release takes over. A way back is written down
before it begins, so that a killed one goes on to where it went.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.config import Layout
from appliance.errors import StorageError
from appliance.fsops import write_durable
from installer.staging import InstalledRelease

_FILE = "releases.json"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Releases by the names of their directories, models by the numbers of their generations.

    Older and newer releases read it: fields may be added, so unknown ones are passed over.
    """

    format: Literal["appliance-kept/1"] = "appliance-kept/1"
    proved: str = ""
    """The release that proved itself last; empty before the first."""
    models: int = 0
    """What it served when another one began to take its place."""
    former: str = ""
    """The release that proved itself before that one."""
    former_models: int = 0
    instead: int = 0
    """What `proved` serves because it could not serve `former_models`; 0 if it could."""
    going_to: str = ""
    """Where a way back that has not ended leads."""

    def with_update(self, previous: InstalledRelease, models: int) -> Kept:
        """An update begins while `previous` serves the generation `models`.

        An update that was killed and is run again finds itself current: that changes nothing.
        """
        name = previous.directory.name
        if self.proved not in {"", name}:
            return self
        return msgspec.structs.replace(self, proved=name, models=models)

    def with_proved(self, release: InstalledRelease, *, instead: int = 0) -> Kept:
        """`release` has proved itself: what did so before it is the former one from now on."""
        name = release.directory.name
        if name == self.proved:
            return msgspec.structs.replace(self, going_to="")
        return Kept(proved=name, former=self.proved, former_models=self.models, instead=instead)

    def with_way_back(self, models: int) -> Kept:
        """The way to the former release begins, or goes on; until it, `models` are served."""
        if self.going_to:
            return self
        return msgspec.structs.replace(self, going_to=self.former, models=models)

    def generations(self) -> list[int]:
        """What to serve on the way back, best first: what is active, else what was served there.

        The other way round where that is active only because the present release can no more.
        """
        wanted = [self.models, self.former_models]
        if self.models == self.instead:
            wanted.reverse()
        return [number for number in dict.fromkeys(wanted) if number] or [0]

    def without_way_back(self) -> Kept:
        """The former release did not take over: all is as before."""
        return msgspec.structs.replace(self, going_to="")


def read_kept(layout: Layout) -> Kept:
    """What is written down on this node. Raises StorageError if it cannot be read."""
    path = layout.install_state / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except PermissionError:
        raise StorageError(
            f"{path} cannot be read by this user", hint="run the command as root"
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}",
            hint="remove it: the next update writes it anew",
        ) from error


def write_kept(layout: Layout, kept: Kept) -> None:
    """Replace what is written down. Raises OSError."""
    write_durable(layout.install_state / _FILE, msgspec.json.encode(kept), mode=0o600)


def kept_releases(layout: Layout, kept: Kept) -> list[InstalledRelease]:
    """The release that proved itself last and the one before, as far as there are any."""
    return [InstalledRelease(layout.releases / name) for name in (kept.proved, kept.former) if name]
