"""A caller that hangs up at any moment frees its slot and is billed for what was computed."""

from __future__ import annotations

import http.client
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.audit.event import Response
from appliance.pb import engine_v1_pb2 as pb
from appliance.pb import engine_v1_pb2_grpc as pb_grpc
from tests.conftest import FULL_VARIABLE
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.shim.node import PATIENCE, Node, eventually
from tests.shim.real_node import served

_log = logging.getLogger(__name__)
SLOTS = 2
TIMES = 20 if os.environ.get(FULL_VARIABLE) else 1
"""For each phase, streamed and not: 200 in all, or 10."""
ANSWER = 600
PHASES = {
    "queued": "queued",
    "prefill": "prefill",
    "first token": "generating",
    "middle": "generating",
    "done": "done",
}
"""When a caller hangs up, and where the engine has to be stopped then."""
TRIES = 50
"""On a busy machine the engine may be further than it was when it was asked."""


def build_models(root: Path) -> None:
    EngineNode(root).add(write_qwen3(root / "checkpoint", context=32_768), name="chat")


SETTINGS = f"max_sequences = {SLOTS}\ntoken_budget = 16\ndraft_tokens = 0"
"""Two slots, and prompts in small chunks, so that each phase lasts."""
node = served("disconnect-models", build_models, SETTINGS)


@pytest.fixture(scope="module")
def engine(node: Node) -> Iterator[pb_grpc.EngineStub]:
    """The engine, asked directly."""
    with grpc.insecure_channel(f"unix:{node.config.layout.engine_socket}") as channel:
        yield pb_grpc.EngineStub(channel)  # type: ignore[no-untyped-call]


def stats(engine: pb_grpc.EngineStub) -> pb.ModelStats:
    found: pb.ModelStats = engine.Stats(pb.StatsRequest()).models[0]
    return found


def ask(number: int, *, stream: bool, words: int = 900) -> dict[str, Any]:
    """A question like no other, so that nothing of it is in the prefix cache."""
    return {
        "model": "chat",
        "messages": [{"role": "user", "content": f"{number:05d} " + "word " * words}],
        "max_tokens": ANSWER,
        "ignore_eos": True,
        "reasoning_effort": "none",
        "stream": stream,
    }


class Caller:
    """One request on a connection of its own."""

    def __init__(self, node: Node, body: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", node.config.api.listen_port, timeout=PATIENCE
        )
        headers = {"Authorization": f"Bearer {node.secret}", "Content-Type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)

    def read_all(self) -> None:
        with closing(self._connection.getresponse()) as response:
            assert response.status == 200
            response.read()

    def hang_up(self) -> None:
        self._connection.close()


def reached(phase: str, before: pb.ModelStats, now: pb.ModelStats) -> bool:
    """Whether the one request that is new since `before` is there."""
    generated = now.generated_tokens - before.generated_tokens
    match phase:
        case "queued":
            return bool(now.sequences_waiting)
        case "prefill":
            return now.prompt_tokens > before.prompt_tokens
        case "first token":
            return generated > 0
        case _:
            return generated > 20


@contextmanager
def full(node: Node, engine: pb_grpc.EngineStub, number: int) -> Iterator[None]:
    """All slots are taken, for longer than anything here lasts."""
    with ExitStack() as stack:
        for index in range(SLOTS):
            caller = Caller(
                node, ask(number + index, stream=True, words=2) | {"max_tokens": 30_000}
            )
            stack.callback(caller.hang_up)
        eventually(lambda: stats(engine).sequences_running == SLOTS)
        yield


class Ledger:
    """Bills beside what the engine counts."""

    def __init__(self, node: Node, engine: pb_grpc.EngineStub) -> None:
        self._node = node
        self._engine = engine
        self._seen = self._bills()
        self._before = stats(engine)
        self.phases: Counter[str] = Counter()
        self.late: list[int] = []
        """Steps that the engine made between a hang-up and the freed slot."""

    def _bills(self) -> dict[str, Response]:
        return {e.request_id: e for e in self._node.events() if isinstance(e, Response)}

    def wait(self, count: int) -> list[Response]:
        """The next `count` bills; with them nothing of their calls runs, and they are exact."""

        def find() -> list[Response] | None:
            new = [e for name, e in self._bills().items() if name not in self._seen]
            return new if len(new) >= count else None

        new = eventually(find)
        assert len(new) == count
        return new

    def settle(self, bills: list[Response]) -> None:
        """The engine stands still, and computed what `bills` say since the last time."""
        now = stats(self._engine)
        assert (now.sequences_running, now.sequences_waiting) == (0, 0)
        assert now.cache_bytes_used == 0
        computed = sum(bill.tokens.prompt - bill.tokens.cached for bill in bills)
        generated = sum(bill.tokens.generated for bill in bills)
        assert now.prompt_tokens - self._before.prompt_tokens == computed
        assert now.generated_tokens - self._before.generated_tokens == generated
        assert stats(self._engine).steps == now.steps, "a step without a sequence"
        self._before = now
        self._seen |= {bill.request_id: bill for bill in bills}


@pytest.mark.timeout(3000)
def test_hanging_up_at_any_moment_frees_the_slot_and_bills_what_was_computed(
    node: Node, engine: pb_grpc.EngineStub
) -> None:
    ledger = Ledger(node, engine)
    numbers = itertools.count(10, 10)
    for phase, stopped in PHASES.items():
        for stream in [True, False] * TIMES:
            assert any(
                stopped == hang_up(node, engine, ledger, phase, next(numbers), stream=stream)
                for _ in range(TRIES)
            ), phase
    _log.info("hung up: %s; steps until free: %s", dict(ledger.phases), sorted(ledger.late))


def hang_up(
    node: Node,
    engine: pb_grpc.EngineStub,
    ledger: Ledger,
    phase: str,
    number: int,
    *,
    stream: bool,
) -> str:
    """One request whose caller hangs up in `phase`; returns where it was stopped. Its bill is
    right wherever that was."""
    with ExitStack() as stack:
        if phase == "queued":
            stack.enter_context(full(node, engine, number))
        before = stats(engine)
        caller = Caller(node, ask(number + 9, stream=stream))
        if phase == "done":
            caller.read_all()
        else:
            eventually(lambda: reached(phase, before, stats(engine)))
        at = stats(engine)
        caller.hang_up()
        (bill,) = ledger.wait(1)
        if phase != "queued":
            ledger.late.append(stats(engine).steps - at.steps)
    others = SLOTS if phase == "queued" else 0
    bills = ledger.wait(1 + others)
    ledger.settle(bills)
    ledger.phases[named(bill)] += 1
    return named(bill)


def named(bill: Response) -> str:
    """The phase in which the engine stopped."""
    if bill.outcome == "ok":
        return "done"
    assert bill.outcome == "cancelled"
    if bill.tokens.generated:
        return "generating"
    return "prefill" if bill.tokens.prompt else "queued"
