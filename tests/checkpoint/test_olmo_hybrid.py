"""OLMo Hybrid: as it is published, by the names that there are, and what it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from appliance.bundle.specs import Parity, RecurrentSpec
from appliance.errors import CheckpointError
from installer.checkpoint import build_bundle
from installer.checkpoint.families import olmo_hybrid
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.rope import STILL
from tests.checkpoint.conftest import BuildBundle, Built, OpenConfig, build_unsigned
from tests.checkpoint.families.olmo import HYBRID, TURNED
from tests.checkpoint.runner import Floats, SlotRunner
from tests.checkpoint.test_refusals import edit_json

TOKENS = np.random.default_rng(45).integers(0, 480, 40).tolist()
PUBLISHED: dict[str, Any] = {
    "architectures": ["OlmoHybridForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100_257,
    "hidden_act": "silu",
    "hidden_size": 3840,
    "initializer_range": 0.02,
    "intermediate_size": 11_008,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
    "linear_a_log_max": 16.0,
    "linear_a_log_min": 0.0,
    "linear_allow_neg_eigval": True,
    "linear_conv_kernel_dim": 4,
    "linear_dt_init_floor": 0.0001,
    "linear_dt_max": 0.1,
    "linear_dt_min": 0.001,
    "linear_key_head_dim": 96,
    "linear_num_key_heads": 30,
    "linear_num_value_heads": 30,
    "linear_value_head_dim": 192,
    "max_position_embeddings": 65_536,
    "model_type": "olmo_hybrid",
    "num_attention_heads": 30,
    "num_hidden_layers": 32,
    "num_key_value_heads": 30,
    "pad_token_id": 100_277,
    "rms_norm_eps": 1e-06,
    "rope_parameters": None,
    "tie_word_embeddings": False,
    "vocab_size": 100_352,
}
"""Of Olmo-Hybrid-7B: what its reference means where config.json is silent, spelled out."""
_OWN = {"linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "layer_types"}


@pytest.mark.parametrize("left_out", [set(), _OWN | {"linear_conv_kernel_dim", "rms_norm_eps"}])
def test_the_published_config_is_understood(open_config: OpenConfig, left_out: set[str]) -> None:
    checkpoint = open_config({k: v for k, v in PUBLISHED.items() if k not in left_out})
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, DecoderShape)
    assert shape.recurrent is not None
    assert shape.recurrent.spec() == RecurrentSpec(
        layers=24, heads=30, key_dim=96, value_dim=192, channels=11_520, tail=3
    )
    assert (shape.spec().layers, shape.spec().head_dim, shape.context) == (8, 128, 65_536)
    assert {kind.rope for kind in shape.kinds} == {STILL}


@pytest.mark.parametrize(
    "said", [None, {"rope_type": None}, {"rope_type": "default"}, {"rope_theta": None}]
)
def test_without_a_wavelength_nothing_turns(
    built: BuildBundle, tmp_path: Path, said: Mapping[str, object] | None
) -> None:
    model = built("olmo-hybrid", "fp32")
    other = tmp_path / "other"
    shutil.copytree(model.checkpoint, other)
    edit_json(other / "config.json", lambda config: config.update(rope_parameters=said))
    build_unsigned(other, tmp_path / "bundle", precision="fp32")
    assert model.graph.read_bytes() == Built(other, tmp_path / "bundle").graph.read_bytes()


@pytest.mark.parametrize(
    ("config", "theta"),
    [
        ({"rope_parameters": None}, None),
        ({"rope_parameters": {"rope_type": None}}, None),
        ({}, None),
        ({"rope_theta": 500_000.0}, 500_000.0),
        (TURNED, 500_000.0),
    ],
)
def test_the_reference_is_told_so(config: dict[str, Any], theta: float | None) -> None:
    said = olmo_hybrid.restated({**{k: v for k, v in HYBRID.items() if "rope" not in k}, **config})
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(**said))
    assert (reference.model.rotary_emb is None) == (theta is None)
    assert reference.config.rope_parameters["rope_theta"] == theta


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmo-hybrid", "olmo-hybrid-turned", "qwen4-exp", "lfm3"])
def test_the_builder_compares_the_first_layers_of_newer_families(
    built: BuildBundle, tmp_path: Path, name: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built(name, "fp32").checkpoint, checkpoint)
    if name == "olmo-hybrid":
        edit_json(checkpoint / "config.json", lambda config: config.update(rope_parameters=None))
    manifest = build_bundle(
        *(checkpoint, tmp_path / "bundle"),
        name="tiny",
        version="1.0",
        precision="fp32",
        signer=None,
        parity="required",
    )
    assert isinstance(manifest.parity, Parity)
    assert manifest.parity.layers == {"lfm3": 4}.get(name, 2)
    assert isinstance(manifest.parity.error, int)


def in_memory(weights: dict[str, Any]) -> dict[str, Any]:
    """As the reference calls tensors."""
    for layer in range(4):
        at, recurs = f"model.layers.{layer}", layer % 2 == 0
        weights[f"{at}.post_attention_layernorm.weight"] = weights.pop(
            f"{at}.feedforward_layer_norm.weight"
        )
        if recurs:
            weights[f"{at}.input_layernorm.weight"] = weights.pop(
                f"{at}.attention_layer_norm.weight"
            )
            weights[f"{at}.linear_attn.conv1d.weight"] = joined(weights, at)
    return weights


def published(weights: dict[str, Any]) -> dict[str, Any]:
    """As publishers have them: a convolution for each of queries, keys and values."""
    for layer in range(4):
        at, recurs = f"model.layers.{layer}", layer % 2 == 0
        if recurs:
            parts = np.split(joined(weights, at), [64, 128])
            for name, part in zip("qkv", parts, strict=True):
                weights[f"{at}.linear_attn.{name}_conv1d.weight"] = np.ascontiguousarray(part)
        else:
            weights[f"{at}.post_attention_layernorm.weight"] = weights.pop(
                f"{at}.feedforward_layer_norm.weight"
            )
    return weights


def joined(weights: dict[str, Any], at: str) -> Any:
    names = [f"{at}.linear_attn.{part}_conv1d.weight" for part in "qkv"]
    return np.concatenate([weights.pop(name) for name in names])


@pytest.mark.parametrize("named", [in_memory, published])
def test_tensors_are_found_by_the_names_of_either(
    built: BuildBundle, tmp_path: Path, named: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    model = built("olmo-hybrid", "fp32")
    other = tmp_path / "other"
    shutil.copytree(model.checkpoint, other)
    file = other / "model.safetensors"
    save_file(named(load_file(file)), file, {"format": "pt"})
    build_unsigned(other, tmp_path / "bundle", precision="fp32")
    assert (logits(Built(other, tmp_path / "bundle")) == logits(model)).all()


def logits(model: Built) -> Floats:
    return SlotRunner(model.graph, model.spec, capacity=64).prefill(0, TOKENS)


def test_convolutions_that_are_short_of_channels_are_refused(
    built: BuildBundle, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(built("olmo-hybrid", "fp32").checkpoint, other)
    weights = load_file(other / "model.safetensors")
    name = "model.layers.2.linear_attn.k_conv1d.weight"
    weights[name] = np.ascontiguousarray(weights[name][:-1])
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="conv1d"):
        build_unsigned(other, tmp_path / "bundle", precision="fp32")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"linear_allow_neg_eigval": False}, "linear_allow_neg_eigval"),
        ({"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(
    open_config: OpenConfig, change: dict[str, Any], named: str
) -> None:
    checkpoint = open_config({**HYBRID, **change})
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)
