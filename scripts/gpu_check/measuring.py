"""One shape: prepared once, then measured as often as the sequence wants.

Owns its node, the two workers, and what of the run is still missing. A part that fails says why in
the run's list, and what comes after it is still tried.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError
from bench_peers.checkpoint import Shape
from bench_peers.work import PeerError, say
from gpu_check.budget import Budget
from gpu_check.node import Node
from gpu_check.results import Measured, Run
from gpu_check.worker import Worker
from gpu_check.workloads import Workload
from installer.checkpoint.quantize import Precision

ATTENTION = ("pinned", "default")
"""As gpu_check.kinds has them, which this interpreter cannot import on a GPU machine."""
COMPANY = "two models at once"
"""As gpu_check.company has it."""
LATE = "the time was over before it"
_VENVS = ("venv-cuda13", "venv")
"""Interpreters of the release, that of the fastest provider first."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all shapes have in common."""

    run: Run
    budget: Budget
    grade: Precision
    rounds: int
    release: Path
    peer_python: Path | None
    work: Path
    written: Callable[[], None]
    """Called when there are new figures."""


class ShapeError(Exception):
    """This shape cannot be measured further, for this reason."""


class Measuring:
    """One shape on its way."""

    def __init__(self, shape: Shape, setting: Setting, planned: Sequence[str]) -> None:
        """`planned` are the words of what is to be measured of it."""
        self.name = shape.name
        self._shape, self._setting, self._planned = shape, setting, planned
        self._python: Path | None = None
        self._node: Node | None = None
        self._ours: Worker | None = None
        self._peer: Worker | None = None
        self._kinds: Worker | None = None
        self._company: Worker | None = None
        self._measured = Measured(shape.name, setting.grade)
        setting.run.missing |= dict.fromkeys(map(self._words, planned), LATE)

    def prepare(self, *, again: bool) -> None:
        """Make a node with a compiled model of this shape, while the peer loads its weights.

        `again`: the peer will load them once more. Raises ShapeError.
        """
        say(f"{self.name}: preparing")
        self._setting.run.shapes.append(self._measured)
        with self._failing():
            self._node = node = Node(self._setting.work / self.name)
            self._measured.preparation = node.seconds
            checkpoint = node.write(self._shape)
            self._peer = self._start_peer(checkpoint)
            bundle = node.add(checkpoint, self.name, self._setting.grade)
            if not again:  # of a large one there is no room for three copies
                self._await_peer()
                shutil.rmtree(checkpoint)
            node.compile(bundle, self._setting.release / "venv/bin/python")
            if again:
                self._await_peer()

    def open(self) -> None:
        """Start the engine, and the peer if it does not run. Raises ShapeError."""
        with self._failing():
            assert self._node is not None
            starting = self._peer is None and not self._measured.refusal
            if starting:
                self._peer = self._start_peer(self._node.layout.root / "checkpoint")
            self._ours = self._start(self._node, "gpu_check.ours")
            self._measured.ours = facts = self._ours.facts
            if starting:
                self._await_peer()
        say(f"{self.name}: {facts['provider']} serves; {'; '.join(facts['reasons'])}")

    def measure(self, workload: Workload) -> None:
        """Both engines in turns; the first turn warms up.

        An engine that fails is started anew for what comes next. Raises ShapeError if that fails.
        """
        try:
            self._turns(workload)
        except PeerError as error:
            say(f"{self.name}, {workload.words}: {error}")
            self._give_up([workload.words], str(error))
            with self._failing():
                assert self._node is not None
                self._ours = self._start(self._node, "gpu_check.ours")
        self._setting.written()

    def measure_kinds(self) -> None:
        """What kinds of steps cost; what fails stays missing, with its reason."""
        assert self._node is not None
        try:
            self._kinds = self._start(self._node, "gpu_check.kinds")
            for attention in ATTENTION:
                say(f"{self.name}: {kinds_of(attention)}")
                answer = self._kinds.ask({"attention": attention}, self._longest)
                self._measured.kinds[attention] = answer["steps"]
                self._done(kinds_of(attention))
            self._kinds.close()
        except PeerError as error:
            say(f"{self.name}: kinds of steps: {error}")
            self._give_up([kinds_of(attention) for attention in ATTENTION], str(error))
        self._kinds = None
        self._setting.written()

    def measure_company(self) -> None:
        """Whether models say the same beside each other as alone; if not, why."""
        assert self._node is not None
        try:
            self._company = self._start(self._node, "gpu_check.company")
            say(f"{self.name}: {COMPANY}")
            self._measured.loads_beside = self._company.ask({}, self._longest)["loads"]
            self._done(COMPANY)
            self._company.close()
        except PeerError as error:
            say(f"{self.name}: {COMPANY}: {error}")
            self._give_up([COMPANY], str(error))
        self._company = None
        self._setting.written()

    def close(self) -> None:
        """Let both engines go, so that the card is free."""
        for worker in (self._ours, self._peer):
            if worker is not None:
                worker.close()
        self._ours = self._peer = None

    def end(self, *, keep: bool) -> None:
        """Whatever still runs is ended; the node goes unless it is to be kept."""
        for worker in (self._ours, self._peer, self._kinds, self._company):
            if worker is not None:
                worker.kill()
        self._ours = self._peer = self._kinds = self._company = None
        if not keep and self._node is not None:
            shutil.rmtree(self._node.layout.root, ignore_errors=True)

    def _start_peer(self, checkpoint: Path) -> Worker:
        """transformers, which loads the model while others work."""
        assert self._node is not None
        python = self._setting.peer_python or self._setting.release / "venv/bin/python"
        log = self._node.layout.root / "peer.log"
        return Worker(python, "gpu_check.peer", [str(checkpoint)], log)

    def _await_peer(self) -> None:
        assert self._peer is not None
        try:
            self._peer.wait(self._longest)
            self._measured.peer = self._peer.facts
        except PeerError as error:
            self._without_peer(error)

    def _without_peer(self, error: PeerError) -> None:
        say(f"transformers cannot be measured: {error}")
        self._measured.refusal = str(error)
        self._peer = None

    def _start(self, node: Node, module: str) -> Worker:
        """A worker in the interpreter that the model was compiled for. Raises PeerError."""
        root, reasons = node.layout.root, []
        for venv in _VENVS:
            python = self._setting.release / venv / "bin/python"
            if not python.exists() or self._python not in {None, python}:
                continue
            worker = Worker(python, module, [str(root), self.name], root / f"{module}-{venv}.log")
            try:
                worker.wait(self._longest)
            except PeerError as error:
                reasons.append(f"{venv}: {error}")
                continue
            except BaseException:
                worker.kill()
                raise
            self._python = python
            self._setting.run.device = worker.facts["device"]
            return worker
        raise PeerError("; ".join(reasons) or "there is no interpreter to start it with")

    def _turns(self, workload: Workload) -> None:
        """Raises PeerError if our engine fails."""
        begin = time.monotonic()
        for turn in range(self._setting.rounds + 1):
            start = time.monotonic()
            self._turn(workload, turn)
            now = time.monotonic()
            if turn:
                self._done(workload.words)
                if not self._setting.budget.allows_another(now - begin, now - start):
                    break

    def _turn(self, workload: Workload, turn: int) -> None:
        assert self._ours is not None
        self._count("ours", workload, turn, self._ours.run(workload, turn, self._longest))
        if self._peer is None:
            return
        try:
            self._count("peer", workload, turn, self._peer.run(workload, turn, self._longest))
        except PeerError as error:
            self._without_peer(error)

    def _count(self, side: str, workload: Workload, turn: int, seconds: float) -> None:
        say(f"{self.name}, turn {turn}, {workload.words}: {side} {seconds:.3f} s")
        if turn:
            self._measured.add(side, workload, seconds)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What goes wrong is the reason for all of this shape that is missing."""
        try:
            yield
        except (ApplianceError, PeerError, OSError) as error:
            say(f"{self.name}: {error}")
            self._give_up(self._planned, str(error))
            raise ShapeError(str(error)) from error

    @property
    def _longest(self) -> float | None:
        return self._setting.budget.longest

    def _give_up(self, words: Sequence[str], reason: str) -> None:
        """Say of these, as far as they are missing, why."""
        missing = self._setting.run.missing
        for what in map(self._words, words):
            if what in missing:
                missing[what] = reason

    def _done(self, what: str) -> None:
        self._setting.run.missing.pop(self._words(what), None)

    def _words(self, what: str) -> str:
        return f"{self.name}: {what}"


def kinds_of(attention: str) -> str:
    return f"kinds of steps, {attention} attention"
