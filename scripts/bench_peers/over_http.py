"""Workloads through an OpenAI-compatible endpoint, by the parts of `appliance bench`."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass, field

import uvloop

from bench_peers.work import PeerError
from bench_peers.workloads import Figures, Workload
from installer.bench import Plan, run
from installer.bench import figures as bench
from installer.bench import workload as bench_workload
from installer.bench.measure import find_recipe
from installer.bench.prompts import Recipe, as_messages
from installer.bench.recorder import Recorder
from installer.bench.server import Dialect, Server
from installer.bench.watcher import Unwatched

SILENCE_SECONDS = 600.0
_SEVERAL = 1.25
"""A few ids are no text by themselves, so one token a piece comes out slightly above 1."""
_HEAD_START_SECONDS = 0.05
"""The long prompt is in the engine when the short request comes."""


@dataclass
class Endpoint:
    """A server that serves `model`; `key` if it wants one."""

    base_url: str
    model: str
    key: str | None = None
    tokens_per_piece: float = 1.0
    """The most that a workload saw."""
    _recipe: Recipe | None = None
    _seeds: itertools.count[int] = field(default_factory=lambda: itertools.count(time.time_ns()))

    @property
    def _server(self) -> Server:
        return Server(self.base_url, self.key, time.perf_counter, SILENCE_SECONDS)

    def remark(self) -> str:
        """What a reader must know of the figures. Random weights repeat themselves, so a server
        that guesses tokens from the text so far is faster here than on text that says something."""
        if self.tokens_per_piece < _SEVERAL:
            return ""
        return f"several tokens in one piece of a stream: {self.tokens_per_piece:.2f}"

    def measure(self, workload: Workload) -> Figures:
        """The figures of one workload. Raises PeerError if a request fails."""
        return uvloop.run(self._measure(workload))

    async def _measure(self, work: Workload) -> Figures:
        if work.kind == "beside":
            alone = [await self._short(work) for _ in range(work.repeats)]
            beside = [await self._beside(work) for _ in range(work.repeats)]
            one, other = work.rows
            return {one.name: statistics.median(alone), other.name: statistics.median(beside)}
        if work.kind == "warm":
            cold, warm = await self._level(work), await self._level(work, shared=work.part)
            assert cold.ttft is not None
            assert warm.ttft is not None
            one, other = work.rows
            return {one.name: cold.ttft.p50, other.name: warm.ttft.p50}
        level = await self._level(work)
        if work.kind == "batch":
            assert level.ttft is not None
            first, second = work.rows
            rate = _known(level.output_tokens_per_second)
            return {first.name: rate, second.name: level.ttft.p50}
        if work.kind == "prefill":
            return {work.name: _known(level.prefill_tokens_per_second)}
        return {work.name: _known(level.stream_tokens_per_second)}

    async def _level(self, work: Workload, *, shared: int = 0) -> bench.Figures:
        requests = work.streams if work.kind == "batch" else work.repeats
        plan = Plan(
            server=self._server,
            workload=bench_workload.Workload(
                levels=(bench_workload.Level(concurrency=work.streams),),
                input_tokens=work.tokens_in,
                output_tokens=work.tokens_out,
                shared_prefix=shared,
                requests=requests,
                seed=next(self._seeds),
            ),
            model=self.model,
            own_node=False,
            command="scripts/bench",
            recipe=await self._known_recipe(),
        )
        (level,) = (await run(plan, Unwatched(), asyncio.Event())).levels
        if level.failed:
            raise PeerError(f"requests failed: {level.errors}")
        self.tokens_per_piece = max(self.tokens_per_piece, level.tokens_per_piece or 1.0)
        return level

    async def _short(self, work: Workload) -> float:
        """Seconds to the first token of a short request."""
        return await self._first_token(work.part, 2)

    async def _beside(self, work: Workload) -> float:
        """The same while a long prompt is computed."""
        long = asyncio.create_task(self._first_token(work.tokens_in, 2))
        await asyncio.sleep(_HEAD_START_SECONDS)
        if long.done():
            raise PeerError("the long prompt was computed before the short request came")
        short = await self._first_token(work.part, 2)
        await long
        return short

    async def _first_token(self, tokens: int, out: int) -> float:
        server, recipe = self._server, await self._known_recipe()
        text = recipe.text(tokens, shared=0, seed=next(self._seeds), index=0)
        recorder = Recorder(time.perf_counter())
        await server.stream(self.model, as_messages(text), Dialect(), out, recorder)
        if recorder.sample.error or recorder.sample.ttft is None:
            raise PeerError(f"a request failed: {recorder.sample.error or 'it has no text'}")
        return recorder.sample.ttft

    async def _known_recipe(self) -> Recipe:
        if self._recipe is None:
            self._recipe = await find_recipe(self._server, self.model, Dialect())
            if not self._recipe.exact:
                raise PeerError("it does not say how many tokens a prompt has")
        return self._recipe


def _known(value: float | None) -> float:
    if value is None:
        raise PeerError("it does not say how many tokens it computed")
    return value
