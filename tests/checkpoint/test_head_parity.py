"""A head computes what the reference library's layer for further tokens computes.

With the same roundings of weights, activations, keys and values on both sides; in the Euclidean
norm, since a rounding may fall the other way. The states come from the model's own graph, whose
states are compared, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers.modeling_layers import MtpLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from appliance.bundle.specs import HeadSpec
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.guessing.head_runner import HeadRunner
from appliance.engine.native_pool import NativePool
from appliance.engine.native_runner import NativeRunner, Piece, Step
from appliance.native import library
from appliance.scheduler import Plan, PrefillChunk
from appliance.scheduler import Sequence as Said
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Precision
from tests.checkpoint.byte_runner import FEW, OTHER_WAY, distance
from tests.checkpoint.conftest import BuildBundle, Built
from tests.checkpoint.reference import (
    RoundingReference,
    _round_rows,
    _RoundingCache,
    with_rounded_weights,
)
from tests.checkpoint.runner import Floats

pytestmark = pytest.mark.skipif(not library.supported(), reason="the head has native operators")
TOKENS: list[int] = np.random.default_rng(7).integers(0, 480, 120).tolist()
CAPACITY = 128
AT = "model.mtp_layers.0."
NAMES = {
    "token_layernorm": "enorm",
    "hidden_layernorm": "hnorm",
    "input_proj": "eh_proj",
    "final_layernorm": "post_norm",
}


class Reference:
    """The library's layer, with a cache as the head's, over the model's table of outputs."""

    def __init__(self, rounded: Path, main: RoundingReference, graph: Path) -> None:
        self._main, self._graph = main.model, graph
        config = main.model.config
        config.mtp_hidden_states_first = True
        self.layer: Any = MtpLayer(config, Qwen2DecoderLayer, Qwen2RMSNorm, 0)
        weights = load_file(rounded / "model.safetensors")
        own = {
            self._named(name.removeprefix(AT)): torch.tensor(values)
            for name, values in weights.items()
            if name.startswith(AT)
        }
        self.layer.load_state_dict(own)
        self.layer.eval()
        for module in self.layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(_round_rows)

    def _named(self, name: str) -> str:
        stem, _, end = name.rpartition(".")
        return f"{NAMES[stem]}.{end}" if stem in NAMES else f"mtp_block.{name}"

    def run(
        self, tokens: Sequence[int], states: Floats, guesses: Sequence[int] = ()
    ) -> tuple[Floats, Floats]:
        """Logits and states behind `tokens`, each with its own of `states`, and then of `guesses`,
        each with the state that came before it."""
        cache, logits, following = _RoundingCache(self._graph), [], []
        given = torch.tensor(states)[None]
        with torch.inference_mode():
            for start, words in [(0, list(tokens)), *((len(tokens) + i, [t])
                                                      for i, t in enumerate(guesses))]:  # fmt: skip
                given = self._once(words, given, start, cache)
                logits.append(self._main.lm_head(given)[0].numpy())
                following.append(given[0].numpy())
                given = given[:, -1:]
        return np.concatenate(logits), np.concatenate(following)

    def _once(
        self, words: list[int], given: torch.Tensor, start: int, cache: _RoundingCache
    ) -> torch.Tensor:
        model = self._main.model
        embedded = model.embed_tokens(torch.tensor([words]))
        at = torch.arange(start, start + len(words))[None]
        end = start + len(words)
        mask = torch.full((len(words), end), -torch.inf).triu(start + 1)[None, None]
        out: torch.Tensor = self.layer(
            embedded, given, model.rotary_emb(embedded, at), mask, at, cache
        )
        return out


@dataclass(frozen=True, slots=True)
class Bench:
    """The model's states over TOKENS, the head's runner, and the reference of both."""

    states: Floats
    wanted_states: Floats
    runner: HeadRunner
    reference: Reference

    def compute(
        self, slot: int, start: int, count: int, states: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Positions `start` and on of TOKENS, all of their rows wanted."""
        return self.together([(slot, start, count)], states)

    def together(
        self, spans: Sequence[tuple[int, int, int]], states: Floats | None = None
    ) -> tuple[Floats, Floats]:
        step, given = Step(), []
        for slot, start, count in spans:
            tokens = TOKENS[start + 1 : start + 1 + count]
            step.add(Piece(Said([0]), slot, start, tokens, count))
            given.append(self.states[start : start + count])
        logits, following = self.runner.run(
            step, np.concatenate(given) if states is None else states
        )
        return logits.copy(), following


def head_of(model: Built) -> HeadSpec:
    spec = model.manifest.head
    assert isinstance(spec, HeadSpec)
    return spec


def main_states(model: Built) -> Floats:
    native = model.manifest.variant("native")
    assert native is not None
    shape = CacheShape(1, CAPACITY, token_bytes(model.spec))
    session = open_graph(model.bundle / native.path, model.bundle / native.weights_folder)
    runner = NativeRunner(
        session, NativePool(model.spec, shape), model.spec.vocab_size, head_of(model).hidden
    )
    runner.run(Plan(prefills=(PrefillChunk(Said(TOKENS), 0, 0, len(TOKENS)),)))
    return runner.states


def head_runner(model: Built, slots: int = 4) -> HeadRunner:
    spec = head_of(model)
    pool = NativePool(spec.decoder, CacheShape(slots, CAPACITY, token_bytes(spec.decoder)))
    session = open_graph(model.bundle / spec.graph, model.graph.parent)
    runner = HeadRunner(session, pool, spec.decoder.vocab_size, spec.hidden)
    # Every row is looked at here, not one a slot.
    runner._logits = np.zeros((len(TOKENS), spec.decoder.vocab_size), np.float32)
    return runner


def states_before_the_norm(reference: RoundingReference) -> Floats:
    """What the reference's model has behind its last layer."""
    seen: list[Floats] = []

    def look(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0][0].detach().numpy().copy())

    handle = reference.model.model.norm.register_forward_pre_hook(look)
    reference.logits(TOKENS)
    handle.remove()
    return seen[0]


