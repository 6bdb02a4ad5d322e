"""The run: find out how to ask, ask, and make the report.

`run` reads as what happens: model, dialect, calibration, one rehearsal of the full shape (whose
refusal ends the run, since all others would be refused alike), then level after level.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import UnavailableError, UsageError
from installer.bench.figures import Figures, figures_of
from installer.bench.load import Load
from installer.bench.prompts import Recipe, as_messages, calibrate, read_prompts
from installer.bench.recorder import Recorder
from installer.bench.report import Report, Target, now, this_machine
from installer.bench.server import Dialect, Messages, Model, Server
from installer.bench.watcher import Watcher
from installer.bench.workload import Level, Workload, check_workload


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and the words of who asked for it."""

    server: Server
    workload: Workload
    model: str | None
    own_node: bool
    command: str
    recipe: Recipe | None = None
    """Of an earlier run of the same server and model; None finds it out."""


@dataclass(slots=True)
class _Asker:
    """Makes the prompts and sends them."""

    server: Server
    workload: Workload
    model: Model
    dialect: Dialect
    recipe: Recipe
    prompts: tuple[Messages, ...]
    indices: Iterator[int] = field(default_factory=itertools.count)
    fingerprint: str = ""

    async def send(self, index: int, recorder: Recorder) -> None:
        """Send the `index`-th prompt of the run."""
        messages, tokens = self._messages(index), self.workload.output_tokens
        await self.server.stream(self.model.id, messages, self.dialect, tokens, recorder)
        self.fingerprint = recorder.fingerprint or self.fingerprint

    def _messages(self, index: int) -> Messages:
        if self.prompts:
            return self.prompts[index % len(self.prompts)]
        work = self.workload
        text = self.recipe.text(
            work.input_tokens, shared=work.shared_prefix, seed=work.seed, index=index
        )
        return as_messages(text)


async def run(plan: Plan, watcher: Watcher, stop: asyncio.Event) -> Report:
    """Measure; `stop` ends it early with what there is.

    Raises UsageError for a workload that makes no sense or does not fit, and what the server
    says if it takes no request of this shape. Requests that fail later are counted.
    """
    check_workload(plan.workload)
    asker = await _prepare(plan, watcher)
    levels: list[Figures] = []
    for level in plan.workload.levels:
        if stop.is_set():
            break
        levels.append(await _measure(plan, asker, level, watcher, stop))
    return _report(plan, asker, levels, interrupted=stop.is_set())


async def _prepare(plan: Plan, watcher: Watcher) -> _Asker:
    server, work = plan.server, plan.workload
    prompts = read_prompts(Path(work.prompts)) if work.prompts else ()
    watcher.step(f"asking {server.base_url} how it likes to be asked")
    model = await server.model(plan.model)
    _check_context(work, model)
    dialect = await server.dialect(model.id, as_messages("hello"))
    recipe = Recipe()
    if not prompts:
        watcher.step("finding words that have the same number of tokens")
        recipe = plan.recipe or await find_recipe(server, model.id, dialect)
        _check_shape(work, recipe)
    asker = _Asker(server, work, model, dialect, recipe, prompts)
    watcher.step("rehearsing one request of the full shape")
    rehearsal = Recorder(server.clock())
    await asker.send(next(asker.indices), rehearsal)
    if rehearsal.sample.error:
        raise UnavailableError(
            f"the server does not answer a request of this shape: {rehearsal.sample.error}",
            hint="make it smaller with --input-tokens and --output-tokens, or read its log",
        )
    asker.recipe = recipe.corrected(work.input_tokens, rehearsal.sample.prompt_tokens)
    return asker


async def find_recipe(server: Server, model: str, dialect: Dialect) -> Recipe:
    """How prompts of exact lengths are made for `model`, by its tokenizer or by usage."""

    async def by_tokenizer(text: str) -> int | None:
        return await server.count_by_tokenizer(model, as_messages(text))

    async def by_usage(text: str) -> int | None:
        return await server.count_by_usage(model, as_messages(text), dialect)

    recipe = await calibrate(by_tokenizer)
    return recipe if recipe.exact else await calibrate(by_usage)


def _check_context(work: Workload, model: Model) -> None:
    needed = work.input_tokens + work.output_tokens
    if model.context_length and needed > model.context_length:
        raise UsageError(
            f"--input-tokens and --output-tokens make {needed} tokens, and {model.id} has a "
            f"context of {model.context_length}",
            hint="ask for less",
        )


def _check_shape(work: Workload, recipe: Recipe) -> None:
    if work.input_tokens < recipe.least:
        raise UsageError(
            f"--input-tokens {work.input_tokens} is too short: {recipe.base} go to the chat "
            f"template, and prompts shorter than {recipe.least} would be alike",
            hint=f"ask for at least {recipe.least}",
        )


async def _measure(
    plan: Plan, asker: _Asker, level: Level, watcher: Watcher, stop: asyncio.Event
) -> Figures:
    work = plan.workload
    if work.warmup:
        warm = Load(asker.send, plan.server.clock, asker.indices, lambda _: None, stop)
        streams = min(work.warmup, level.concurrency or work.warmup)
        await warm.run(Level(concurrency=streams), work.warmup, seed=work.seed)
    requests = work.requests_at(level)
    watcher.begin(level, requests)
    load = Load(asker.send, plan.server.clock, asker.indices, watcher.finished, stop)
    seconds = await load.run(level, requests, seed=work.seed)
    return figures_of(level, load.recorders, seconds=seconds, peak=load.peak)


def _report(plan: Plan, asker: _Asker, levels: list[Figures], *, interrupted: bool) -> Report:
    model = asker.model
    return Report(
        created=now(),
        command=plan.command,
        machine=this_machine(),
        target=Target(
            base_url=plan.server.base_url,
            own_node=plan.own_node,
            model=model.id,
            version=model.version,
            bundle_digest=model.bundle_digest,
            fingerprint=asker.fingerprint,
            dialect=asker.dialect,
        ),
        workload=plan.workload,
        exact_prompts=asker.recipe.exact,
        interrupted=interrupted,
        levels=tuple(levels),
    )
