"""Muse as it is published is understood, and what changes it is refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import CheckpointError
from appliance.native import contract
from appliance.pb import onnx_graph_pb2 as pb
from installer.checkpoint.families.muse_sight import MuseTower
from installer.checkpoint.families.muse_spark import Narrowed, SparkShape
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.pictures import PictureShape
from installer.checkpoint.graph.rope import STILL
from tests.checkpoint.conftest import WRITERS, BuildBundle, OpenConfig, build_unsigned
from tests.checkpoint.test_refusals import edit_json

_PATTERN = ["sliding_attention"] * 3 + ["full_attention"]
_ROPE = {"rope_theta": 500_000.0, "rope_type": "default"}
_SIGHT = {
    "hidden_act": "gelu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "layer_norm_eps": 1e-5,
    "layer_types": (["window_attention"] * 3 + ["full_attention"]) * 12
    + ["window_attention", "full_attention"],
    "max_position_embeddings": 1024,
    "merge_size": 2,
    "num_attention_heads": 16,
    "num_hidden_layers": 50,
    "patch_size": 14,
    "patch_temporal": 2,
    "pos_emb_height": 32,
    "pos_emb_width": 32,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "axial"},
}
_TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 200_000,
    "eos_token_id": 200_001,
    "final_logit_softcapping": 20.0,
    "initializer_range": 0.02,
    "post_norm_eps": 1e-8,
    "rms_norm_eps": 1e-5,
    "rope_parameters": _ROPE,
    "sliding_window": 2048,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 202_048,
}
_AROUND = {
    "dtype": "bfloat16",
    "image_token_id": 200_092,
    "out_hidden_size": 6144,
    "projector_hidden_act": "gelu",
    "projector_hidden_size": 4096,
    "video_token_id": 200_091,
}
GLIMMER = {
    **_AROUND,
    "architectures": ["MuseGlimmerForConditionalGeneration"],
    "model_type": "muse_glimmer",
    "text_config": {
        **_TEXT,
        "model_type": "muse_glimmer_text",
        "head_dim": 128,
        "hidden_activation": "silu",
        "hidden_size": 6656,
        "intermediate_size": 19_968,
        "layer_rope_theta": [500_000.0, 500_000.0, 500_000.0, 0] * 13,
        "layer_types": _PATTERN * 13,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 32,
        "num_hidden_layers": 52,
        "num_key_value_heads": 2,
        "output_multiplier": 0.19611613513818404,
        "qk_scale_factor": 3.87,
    },
    "vision_config": {**_SIGHT, "model_type": "muse_glimmer_vision"},
}
SPARK = {
    **_AROUND,
    "architectures": ["MuseSparkForConditionalGeneration"],
    "audio_config": {"model_type": "muse_spark_audio"},
    "audio_token_id": 200_038,
    "model_type": "muse_spark",
    "text_config": {
        **_TEXT,
        "model_type": "muse_spark_text",
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 8192,
        "intermediate_size": 16_384,
        "max_position_embeddings": 1_048_576,
        "moe_hidden_size": 4096,
        "moe_intermediate_size": 4096,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "num_local_experts": 256,
        "output_router_logits": False,
        "residual_gate_temperature": 0.3,
        "routed_scaling_factor": 1.0,
    },
    "vision_config": {**_SIGHT, "model_type": "muse_spark_vision"},
}


def test_glimmer_as_published_is_understood_down_to_each_layer(open_config: OpenConfig) -> None:
    checkpoint = open_config(GLIMMER)
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, PictureShape)
    kinds = shape.decoder.kinds
    assert Counter(kind.window for kind in kinds) == {2048: 39, None: 13}
    assert all((kind.rope == STILL) == (kind.window is None) for kind in kinds)
    assert shape.decoder.scale == pytest.approx(3.87 * 128**-0.5)
    assert (shape.decoder.score_scale, shape.decoder.score_cap) == (0.19611613513818404, 20.0)
    tower = shape.tower
    assert isinstance(tower, MuseTower)
    assert (tower.side, tower.window, tower.bridge, tower.out) == (32, 16, 4096, 6656)
    assert tower.full == {*range(3, 50, 4), 49}


def test_spark_as_published_is_understood_where_it_says_nothing_of_layers(
    open_config: OpenConfig,
) -> None:
    checkpoint = open_config(SPARK)
    shape = family_of(checkpoint).read(checkpoint)
    assert isinstance(shape, SparkShape)
    far = [at for at, kind in enumerate(shape.decoder.kinds) if kind.window is None]
    assert far == [at for at in range(62) if (61 - at) % 4 == 0]
    assert [at for at, kind in enumerate(shape.decoder.kinds) if kind.rope == STILL] == far
    mixture = shape.decoder.mixture
    assert isinstance(mixture, Narrowed)
    assert (mixture.experts, mixture.chosen, mixture.inner, mixture.width) == (256, 8, 4096, 4096)
    assert not mixture.dense
    assert shape.decoder.scale == pytest.approx(5.4730064863875 * 64**-0.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_layer_types", ["sparse"]),
        ("mlp_layer_types", ["wide"] * 4),
        ("layer_rope_theta", [1.0, 2.0, 0.0, 0.0]),
        ("hidden_act", "gelu"),
        ("quantum", 1),
        ("tie_word_embeddings", True),
    ],
)
def test_what_changes_spark_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    checkpoint = WRITERS["muse-spark"](tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c["text_config"].update({key: value}))
    with pytest.raises(CheckpointError, match=key):
        build_unsigned(checkpoint, tmp_path / "out", precision="fp32")


def test_spark_has_the_graphs_of_a_mixture(built: BuildBundle) -> None:
    manifest = built("muse-spark", "w8a8").manifest
    assert {graph.variant for graph in manifest.graphs} == {"cpu", "cuda"}
    assert not manifest.vision


def test_native_operators_are_given_what_they_take(built: BuildBundle) -> None:
    """Of any processor: a graph that cannot be run here can be read."""
    model = built("muse-glimmer", "w8a8")
    graph = model.manifest.variant("native")
    assert graph is not None
    nodes = pb.Model.FromString((model.bundle / graph.path).read_bytes()).graph.node
    products = [
        node for node in nodes if (node.domain, node.op_type) == (contract.DOMAIN, "Linear")
    ]
    assert products
    assert max(len(node.output) for node in products) == 3
