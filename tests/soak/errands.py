"""What goes on beside the load: batches, keys that come and go, budgets that are used up.

Owns what each of these must hold by itself: a line of a batch has one outcome, the right one; a key
opens nothing once its revocation was acknowledged; nobody uses more than a budget.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from appliance.access import KeyInfo, KeyStore, new_key
from appliance.audit import admin_event
from appliance.errors import ApplianceError
from tests.shim.batch_input import ENDED, form, jsonl
from tests.soak.ask import Answer, Caller
from tests.soak.ground import Ground
from tests.soak.ledger import Entry, Ledger
from tests.soak.load import Load
from tests.soak.questions import CHAT, Question, counts, questions, said, same

BUDGET_TOKENS = 150
LINES = 8
BATCH_SECONDS, KEY_SECONDS, BUDGET_SECONDS = 5.0, 4.0, 15.0
"""Pauses between two errands of a kind."""
_END_SECONDS = 120.0
_SHUT = frozenset({"invalid_api_key"})
_USED_UP = frozenset({"", "insufficient_quota", "rate_limit_exceeded"})


class Errands:
    """`start`, then `stop`; three threads."""

    def __init__(self, ground: Ground, ledger: Ledger, load: Load) -> None:
        self._ground = ground
        self._ledger = ledger
        self._load = load
        self._stop = threading.Event()
        self._lines = [question for question in questions() if question.path == CHAT]
        self.revoked: list[str] = []
        self.budgets: list[str] = []
        """Ids of keys with a budget."""
        self.line_requests: set[str] = set()
        """Request ids of lines of batches, as their results name them."""
        self.batches = 0
        self._threads = [
            threading.Thread(target=self._again, args=[errand, seconds])
            for errand, seconds in (
                (self._batch, BATCH_SECONDS),
                (self._key, KEY_SECONDS),
                (self._budget, BUDGET_SECONDS),
            )
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns when what was begun has ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _again(self, errand: Callable[[], None], seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                errand()
            except Exception as error:
                self._ledger.blame(f"{errand.__name__}: {error!r}")

    def _caller(self, secret: str) -> Caller:
        return Caller(self._ground.port, secret)

    def _note(self, answer: Answer, kind: str, **more: Any) -> Answer:
        told = counts(answer) if answer.complete and answer.path == CHAT else None
        self._ledger.note(Entry(answer, kind, counts=told, **more))
        return answer

    def _batch(self) -> None:
        began = time.monotonic()
        caller = self._caller(next(iter(self._load.keys)))
        chosen = [self._lines[(self.batches + n) % len(self._lines)] for n in range(LINES)]
        lines = [
            {"custom_id": str(n), "method": "POST", "url": CHAT, "body": question.body}
            for n, question in enumerate(chosen)
        ]
        body, headers = form(jsonl(lines), purpose="batch")
        file = self._persist(caller, "POST", "/v1/files", body, headers)
        wish = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        batch = self._persist(caller, "POST", "/v1/batches", wish)
        path = f"/v1/batches/{batch['id']}"
        for _ in range(int(_END_SECONDS)):
            if batch["status"] in ENDED:
                break
            threading.Event().wait(1.0)
            batch = self._persist(caller, "GET", path)
        if _ran_out_of_disk(batch) and self._ledger.may_be("storage_full", since=began):
            return
        if batch["status"] != "completed":
            self._ledger.blame(f"batch: {batch}")
            return
        self._judge(caller, batch, chosen)
        self.batches += 1

    def _judge(self, caller: Caller, batch: Any, chosen: list[Question]) -> None:
        found = []
        for name in ("output_file_id", "error_file_id"):
            if batch[name] is not None:
                text = self._persist(caller, "GET", f"/v1/files/{batch[name]}/content")
                found += [json.loads(line) for line in text.splitlines()]
        if sorted(line["custom_id"] for line in found) != sorted(map(str, range(len(chosen)))):
            self._ledger.blame(f"batch {batch['id']}: not one outcome a line: {found}")
        for line in found:
            question, response = chosen[int(line["custom_id"])], line["response"]
            if response is None or response["status_code"] != 200:
                self._ledger.blame(f"batch {batch['id']}: {line}")
                continue
            self.line_requests.add(response["request_id"])
            right, cost = self._load.right[question.name]
            answer = Answer(CHAT, 0.0, status=200, content=response["body"])
            if not same(said(answer), right) or counts(answer) != cost:
                self._ledger.blame(f"WRONG {question.name} in a batch: {response['body']}")

    def _persist(
        self, caller: Caller, method: str, path: str, body: Any = None, headers: Any = None
    ) -> Any:
        """What is answered, tried again while faults stand in the way."""
        for _ in range(int(_END_SECONDS)):
            answer = caller.ask(method, path, body, headers=headers)
            self._note(answer, f"{method} {path.split('_')[0]}")
            if answer.complete:
                return answer.content
            threading.Event().wait(1.0)
        raise TimeoutError(f"{path} is not answered: {answer}")

    def _key(self) -> None:
        key = new_key("short")
        caller = self._caller(key.secret)
        question = self._lines[0]
        try:
            with KeyStore(self._ground.config.layout.keys_db) as keys:
                self._record("keys.create", key.info)
                keys.add(key)
                self._note(question.ask(caller, stream=False), "short key", work=question.name)
                keys.revoke(key.info.id)
                self.revoked.append(key.info.id)
                answer = question.ask(caller, stream=False)
                self._note(answer, "revoked key", wanted=_SHUT)
                self._record("keys.revoke", key.info)
        except ApplianceError as error:
            self._excuse(error)

    def _budget(self) -> None:
        key = new_key("budget")
        question = self._lines[2]
        try:
            with KeyStore(self._ground.config.layout.keys_db) as keys:
                keys.add(key)
                keys.limit(key.info.id, {"tokens_per_day": BUDGET_TOKENS})
        except ApplianceError as error:
            self._excuse(error)
            return
        self.budgets.append(key.info.id)
        caller = self._caller(key.secret)

        def ask(_: int) -> Answer:
            answer = question.ask(caller, stream=False)
            return self._note(answer, "budget", work=question.name, wanted=_USED_UP)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(ask, range(9)))

    def _record(self, action: str, key: KeyInfo) -> None:
        config = self._ground.config
        admin_event(config.layout, config.audit, action, target=key.id)

    def _excuse(self, error: ApplianceError) -> None:
        """A command may fail while the disk does."""
        if not any("storage" in w.codes and w.lifted == 0 for w in self._ledger.windows):
            self._ledger.blame(f"a command failed: {error!r}: {error.message}")


def _ran_out_of_disk(batch: Any) -> bool:
    """Whether the node ended it so: no line begins on a disk whose rest is the audit log's."""
    told = batch["errors"]["data"] if batch["errors"] else []
    return batch["status"] == "failed" and {error["code"] for error in told} == {"storage_full"}
