"""The catalogue of faults: each real, each with what callers may notice of it.

Owns doing and undoing them. Refuses to judge the node: whoever strikes asks afterwards whether it
serves again, and the ledger whether anything else went wrong meanwhile.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.access import KeyStore
from tests.soak.ask import LOST, Answer, Caller
from tests.soak.connections import SLOW, flood, half_sent, slow_readers
from tests.soak.ground import START_SECONDS, Ground
from tests.soak.ledger import IN_RESPONSES, Entry, Ledger
from tests.soak.questions import CHAT

ENGINE_AWAY = frozenset({"engine_unavailable", "engine_error", "model_loading"})
ENGINE_AWAY |= IN_RESPONSES
DISK = frozenset({"audit_unavailable", "storage"}) | IN_RESPONSES
FULL_DISK = DISK | {"storage_full"}
FULL_SECONDS, ERROR_SECONDS, STOPPED_SECONDS, CLOCK_SECONDS = 8.0, 4.0, 10.0, 6.0
CLOCK_JUMP = 2 * 3600
REVOKED_WITHIN = 5.0
"""Seconds from a revocation's acknowledgement to the end of its streams; documented is one, and
the machine has other work."""


@dataclass(frozen=True)
class Fault:
    """One of the catalogue."""

    name: str
    codes: frozenset[str]
    """Errors that callers may see while it holds."""
    strike: Callable[[Field], None]
    """Does it and undoes it."""
    starts: dict[str, int] = field(default_factory=dict)
    """How many new processes of which daemon it makes necessary."""
    has: str = ""
    """The daemon that nothing else may touch meanwhile."""
    takes: float = 20.0
    """Seconds at most, about, until the node serves again."""


@dataclass
class Field:
    """Where faults strike."""

    ground: Ground
    ledger: Ledger
    chance: random.Random

    def caller(self) -> tuple[str, Caller]:
        """A key of its own: its id and its holder."""
        with KeyStore(self.ground.config.layout.keys_db) as keys:
            info, secret = keys.create("fault")
        return info.id, Caller(self.ground.port, secret)


def _end(name: str, number: signal.Signals) -> Callable[[Field], None]:
    def strike(here: Field) -> None:
        pid = here.ground.await_process(name)
        os.kill(pid, number)
        _until_gone(pid)

    return strike


def _until_gone(pid: int) -> None:
    """Returns when the supervisor has taken note of the end of `pid`."""
    deadline = time.monotonic() + START_SECONDS
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the process {pid} does not end")
        time.sleep(0.05)


def _stopped(here: Field) -> None:
    pid = here.ground.await_process("engine")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    os.kill(pid, signal.SIGCONT)


def _hangs(here: Field) -> None:
    """Stopped for good: the supervisor has to notice by itself."""
    pid = here.ground.await_process("engine")
    os.kill(pid, signal.SIGSTOP)
    _until_gone(pid)


def _disk_full(here: Field) -> None:
    hog = here.ground.disk / "hog"
    try:
        with hog.open("wb", buffering=0) as file:
            size = 64 * 1024 * 1024
            while size >= 512:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
        time.sleep(FULL_SECONDS)
    finally:
        hog.unlink(missing_ok=True)


def _disk_errors(calls: str) -> Callable[[Field], None]:
    """Every one of the endpoint's system calls `calls` fails with EIO for a while."""

    def strike(here: Field) -> None:
        pid = here.ground.await_process("shim")
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid)]
        command += ["-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"]
        with subprocess.Popen(command) as tracer:
            time.sleep(ERROR_SECONDS)
            tracer.terminate()
            try:
                tracer.wait(5)
            except subprocess.TimeoutExpired:
                tracer.kill()  # the kernel lets go of what it traced

    return strike


def _clock(seconds: int) -> Callable[[Field], None]:
    def strike(here: Field) -> None:
        here.ground.clock.write_text(str(seconds))
        time.sleep(CLOCK_SECONDS)
        here.ground.clock.write_text("0")

    return strike


def _poisoned(here: Field) -> None:
    """A request at which the engine ends, whenever it runs; sent until it is refused for that."""
    _, caller = here.caller()
    text = f"poison {here.chance.randrange(1 << 30)} " * 4

    def kill(event: int) -> None:
        if event == 2:
            os.kill(here.ground.await_process("engine"), signal.SIGKILL)

    ends = 0
    while ends <= 2:
        answer = caller.ask("POST", CHAT, _long(text), heard=kill)
        # On a slow machine the answer may be complete before its second event is read.
        codes = {"", "engine_unavailable"} if ends < 2 else {"request_ends_engine"}
        here.ledger.note(Entry(answer, "poisoned", work=text, wanted=frozenset(codes)))
        ends += bool(answer.code) or ends == 2
        _await_ready(caller)


