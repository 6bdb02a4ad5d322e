"""Models with layers that keep a running state: as they are published, and what they are not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle.specs import RecurrentSpec
from appliance.errors import CheckpointError
from installer.checkpoint import build_bundle
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.pictures import PictureShape
from installer.checkpoint.quantize import Precision
from tests.checkpoint.conftest import WRITERS, BuildBundle, OpenConfig, build_unsigned
from tests.checkpoint.published_dense import config

_ALIKE: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "full_attention_interval": 4,
    "head_dim": 256,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "rms_norm_eps": 1e-6,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 512,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
}
QWEN3_NEXT = config(
    "Qwen3Next",
    (2048, 5120, 48, 16, 2, 151_936, 262_144),
    **_ALIKE,
    **_EXPERTS,
    model_type="qwen3_next",
    decoder_sparse_step=1,
    mlp_only_layers=[],
    norm_topk_prob=True,
    num_experts=512,
    num_experts_per_tok=10,
    partial_rotary_factor=0.25,
    rope_scaling=None,
    rope_theta=10_000_000,
    use_sliding_window=False,
)


_TOWER: dict[str, Any] = {
    "deepstack_visual_indexes": [],
    "depth": 27,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 4304,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def seen(text: dict[str, Any], model_type: str, architecture: str) -> dict[str, Any]:
    """As Qwen3.5 is published: words are one part of it."""
    words = {key: value for key, value in text.items() if key != "architectures"}
    words |= {
        **_ALIKE,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "layer_types": (["linear_attention"] * 3 + ["full_attention"])
        * (text["num_hidden_layers"] // 4),
        "mamba_ssm_dtype": "float32",
        "model_type": f"{model_type}_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10_000_000,
            "rope_type": "default",
        },
    }
    return {
        "architectures": [f"{architecture}ForConditionalGeneration"],
        "model_type": model_type,
        "image_token_id": 248_056,
        "text_config": words,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "transformers_version": "5.0.0",
        "video_token_id": 248_057,
        "vision_config": _TOWER
        | {"model_type": model_type, "out_hidden_size": text["hidden_size"]},
        "vision_end_token_id": 248_054,
        "vision_start_token_id": 248_053,
    }


_9B = config("Qwen3_5", (4096, 12_288, 32, 16, 4, 248_320, 262_144), mlp_only_layers=[])
_35B = config(
    "Qwen3_5Moe",
    (2048, 0, 40, 16, 2, 248_320, 262_144),
    **_EXPERTS,
    num_experts=256,
    num_experts_per_tok=8,
)
PUBLISHED = {
    "Qwen3-Next-80B-A3B": (QWEN3_NEXT, 36, 10),
    "Qwen3.5-9B": (seen(_9B, "qwen3_5", "Qwen3_5"), 24, 0),
    "Qwen3.5-35B-A3B": (
        seen(
            {key: value for key, value in _35B.items() if key != "intermediate_size"},
            "qwen3_5_moe",
            "Qwen3_5Moe",
        ),
        30,
        8,
    ),
}
"""Name -> config.json, layers with a running state, experts of a token."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    document, recurrent, chosen = PUBLISHED[name]
    checkpoint = open_config(document)
    family = family_of(checkpoint)
    shape = family.read(checkpoint)
    if isinstance(shape, PictureShape):
        assert (shape.tower.layers, shape.tower.side, shape.tower.levels) == (27, 48, 1)
        assert family.words is not None
        assert family.words.read(open_config(document)) == shape.decoder
        shape = shape.decoder
    assert isinstance(shape, DecoderShape)
    assert shape.recurrent is not None
    assert shape.recurrent.spec() == RecurrentSpec(
        layers=recurrent, heads=32, key_dim=128, value_dim=128, channels=8192, tail=3
    )
    assert shape.spec().layers == recurrent // 3
    assert {kind.rope.turned for kind in shape.kinds} == {64}
    assert (shape.mixture.chosen if shape.mixture else 0) == chosen
    assert shape.mixture is None or (shape.mixture.shared, shape.mixture.adds_up) == (512, True)


