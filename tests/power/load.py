"""What goes on while the power may fail, and what of it was acknowledged when.

Owns the ledger: for each acknowledgement the monotonic time at which the caller had it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from appliance.access import KeyStore
from appliance.audit import admin_event
from appliance.config import Config
from appliance.model_store import ModelStore

CHAT = "/v1/chat/completions"


@dataclass
class Acknowledged:
    """Times in monotonic nanoseconds."""

    answers: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Request id -> time, prompt and completion tokens."""
    revoked: dict[str, int] = field(default_factory=dict)
    activated: list[tuple[int, int]] = field(default_factory=list)
    """Generation and time."""
    failures: list[str] = field(default_factory=list)


class Load:
    """Callers, somebody who revokes keys, somebody who changes models; each in a thread."""

    def __init__(self, config: Config, secret: str, callers: int) -> None:
        self._config = config
        self._secret = secret
        self._stop = threading.Event()
        self.told = Acknowledged()
        jobs = [lambda n=n: self._ask(n) for n in range(callers)]
        self._threads = [
            threading.Thread(target=self._again, args=[job])
            for job in [*jobs, self._revoke, self._activate]
        ]

    def run(self, seconds: float) -> Acknowledged:
        """What was acknowledged in that time."""
        for thread in self._threads:
            thread.start()
        time.sleep(seconds)
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
        request_id, document = ask(self._config, self._secret, f"word {number}")
        usage = document["usage"]
        told = time.monotonic_ns(), usage["prompt_tokens"], usage["completion_tokens"]
        self.told.answers[request_id] = told

    def _revoke(self) -> None:
        with KeyStore(self._config.layout.keys_db) as keys:
            key, _ = keys.create("short")
            keys.revoke(key.id)
        admin_event(self._config.layout, self._config.audit, "keys.revoke", target=key.id)
        self.told.revoked[key.id] = time.monotonic_ns()
        time.sleep(0.05)

    def _activate(self) -> None:
        for version in ("1.0", "2.0"):
            layout = self._config.layout
            made = ModelStore(layout.models).activate("chat", version)
            self.told.activated.append((made.number, time.monotonic_ns()))
            time.sleep(0.05)


def ask(config: Config, secret: str, text: str) -> tuple[str, Any]:
    """Request id and answer of one greedy request."""
    connection = http.client.HTTPConnection("127.0.0.1", config.api.listen_port, timeout=60)
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
        "temperature": 0,
    }
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    try:
        connection.request("POST", CHAT, json.dumps(body), headers)
        response = connection.getresponse()
        document = json.loads(response.read())
        assert response.status == 200, document
        return response.getheader("x-request-id", ""), document
    finally:
        connection.close()
