"""The figures of Stats: what the engines of a model's versions have done, added up by its name."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.engine.chat_model import ChatModel
from appliance.engine.llm_engine import LLMEngine
from appliance.engine_daemon.hosted import HostedModel
from appliance.pb import engine_v1_pb2 as pb


def summed(models: Iterable[HostedModel]) -> pb.StatsResponse:
    """One entry for each name. Adapters have none: their base has the sequences."""
    merged: dict[str, pb.ModelStats] = {}
    for hosted in models:
        if hosted.base is None:
            _add(merged.setdefault(hosted.bundle.name, pb.ModelStats()), hosted)
    return pb.StatsResponse(models=merged.values())


def _add(stats: pb.ModelStats, hosted: HostedModel) -> None:
    stats.model = hosted.bundle.name
    model = hosted.model
    if model is None:
        return
    for engine in model.engines:
        stats.sequences_waiting += engine.waiting
        stats.steps += engine.counters.steps
        stats.prompt_tokens += engine.counters.prompt_tokens
        stats.sequences_finished += engine.counters.finished
        stats.sequences_cancelled += engine.counters.cancelled
    if isinstance(model, ChatModel):
        for engine in model.engines:
            _add_chat(stats, engine)
            _add_classes(stats, engine)
        stats.cache_bytes_total += model.cache_bytes
        stats.cache_bytes_used += model.cache_bytes_used


def _add_chat(stats: pb.ModelStats, engine: LLMEngine) -> None:
    stats.sequences_running += engine.running
    stats.generated_tokens += engine.counters.generated_tokens
    stats.prefix_cache_queries += engine.counters.prefix_queries
    stats.cached_tokens += engine.counters.cached_tokens
    stats.recomputed_tokens += engine.counters.recomputed_tokens
    stats.preemptions += engine.counters.preemptions
    stats.sequences_expired += engine.counters.expired
    stats.drafted_tokens += engine.counters.drafted_tokens
    stats.accepted_tokens += engine.counters.accepted_tokens


def _add_classes(stats: pb.ModelStats, engine: LLMEngine) -> None:
    """The figures of shared and dedicated capacity, added to those of other versions."""
    if not stats.classes:
        stats.classes.extend(pb.ClassStats(name=name) for name in ("shared", "dedicated"))
    now, sums = engine.classes, (engine.counters.shared, engine.counters.dedicated)
    shared, dedicated = stats.classes
    dedicated.slots_reserved += now.reserved
    figures = zip((shared, dedicated), now.running, now.waiting, sums, strict=True)
    for shown, running, waiting, counters in figures:
        shown.sequences_running += running
        shown.sequences_waiting += waiting
        shown.prompt_tokens += counters.prompt_tokens
        shown.generated_tokens += counters.generated_tokens
        shown.preemptions += counters.preemptions
