"""Qwen3-VL's mixtures: as they are published, stacked or apart, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.pictures import PictureShape
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import build_unsigned
from tests.fakes.vision_checkpoints import write_qwen3_vl_moe
from tests.vision.test_checkpoint import edited, put

STACK = "model.language_model.layers.2.mlp.experts.gate_up_proj"
PUBLISHED = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "image_token_id": 151_655,
    "model_type": "qwen3_vl_moe",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": 151_645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 262_144,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5_000_000,
        "use_cache": True,
        "vocab_size": 151_936,
    },
    "tie_word_embeddings": False,
    "video_token_id": 151_656,
    "vision_config": {
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4304,
        "model_type": "qwen3_vl_moe",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151_653,
    "vision_start_token_id": 151_652,
}
"""Qwen3-VL-30B-A3B, as its publisher's file says."""


def test_the_published_config_is_understood(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    checkpoint = Checkpoint(tmp_path)
    shape: PictureShape = family_of(checkpoint).read(checkpoint)
    assert shape.decoder.mixture == Mixture(128, 8, 768)
    assert (shape.decoder.layers, shape.context, shape.tower.deep) == (48, 262_144, (8, 16, 24))


def test_experts_stacked_or_apart_give_one_bundle(tmp_path: Path) -> None:
    stacked = write_qwen3_vl_moe(tmp_path / "stacked")
    apart = write_qwen3_vl_moe(tmp_path / "apart")
    weights = load_file(apart / "model.safetensors")
    for name in [name for name in weights if ".experts." in name]:
        at, _, end = name.rpartition(".")
        for expert, matrix in enumerate(weights.pop(name)):
            ends = ("gate_proj", "up_proj") if end == "gate_up_proj" else (end,)
            for one, columns in zip(ends, np.split(matrix, len(ends), axis=1), strict=True):
                weights[f"{at}.{expert}.{one}.weight"] = np.ascontiguousarray(columns.T)
    save_file(weights, apart / "model.safetensors", {"format": "pt"})
    for checkpoint in (stacked, apart):
        build_unsigned(checkpoint, tmp_path / f"{checkpoint.name}-it", precision="int8")
    files = [path for path in (tmp_path / "stacked-it/graph").rglob("*") if path.is_file()]
    for path in files:
        twin = tmp_path / "apart-it" / path.relative_to(tmp_path / "stacked-it")
        assert path.read_bytes() == twin.read_bytes(), path


def test_stacks_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_qwen3_vl_moe(tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    weights[STACK] = np.ascontiguousarray(weights[STACK].transpose(0, 2, 1))
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=STACK):
        build_unsigned(checkpoint, tmp_path / "out", precision="int8")


@pytest.mark.parametrize(
    ("key", "value"), [("norm_topk_prob", False), ("num_experts", None), ("use_sliding_window", 1)]
)
def test_what_changes_the_mixture_is_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    checkpoint = write_qwen3_vl_moe(tmp_path / "checkpoint")
    edited(checkpoint / "config.json", put("text_config", key, value))
    with pytest.raises(CheckpointError, match=key):
        family_of(Checkpoint(checkpoint)).read(Checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("precision", "why"), [("fp8", "experts are stored"), ("w8a8", "take words alone")]
)
def test_grades_without_experts_or_images_are_refused(
    tmp_path: Path, precision: str, why: str
) -> None:
    checkpoint = write_qwen3_vl_moe(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=why):
        build_unsigned(checkpoint, tmp_path / "out", precision=precision)  # type: ignore[arg-type]