@pytest.fixture(scope="module", params=["w8a8", "w4a8"])
def bench(
    request: pytest.FixtureRequest, built: BuildBundle, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    grade: Precision = request.param
    model = built("mimo", grade)
    folder = tmp_path_factory.mktemp("head") / "rounded"
    rounded = with_rounded_weights(model.checkpoint, folder, grade)
    main = RoundingReference(rounded, model.graph)
    reference = Reference(rounded, main, model.bundle / head_of(model).graph)
    return Bench(main_states(model), states_before_the_norm(main), head_runner(model), reference)


def test_the_states_are_those_behind_the_models_last_layer(bench: Bench) -> None:
    assert bench.states.shape == bench.wanted_states.shape
    assert distance(bench.states, bench.wanted_states) <= OTHER_WAY


def test_a_prompt_gives_what_the_reference_gives_in_one_go_and_in_pieces(bench: Bench) -> None:
    wanted = bench.reference.run(TOKENS[1:101], bench.states[:100])
    whole = bench.compute(0, 0, 100)
    pieces, end = [], 0
    for size in (1, 40, 7, 52):
        pieces.append(bench.compute(1, end, size))
        end += size
    for index in range(2):
        assert distance(whole[index], wanted[index]) <= OTHER_WAY
        joined = np.concatenate([piece[index] for piece in pieces])
        assert np.array_equal(joined, whole[index]), "to the bit"


def test_sequences_of_different_lengths_go_on_together(bench: Bench) -> None:
    lengths = (3, 60, 17)
    for slot, length in enumerate(lengths):
        bench.compute(slot, 0, length)
    logits, states = bench.together([(2, 17, 2), (0, 3, 1), (1, 60, 4)])
    rows = {2: slice(0, 2), 0: slice(2, 3), 1: slice(3, 7)}
    for slot, count in ((2, 2), (0, 1), (1, 4)):
        end = lengths[slot] + count
        wanted = bench.reference.run(TOKENS[1 : end + 1], bench.states[:end])
        for got, those in zip((logits, states), wanted, strict=True):
            assert distance(got[rows[slot]], those[-count:]) <= FEW


def test_it_goes_on_from_its_own_states(bench: Bench) -> None:
    guesses = [11, 300, 7]
    wanted = bench.reference.run(TOKENS[1:51], bench.states[:50], guesses)
    logits, states = bench.compute(0, 0, 50)
    got = [(logits[-1:], states[-1:])]
    for place, token in enumerate(guesses):
        step = Step()
        step.add(Piece(Said([0]), 0, 50 + place, [token], 1))
        logits, states = bench.runner.run(step, got[-1][1])
        got.append((logits.copy(), states))
    for index in range(2):
        mine = np.concatenate([pair[index] for pair in got])
        assert distance(mine, wanted[index][-4:]) <= OTHER_WAY


def test_rows_that_nobody_wants_change_none_that_somebody_wants(bench: Bench) -> None:
    wanted = bench.compute(0, 0, 30)
    step = Step()
    step.add(Piece(Said([0]), 1, 0, TOKENS[1:30], 0))
    logits, states = bench.runner.run(step, bench.states[:29])
    assert logits.shape[0] == states.shape[0] == 0
    last = bench.compute(1, 29, 1)
    assert all(np.array_equal(a, b[-1:]) for a, b in zip(last, wanted, strict=True))


@pytest.mark.parametrize("part", ["order", "enorm", "hnorm", "post_norm", "mtp_block", "state"])
def test_the_bound_tells_a_head_that_is_another(bench: Bench, part: str) -> None:
    states = bench.states[:60]
    got, _ = bench.compute(3, 0, 60)
    layer, config = bench.reference.layer, bench.reference.layer.config
    kept = {name: values.clone() for name, values in layer.state_dict().items()}
    try:
        if part == "order":
            config.mtp_hidden_states_first = False
        elif part == "state":
            states = np.roll(states, 1, axis=0)
        for name, values in layer.state_dict().items():
            if name.startswith(part) and name.endswith("norm.weight"):
                values.copy_(torch.ones_like(values))
        wanted, _ = bench.reference.run(TOKENS[1:61], states)
    finally:
        config.mtp_hidden_states_first = True
        layer.load_state_dict(kept)
    assert distance(got, wanted) > 4 * OTHER_WAY
