"""Going back to the release that served before, which is kept on the node.

Owns the whole change: the node's lock, the record in the audit log, what is written down of it, and
the return if the former release does not prove itself. The releases do the work, each in its
own interpreter (`installer.reinstate`), also on the return. Refuses media: what is kept here was
verified when it was installed, and the trust state, which keeps older media out, is not touched.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.audit import admin_event
from appliance.config import Config, Layout
from appliance.errors import ApplianceError, ConflictError, NotFoundError, UnavailableError
from appliance.model_store import ModelStore
from appliance.model_store.blobs import storage_errors
from appliance.trust.store import TrustStore
from appliance.trust.withdrawn import Withdrawal
from installer.install import installing
from installer.kept import Kept, read_kept, write_kept
from installer.node import Node
from installer.progress import NoProgress, Progress
from installer.staging import InstalledRelease, current_release

ACTION = "releases.rollback"
_MODULE = "installer.reinstate"

TakeOver = Callable[[InstalledRelease, Sequence[int]], dict[str, Any]]
"""Lets a release serve the first of these generations of models that it can; what it then says."""


@dataclass(frozen=True, slots=True)
class WentBack:
    """What the operator is told at the end."""

    release: str
    release_id: str
    previous: str
    """The version that served until now; `rollback` goes back to it."""
    previous_id: str
    models: dict[str, str]
    generation: int
    former_generation: int
    """Of models; another number than before says that the set has changed."""
    proof: dict[str, Any]


def roll_back(
    config: Config,
    node: Node,
    progress: Progress,
    *,
    even_withdrawn: bool = False,
    take_over: TakeOver | None = None,
) -> WentBack:
    """Let the kept former release serve; if it does not prove itself, all comes back.

    Raises NotFoundError if none is kept; ConflictError, also for a release that the packager has
    withdrawn, unless `even_withdrawn`; UnavailableError with the reason.
    """
    layout = config.layout
    with installing(layout, progress) as lock, storage_errors(layout.state):
        hand = take_over or _Hand(layout, progress, lock)
        serving = ModelStore(layout.models).current_generation().number
        kept = read_kept(layout).with_way_back(serving)
        present, former = _ends(node, kept)
        withdrawn = _check_withdrawn(layout, former, even_withdrawn=even_withdrawn)
        _record(config, present, former, reason=withdrawn)
        write_kept(layout, kept)
        progress.step(f"going back to release {former.version} ({former.id})")
        try:
            said = hand(former, kept.generations())
        except ApplianceError as error:
            raise _returned(config, kept, hand, progress, error) from error
        changed = said["generation"] != kept.models
        instead = said["generation"] if changed else 0
        write_kept(layout, kept.with_proved(former, instead=instead))
        return WentBack(
            release=former.version,
            release_id=former.id,
            previous=present.version,
            previous_id=present.id,
            models=said["models"],
            generation=said["generation"],
            former_generation=kept.models,
            proof=said["proof"],
        )


def releases_of(layout: Layout) -> list[dict[str, object]]:
    """What is on the disk: the current release, the former one, then what was left over.

    Raises StorageError if this user may not know.
    """
    kept = read_kept(layout)
    present = current_release(layout)
    withdrawn = TrustStore(layout.trust).withdrawn()
    rank = ["current", "former", "left over"]
    found = [InstalledRelease(path) for path in _directories(layout)]
    rows = [
        _row(release, _state(release, present, kept), withdrawn.release(release.directory.name))
        for release in found
    ]
    return sorted(rows, key=lambda row: (rank.index(str(row["state"])), row["version"]))


def _directories(layout: Layout) -> list[Path]:
    if not layout.releases.is_dir():
        return []
    return sorted(path for path in layout.releases.iterdir() if path.is_dir())


def _state(release: InstalledRelease, present: InstalledRelease | None, kept: Kept) -> str:
    if release == present:
        return "current"
    return "former" if release.directory.name in {kept.proved, kept.former} else "left over"


def _row(release: InstalledRelease, state: str, found: Withdrawal | None) -> dict[str, object]:
    return {
        "version": release.version,
        "id": release.id,
        "state": state,
        "complete": release.is_complete(),
        "gpu": release.uses_gpu(),
        "withdrawn": found.reason if found is not None else None,
    }


def _check_withdrawn(layout: Layout, former: InstalledRelease, *, even_withdrawn: bool) -> str:
    """What the audit log should say of it. Raises ConflictError if that forbids to go back."""
    found = TrustStore(layout.trust).withdrawn().release(former.directory.name)
    if found is None:
        return ""
    if not even_withdrawn:
        raise found.refusal(
            f"release {former.version}",
            hint="install newer media, or add --even-withdrawn, which is recorded",
        )
    return f"accepted although {found}"


def _ends(node: Node, kept: Kept) -> tuple[InstalledRelease, InstalledRelease]:
    """Where the way begins and where it leads; refuses one that cannot be gone."""
    layout = node.layout
    present = InstalledRelease(layout.releases / kept.proved)
    former = InstalledRelease(layout.releases / kept.going_to)
    if not kept.going_to or not former.is_complete():
        raise NotFoundError(
            "no former release is kept on this node",
            hint="one is kept from the first update on; `appliance releases list` shows what is",
            code="no_former_release",
        )
    if current_release(layout) not in {present, former}:
        raise ConflictError(
            "an update has not been finished",
            hint="run `appliance install MEDIA` again, then roll back",
        )
    if not node.is_system and node.is_running():
        raise ConflictError(
            f"`appliance serve` runs and would go on with release {present.version}",
            hint="stop it, run the command again, then start it",
        )
    return present, former


def _returned(
    config: Config, kept: Kept, take_over: TakeOver, progress: Progress, error: ApplianceError
) -> UnavailableError:
    """Let what served before serve again; the error to end with."""
    layout = config.layout
    present, former = (InstalledRelease(layout.releases / n) for n in (kept.proved, kept.going_to))
    progress.note(f"this failed: {error.message}")
    progress.step(f"returning to release {present.version}")
    outcome = f"release {present.version} and its models are back"
    try:
        take_over(present, [kept.models])
    except ApplianceError as second:
        outcome = f"release {present.version} does not start either: {second.message}"
    write_kept(layout, kept.without_way_back())
    try:
        _record(config, former, present, outcome="error", reason=error.message)
    except ApplianceError as unwritten:
        progress.note(f"the return is not in the audit log: {unwritten.message}")
    return UnavailableError(
        f"release {former.version} did not prove itself: {error.message}; {outcome}",
        hint=error.hint or "`appliance status` says how the node is doing",
        code="release_not_reinstated",
    )


def _record(
    config: Config, present: InstalledRelease, next_one: InstalledRelease, **details: str
) -> None:
    admin_event(
        config.layout,
        config.audit,
        ACTION,
        target=next_one.directory.name,
        version=next_one.version,
        previous=present.directory.name,
        **details,
    )


@dataclass(frozen=True, slots=True)
class _Hand:
    """Runs a release's own program. It holds our lock too, also if this process is killed."""

    layout: Layout
    progress: Progress
    lock: int

    def __call__(self, release: InstalledRelease, generations: Sequence[int]) -> dict[str, Any]:
        """The document that it ends with. Raises UnavailableError with its error."""
        command = [str(release.python), "-I", "-m", _MODULE, str(self.layout.root)]
        command += [release.directory.name, *(f"--models={number}" for number in generations)]
        command += ["--quiet"] if isinstance(self.progress, NoProgress) else []
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=[self.lock]
        )
        try:
            document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise UnavailableError(
                f"its program ended with status {done.returncode} and no answer",
                hint="what it wrote to standard error says why",
            ) from None
        if done.returncode:
            error = document["error"]
            raise UnavailableError(error["message"], hint=error["hint"], code=error["code"])
        return document
