"""Graphs with adapters compute what models with the adapters merged in compute, row by row.

Four adapters of different ranks and targets and the base itself are in one batch. Where a grade
rounds weights, the reference has the rounded weights with the exact adapter added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.bundle.specs import Adapted
from appliance.engine.adapters.bank import AdapterBank, AdapterWeights
from appliance.engine.adapters.graphs import AdaptedGraphs
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.model_runner import ModelRunner
from appliance.engine.slot_pool import SlotPool
from installer.checkpoint import build_bundle
from installer.checkpoint.graph import builder
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Precision
from tests.checkpoint.byte_runner import FEW, OTHER_WAY, distance
from tests.checkpoint.conftest import WRITERS
from tests.checkpoint.reference import (
    ReferenceDecoder,
    RoundingReference,
    with_rounded_rows,
    with_rounded_weights,
)
from tests.checkpoint.runner import Floats, relative_error
from tests.conftest import BuildOnce
from tests.fakes.adapters import write_adapter, write_merged
from tests.sweeps import rarely, sampled

TOKENS = np.random.default_rng(13).integers(0, 480, 200).tolist()
NAMES = ["qwen3-odd-widths", "qwen2", "llama-3.1-rope"]
ADAPTERS: Mapping[str, dict[str, Any]] = {
    "all": {"rank": 4},
    "attention": {"rank": 8, "targets": ("q", "v"), "alpha": 16.0},
    "stable": {"rank": 3, "rslora": True, "targets": ("k", "o", "down")},
    "half": {"rank": 1, "dtype": "bfloat16", "targets": ("gate", "up", "o")},
}
ROWS = ("attention", "", "all", "half", "stable")
"""Who is in which slot."""
PROMPTS = [TOKENS[:5], TOKENS[5:70], TOKENS[70:71], TOKENS[80:110], TOKENS[110:121]]


class Served:
    """A base with all adapters, run as the engine runs it."""

    def __init__(self, bundle: Path, adapters: Path) -> None:
        self.manifest: Manifest = decode((bundle / MANIFEST_NAME).read_bytes())
        graph, spec = self.manifest.graph, self.manifest.decoder
        assert spec is not None
        assert isinstance(graph.adapted, Adapted)
        self.vocab = spec.vocab_size
        pool = SlotPool(spec, CacheShape(len(ROWS), 256, token_bytes(spec)))

        def opened(path: object) -> Any:
            return open_graph(bundle / path) if isinstance(path, str) else None

        self.runner = ModelRunner(opened(graph.path), pool, self.vocab, 256, opened(graph.prefill))
        self.graphs = AdaptedGraphs(
            opened(graph.adapted.path), pool, 256, opened(graph.adapted.prefill)
        )
        bank = AdapterBank(spec.layers, graph.adapted.targets)
        for name in ADAPTERS:
            bank = bank.adding(weights_of(adapters / name, name, **ADAPTERS[name]))
        self.runner.adopt(self.graphs, bank)

    def prefill(
        self, name: str, slot: int, tokens: Sequence[int], start: int = 0, rows: int = 1
    ) -> Floats:
        logits: Floats = np.full((rows, self.vocab), np.nan, np.float32)
        if name:
            self.graphs.prefill(name, slot, start, tokens, logits)
        else:
            self.runner.prefill(slot, start, tokens, logits)
        return logits

    def decode(self, names: Sequence[str], starts: Sequence[int], tokens: Sequence[int]) -> Floats:
        logits: Floats = np.full((len(tokens), self.vocab), np.nan, np.float32)
        self.graphs.decode(names, starts, [[token] for token in tokens], logits)
        return logits


def weights_of(directory: Path, name: str, **config: Any) -> AdapterWeights:
    """An adapter's weights by the formula alone."""
    rank, alpha = config["rank"], config.get("alpha", 8.0)
    scale = alpha / (rank**0.5 if config.get("rslora") else rank)
    downs, ups = {}, {}
    tensors: dict[str, npt.NDArray[Any]] = load_file(directory / "adapter_model.safetensors")
    for tensor, values in tensors.items():
        parts = tensor.split(".")
        place = int(parts[4]), parts[6].removesuffix("_proj")
        if ".lora_A." in tensor:
            downs[place] = values.astype(np.float32)
        else:
            ups[place] = np.ascontiguousarray(values.astype(np.float32).T * np.float32(scale))
    return AdapterWeights(name, rank, downs, ups)


def build(checkpoint: Path, out: Path, precision: Precision) -> Path:
    build_bundle(
        checkpoint, out, name="base", version="1", precision=precision, adapters=True,
        signer=None, created=1,
    )  # fmt: skip
    return out


def cells(*quick: str) -> pytest.MarkDecorator:
    """The families of a test; all but `quick` ones in the full run only."""
    return pytest.mark.parametrize(
        "family",
        sampled(NAMES, quick),
        indirect=True,
    )


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, build_once: BuildOnce) -> Path:
    """A directory with the checkpoint `base`, each adapter, and the merged checkpoints."""

    def write(directory: Path) -> None:
        base = WRITERS[request.param](directory / "base")
        for number, (name, numbers) in enumerate(ADAPTERS.items()):
            write_adapter(directory / name, base, seed=number, **numbers)
            write_merged(directory / f"merged-{name}", base, directory / name)

    return build_once(f"adapted-{request.param}", write)


