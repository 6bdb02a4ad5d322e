"""Models with Mamba-2 layers: as they are published, in what grades, and what they are not."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle.specs import RecurrentSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families.falcon_h1 import FalconShape
from installer.checkpoint.families.family import ATTENDING, RECURRENT, SPARSE, Family
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.shallow import cut
from tests.checkpoint.conftest import BuildBundle, Built, OpenConfig, build_unsigned
from tests.checkpoint.families.granite import EXPERTS, GRANITE, HYBRID, MIXTURE
from tests.checkpoint.published_states import (
    BAMBA_9B,
    FALCON_H1_HALF_B,
    GRANITE_H_MICRO,
    GRANITE_H_SMALL,
    GRANITE_H_TINY,
    NEMOTRON_3_NANO,
    NEMOTRON_H_8B,
    NEMOTRON_NANO_9B_V2,
)
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error

TOKENS = np.random.default_rng(9).integers(0, 480, 60).tolist()


@dataclass(frozen=True, slots=True)
class Published:
    """Attributes:
    config: the document.
    recurrent: of its Mamba-2 layers.
    attending: layers that attend.
    chosen: experts of a token.
    """

    config: dict[str, Any]
    recurrent: RecurrentSpec
    attending: int
    chosen: int = 0


def states(layers: int, heads: int, channels: int, width: int = 64) -> RecurrentSpec:
    return RecurrentSpec(
        layers=layers, heads=heads, key_dim=128, value_dim=width, channels=channels, tail=3
    )


PUBLISHED = {
    "Granite-4.0-H-Micro": Published(GRANITE_H_MICRO, states(36, 64, 4096 + 256), 4),
    "Granite-4.0-H-Tiny": Published(GRANITE_H_TINY, states(36, 48, 3072 + 256), 4, 6),
    "Granite-4.0-H-Small": Published(GRANITE_H_SMALL, states(36, 128, 8192 + 256), 4, 10),
    "Nemotron-H-8B": Published(NEMOTRON_H_8B, states(24, 128, 8192 + 2048), 4),
    "Nemotron-Nano-9B-v2": Published(
        NEMOTRON_NANO_9B_V2, states(27, 128, 10_240 + 2048, width=80), 4
    ),
    "Bamba-9B": Published(BAMBA_9B, states(29, 128, 8192 + 256), 3),
    "Falcon-H1-0.5B": Published(FALCON_H1_HALF_B, states(36, 24, 1536 + 256), 36),
    "Nemotron-3-Nano-30B-A3B": Published(NEMOTRON_3_NANO, states(23, 64, 4096 + 2048), 6, 6),
}


def read(open_config: OpenConfig, document: dict[str, Any]) -> tuple[Family, DecoderShape]:
    checkpoint = open_config(document)
    family = family_of(checkpoint)
    shape = family.read(checkpoint)
    if isinstance(shape, FalconShape):
        shape = shape.decoder
    assert isinstance(shape, DecoderShape)
    return family, shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    wanted = PUBLISHED[name]
    family, shape = read(open_config, wanted.config)
    every_layer = wanted.recurrent.layers == wanted.attending
    grades = SPARSE if wanted.chosen else ATTENDING if every_layer else RECURRENT
    assert family.precisions == grades
    spec = shape.spec()
    assert (spec.recurrent, spec.layers) == (wanted.recurrent, wanted.attending)
    assert (shape.mixture.chosen if shape.mixture else 0) == wanted.chosen


def test_layers_of_granite_decide_what_builds_it(open_config: OpenConfig) -> None:
    plain = GRANITE | HYBRID
    dense, _ = read(open_config, plain)
    sparse, shape = read(open_config, plain | EXPERTS)
    assert (dense.recurrent, dense.standard, "w4a8" in dense.grades) == (False, True, True)
    assert (sparse.recurrent, sparse.standard, sparse.precisions) == (False, False, SPARSE)
    assert shape.mixture is not None
    assert (shape.mixture.inner, shape.mixture.shared, shape.inner) == (96, 128, 128)


def test_mixtures_of_granite_3_have_experts_in_every_layer(open_config: OpenConfig) -> None:
    mixture = GRANITE | MIXTURE | EXPERTS
    assert read(open_config, mixture)[1].inner == 0
    with pytest.raises(CheckpointError, match="num_local_experts"):
        read(open_config, mixture | {"num_local_experts": 0})
    with pytest.raises(CheckpointError, match="layer_types"):
        read(open_config, mixture | {"layer_types": ["mamba"] * 2})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_types": ["mamba"] * 40}, "layer_types"),
        ({"layer_types": ["mamba", "sliding_attention"] * 20}, "layer_types"),
        ({"mamba_d_head": 32}, "mamba_d_head"),
        ({"mamba_n_groups": 5}, "5 groups"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias"),
        ({"time_step_limit": [0.001, 0.1]}, "time_step_limit"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_granite_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(open_config, {**GRANITE_H_TINY, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hybrid_override_pattern": "M" * 52}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": "ME*X" * 13}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": "ME*E"}, "num_hidden_layers"),
        ({"layers_block_type": ["mamba", "sliding_attention"]}, "layers_block_type"),
        ({"mlp_hidden_act": "silu"}, "mlp_hidden_act"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act"),
        ({"use_conv_bias": False}, "use_conv_bias"),
        ({"use_bias": True}, "use_bias"),
        ({"n_groups": 7}, "7 groups"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"time_step_limit": [0.001, float("inf")]}, "time_step_limit"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_what_nemotron_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(open_config, {**NEMOTRON_3_NANO, **changes})


def test_layers_of_nemotron_may_have_names_for_letters(open_config: OpenConfig) -> None:
    _, by_letters = read(open_config, NEMOTRON_3_NANO)
    names = {"M": "linear_attention", "*": "full_attention", "E": "moe"}
    document = dict(NEMOTRON_3_NANO)
    pattern = document.pop("hybrid_override_pattern")
    del document["num_hidden_layers"]
    document["layers_block_type"] = [names[letter] for letter in pattern]
    assert read(open_config, document)[1] == by_letters


def test_layers_without_keys_and_states_have_no_place_among_those_that_have(
    open_config: OpenConfig,
) -> None:
    _, shape = read(open_config, NEMOTRON_3_NANO)
    pattern = NEMOTRON_3_NANO["hybrid_override_pattern"]
    for kept in "M*":
        layers = [layer for layer, letter in enumerate(pattern) if letter == kept]
        assert [shape.place(layer) for layer in layers] == list(range(len(layers)))
    assert shape.mixture is not None
    assert (shape.mixture.shared, shape.mixture.inner, shape.context) == (3712, 1856, 262_144)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mamba_d_head": 32}, "mamba_d_head"),
        ({"mamba_n_heads": 7, "mamba_d_head": "auto"}, "mamba_n_heads"),
        ({"mamba_rms_norm": True, "mamba_norm_before_gate": True}, "mamba_norm_before_gate"),
        ({"mamba_rms_norm": True, "mamba_norm_before_gate": None}, "mamba_norm_before_gate"),
        ({"mamba_use_mlp": False}, "mamba_use_mlp"),
        ({"projectors_bias": True}, "projectors_bias"),
        ({"ssm_multipliers": [1.0] * 4}, "ssm_multipliers"),
        ({"mlp_multipliers": 1.0}, "mlp_multipliers"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
    ],
)
def test_what_falcon_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(open_config, {**FALCON_H1_HALF_B, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attn_layer_indices": []}, "attn_layer_indices"),
        ({"attn_layer_indices": [9, 32]}, "attn_layer_indices"),
        ({"attn_rotary_emb": 128}, "attn_rotary_emb"),
        ({"partial_rotary_factor": 1.0}, "partial_rotary_factor"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias"),
    ],
)
def test_what_bamba_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(open_config, {**BAMBA_9B, **changes})


@pytest.mark.parametrize(
    ("config", "layers"), [(GRANITE_H_TINY, 6), (NEMOTRON_3_NANO, 6), (BAMBA_9B, 10)]
)
def test_the_first_layers_have_all_kinds(config: dict[str, Any], layers: int) -> None:
    shallow = cut(config)
    assert shallow is not None
    assert shallow.layers == layers
    for key in ("layer_types", "hybrid_override_pattern"):
        if key in config:
            assert shallow.config[key] == config[key][:layers]


def test_multipliers_of_falcon_are_where_they_belong(open_config: OpenConfig) -> None:
    checkpoint = open_config({**FALCON_H1_HALF_B, "attention_in_multiplier": 0.5})
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, FalconShape)
    assert shape.decoder.scale == pytest.approx(0.125 * 0.390625 * 0.25)
    assert shape.attended == pytest.approx(0.9375 * 0.5)
    assert (shape.kind.gates, shape.kind.queries) == pytest.approx((1.25 * 0.3535534, 1.25 * 0.5))
    assert shape.product == pytest.approx(shape.gates * 0.5859375)
    assert shape.decoder.score_scale == pytest.approx(0.0390625)


def test_small_steps_are_bent_exactly_and_have_no_bounds(
    built: BuildBundle, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built("nemotron-h", "fp32").checkpoint, checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    for name, values in weights.items():
        if name.endswith("dt_bias"):
            values[:] -= 9
        elif name.endswith(".D"):
            values[:] = 0  # or what goes past the state would hide it
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    build_unsigned(checkpoint, tmp_path / "bundle", precision="fp32")
    model = Built(checkpoint, tmp_path / "bundle")
    wanted = ReferenceDecoder(checkpoint).logits(TOKENS)[-1]
    got = SlotRunner(model.graph, model.spec, capacity=128).prefill(0, TOKENS)
    assert relative_error(got, wanted) <= 1e-5


def test_heads_of_nemotron_that_predict_are_left_out(built: BuildBundle, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built("nemotron-h", "fp32").checkpoint, checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    extra = {"mtp.layers.0.eh_proj.weight": np.ones((2, 2), np.float32)}
    save_file(weights | extra, checkpoint / "model.safetensors", {"format": "pt"})
    manifest = build_unsigned(checkpoint, tmp_path / "bundle", precision="w8a8")
    assert [graph.variant for graph in manifest.graphs] == ["cpu", "cuda", "cuda"]


def test_steps_without_bounds_may_be_said_so(open_config: OpenConfig) -> None:
    _, silent = read(open_config, GRANITE_H_TINY)
    said = {"time_step_limit": [0.0, float("inf")], "mamba_d_head": "auto"}
    assert read(open_config, {**GRANITE_H_TINY, **said})[1] == silent
