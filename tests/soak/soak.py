"""A soak: a node under mixed load, a fault at every so many seconds, and everything judged after.

Owns the order of things.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.access import KeyStore
from tests.soak.ask import Caller
from tests.soak.errands import Errands
from tests.soak.faults import Fault, Field, can_fail_disks, catalogue, clock_library
from tests.soak.ground import Ground, open_files, prepared
from tests.soak.ledger import Entry, Ledger, Window
from tests.soak.load import Load, reference, until_over
from tests.soak.plan import Strike, plan
from tests.soak.questions import counts, said
from tests.soak.verdict import Counted, Told, faults_of_bill, faults_of_log
from tests.soak.watch import Growth, Sample, Watch, growth

WARM_SECONDS = 300.0
"""Of a process's life before growth is looked for."""
Say = Callable[[str], object]


@dataclass(frozen=True)
class Course:
    """How it shall go."""

    seconds: float
    every: float = 20.0
    """Seconds between two faults."""
    rate: float = 8.0
    """Requests a second of the mixed load; errands come on top."""
    seed: int = 1
    faults: Sequence[str] = ()
    """Names of those that strike, one after the other; a shuffled catalogue if empty."""
    judge_growth: bool = True


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    course: Course
    faults: list[str]
    """What did not hold, in words; nothing if all is well."""
    strikes: list[Strike]
    windows: list[Window]
    began: float
    samples: dict[str, list[Sample]]
    growth: dict[str, Growth]
    answers: Counter[str]
    """How many requests ended how: their code, or `complete` or `left`."""
    counted: Counted
    batches: int
    revoked: int
    budgets: int
    stored: int


def soak(models: Path, course: Course, say: Say) -> Outcome:
    """Run the course on a copy of the root `models`; `say` is told what happens."""
    chance = random.Random(course.seed)
    with tempfile.TemporaryDirectory(prefix="clock") as directory, prepared(models) as ground:
        library = clock_library(Path(directory))
        known = catalogue(errors=can_fail_disks(), clock=library is not None)
        strikes = _strikes(known, course, chance)
        ground.start(preload=library)
        return _judged(ground, course, strikes, _under_load(ground, course, strikes, chance, say))


def _strikes(known: Sequence[Fault], course: Course, chance: random.Random) -> list[Strike]:
    if not course.faults:
        return plan(known, chance, seconds=course.seconds, every=course.every)
    by_name = {fault.name: fault for fault in known}
    chosen = [by_name[name] for name in course.faults if name in by_name]
    return [Strike(course.every * n, fault) for n, fault in enumerate(chosen, 1)]


@dataclass(frozen=True)
class _Ran:
    """What went on, when it is over."""

    ledger: Ledger
    load: Load
    errands: Errands
    watch: Watch


def _under_load(
    ground: Ground, course: Course, strikes: Sequence[Strike], chance: random.Random, say: Say
) -> _Ran:
    ledger = Ledger()
    with KeyStore(ground.config.layout.keys_db) as keys:
        _, secret = keys.create("reference")
    caller = Caller(ground.port, secret)
    right = reference(caller)
    for answer in caller.answers:
        ledger.note(Entry(answer, "reference", counts=counts(answer)))
    say(f"{len(right)} questions have their answers")
    load = Load(ground, ledger, right, rate=course.rate, seed=course.seed)
    ran = _Ran(ledger, load, Errands(ground, ledger, load), Watch(ground))
    for part in (ran.watch, load, ran.errands):
        part.start()
    try:
        _strike_all(Field(ground, ledger, chance), strikes, secret, ran.watch.began, say)
        time.sleep(max(0.0, ran.watch.began + course.seconds - time.monotonic()))
    finally:
        for part in (ran.errands, load, ran.watch):
            part.stop()
    say("the load has ended")
    return ran


def _judged(ground: Ground, course: Course, strikes: list[Strike], ran: _Ran) -> Outcome:
    """Everything that is judged afterwards. Stops the node, twice."""
    ledger, errands = ran.ledger, ran.errands
    found = [
        f"LOST: the stored response {name} is {saying!r:.200}"
        for name, saying in _kept_otherwise(ground, ran.load, ledger)
    ]
    if not ground.supervised:
        found.append("the supervisor gave up")
    found += [*ledger.faults, *ledger.unexplained(), *_surprises(ground)]
    ground.stop()
    found += faults_of_bill(ground.config)
    ground.start()  # what faults left open is closed now
    ground.stop()
    left = open_files(ground.disk)
    if left:
        found.append(f"commands left files open: {Counter(left)}")
    told = Told(errands.revoked, errands.budgets, errands.line_requests)
    of_log, counted = faults_of_log(ground.config, ledger, told)
    grown = {}
    if course.judge_growth:
        grown = {name: growth(each, WARM_SECONDS) for name, each in ran.watch.samples.items()}
    grows = [f"the {name} grows: {each}" for name, each in grown.items() if each.grows]
    return Outcome(
        course=course,
        faults=[*found, *of_log, *grows],
        strikes=strikes,
        windows=ledger.windows,
        began=ran.watch.began,
        samples=ran.watch.samples,
        growth=grown,
        answers=Counter(_end_of(entry) for entry in ledger.entries),
        counted=counted,
        batches=errands.batches,
        revoked=len(errands.revoked),
        budgets=len(errands.budgets),
        stored=len(ran.load.kept),
    )


def _strike_all(
    field: Field,
    strikes: Sequence[Strike],
    secret: str,
    began: float,
    say: Say,
) -> None:
    """Each at its time, whether or not the one before is over; returns when all are."""

    def strike(fault: Fault) -> None:
        window = field.ledger.open(fault.name, fault.codes)
        try:
            fault.strike(field)
            window.lifted = time.monotonic()
            window.ended = until_over(field.ground, field.ledger, secret, fault.codes)
        except Exception as error:
            field.ledger.blame(f"{fault.name}: {error!r}")
        struck, well = window.lifted - window.began, window.ended - window.lifted
        say(
            f"{window.began - began:6.0f} s {fault.name}: {struck:.1f} s, "
            f"over after {well:.1f} s; {len(field.ledger.entries)} answers, "
            f"{len(field.ledger.faults)} faults"
        )

    threads = []
    for each in strikes:
        time.sleep(max(0.0, began + each.at - time.monotonic()))
        threads.append(threading.Thread(target=strike, args=[each.fault]))
        threads[-1].start()
    for thread in threads:
        thread.join()


def _kept_otherwise(ground: Ground, load: Load, ledger: Ledger) -> list[tuple[str, object]]:
    """Stored responses that are not what their callers were told."""
    found: list[tuple[str, object]] = []
    for secret, name, saying in load.kept:
        answer = Caller(ground.port, secret).ask("GET", f"/v1/responses/{name}")
        ledger.note(Entry(answer, "stored response"))
        answer.path = "/v1/responses"
        if not answer.complete or said(answer) != saying:
            found.append((name, answer.content))
    return found


def _surprises(ground: Ground) -> list[str]:
    """What the daemons' log has of errors that nobody foresaw."""
    text = ground.log.read_text()
    places = [at for at in range(len(text)) if text.startswith("Traceback", at)]
    return [f"a daemon was surprised: {text[at : at + 1500]}" for at in places[:3]]


def _end_of(entry: Entry) -> str:
    if entry.answer.hung_up:
        return "left"
    return "complete" if entry.answer.complete else entry.answer.code or "?"
