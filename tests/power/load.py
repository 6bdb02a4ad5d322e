"""What goes on while the power may fail, and what of it was acknowledged when.

Owns the ledger: for each acknowledgement the monotonic time at which the caller had it.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Sized
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from appliance.access import KeyStore
from appliance.audit import AuditLog, admin_event
from appliance.config import Config
from appliance.model_store import ModelStore

CHAT = "/v1/chat/completions"
LEAST = 4


@dataclass
class Acknowledged:
    """Times in monotonic nanoseconds."""

    answers: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Request id -> time, prompt and completion tokens."""
    revoked: dict[str, int] = field(default_factory=dict)
    activated: list[tuple[int, int]] = field(default_factory=list)
    """Generation and time."""
    rolled: list[int] = field(default_factory=list)
    """Times at which an epoch of the audit log had ended."""
    failures: list[str] = field(default_factory=list)

    @property
    def fewest(self) -> int:
        """How many of the rarest kind."""
        kinds: tuple[Sized, ...] = (self.answers, self.revoked, self.activated, self.rolled)
        return min(len(kind) for kind in kinds)


class Load:
    """Callers, one who hangs up, and who revokes keys, changes models, ends epochs of the log.

    Each is a thread; what they ask and how long they rest is drawn with `seed`.
    """

    def __init__(self, config: Config, secret: str, callers: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._config = config
        self._secret = secret
        self._stop = threading.Event()
        self.told = Acknowledged()
        jobs = [lambda n=n: self._ask(n) for n in range(callers)]
        self._threads = [
            threading.Thread(target=self._again, args=[job])
            for job in [*jobs, self._hang_up, self._revoke, self._activate, self._roll]
        ]

    def run(self, seconds: float) -> Acknowledged:
        """What was acknowledged in that time, and until there is some of each kind."""
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
        while not self.told.failures and self.told.fewest < LEAST:
            time.sleep(0.05)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.told

    def _again(self, job: Any) -> None:
        while not self._stop.is_set():
            try:
                job()
            except Exception as error:
                self.told.failures.append(repr(error))
                return

    def _ask(self, number: int) -> None:
        text = f"word {number}" * self._rng.randint(1, 4)
        tokens = self._rng.randint(1, 12)
        request_id, document = ask(self._config, self._secret, text, tokens)
        usage = document["usage"]
        told = time.monotonic_ns(), usage["prompt_tokens"], usage["completion_tokens"]
        self.told.answers[request_id] = told

    def _hang_up(self) -> None:
        """Nothing was acknowledged; what was computed is billed all the same."""
        connection = asked(
            self._config, self._secret, "word", self._rng.randint(8, 32), stream=True
        )
        with closing(connection):
            connection.getresponse().read(1)
        self._rest()

    def _roll(self) -> None:
        layout = self._config.layout
        with AuditLog.open(layout.audit, layout.audit_key, self._config.audit) as log:
            log.roll()
        self.told.rolled.append(time.monotonic_ns())
        self._rest()

    def _rest(self) -> None:
        time.sleep(self._rng.uniform(0.0, 0.1))

    def _revoke(self) -> None:
        with KeyStore(self._config.layout.keys_db) as keys:
            key, _ = keys.create("short")
            keys.revoke(key.id)
        admin_event(self._config.layout, self._config.audit, "keys.revoke", target=key.id)
        self.told.revoked[key.id] = time.monotonic_ns()
        self._rest()

    def _activate(self) -> None:
        for version in ("1.0", "2.0"):
            layout = self._config.layout
            made = ModelStore(layout.models).activate("chat", version)
            self.told.activated.append((made.number, time.monotonic_ns()))
            self._rest()


def asked(
    config: Config, secret: str, text: str, tokens: int, *, stream: bool = False
) -> http.client.HTTPConnection:
    """A connection on which one greedy request was sent."""
    connection = http.client.HTTPConnection("127.0.0.1", config.api.listen_port, timeout=180)
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": stream,
    }
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    connection.request("POST", CHAT, json.dumps(body), headers)
    return connection


def ask(config: Config, secret: str, text: str, tokens: int = 4) -> tuple[str, Any]:
    """Request id and answer of one greedy request."""
    with closing(asked(config, secret, text, tokens)) as connection:
        response = connection.getresponse()
        document = json.loads(response.read())
        assert response.status == 200, document
        return response.getheader("x-request-id", ""), document
