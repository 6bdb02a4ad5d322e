"""Time to first token of a key that sends single requests: alone, and beside a flood.

    scripts/bench-fairness [--flood N] [--singles N] [--rounds N] [--words N]
                           [--hidden N] [--layers N] [--no-batch]
                           [--shared-step-milliseconds N]

A node of its own, with a random model: the engine, the endpoint, this client and the flood's are
four processes. The flood is N requests of another key at once, renewed as they end; then, as a
third case, a batch of that key. Prints the median and the 95th percentile of each case in
milliseconds, both as multiples of those without a flood, and how many of the engine's steps a
request took to its first token, which depends less on what else the machine does. Last, what the
flood itself gets done: answers a minute, alone and beside the single requests.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from appliance.access import KeyStore
from appliance.audit import create_signer
from appliance.config import Layout
from installer.bench.http import Address, exchange
from installer.bench.recorder import Recorder
from installer.readiness import ReadinessSocket
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.fakes.ports import own_port
from tests.shim.batch_input import form, jsonl

NUMBERS = itertools.count()
CHAT = "/v1/chat/completions"
STEPS = 'appliance_engine_steps_total{model="chat"}'
FLOOD_SECONDS = 12.0
_NUMBERS_OF_A_FLOOD = 1_000_000


@dataclass
class Case:
    """What requests of one case took: milliseconds, and steps of the engine."""

    times: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def late(self) -> float:
        """The 95th percentile."""
        return statistics.quantiles(self.times, n=20)[18]

    def show(self, name: str, alone: Case) -> None:
        median, before = statistics.median(self.times), statistics.median(alone.times)
        steps = statistics.quantiles(self.steps, n=20)
        print(
            f"{name:<16} median {median:7.1f} ms {median / before:5.2f} x"
            f"   95 % {self.late:7.1f} ms {self.late / alone.late:5.2f} x"
            f"   steps {steps[9]:4.1f}, 95 % {steps[18]:4.1f}"
        )


def question(words: int, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A request like no other, of a known size."""
    text = f"{next(NUMBERS):06d} " + "word " * words
    return {
        "model": "chat",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "reasoning_effort": "none",
        "stream": stream,
    }


class Client:
    """One key's requests."""

    def __init__(self, port: int, secret: str, words: int) -> None:
        self._words = words
        self._address = Address("127.0.0.1", port, tls=False, path="")
        self._headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}

    async def first_token(self, case: Case) -> None:
        """One streamed answer; raises if there is none."""
        before, after = await self._steps(), 0
        body = question(self._words, 8, stream=True)
        recorder = Recorder(time.perf_counter())
        async with exchange(self._address, "POST", CHAT, self._headers, body) as answer:
            assert answer.status == 200, await answer.body()
            async for piece in answer.pieces():
                recorder.feed(piece, time.perf_counter())
                if not after and recorder.sample.ttft is not None:
                    after = await self._steps()
        assert recorder.sample.ttft is not None
        case.times.append(recorder.sample.ttft * 1000)
        case.steps.append(after - before)

    async def _steps(self) -> int:
        """Steps of the engine so far."""
        async with exchange(self._address, "GET", "/metrics", {}) as answer:
            text = (await answer.body()).decode()
        line = next(line for line in text.splitlines() if line.startswith(STEPS))
        return int(float(line.split()[-1]))

    async def ask(self) -> None:
        """One answer of 64 tokens."""
        body = question(self._words, 64, stream=True)
        async with exchange(self._address, "POST", CHAT, self._headers, body) as answer:
            await answer.body()

    async def singles(self, count: int, case: Case) -> None:
        """First tokens of requests that follow each other."""
        for _ in range(count):
            await self.first_token(case)


