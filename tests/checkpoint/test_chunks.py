"""A layer that sees a chunk reads nothing of the one before, and Llama 4 as published is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.families.llama4 import LONGEST
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.rope import STILL
from installer.checkpoint.graph.sharpening import Sharpening
from installer.checkpoint.shallow import cut
from tests.checkpoint.conftest import Built, OpenConfig, build_unsigned
from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families.llama4 import LLAMA4
from tests.checkpoint.runner import SlotRunner, relative_error

CHUNK = 24
TOKENS = np.random.default_rng(12).integers(0, 480, 100).tolist()
ALL_IN_CHUNKS = {**LLAMA4, "no_rope_layers": [1, 1, 1, 1], "use_qk_norm": False}
_TEXT: Mapping[str, Any] = {
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": True,
    "bos_token_id": 200_000,
    "eos_token_id": [200_001, 200_007, 200_008],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "model_type": "llama4_text",
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "output_router_logits": False,
    "pad_token_id": 200_018,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500_000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 202_048,
}


def published(**text: object) -> dict[str, Any]:
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": 200_080,
        "eoi_token_index": 200_081,
        "image_token_index": 200_092,
        "model_type": "llama4",
        "text_config": {**_TEXT, **text},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 1408},
    }


SCOUT = published(
    interleave_moe_layer_step=1,
    max_position_embeddings=10_485_760,
    no_rope_layers=[],
    num_local_experts=16,
    rope_scaling={
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    use_qk_norm=True,
)
MAVERICK = published(
    attn_temperature_tuning=4,
    interleave_moe_layer_step=2,
    max_position_embeddings=1_048_576,
    moe_layers=list(range(1, 48, 2)),
    no_rope_layers=[1, 1, 1, 0] * 12,
    num_local_experts=128,
    rope_scaling=None,
    use_qk_norm=False,
)
DENSE_OF_MAVERICK = frozenset(range(0, 48, 2))


@pytest.mark.parametrize(
    ("document", "mixture", "normed"),
    [
        (SCOUT, Mixture(16, 1, 8192, shared=8192), True),
        (MAVERICK, Mixture(128, 1, 8192, dense=DENSE_OF_MAVERICK, shared=8192), False),
    ],
)
def test_a_published_llama_4_is_understood(
    open_config: OpenConfig, document: dict[str, Any], mixture: Mixture, normed: bool
) -> None:
    checkpoint = open_config(document)
    shape: DecoderShape = family_of(checkpoint).read(checkpoint)
    assert shape.mixture == mixture
    assert shape.norms.heads == normed
    assert Counter((kind.chunk, kind.window) for kind in shape.kinds) == {
        (8192, 8192): 36,
        (None, None): 12,
    }
    far = [kind for kind in shape.kinds if kind.rope == STILL]
    assert {kind.sharpening for kind in far} == {Sharpening(8192, 0.1, ahead=1)}
    assert [kind == far[0] for kind in shape.kinds[:4]] == [False, False, False, True]
    assert (shape.head_dim, shape.room, shape.scale) == (144, 16, 128**-0.5)
    assert shape.context == LONGEST


@pytest.mark.parametrize("document", [SCOUT, MAVERICK])
def test_a_layer_without_positions_is_among_those_that_are_compared(
    document: dict[str, Any],
) -> None:
    found = cut(document)
    assert found is not None
    assert found.layers == 4


def test_a_context_of_one_chunk_needs_no_room(open_config: OpenConfig) -> None:
    text = {**SCOUT["text_config"], "max_position_embeddings": 8192}
    checkpoint = open_config({**SCOUT, "text_config": text})
    shape: DecoderShape = family_of(checkpoint).read(checkpoint)
    assert (shape.head_dim, shape.room, shape.spec().head_dim) == (128, 0, 128)
    assert {kind.window for kind in shape.kinds} == {None}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts_per_tok": 2}, "num_experts_per_tok"),
        ({"attention_bias": True}, "attention_bias"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"no_rope_layers": [1, 1, 1, 2] * 12}, "no_rope_layers"),
        ({"layer_types": ["sliding_attention"] * 48}, "layer_types"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling that changes"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"model_type": "llama"}, "model_type"),
        ({"qkv_bias": True}, "qkv_bias"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    open_config: OpenConfig, changes: dict[str, object], named: str
) -> None:
    checkpoint = open_config({**SCOUT, "text_config": {**SCOUT["text_config"], **changes}})
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """All its layers see chunks, and its products of queries and keys are large."""
    folder = tmp_path_factory.mktemp("chunks")
    checkpoint = draw_checkpoint(folder / "checkpoint", ALL_IN_CHUNKS)
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    for name, values in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = values * np.float32(2)
    save_file(weights, path, {"format": "pt"})
    build_unsigned(checkpoint, folder / "bundle", precision="fp32")
    return Built(checkpoint, folder / "bundle")


def test_nothing_of_the_chunk_before_is_read(model: Built) -> None:
    first, second = TOKENS[:CHUNK], TOKENS[CHUNK : 2 * CHUNK]
    other = TOKENS[2 * CHUNK : 3 * CHUNK]
    runner = SlotRunner(model.graph, model.spec, slots=2, capacity=64)
    logits = runner.prefill(0, [*first, *second])
    assert relative_error(runner.prefill(1, [*other, *second]), logits) <= 1e-5
    # What is of the same chunk is read, so the test would see the rest, too.
    runner.lengths = [0, 0]
    changed = [*first, *other[:4], *second[4:]]
    assert relative_error(runner.prefill(0, changed), logits) > 1e-2


def test_a_token_of_the_next_chunk_begins_anew(model: Built) -> None:
    runner = SlotRunner(model.graph, model.spec, slots=2, capacity=64)
    runner.prefill(0, TOKENS[:CHUNK])
    runner.prefill(1, TOKENS[CHUNK : 2 * CHUNK])
    one, other = runner.decode([7, 7])
    assert relative_error(one, other) <= 1e-5
