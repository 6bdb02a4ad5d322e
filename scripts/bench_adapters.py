"""Milliseconds of a decode step and of a piece of a prompt, without and with adapters.

A model with random weights, by default four blocks as wide as Qwen3-0.6B, in the default grade. All
variants take turns, and the median of each is told.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.bundle.specs import Adapted
from appliance.compiler.compile import compile_bundle
from appliance.engine.adapters.bank import AdapterBank, AdapterWeights
from appliance.engine.adapters.graphs import AdaptedGraphs
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.model_runner import ModelRunner
from appliance.engine.session import (
    ADAPTED_NAME,
    ADAPTED_PREFILL_NAME,
    PREFILL_NAME,
    open_session,
)
from appliance.engine.slot_pool import SlotPool
from installer.checkpoint import build_bundle
from tests.fakes.checkpoints import write_qwen3

SLOTS, CAPACITY, PIECE = 8, 512, 256
Work = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        works = _works(Path(directory), given.layers, given.rank, given.threads)
        times = _times(works, given.rounds)
    for name, seconds in times.items():
        print(f"{name:40} {1000 * statistics.median(seconds):8.2f} ms")


def _times(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 2):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def _works(directory: Path, layers: int, rank: int, threads: int) -> dict[str, Work]:
    checkpoint = write_qwen3(
        directory / "checkpoint", hidden=1024, heads=16, kv_heads=8, head_dim=128,
        intermediate=3072, layers=layers, context=1024,
    )  # fmt: skip
    build_bundle(
        checkpoint, directory / "it", name="it", version="1", adapters=True, signer=None, created=1
    )
    manifest = decode((directory / "it" / MANIFEST_NAME).read_bytes())
    spec, adapted = manifest.decoder, manifest.graph.adapted
    assert spec is not None
    assert isinstance(adapted, Adapted)
    artifact = directory / "artifact"
    artifact.mkdir()
    compile_bundle(directory / "it", manifest, artifact)
    pool = SlotPool(spec, CacheShape(SLOTS, CAPACITY, token_bytes(spec)))
    plain = ModelRunner(
        open_session(artifact, threads), pool, spec.vocab_size, PIECE,
        open_session(artifact, threads, PREFILL_NAME),
    )  # fmt: skip
    works = _of(plain.decode, lambda t, out: plain.prefill(0, 0, t, out), spec.vocab_size, "plain")
    for count in (1, 4):
        bank = AdapterBank(spec.layers, adapted.targets)
        for number in range(count):
            bank = bank.adding(_random(f"a{number}", bank, rank))
        graphs = AdaptedGraphs(
            open_session(artifact, threads, ADAPTED_NAME), pool, PIECE,
            open_session(artifact, threads, ADAPTED_PREFILL_NAME),
        )  # fmt: skip
        graphs.use(bank)

        def decode_them(
            starts: list[int],
            tokens: list[list[int]],
            out: np.ndarray[tuple[int, int], np.dtype[np.float32]],
            graphs: AdaptedGraphs = graphs,
            count: int = count,
        ) -> None:
            graphs.decode([f"a{slot % count}" for slot in range(len(starts))], starts, tokens, out)

        def prefill_it(
            tokens: list[int],
            out: np.ndarray[tuple[int, int], np.dtype[np.float32]],
            graphs: AdaptedGraphs = graphs,
        ) -> None:
            graphs.prefill("a0", 0, 0, tokens, out)

        works |= _of(decode_them, prefill_it, spec.vocab_size, f"{count} of rank {rank}")
    return works


def _of(
    decode_them: Callable[..., None], prefill_it: Callable[..., None], vocab: int, name: str
) -> dict[str, Work]:
    works: dict[str, Work] = {}
    for batch in (1, SLOTS):
        out = np.zeros((batch, vocab), np.float32)
        starts, tokens = [200] * batch, [[7]] * batch
        works[f"decode {batch}, {name}"] = lambda s=starts, t=tokens, o=out: decode_them(s, t, o)  # type: ignore[misc]
    one = np.zeros((1, vocab), np.float32)
    works[f"prompt of {PIECE}, {name}"] = lambda: prefill_it([7] * PIECE, one)
    return works


def _random(digest: str, bank: AdapterBank, rank: int) -> AdapterWeights:
    random = np.random.default_rng(0)
    widths = {target.name: target for target in bank.targets}
    draw = lambda width: random.standard_normal((rank, width)).astype(np.float32) * 0.01  # noqa: E731
    downs = {place: draw(widths[place[1]].inner) for place in bank.places()}
    ups = {place: draw(widths[place[1]].outer) for place in bank.places()}
    return AdapterWeights(digest, rank, downs, ups)


if __name__ == "__main__":
    main()