LFM2 = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 2048,
    "block_ff_dim": 12_288,
    "block_ffn_dim_multiplier": 1.0,
    "block_mlp_init_scale": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_out_init_scale": 1.0,
    "block_use_swiglu": True,
    "block_use_xavier_init": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 2048,
    "conv_dim_out": 2048,
    "conv_use_xavier_init": True,
    "eos_token_id": 7,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "max_position_embeddings": 128_000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 32,
    "num_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1_000_000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_pos_enc": True,
    "vocab_size": 65_536,
}
"""As LFM2-1.2B is published; its mixture says less of how it was trained."""
LFM2_MOE = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "layer_types": (["conv"] * 2 + ["full_attention"] + ["conv"]) * 6,
    "max_position_embeddings": 128_000,
    "model_type": "lfm2_moe",
    "moe_intermediate_size": 1792,
    "norm_eps": 1e-05,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "rope_theta": 1_000_000.0,
    "routed_scaling_factor": 1.0,
    "use_expert_bias": True,
    "vocab_size": 65_536,
}
LFM3: dict[str, Any] = {
    "architectures": ["Lfm3ForCausalLM"],
    "attention_bias": False,
    "conv_L_cache": 7,
    "conv_bias": False,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 7680,
    "layer_types": ["conv", "conv", "full_attention", "conv"]
    + ["sliding_attention", "conv", "full_attention", "conv"] * 5,
    "max_position_embeddings": 128_000,
    "model_type": "lfm3",
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "rope_parameters": {
        "full_attention": {
            "partial_rotary_factor": 0.5,
            "rope_theta": 1_000_000.0,
            "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
    },
    "sliding_window": 256,
    "use_attention_gate": True,
    "use_sandwich_norm": True,
    "vocab_size": 128_000,
}
"""What the reference means by a config.json that says nothing, spelled out."""


@pytest.mark.parametrize("said", [LFM3.keys(), ["norm_eps", "rope_parameters"], []])
def test_lfm3_is_what_its_reference_means_where_config_json_is_silent(
    open_config: OpenConfig, said: Collection[str]
) -> None:
    needed = {
        *("architectures", "model_type", "hidden_size", "intermediate_size", "vocab_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        "max_position_embeddings",
    }
    checkpoint = open_config({key: LFM3[key] for key in LFM3 if key in needed or key in said})
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, DecoderShape)
    assert (shape.head_dim, shape.epsilon, shape.tied) == (128, 1e-5, True)
    assert shape.recurrent is not None
    assert shape.recurrent.spec() == RecurrentSpec(
        layers=13, heads=0, key_dim=0, value_dim=0, channels=2048, tail=6
    )
    kinds = [kind for layer, kind in enumerate(shape.kinds) if not shape.recurs(layer)]
    assert [kind.window for kind in kinds] == [None, *(256, None) * 5]
    turning = {kind.window: np.count_nonzero(kind.rope.frequencies) for kind in kinds}
    assert turning == {None: 32, 256: 64}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"conv_bias": True}, "conv_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sandwich_norm": False}, "use_sandwich_norm"),
        ({"use_attention_gate": False}, "use_attention_gate"),
        ({"layer_types": ["conv"] * 24}, "layer_types"),
        ({"layer_types": ["full_attention"] * 24}, "layer_types"),
        ({"block_ff_dim": 7680}, "block_ff_dim"),
    ],
)
def test_what_lfm3_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, change: dict[str, Any], named: str
) -> None:
    checkpoint = open_config({**LFM3, **change})
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)


@pytest.mark.parametrize(
    ("document", "convolving", "inner", "chosen"), [(LFM2, 10, 8192, 0), (LFM2_MOE, 18, 7168, 4)]
)
def test_short_convolutions_are_understood_as_published(
    open_config: OpenConfig, document: dict[str, Any], convolving: int, inner: int, chosen: int
) -> None:
    checkpoint = open_config(document)
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, DecoderShape)
    assert (shape.inner, shape.tied, shape.context) == (inner, True, 128_000)
    assert shape.recurrent is not None
    assert shape.recurrent.spec() == RecurrentSpec(
        layers=convolving, heads=0, key_dim=0, value_dim=0, channels=2048, tail=2
    )
    assert (shape.mixture.chosen if shape.mixture else 0) == chosen


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"conv_bias": True}, "conv_bias"),
        ({"conv_dim": 1024}, "conv_dim"),
        ({"full_attn_idxs": [], "layer_types": ["conv"] * 16}, "layer_types"),
        ({"use_pos_enc": False}, "use_pos_enc"),
    ],
)
def test_what_short_convolutions_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, change: dict[str, Any], named: str
) -> None:
    checkpoint = open_config({**LFM2, **change})
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)