class Flood:
    """`count` requests of one key are on their way, always, from a process of their own: what it
    costs to read their answers is not the other key's."""

    def __init__(self, port: int, secret: str, words: int, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._answers = context.Value("Q", 0, lock=False)
        first = next(NUMBERS) * _NUMBERS_OF_A_FLOOD
        self._process = context.Process(
            target=_flood, args=(port, secret, words, count, first, self._answers), daemon=True
        )

    @property
    def answers(self) -> int:
        """So far."""
        return int(self._answers.value)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _flood(port: int, secret: str, words: int, count: int, first: int, answers: Any) -> None:  # noqa: ANN401
    """Ask until killed; count in `answers`. Questions are numbered from `first` on."""
    global NUMBERS  # of this process
    NUMBERS = itertools.count(first)
    client = Client(port, secret, words)

    async def stream() -> None:
        while True:
            await client.ask()
            answers.value += 1

    async def streams() -> None:
        await asyncio.gather(*(stream() for _ in range(count)))

    asyncio.run(streams())


class Batches:
    """Batches of one key."""

    def __init__(self, port: int, secret: str) -> None:
        self._port = port
        self._secret = secret

    @contextmanager
    def running(self, count: int, words: int) -> Iterator[None]:
        """A batch of `count` answers of 64 tokens is on its way."""
        lines = [
            {
                "custom_id": str(number),
                "method": "POST",
                "url": CHAT,
                "body": question(words, 64, stream=False),
            }
            for number in range(count)
        ]
        body, headers = form(jsonl(lines), purpose="batch")
        wanted = {
            "input_file_id": self._post("/v1/files", body, headers),
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        headers = {"Content-Type": "application/json"}
        batch_id = self._post("/v1/batches", json.dumps(wanted).encode(), headers)
        time.sleep(3)
        yield
        self._post(f"/v1/batches/{batch_id}/cancel", b"", {})

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> str:
        """The id of what is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        given = {"Authorization": f"Bearer {self._secret}", **headers}
        connection.request("POST", path, body, given)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status == 200, found
        return str(found["id"])


@contextmanager
def node(root: Path, hidden: int, layers: int, engine: str) -> Iterator[tuple[int, str, str]]:
    """A running node with the setting `engine`; gives its port and the secrets of two keys."""
    layout = Layout(root)
    checkpoint = write_qwen3(
        root / "checkpoint", hidden=hidden, layers=layers, intermediate=2 * hidden, context=2048
    )
    EngineNode(root).add(checkpoint, name="chat")
    for directory in (layout.audit, layout.access, layout.metering, layout.responses, layout.run):
        directory.mkdir(parents=True, exist_ok=True)
    create_signer(layout.audit_key, "bench")
    with KeyStore(layout.keys_db) as keys:
        secrets = [keys.create(name)[1] for name in ("flood", "single")]
    port = own_port()
    layout.config_file.parent.mkdir(parents=True, exist_ok=True)
    layout.config_file.write_text(
        f"[api]\nlisten_port = {port}\nstore_files = true\n[engine]\n{engine}\n"
    )
    daemons = []
    try:
        for module in ("appliance.engine_daemon", "appliance.shim"):
            readiness = ReadinessSocket()
            daemon = subprocess.Popen(
                [sys.executable, "-m", module, "--root", root],
                env=readiness.environment,
                stderr=subprocess.DEVNULL,
            )
            daemons.append(daemon)
            assert readiness.wait(120, until=lambda daemon=daemon: daemon.poll() is not None)
            readiness.close()
        yield port, secrets[0], secrets[1]
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
            daemon.wait()


class Throughput:
    """Answers of the flood over time."""

    def __init__(self) -> None:
        self._answers = 0
        self._seconds = 0.0

    @contextmanager
    def counting(self, flood: Flood) -> Iterator[None]:
        before, start = flood.answers, time.monotonic()
        yield
        self._answers += flood.answers - before
        self._seconds += time.monotonic() - start

    @property
    def each_minute(self) -> float:
        return 60 * self._answers / self._seconds


async def measure(port: int, flooding: str, single: str, args: argparse.Namespace) -> None:
    """All cases in turn, several times, so that what else the machine does meets all of them."""
    one = Client(port, single, args.words)
    alone, beside, batched = Case(), Case(), Case()
    undisturbed, disturbed = Throughput(), Throughput()
    await one.singles(5, Case())
    for _ in range(args.rounds):
        await one.singles(args.singles, alone)
        with Flood(port, flooding, args.words, args.flood) as flood:
            await asyncio.sleep(5)
            with undisturbed.counting(flood):
                await asyncio.sleep(FLOOD_SECONDS)
            with disturbed.counting(flood):
                await one.singles(args.singles, beside)
        await asyncio.sleep(2)
        if args.batch:
            with Batches(port, flooding).running(5000, args.words):
                await one.singles(args.singles, batched)
            await asyncio.sleep(2)
    alone.show("alone", alone)
    beside.show(f"flood of {args.flood}", alone)
    if args.batch:
        batched.show("beside a batch", alone)
    print(
        f"the flood: {undisturbed.each_minute:.0f} answers a minute,"
        f" {disturbed.each_minute:.0f} beside single requests"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flood", type=int, default=200)
    parser.add_argument("--singles", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--shared-step-milliseconds", type=int)
    parser.add_argument("--no-batch", dest="batch", action="store_false")
    args = parser.parse_args()
    step = args.shared_step_milliseconds
    engine = "" if step is None else f"shared_step_milliseconds = {step}"
    with (
        tempfile.TemporaryDirectory(prefix="fair") as directory,
        node(Path(directory) / "n", args.hidden, args.layers, engine) as (port, flooding, single),
    ):
        asyncio.run(measure(port, flooding, single, args))


if __name__ == "__main__":
    main()
