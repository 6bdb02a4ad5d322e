"""An engine that crashes or hangs: who waits is told, and who caused it twice is refused."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import RequestError, UnavailableError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim import engine_client, pulse
from appliance.shim.suspects import MOST, REMEMBERED_SECONDS, Suspects
from tests.fakes.dying_engine import DyingEngine
from tests.fakes.engine import CHAT, FakeEngine
from tests.shim.node import Node, ask, eventually, prepare, running_shim

PATH = "/v1/chat/completions"


@dataclasses.dataclass
class Pair:
    node: Node
    engine: DyingEngine

    def chat(self, text: str) -> tuple[int, bytes]:
        """Status and body, once the engine is there."""
        self.until_ready()
        answer = self.node.request("POST", PATH, ask(text))
        return answer.status, answer.body

    def until_ready(self) -> None:
        eventually(lambda: self.node.request("GET", "/ready").status == 200 or None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One for all: starting an engine's process takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_client, "EVERY_SECONDS", 0.5)  # the same rules, in less time
        patch.setattr(engine_client, "_TOKENIZE_SECONDS", 0.5)
        yield from started(tmp_path_factory.mktemp("suspects"))


def started(root: Path) -> Iterator[Pair]:
    config = prepare(root / "n")
    engine = DyingEngine(config.layout.engine_socket)
    try:
        with running_shim(config):
            node = Node(config, FakeEngine(config.layout.engine_socket))
            yield Pair(node, engine)
    finally:
        engine.close()


def test_a_stream_under_way_ends_with_an_error_event_and_its_record(pair: Pair) -> None:
    pair.until_ready()
    frames = pair.node.stream(ask("poison " * 20, stream=True))
    documents = frames.documents()
    assert documents[-1]["error"]["code"] == "engine_unavailable"
    assert len(documents) > 1, "tokens came before"
    response = pair.node.res(frames.request_id)
    assert (response.outcome, response.code) == ("error", "engine_unavailable")
    assert pair.chat("hello")[0] == 200


def test_what_ended_the_engine_twice_is_refused_and_who_was_there_by_chance_is_not(
    pair: Pair,
) -> None:
    before = pair.engine.deaths
    for deaths in (1, 2):
        pair.until_ready()
        with pair.engine.holding():
            bystander = pair.node.stream(ask("an innocent question " * 2, stream=True))
            assert pair.node.request("POST", PATH, ask("poison")).status == 503
            assert bystander.documents()[-1]["error"]["code"] == "engine_unavailable"
        wanted = before + deaths
        eventually(lambda wanted=wanted: pair.engine.deaths == wanted or None)  # type: ignore[misc]
        assert pair.chat("an innocent question " * 2)[0] == 200
    status, body = pair.chat("poison")
    assert status == 400
    assert b"request_ends_engine" in body
    assert pair.engine.deaths == before + 2


def test_an_engine_that_hangs_is_noticed_and_told(pair: Pair) -> None:
    pair.until_ready()
    frames = pair.node.stream(ask("freeze " * 20, stream=True))
    assert frames.documents()[-1]["error"]["code"] == "engine_unavailable"
    ready = pair.node.request("GET", "/ready")
    assert ready.status == 503
    assert b"the engine does not answer" in ready.body
    asked = pair.node.request("POST", "/tokenize", {"model": CHAT, "prompt": "a"})
    assert (asked.status, asked.error["code"]) == (503, "engine_unavailable")
    pair.engine.revive()
    assert pair.chat("hello")[0] == 200


def request(text: str, **more: str) -> list[pb.GenerateRequest]:
    return [pb.GenerateRequest(model="chat", text=text, **more)]  # type: ignore[arg-type]


async def there() -> bool:
    """An engine that answers."""
    return True


def run(suspects: Suspects, text: str, *, ends: bool) -> None:
    async def once() -> None:
        async with suspects.watching(request(text)) as suspicion:
            suspicion.engine_ended = ends

    asyncio.run(once())


def test_one_request_is_the_same_whoever_asks_and_when() -> None:
    suspects = Suspects(there)

    async def once(**more: str) -> None:
        async with suspects.watching(request("poison", **more)) as suspicion:
            suspicion.engine_ended = True

    asyncio.run(once(request_id="a", caller="one"))
    asyncio.run(once(request_id="b", caller="two"))
    with pytest.raises(RequestError, match="twice"):
        asyncio.run(once(request_id="c"))


def test_what_runs_through_is_cleared() -> None:
    suspects = Suspects(there)
    run(suspects, "q", ends=True)
    run(suspects, "q", ends=False)
    run(suspects, "q", ends=True)
    run(suspects, "q", ends=False)


def test_one_end_of_the_engine_counts_once_for_the_same_request_sent_often() -> None:
    suspects = Suspects(there)

    async def once(*, ends: bool) -> None:
        async with suspects.watching(request("q")) as suspicion:
            await asyncio.sleep(0.01)
            suspicion.engine_ended = ends

    async def crowd() -> None:
        await asyncio.gather(*(once(ends=True) for _ in range(5)))

    asyncio.run(crowd())
    asyncio.run(once(ends=True))
    with pytest.raises(RequestError, match="twice"):
        asyncio.run(once(ends=False))


def test_what_found_no_engine_is_neither_cleared_nor_blamed() -> None:
    suspects = Suspects(there)

    async def in_vain() -> None:
        async with suspects.watching(request("q")):
            raise UnavailableError("the engine does not answer")

    run(suspects, "q", ends=True)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            asyncio.run(in_vain())
    run(suspects, "q", ends=True)
    with pytest.raises(RequestError, match="twice"):
        run(suspects, "q", ends=False)


def test_nothing_is_blamed_for_the_end_of_an_engine_that_was_gone_already() -> None:
    answers = False

    async def engine() -> bool:
        return answers

    suspects = Suspects(engine)
    for _ in range(4):
        run(suspects, "q", ends=True)
    answers = True
    run(suspects, "q", ends=True)
    with pytest.raises(RequestError, match="twice"):
        run(suspects, "q", ends=False)


def test_a_refusal_ends_with_time_and_memory_is_bounded() -> None:
    now = 0.0
    suspects = Suspects(there, lambda: now)
    run(suspects, "q", ends=True)
    run(suspects, "q", ends=True)
    with pytest.raises(RequestError):
        run(suspects, "q", ends=False)
    now = REMEMBERED_SECONDS + 1
    run(suspects, "q", ends=False)
    for i in range(MOST + 10):
        run(suspects, f"q{i}", ends=True)
    assert len(suspects._seen) == MOST


def test_suspects_wait_for_each_other_and_others_do_not() -> None:
    suspects = Suspects(there)
    running: set[str] = set()
    together: set[frozenset[str]] = set()

    async def one(text: str, *, ends: bool = False) -> None:
        async with suspects.watching(request(text)) as suspicion:
            running.add(text)
            await asyncio.sleep(0.01)
            together.add(frozenset(running))
            running.discard(text)
            suspicion.engine_ended = ends

    async def scenario() -> None:
        await asyncio.gather(*(one(t, ends=True) for t in "abc"))
        assert frozenset("abc") in together
        together.clear()
        await asyncio.gather(*(one(t) for t in "abcxy"))

    asyncio.run(scenario())
    assert max(len(each & set("abc")) for each in together) == 1
    assert any({"x", "y"} <= each for each in together)


def test_a_pulse_gives_up_who_waits_after_some_silence_only() -> None:
    class Call:
        given_up = 0

        def give_up(self) -> None:
            self.given_up += 1

    async def scenario(answers: list[bool]) -> int:
        asked = iter(answers)
        missed = 0

        async def answer() -> bool:
            nonlocal missed
            assert felt.hangs == (missed >= pulse.MISSES), "until it is heard again"
            value = next(asked, None)
            missed = missed + 1 if value is False else 0
            if value is None:
                felt.discard(call)
            return value is not False

        call = Call()
        felt = pulse.Pulse(answer, every_seconds=0.001)
        felt.add(call)
        assert felt._task is not None
        await felt._task
        return call.given_up

    silence = [False] * pulse.MISSES
    assert asyncio.run(scenario(silence)) == 1
    assert asyncio.run(scenario([*silence[1:], True, *silence[1:], True])) == 0