@cells("qwen2", "llama-3.1-rope")
def test_each_row_of_a_mixed_batch_is_its_merged_model(family: Path, tmp_path: Path) -> None:
    served = Served(build(family / "base", tmp_path / "it", "fp32"), family)
    _expect_rows(
        served, lambda name: ReferenceDecoder(family / (f"merged-{name}" if name else "base"))
    )


@cells("qwen3-odd-widths")
@pytest.mark.parametrize("precision", ["int4", *rarely(["int8"])])
def test_rounded_weights_have_the_exact_adapter_added(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(builder, "INT8_ACTIVATIONS", 0)
    served = Served(build(family / "base", tmp_path / "it", precision), family)
    rounded = with_rounded_weights(family / "base", tmp_path / "rounded", precision)

    def reference(name: str) -> ReferenceDecoder:
        if not name:
            return ReferenceDecoder(rounded)
        return ReferenceDecoder(write_merged(tmp_path / name, rounded, family / name))

    _expect_rows(served, reference)


@cells("qwen3-odd-widths")
def test_a_prompt_in_chunks_is_its_merged_model(family: Path, tmp_path: Path) -> None:
    served = Served(build(family / "base", tmp_path / "it", "fp32"), family)
    wanted = ReferenceDecoder(family / "merged-all").logits(TOKENS)
    start = 0
    for size in (1, 64, 7, 100, 28):
        got = served.prefill("all", 2, TOKENS[start : start + size], start)
        start += size
        assert relative_error(got[0], wanted[start - 1]) <= 1e-4


@cells("qwen3-odd-widths")
def test_products_of_integers_have_the_exact_adapter_added(family: Path, tmp_path: Path) -> None:
    bundle = build(family / "base", tmp_path / "it", "w8a8")
    served = Served(bundle, family)
    rounded = with_rounded_rows(family / "base", tmp_path / "rounded")
    for name in ("", *ADAPTERS):
        reference = RoundingReference(rounded, bundle / served.manifest.graph.path)
        if name:
            _add(reference.model, weights_of(family / name, name, **ADAPTERS[name]))
        logits = reference.logits(TOKENS[:120])
        got = served.prefill(name, 0, TOKENS[:100], rows=100)
        assert distance(got, logits[:100]) <= OTHER_WAY, name
        for at in range(100, 104):
            names = (name or "all", name)
            served.prefill(names[0], 1, TOKENS[:at])
            row = served.decode([name, names[0]], [at, at], [TOKENS[at]] * 2)[0]
            assert distance(row, logits[at]) <= FEW, name


@cells("qwen2")
def test_the_base_is_the_same_to_the_bit_beside_adapters(family: Path, tmp_path: Path) -> None:
    served = Served(build(family / "base", tmp_path / "it", "w8a8"), family)
    for slot, (name, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        served.prefill(name, slot, prompt)
    lengths = [len(prompt) for prompt in PROMPTS]
    mixed = served.decode(ROWS, lengths, [9, 8, 7, 6, 5])[ROWS.index("")]
    alone: Floats = np.full((1, served.vocab), np.nan, np.float32)
    served.prefill("", 0, PROMPTS[ROWS.index("")])
    served.runner.decode([lengths[ROWS.index("")]], [[8]], alone)
    assert (mixed == alone[0]).all()


def _expect_rows(served: Served, reference: Any) -> None:
    models = {name: reference(name) for name in ROWS}
    prompts = [list(prompt) for prompt in PROMPTS]
    for slot, (name, prompt) in enumerate(zip(ROWS, prompts, strict=True)):
        got = served.prefill(name, slot, prompt)
        assert relative_error(got[0], models[name].logits(prompt)[-1]) <= 1e-4, name
    for step in range(3):
        appended = [TOKENS[150 + 10 * step + slot] for slot in range(len(ROWS))]
        logits = served.decode(ROWS, [len(prompt) for prompt in prompts], appended)
        for name, prompt, token, got in zip(ROWS, prompts, appended, logits, strict=True):
            prompt.append(token)
            assert relative_error(got, models[name].logits(prompt)[-1]) <= 1e-4, name


def _add(model: torch.nn.Module, weights: AdapterWeights) -> None:
    """Add an adapter beside the layers of a reference, on inputs before they are rounded."""
    for path, layer in model.named_modules():
        parts = path.split(".")
        if not isinstance(layer, torch.nn.Linear) or len(parts) < 4:
            continue
        place = int(parts[2]), parts[-1].removesuffix("_proj")
        if place in weights.downs:
            beside = _Beside(torch.tensor(weights.downs[place]), torch.tensor(weights.ups[place]))
            layer.register_forward_pre_hook(beside.before, prepend=True)
            layer.register_forward_hook(beside.after)


class _Beside:
    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        self._down, self._up = down, up

    def before(self, _layer: object, inputs: tuple[torch.Tensor, ...]) -> None:
        self._added = (inputs[0] @ self._down.T) @ self._up

    def after(self, _layer: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + self._added
