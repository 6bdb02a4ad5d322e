"""The real pair, engine daemon and endpoint, each in its process, and a well-behaved caller beside.

Owns what the oracle looks at from outside: whether the processes live, their memory and
descriptors, the caller's answers, and the records that are left on the disk.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from appliance.access import KeyStore, new_key
from appliance.audit import read_events
from appliance.audit.event import Request, Response
from appliance.audit.fsck import verify
from appliance.config import Config
from appliance.metering import Meter
from installer.readiness import ReadinessSocket
from tests.conftest import REPOSITORY
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.shim.node import eventually, prepare

SECONDS = 120.0
_MEMORY_SLACK = 96 * 1024 * 1024
"""Heaps keep what they once needed; a leak for each of hundreds of cases shows beyond this."""


def build_models(root: Path) -> None:
    """What the catalogue needs of models."""
    node = EngineNode(root)
    node.add(write_qwen3(root / "checkpoint"), name="chat")
    node.add(write_bert(root / "words"), name="letters")


@dataclass(frozen=True, slots=True)
class Keys:
    """Secrets of keys of several kinds."""

    good: str
    probe: str
    revoked: str
    expired: str
    """A second after it was made."""
    bound: str
    """May use the model `letters` alone."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one process holds."""

    memory: int
    descriptors: int


class Daemon:
    """One process that has to live."""

    def __init__(self, module: str, root: Path) -> None:
        readiness = ReadinessSocket()
        self._log = root / f"{module}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, "--root", root],
                env=os.environ | readiness.environment,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
            )
        assert readiness.wait(SECONDS, until=lambda: not self.lives), self._log.read_text()
        readiness.close()

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def figures(self) -> Figures:
        proc = Path(f"/proc/{self._process.pid}")
        rows = (proc / "status").read_text().splitlines()
        memory = next(int(row.split()[1]) * 1024 for row in rows if row.startswith("RssAnon:"))
        return Figures(memory, len(list((proc / "fd").iterdir())))

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(SECONDS) == 0, self.log


@dataclass
class Probe:
    """A caller who does everything right, again and again. `pace` seconds lie between requests."""

    port: int
    secret: str
    pace: float = 0.05
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe")

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def median(self) -> float:
        return statistics.median(self.latencies)

    def once(self, **more: Any) -> None:
        """One request, counted."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "chat", "messages": messages, "max_tokens": 4, "temperature": 0}
        body |= more
        headers = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"}
        began = time.monotonic()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            document = json.loads(response.read())
            if response.status != 200:
                self.failures.append(f"{response.status} {document}")
                return
            self.tokens += document["usage"]["total_tokens"]
            self.latencies.append(time.monotonic() - began)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
        finally:
            connection.close()

    def _run(self) -> None:
        self.once()
        while not self._stop.wait(self.pace):
            self.once()


class Stack:
    """The running pair."""

    def __init__(self, config: Config, keys: Keys, engine: Daemon, shim: Daemon) -> None:
        self.config = config
        self.keys = keys
        self.daemons = {"engine": engine, "shim": shim}
        self.billed = 0
        """Tokens that callers were told of."""

    @property
    def port(self) -> int:
        return self.config.api.listen_port

    @property
    def root(self) -> Path:
        return self.config.layout.root

    def warm(self) -> None:
        """Have everything begin that begins with its first use, such as the process of grammars."""
        probe = self.probe()
        for form in ({}, {}, {"response_format": {"type": "json_object"}}):
            probe.once(**form)
        assert probe.failures == []
        self.billed += probe.tokens

    def probe(self) -> Probe:
        return Probe(self.port, self.keys.probe)

    def figures(self) -> dict[str, Figures]:
        return {name: daemon.figures() for name, daemon in self.daemons.items()}

    def faults(self, before: dict[str, Figures]) -> list[str]:
        """What of the oracle does not hold after a group: daemons, memory, descriptors, records."""
        found = [f"the {name} died" for name, daemon in self.daemons.items() if not daemon.lives]
        if found:
            return found
        for name, was in before.items():
            daemon = self.daemons[name]
            try:
                eventually(partial(_holds_at_most, daemon, was.descriptors), SECONDS)
            except TimeoutError:
                now = daemon.figures().descriptors
                found.append(f"the {name} holds {now} descriptors, {was.descriptors} before")
            grown = daemon.figures().memory - was.memory
            if grown > _MEMORY_SLACK:
                found.append(f"the {name} holds {grown / 1e6:.0f} MB more than before")
            if "Traceback" in daemon.log:
                found.append(f"the {name} was surprised: {daemon.log[-2000:]}")
        return found + self._faults_of_records()

    def _faults_of_records(self) -> list[str]:
        """The log verifies, each request has one result, the bill is what callers were told."""
        found = []
        for holds, fault in (
            (lambda: self._billed() == self.billed, "callers were told of other tokens"),
            (lambda: len(set(map(tuple, self._recorded()))) == 1, "not each request has a result"),
        ):
            try:
                eventually(holds, SECONDS)
            except TimeoutError:
                asked, answered = map(len, self._recorded())
                found.append(
                    f"{fault}: {self._billed()} tokens are billed, {self.billed} were told, "
                    f"{asked} requests were recorded and {answered} results"
                )
        report = verify(self.config.layout.audit)
        found += [f"audit: {finding}" for finding in report.findings]
        return found

    def _recorded(self) -> list[list[str]]:
        """The requests that were recorded, and those whose results were."""
        events = [event for _, event in read_events(self.config.layout.audit)]
        kinds = (Request, Response)
        return [sorted(e.request_id for e in events if isinstance(e, kind)) for kind in kinds]

    def _billed(self) -> int:
        meter = Meter(self.config.layout.usage_db)
        try:
            return sum(row.prompt_tokens + row.completion_tokens for row in meter.rows())
        finally:
            meter.close()


def _holds_at_most(daemon: Daemon, descriptors: int) -> bool:
    return daemon.figures().descriptors <= descriptors


@contextmanager
def standing(models: Path) -> Iterator[Stack]:
    """The pair on a copy of the root `models`, over a short path for the socket's sake."""
    with tempfile.TemporaryDirectory(prefix="hostile") as directory:
        root = Path(directory) / "n"
        subprocess.run(["cp", "-a", models, root], check=True)
        config = prepare(root, store_files=True)
        config.layout.config_file.parent.mkdir(parents=True, exist_ok=True)
        config.layout.config_file.write_text(
            f"[api]\nlisten_port = {config.api.listen_port}\nstore_files = true\n"
        )
        keys = _make_keys(config)
        engine = Daemon("appliance.engine_daemon", root)
        try:
            shim = Daemon("appliance.shim", root)
            try:
                yield Stack(config, keys, engine, shim)
            finally:
                shim.stop()
        finally:
            engine.stop()


def _make_keys(config: Config) -> Keys:
    with KeyStore(config.layout.keys_db) as store:

        def added(**given: Any) -> str:
            key = new_key("hostile", **given)
            store.add(key)
            return key.secret

        revoked, secret = store.create("revoked")
        store.revoke(revoked.id)
        return Keys(
            good=added(),
            probe=added(),
            revoked=secret,
            expired=added(expires=int(time.time()) + 1),
            bound=added(models=["letters"], apis=None),
        )
