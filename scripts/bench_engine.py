"""Measures the engine: prefill, decoding and whole batches, for one or more weight grades.

The model has the shape of Qwen3-0.6B and random weights; checkpoint and bundles are made once,
below .build/bench-fast. Several grades are measured in turns, `--rounds` times, and the median
of each figure is printed. On a machine that does other things too, compare ratios, or measure
with `--processor`: tokens for each second of processor time, times the cores, as if no core
ever waited for another or for the rest of the machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from appliance.compiler import open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.machine import physical_cores
from appliance.engine.sampling import SamplingParams
from appliance.model_store import ModelStore
from appliance.trust.node_key import NodePublicKey
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.engine_node import EngineNode

HOME = Path(__file__).resolve().parent.parent / ".build/bench-fast"
GRADES = ("w8a8", "w4a8", "int4", "int8")
CAPACITY, SLOTS, VOCAB = 2304, 16, 151_936
SHAPE = {
    "layers": 28,
    "hidden": 1024,
    "heads": 16,
    "kv_heads": 8,
    "head_dim": 128,
    "intermediate": 3072,
    "vocab": VOCAB,
    "context": 40_960,
}


def open_grade(grade: str, *, slots: int = SLOTS, capacity: int = CAPACITY) -> ChatModel:
    """The compiled model of this grade; made now if it is not there."""
    checkpoint, root = HOME / "checkpoint", HOME / f"node-{grade}"
    if not (checkpoint / "LICENSE").exists():
        write_qwen3(checkpoint, dtype="bfloat16", **SHAPE)  # type: ignore[arg-type]
    if not (root / ".done").exists():
        EngineNode(root).add(checkpoint, name="bench", precision=grade)
        (root / ".done").touch()
    layout = Layout(root)
    bundle = ModelStore(layout.models).get("bench")
    key = NodePublicKey.load(layout.node / "node.pub")
    artifact = open_artifact(layout.artifacts, bundle.digest, key)
    settings = EngineSettings(max_sequences=slots, max_context=capacity, cache_bytes=1 << 37)
    start = time.perf_counter()
    model = ChatModel(bundle, artifact, settings, CacheBudget.from_settings(settings))
    print(f"{grade}: loaded in {time.perf_counter() - start:.2f} s", flush=True)
    return model


class Clock:
    """Seconds: of the wall, or of the processor shared out to the cores."""

    cores = 0

    @classmethod
    def now(cls) -> float:
        return time.process_time() / cls.cores if cls.cores else time.perf_counter()


def run(engine: LLMEngine, streams: int, given: int, wanted: int) -> float:
    """Greedy sequences from start to end, in seconds."""
    random = np.random.default_rng(0)
    params = SamplingParams(max_tokens=wanted, temperature=0)
    for call in range(streams):
        engine.add(Generation(call, random.integers(300, VOCAB - 300, given).tolist(), params))
    start = Clock.now()
    while engine.has_work:
        engine.step()
    return Clock.now() - start


def prefill(engine: LLMEngine, tokens: int) -> float:
    return tokens / run(engine, 1, tokens, 1)


def decode(engine: LLMEngine, streams: int, context: int, steps: int = 16) -> float:
    """Tokens a second of steps that decode only, all streams near `context` tokens."""
    random = np.random.default_rng(0)
    for call in range(streams):
        prompt = random.integers(300, VOCAB - 300, context - steps).tolist()
        engine.add(Generation(call, prompt, SamplingParams(temperature=0)))
    times: list[float] = []
    while len(times) < steps:
        waiting, before = engine.waiting, engine.counters.prompt_tokens
        start = Clock.now()
        engine.step()
        if not waiting and engine.counters.prompt_tokens == before:
            times.append(Clock.now() - start)
    for call in range(streams):
        engine.cancel(call)
    while engine.has_work:
        engine.step()
    return streams / statistics.median(times)


def whole(engine: LLMEngine, streams: int, given: int) -> float:
    return streams * 128 / run(engine, streams, given, 128)


CASES: dict[str, Callable[[LLMEngine], float]] = {
    "prefill 512": lambda e: prefill(e, 512),
    "prefill 2048": lambda e: prefill(e, 2048),
    **{
        f"decode {n} @{c}": lambda e, n=n, c=c: decode(e, n, c)
        for c in (256, 1024)
        for n in (1, 8, 16)
    },
    "16 x (256 in, 128 out)": lambda e: whole(e, 16, 256),
    "8 x (1024 in, 128 out)": lambda e: whole(e, 8, 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grades", nargs="*", metavar="GRADE", help=f"of {', '.join(GRADES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--processor", action="store_true", help="count processor time")
    options = parser.parse_args()
    Clock.cores = physical_cores() if options.processor else 0
    models = {grade: open_grade(grade) for grade in options.grades or ["w8a8"]}
    print(f"tokens/s{'':16}" + "".join(f"{grade:>10}" for grade in models), flush=True)
    for name, case in CASES.items():
        if options.only not in name:
            continue
        seen: dict[str, list[float]] = {grade: [] for grade in models}
        for _ in range(options.rounds):
            for grade, model in models.items():
                seen[grade].append(case(model.engine))
        row = "".join(f"{statistics.median(values):10.1f}" for values in seen.values())
        print(f"{name:24}{row}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak resident memory {peak:.2f} GB, mapped weights included")
    for model in models.values():
        model.close()


if __name__ == "__main__":
    main()
