"""The mixed load: many keys, every API, callers who stay and callers who do not.

Owns the pace and the mixture. Each job is one thing that an application does; what came of it goes
into the ledger, and what was wrong is judged on the spot.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from appliance.access import KeyStore
from tests.soak.ask import Answer, Caller
from tests.soak.ground import Ground
from tests.soak.ledger import Entry, Ledger
from tests.soak.questions import CHAT, RESPONSES, STREAMED, Question, counts, questions, said, same

KEYS = 24
WORKERS = 12
BAD: Sequence[tuple[str, str, Any, str]] = (
    ("POST", "/v1/chat/completions", b"{", "invalid_json"),
    ("POST", "/v1/chat/completions", {"model": "chat"}, "missing_parameter"),
    ("POST", "/v1/chat/completions", {"model": "none", "messages": []}, "invalid_value"),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "none", "messages": [{"role": "user", "content": "a"}]},
        "model_not_found",
    ),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "user", "content": "a "}], "evil": 1},
        "unknown_parameter",
    ),
    (
        "POST",
        "/v1/chat/completions",
        {"model": "chat", "messages": [{"role": "user", "content": "a " * 3000}]},
        "context_length_exceeded",
    ),
    ("GET", "/v1/responses/resp_none", None, "response_not_found"),
    ("GET", "/v1/nothing", None, "unknown_url"),
    ("DELETE", "/v1/models", None, "method_not_allowed"),
)
LOOKS = ("/health", "/ready", "/metrics", "/v1/models")
_OVER_SECONDS = 120.0
_AGAIN = {
    "model": "chat",
    "messages": [{"role": "user", "content": "again"}],
    "max_tokens": 2,
    "temperature": 0,
}
Reference = dict[str, tuple[Any, tuple[int, int]]]
"""Name of a question -> what its answer says, and the tokens that it costs."""


def reference(caller: Caller) -> Reference:
    """The right answers: from a node at rest, one at a time, each twice the same."""
    found: Reference = {}
    for question in questions():
        answers = [question.ask(caller, stream=False) for _ in range(2)]
        assert all(answer.complete for answer in answers), answers
        first, second = ((said(answer), counts(answer)) for answer in answers)
        assert same(first[0], second[0]), question.name
        assert first[1] == second[1], question.name
        found[question.name] = first
    return found


class Load:
    """`start`, then `stop`; `rate` requests a second come from many keys at random."""

    def __init__(
        self, ground: Ground, ledger: Ledger, right: Reference, *, rate: float, seed: int
    ) -> None:
        self._ground = ground
        self._ledger = ledger
        self.right = right
        self._pause = WORKERS / rate
        self._stop = threading.Event()
        self._questions = questions()
        self.kept: list[tuple[str, str, Any]] = []
        """Stored responses: the secret of their key, their id, what they say."""
        with KeyStore(ground.config.layout.keys_db) as keys:
            made = [keys.create(f"caller {number}") for number in range(KEYS)]
        self.keys = {secret: info.id for info, secret in made}
        self._threads = [
            threading.Thread(target=self._work, args=[random.Random(f"{seed} {number}")])
            for number in range(WORKERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self, caller: Caller, question: Question, *, stream: bool) -> Answer:
        """Ask, and compare with the right answer if the whole of one came."""
        answer = question.ask(caller, stream=stream)
        told = counts(answer) if answer.complete else None
        if told is not None:
            right, cost = self.right[question.name]
            found = said(answer)
            if not same(found, right):
                self._ledger.blame(f"WRONG {question.name}: {found!r:.200} for {right!r:.200}")
            if told != cost:
                self._ledger.blame(f"WRONG {question.name}: {told} tokens for {cost}")
        self._note(answer, question.path, work=question.name, counts=told, caller=caller)
        return answer

    def _note(self, answer: Answer, kind: str, *, caller: Caller, **more: Any) -> None:
        key_id = self.keys.get(caller.secret, "")
        self._ledger.note(Entry(answer, kind, key_id=key_id, **more))

    def _work(self, chance: random.Random) -> None:
        jobs: dict[Callable[[Caller, random.Random], None], int] = {
            self._whole: 30,
            self._streamed: 30,
            self._leave: 12,
            self._bad: 8,
            self._look: 8,
            self._stored: 8,
            self._tokenize: 4,
        }
        choices, weights = list(jobs), list(jobs.values())
        secrets = list(self.keys)
        while not self._stop.wait(chance.expovariate(1 / self._pause)):
            (job,) = chance.choices(choices, weights)
            caller = Caller(self._ground.port, chance.choice(secrets))
            try:
                job(caller, chance)
            except Exception as error:
                self._ledger.blame(f"{job.__name__}: {error!r}")

    def _whole(self, caller: Caller, chance: random.Random) -> None:
        answer = self.check(caller, chance.choice(self._questions), stream=False)
        self._keep(answer, caller)

    def _streamed(self, caller: Caller, chance: random.Random) -> None:
        able = [question for question in self._questions if question.path in STREAMED]
        answer = self.check(caller, chance.choice(able), stream=True)
        self._keep(answer, caller)

    def _keep(self, answer: Answer, caller: Caller) -> None:
        """Remember a response that is said to be stored."""
        if answer.path != RESPONSES or not answer.complete:
            return
        document = answer.content
        document = document[-1]["response"] if isinstance(document, list) else document
        if document["store"]:
            self.kept.append((caller.secret, document["id"], said(answer)))

    def _leave(self, caller: Caller, chance: random.Random) -> None:
        able = [question for question in self._questions if question.path in STREAMED]
        question = chance.choice(able)
        answer = question.ask(caller, stream=True, hang_up_after=chance.randint(0, 6))
        self._note(answer, "leaves", work=question.name, caller=caller)

    def _bad(self, caller: Caller, chance: random.Random) -> None:
        method, path, body, code = chance.choice(BAD)
        if chance.random() < 0.2:
            caller, code = Caller(caller.port, caller.secret[:-1] + "?"), "invalid_api_key"
        answer = caller.ask(method, path, body)
        self._note(answer, f"bad {path}", wanted=frozenset({code}), caller=caller)

    def _look(self, caller: Caller, chance: random.Random) -> None:
        answer = caller.ask("GET", chance.choice(LOOKS))
        if answer.path != "/ready":
            self._note(answer, answer.path, caller=caller)

    def _tokenize(self, caller: Caller, chance: random.Random) -> None:
        body = {"model": "chat", "prompt": "How do I add a model?"}
        self._note(caller.ask("POST", "/tokenize", body), "/tokenize", caller=caller)

    def _stored(self, caller: Caller, chance: random.Random) -> None:
        """Read a stored response again; build on one, or delete it, now and then."""
        if not self.kept:
            return
        place = chance.randrange(len(self.kept))
        secret, name, saying = self.kept[place]
        caller = Caller(caller.port, secret)
        path = f"{RESPONSES}/{name}"
        answer = caller.ask("GET", path)
        self._note(answer, "stored response", caller=caller)
        if answer.complete and answer.content["id"] != name:
            self._ledger.blame(f"WRONG: another response than {name}")
        answer.path = RESPONSES
        if answer.complete and said(answer) != saying:
            self._ledger.blame(f"WRONG: the response {name} was kept otherwise than told")
        if chance.random() < 0.3:
            body: dict[str, Any] = {"model": "chat", "input": "more", "previous_response_id": name}
            body |= {"max_output_tokens": 4, "temperature": 0, "store": False}
            answer = caller.ask("POST", RESPONSES, body)
            told = counts(answer) if answer.complete else None
            self._note(answer, "builds on", work=name, counts=told, caller=caller)


def until_over(ground: Ground, ledger: Ledger, secret: str, codes: frozenset[str]) -> float:
    """When nothing of `codes` was seen any more, monotonic; other faults do not count.

    That is when a wrong request is refused for what is wrong with it and, if the engine was away,
    when the node says that it is ready and answers. Raises TimeoutError.
    """
    caller = Caller(ground.port, secret)
    deadline = time.monotonic() + _OVER_SECONDS
    while time.monotonic() < deadline:
        answer = caller.ask("POST", CHAT, {"model": "chat"})
        ledger.note(Entry(answer, "refused", wanted=frozenset({"missing_parameter"})))
        if answer.code not in codes and "engine_unavailable" in codes:
            answer = caller.ask("GET", "/ready")
            if answer.status == 200:
                answer = caller.ask("POST", CHAT, _AGAIN)
                told = counts(answer) if answer.complete else None
                ledger.note(Entry(answer, "again", work="again", counts=told))
            else:
                answer.code = "engine_unavailable"
        if answer.code not in codes:
            return answer.ended
        time.sleep(0.1)
    raise TimeoutError(f"the node does not serve again: {caller.answers[-1]}")
