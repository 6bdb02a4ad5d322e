"""What batching by length gains: all-MiniLM-L6-v2 on one core, texts of mixed length.

Prints padding and time of batches in the order of arrival, by length, and by length with little
padding, as the engine does it (docs/decisions/0191-little-padding.md). Interleaved, the best of
three. Needs scripts/fetch-minilm.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from appliance.compiler.compile import compile_bundle
from appliance.engine.embedding_engine import batches
from appliance.engine.encoder_runner import EncoderRunner
from appliance.engine.session import open_session
from installer.checkpoint import build_bundle

CHECKPOINT = Path(__file__).parent.parent / ".build/minilm"
TEXTS = 200
LONGEST = 256
ROUNDS = 3
_TOKEN = 2000


def main() -> None:
    drawn = np.random.default_rng(5).lognormal(3.5, 1.0, TEXTS)
    texts = [[_TOKEN] * int(length) for length in np.clip(drawn, 3, LONGEST)]
    by_length = sorted(range(TEXTS), key=lambda index: -len(texts[index]))
    with tempfile.TemporaryDirectory() as directory:
        runner = open_runner(Path(directory))
        for budget in (512, 2048):
            plans = {
                "arrival": filled(range(TEXTS), texts, budget),
                "by length": filled(by_length, texts, budget),
                "by length, little padding": list(batches(texts, budget)),
            }
            measure(runner, texts, plans, budget)


def open_runner(directory: Path) -> EncoderRunner:
    bundle, artifact = directory / "bundle", directory / "artifact"
    manifest = build_bundle(CHECKPOINT, bundle, name="minilm", version="1", signer=None)
    artifact.mkdir()
    compile_bundle(bundle, manifest, artifact)
    return EncoderRunner(open_session(artifact, 1))


def filled(order: Iterable[int], texts: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Batches in `order`, each as full as `budget` padded tokens allow."""
    groups: list[list[int]] = []
    width = 0
    for index in order:
        widest = max(width, len(texts[index]))
        if not groups or (len(groups[-1]) + 1) * widest > budget:
            groups.append([])
            widest = len(texts[index])
        groups[-1].append(index)
        width = widest
    return groups


def measure(
    runner: EncoderRunner,
    texts: Sequence[Sequence[int]],
    plans: dict[str, list[list[int]]],
    budget: int,
) -> None:
    best = dict.fromkeys(plans, float("inf"))
    for _ in range(ROUNDS):
        for name, groups in plans.items():
            began = time.perf_counter()
            for group in groups:
                runner.run([texts[index] for index in group])
            best[name] = min(best[name], time.perf_counter() - began)
    for name, groups in plans.items():
        padded = sum(len(group) * max(len(texts[index]) for index in group) for group in groups)
        waste = 1 - sum(map(len, texts)) / padded
        gain = best["arrival"] / best[name]
        print(f"{budget:5} {name:26} {len(groups):3} {waste:4.0%} {best[name]:6.2f} s {gain:.1f}x")


if __name__ == "__main__":
    main()