def _long(text: str) -> dict[str, Any]:
    """A stream that goes on for a while."""
    messages = [{"role": "user", "content": text}]
    body = {"model": "chat", "messages": messages, "temperature": 0, "stream": True}
    return body | {"max_tokens": 300, "ignore_eos": True, "n": 2}


def _await_ready(caller: Caller) -> None:
    deadline = time.monotonic() + START_SECONDS
    while caller.ask("GET", "/ready").status != 200:
        if time.monotonic() > deadline:
            raise TimeoutError("the engine does not come back")
        time.sleep(0.1)


def _revoked(here: Field) -> None:
    """Keys are revoked under their running streams."""
    with KeyStore(here.ground.config.layout.keys_db) as keys:
        made = [keys.create("fault") for _ in range(3)]
        callers = [Caller(here.ground.port, secret) for _, secret in made]
        running = threading.Barrier(len(callers) + 1, timeout=60)

        def ask(caller: Caller) -> Answer:
            return caller.ask(
                "POST", CHAT, _long("revoked"), heard=lambda n: running.wait() if n == 2 else 0
            )

        with ThreadPoolExecutor(len(callers)) as pool:
            asked = [pool.submit(ask, caller) for caller in callers]
            running.wait()
            for info, _ in made:
                keys.revoke(info.id)
            at = time.monotonic()
            answers = [each.result() for each in asked]
    for answer, caller in zip(answers, callers, strict=True):
        here.ledger.note(Entry(answer, "revoked", wanted=frozenset({"", "key_revoked"})))
        if not answer.complete and answer.ended - at > REVOKED_WITHIN:
            here.ledger.blame(f"a revoked key streamed for {answer.ended - at:.1f} s more")
        answer = caller.ask("POST", CHAT, _long("revoked"))
        here.ledger.note(Entry(answer, "revoked", wanted=frozenset({"invalid_api_key"})))


def _slow(here: Field) -> None:
    _, caller = here.caller()
    began = time.monotonic()
    slow_readers(caller, CHAT, _long("slow"))
    for _ in range(SLOW):  # nobody read what they are called
        left = Answer(CHAT, began, time.monotonic(), hung_up=True)
        here.ledger.note(Entry(left, "slow reader"))


def catalogue(*, errors: bool, clock: bool) -> list[Fault]:
    """All faults; `errors` of the disk need strace, those of the `clock` a compiler."""
    shim_gone = frozenset({LOST, "shutting_down"}) | IN_RESPONSES
    crowded = frozenset({LOST, "too_many_connections"})
    found = [
        Fault(
            "engine killed", ENGINE_AWAY, _end("engine", signal.SIGKILL), {"engine": 1}, "engine"
        ),
        Fault("engine hangs", ENGINE_AWAY, _hangs, {"engine": 1}, "engine", 85.0),
        Fault("poisoned request", ENGINE_AWAY, _poisoned, {"engine": 2}, "engine", 40.0),
        Fault("endpoint killed", shim_gone, _end("shim", signal.SIGKILL), {"shim": 1}, "shim"),
        Fault(
            "endpoint restarted", shim_gone, _end("shim", signal.SIGTERM), {"shim": 1}, "shim", 40.0
        ),
        Fault("engine stopped for a while", ENGINE_AWAY, _stopped, {}, "engine"),
        Fault("disk full", FULL_DISK, _disk_full, {}, "disk", 60.0),
        Fault("slow readers", frozenset(), _slow),
        Fault("flood of connections", crowded, lambda here: flood(here.ground.port)),
        Fault("half-sent requests", frozenset(), lambda here: half_sent(here.ground.port)),
        Fault("keys revoked under load", frozenset(), _revoked, {}, "engine"),
    ]
    if errors:
        found += [
            Fault("flushes fail", DISK, _disk_errors("fdatasync,fsync"), {}, "shim"),
            Fault("writes fail", DISK, _disk_errors("pwrite64"), {}, "shim"),
        ]
    if clock:
        found += [
            Fault("clock two hours ahead", frozenset(), _clock(CLOCK_JUMP)),
            Fault("clock two hours behind", frozenset(), _clock(-CLOCK_JUMP)),
        ]
    return found


def can_fail_disks() -> bool:
    """Whether strace may trace here."""
    strace = shutil.which("strace")
    return (
        strace is not None
        and not subprocess.run([strace, "-qq", "-o", "/dev/null", "true"]).returncode
    )


def clock_library(base: Path) -> Path | None:
    """The library that falsifies the clock; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    made = base / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", made, source], check=True)
    return made
