"""Time to first token of a key that sends single requests: alone, and beside a flood.

    scripts/bench-fairness [--flood N] [--singles N] [--rounds N] [--words N]
                           [--hidden N] [--layers N]

A node of its own, with a random model: the engine, the endpoint and this client are three
processes. The flood is N requests of another key at once, renewed as they end; then, as a third
case, a batch of that key. Prints the median and the 95th percentile of each case in milliseconds,
and the 95th as a multiple of that without a flood.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from appliance.access import KeyStore
from appliance.audit import create_signer
from appliance.config import Layout
from installer.bench.http import Address, exchange
from installer.bench.recorder import Recorder
from installer.readiness import ReadinessSocket
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode
from tests.shim.batch_input import form, jsonl
from tests.shim.node import free_port

NUMBERS = itertools.count()
CHAT = "/v1/chat/completions"


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

    async def first_token(self) -> float:
        """Milliseconds to the first token of one streamed answer; raises if there is none."""
        recorder = Recorder(time.perf_counter())
        body = question(self._words, 8, stream=True)
        async with exchange(self._address, "POST", CHAT, self._headers, body) as answer:
            assert answer.status == 200, await answer.body()
            async for piece in answer.pieces():
                recorder.feed(piece, time.perf_counter())
        assert recorder.sample.ttft is not None
        return recorder.sample.ttft * 1000

    async def ask(self) -> None:
        """One answer of 64 tokens."""
        body = question(self._words, 64, stream=True)
        async with exchange(self._address, "POST", CHAT, self._headers, body) as answer:
            await answer.body()

    async def singles(self, count: int) -> list[float]:
        """First tokens of requests that follow each other."""
        return [await self.first_token() for _ in range(count)]


@asynccontextmanager
async def flood(client: Client, count: int) -> AsyncIterator[None]:
    """`count` requests of `client` are on their way, always."""

    async def stream() -> None:
        while True:
            await client.ask()

    tasks = [asyncio.create_task(stream()) for _ in range(count)]
    await asyncio.sleep(3)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
def node(root: Path, hidden: int, layers: int) -> Iterator[tuple[int, str, str]]:
    """A running node; gives its port and the secrets of two keys."""
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
    port = free_port()
    layout.config_file.parent.mkdir(parents=True, exist_ok=True)
    layout.config_file.write_text(f"[api]\nlisten_port = {port}\nstore_files = true\n")
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


def show(name: str, found: list[float], alone: float | None) -> float:
    """Print one case; returns its 95th percentile."""
    late = statistics.quantiles(found, n=20)[18]
    ratio = "" if alone is None else f"   {late / alone:5.2f} x"
    print(f"{name:<16} median {statistics.median(found):8.1f} ms   95 % {late:8.1f} ms{ratio}")
    return late


async def measure(port: int, flooding: str, single: str, args: argparse.Namespace) -> None:
    """All cases in turn, several times, so that what else the machine does meets all of them."""
    one, other = Client(port, single, args.words), Client(port, flooding, args.words)
    alone: list[float] = []
    beside: list[float] = []
    batched: list[float] = []
    await one.singles(5)
    for _ in range(args.rounds):
        alone += await one.singles(args.singles)
        async with flood(other, args.flood):
            beside += await one.singles(args.singles)
        await asyncio.sleep(2)
        with Batches(port, flooding).running(5000, args.words):
            batched += await one.singles(args.singles)
        await asyncio.sleep(2)
    late = show("alone", alone, None)
    show(f"flood of {args.flood}", beside, late)
    show("beside a batch", batched, late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--flood", type=int, default=200)
    parser.add_argument("--singles", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fair") as directory,
        node(Path(directory) / "n", args.hidden, args.layers) as (port, flooding, single),
    ):
        asyncio.run(measure(port, flooding, single, args))


if __name__ == "__main__":
    main()
