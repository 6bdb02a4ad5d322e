"""A running daemon on a Unix socket, over a node with real models."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.config import Config, EngineSettings, Layout
from appliance.engine_daemon.server import EngineServer
from appliance.model_store import ModelStore
from appliance.pb import engine_v1_pb2 as pb
from appliance.pb import engine_v1_pb2_grpc as pb_grpc
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.encoder_checkpoints import write_cross_encoder
from tests.fakes.engine_node import EngineNode


def build_node(root: Path) -> None:
    """`chat` 1.0 and `words` are active; `chat` 2.0, `other` and `pairs` wait to be activated."""
    node = EngineNode(root)
    node.add(write_qwen3(root / "chat"), name="chat")
    node.add(write_bert(root / "words"), name="words")
    second = write_qwen3(root / "chat-2", seed=2)
    node.add(second, name="chat", version="2.0", activate=False)
    node.add(second, name="other", activate=False)
    node.add(write_cross_encoder(root / "pairs"), name="pairs", activate=False)
    node.add(second, name="uncompiled", activate=False, compile_now=False)


@pytest.fixture
def node_root(build_once: BuildOnce) -> Iterator[Path]:
    """A copy of the node that a test may change. Short, for the socket's path."""
    built = build_once("daemon-node", build_node)
    with tempfile.TemporaryDirectory(prefix="node") as directory:
        root = Path(directory) / "n"
        shutil.copytree(built, root, symlinks=True)
        yield root


class Client:
    """The stubs of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.engine: Any = pb_grpc.EngineStub(channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    async def health(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = (await self._health.Check(request)).status
        return status

    async def states(self) -> dict[tuple[str, str], int]:
        models = (await self.engine.ListModels(pb.ListModelsRequest())).models
        return {(model.name, model.version): model.state for model in models}

    async def generate(self, request: pb.GenerateRequest) -> list[pb.GenerateEvent]:
        return apart([message async for message in self.engine.Generate(request)])


class Node:
    """The daemon under test."""

    def __init__(self, root: Path, **settings: int) -> None:
        defaults = {"cache_bytes": 64 << 20, "threads": 1}
        self.config = Config(Layout(root), engine=EngineSettings(**(defaults | settings)))
        self.store = ModelStore(self.config.layout.models)
        self.socket = self.config.layout.engine_socket
        self.socket.parent.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def run(self, *, drain_seconds: float = 20.0) -> AsyncIterator[Client]:
        server = EngineServer(self.config, drain_seconds=drain_seconds)
        await server.start()
        self.server = server
        try:
            async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
                yield Client(channel)
        finally:
            await server.stop()

    @contextmanager
    def slow(self, name: str = "chat") -> Iterator[None]:
        """The model takes its time for a step meanwhile: what it computes outlasts what is asked
        beside it, on a busy machine too."""
        model: Any = self.server._registry.serving(name).model
        engines = [vars(engine) for engine in model.engines]
        for engine, own in zip(model.engines, engines, strict=True):
            own["step"] = partial(_late, engine.step)
        try:
            yield
        finally:
            for own in engines:
                del own["step"]


def _late(step: Callable[[], Any]) -> Any:
    time.sleep(0.05)
    return step()


RunNode = Callable[..., Node]


@pytest.fixture
def make_node(node_root: Path) -> RunNode:
    return lambda **settings: Node(node_root, **settings)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test with a bound on its time."""
    asyncio.run(asyncio.wait_for(test, 300))


async def rest(stream: Any) -> list[pb.GenerateEvent]:
    """What a stream that was read from before still brings."""
    messages = []
    while (message := await stream.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        messages.append(message)
    return apart(messages)


def apart(messages: Iterable[pb.GenerateEvent]) -> list[pb.GenerateEvent]:
    """Each event by itself, in order; none of those that came with another has more with it."""
    events = []
    for message in messages:
        assert not any(event.further for event in message.further)
        events += [message, *message.further]
    return events


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `condition` holds; fails after some minutes."""
    async with asyncio.timeout(120):
        while not await condition():  # noqa: ASYNC110 - another thread computes
            await asyncio.sleep(0.005)


def chat(text: str, model: str = "chat", **sampling: Any) -> pb.GenerateRequest:
    message = pb.ChatMessage(role="user", content=[pb.ContentPart(text=text)])
    params = pb.SamplingParams(**({"temperature": 0.0, "ignore_eos": True} | sampling))
    return pb.GenerateRequest(model=model, chat=pb.ChatPrompt(messages=[message]), sampling=params)