def test_stacked_experts_are_what_they_are_apart(built: BuildBundle, tmp_path: Path) -> None:
    apart = built("qwen3.5-moe", "fp32")
    stacked = WRITERS["qwen3.5-moe"](tmp_path / "stacked")
    weights = load_file(stacked / "model.safetensors")
    for layer in range(4):
        at = f"model.layers.{layer}.mlp.experts"

        def all_of(name: str, at: str = at) -> np.ndarray[Any, Any]:
            return np.stack([weights.pop(f"{at}.{i}.{name}.weight") for i in range(8)])

        gates, ups, downs = (all_of(f"{name}_proj") for name in ("gate", "up", "down"))
        weights[f"{at}.gate_up_proj"] = np.concatenate([gates, ups], axis=1)
        weights[f"{at}.down_proj"] = downs
    save_file(weights, stacked / "model.safetensors", {"format": "pt"})
    build_unsigned(stacked, tmp_path / "bundle", precision="fp32")
    for file in apart.graph.parent.iterdir():
        assert (tmp_path / "bundle/graph/cpu" / file.name).read_bytes() == file.read_bytes()


def test_a_head_that_predicts_and_what_sees_are_left_out(tmp_path: Path) -> None:
    checkpoint = WRITERS["qwen3.5"](tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    extra = {"mtp.fc.weight": np.ones((2, 2), np.float32)}
    save_file(weights | extra, checkpoint / "model.safetensors", {"format": "pt"})
    manifest = build_unsigned(checkpoint, tmp_path / "bundle", precision="w8a8")
    assert [graph.variant for graph in manifest.graphs] == ["cpu", "cuda", "cuda"]
    assert not manifest.head


def put(**keys: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | keys


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put(layer_types=["full_attention"] * 48), "layer_types"),
        (put(layer_types=["linear_attention"] * 48), "layer_types"),
        (put(layer_types=["mamba"] * 48), "layer_types"),
        (put(linear_num_value_heads=24), "linear_num_value_heads"),
        (put(attn_output_gate=False), "attn_output_gate"),
        (put(norm_topk_prob=None, linear_conv_bias=True), "linear_conv_bias"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(
    open_config: OpenConfig, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    checkpoint = open_config(change(QWEN3_NEXT))
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)


@pytest.mark.parametrize(
    ("name", "precision"), [("qwen3.5", "w4a8"), ("qwen3.5-moe", "w4a8"), ("qwen3.5-moe", "fp8")]
)
def test_grades_that_only_others_have_are_refused_with_the_reason(
    built: BuildBundle, tmp_path: Path, name: str, precision: Precision
) -> None:
    checkpoint = built(name, "fp32").checkpoint
    with pytest.raises(CheckpointError, match=f"not built in {precision}: (native|experts)"):
        build_unsigned(checkpoint, tmp_path / "bundle", precision=precision)


@pytest.mark.parametrize("which", ["model", "draft"])
def test_nothing_guesses_for_it_and_it_guesses_for_nobody(
    built: BuildBundle, tmp_path: Path, which: str
) -> None:
    recurrent, other = built("qwen3.5", "fp32").checkpoint, built("qwen3", "fp32").checkpoint
    own, draft = (recurrent, other) if which == "model" else (other, recurrent)
    with pytest.raises(CheckpointError, match=r"running state|cannot draft"):
        build_bundle(
            own,
            tmp_path / "bundle",
            name="tiny",
            version="1.0",
            precision="w8a8",
            signer=None,
            draft=draft,
        )
