"""The config.json of models as they are published is understood, down to each layer.

Written from what their publishers' files say, without what only names things.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.rope import STILL
from installer.checkpoint.graph.sharpening import Sharpening
from tests.checkpoint.conftest import OpenConfig
from tests.checkpoint.published_dense import (
    DENSE,
    GRANITE_4_MICRO,
    GRANITE_33_8B,
    MINISTRAL_3_8B,
    OLMO_3_7B,
    SMOLLM3,
    Windows,
    config,
)

LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


QWEN_DISTILLED = config(
    "Qwen2",
    (1536, 8960, 28, 12, 2, 151_936, 131_072),
    max_window_layers=21,
    rope_theta=10_000,
    sliding_window=4096,
    use_mrope=False,
    use_sliding_window=False,
)
LLAMA_DISTILLED = config(
    "Llama",
    (4096, 14_336, 32, 32, 8, 128_256, 131_072),
    attention_bias=False,
    mlp_bias=False,
    pretraining_tp=1,
    rope_scaling=LLAMA3_ROPE,
    rope_theta=500_000.0,
)
QWEN25_YARN = config(
    "Qwen2",
    (3584, 18_944, 28, 28, 4, 152_064, 32_768),
    max_window_layers=28,
    rope_theta=1_000_000.0,
    rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32_768, "type": "yarn"},
    sliding_window=131_072,
    use_sliding_window=False,
)
MIMO_7B = config(
    "MiMo",
    (4096, 11_008, 36, 32, 8, 151_680, 32_768),
    attention_bias=True,
    attention_dropout=0.0,
    head_dim=128,
    max_window_layers=36,
    num_nextn_predict_layers=1,
    rope_scaling=None,
    rope_theta=640_000,
    sliding_window=None,
    use_mrope=False,
    use_sliding_window=False,
)
MISTRAL_FIRST = config(
    "Mistral", (4096, 14_336, 32, 32, 8, 32_000, 32_768), sliding_window=4096, rope_theta=10_000.0
)
MISTRAL_NEMO = config(
    "Mistral",
    (5120, 14_336, 40, 32, 8, 131_072, 1_024_000),
    head_dim=128,
    sliding_window=None,
    rope_theta=1_000_000.0,
)
MINISTRAL = config(
    "Mistral",
    (4096, 12_288, 36, 32, 8, 131_072, 32_768),
    head_dim=128,
    sliding_window=32_768,
    rope_theta=100_000_000.0,
)
PHI35_MINI = config(
    "Phi3",
    (3072, 8192, 32, 32, 32, 32_064, 131_072),
    attention_bias=False,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
    original_max_position_embeddings=4096,
    rope_scaling={"long_factor": [1.1] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    rope_theta=10_000.0,
    sliding_window=262_144,
)
PHI4 = config(
    "Phi3",
    (5120, 17_920, 40, 40, 10, 100_352, 16_384),
    attention_bias=False,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
    original_max_position_embeddings=16_384,
    rope_scaling=None,
    rope_theta=250_000,
    sliding_window=None,
)
PHI4_MINI = config(
    "Phi3",
    (3072, 8192, 32, 24, 8, 200_064, 131_072),
    attention_bias=False,
    embd_pdrop=0.0,
    resid_pdrop=0.0,
    full_attn_mod=1,
    interpolate_factor=1,
    lm_head_bias=False,
    mlp_bias=False,
    original_max_position_embeddings=4096,
    partial_rotary_factor=0.75,
    rope_scaling={"long_factor": [1.1] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
    rope_theta=10_000.0,
    sliding_window=262_144,
    tie_word_embeddings=True,
)
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32_768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10_000,
    "rope_scaling": None,
    "rope_theta": 1_000_000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262_144,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "eos_token_id": [1, 106],
    "image_token_index": 262_144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
PUBLISHED: dict[str, tuple[dict[str, Any], Windows, int]] = {
    **DENSE,
    "DeepSeek-R1-Distill-Qwen-1.5B": (QWEN_DISTILLED, {None: 28}, 131_072),
    "DeepSeek-R1-Distill-Llama-8B": (LLAMA_DISTILLED, {None: 32}, 131_072),
    "Qwen2.5-7B-Instruct with YaRN": (QWEN25_YARN, {None: 28}, 131_072),
    "MiMo-7B, and the layer of its head": (MIMO_7B, {None: 36 + 1}, 32_768),
    "Mistral-7B-v0.1": (MISTRAL_FIRST, {4096: 32}, 32_768),
    "Mistral-Nemo-2407": (MISTRAL_NEMO, {None: 40}, 1_024_000),
    "Ministral-8B-2410": (MINISTRAL, {None: 36}, 32_768),
    "Phi-3.5-mini": (PHI35_MINI, {None: 32}, 131_072),
    "Phi-4": (PHI4, {None: 40}, 16_384),
    "Phi-4-mini": (PHI4_MINI, {None: 32}, 131_072),
    "Gemma-3-1B": (GEMMA3_1B, {None: 4, 512: 22}, 32_768),
    "Gemma-3-4B": (GEMMA3_4B, {None: 5, 1024: 29}, 131_072),
}
"""Name -> config.json, how many layers have which window, and the context."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    document, windows, context = PUBLISHED[name]
    checkpoint = open_config(document)
    shape: DecoderShape = family_of(checkpoint).read(checkpoint)
    text = document.get("text_config", document)
    assert shape.layers == text["num_hidden_layers"]
    assert (shape.hidden, shape.inner) == (text["hidden_size"], text["intermediate_size"])
    assert Counter(kind.window for kind in shape.kinds) == windows
    assert shape.context == context


def _read(open_config: OpenConfig, document: dict[str, Any]) -> DecoderShape:
    checkpoint = open_config(document)
    shape: DecoderShape = family_of(checkpoint).read(checkpoint)
    return shape


def test_every_fourth_layer_of_smollm3_knows_no_positions(open_config: OpenConfig) -> None:
    listed = _read(open_config, SMOLLM3)
    assert [at for at, kind in enumerate(listed.kinds, 1) if kind.rope == STILL] == [
        *range(4, 37, 4)
    ]
    silent = {key: value for key, value in SMOLLM3.items() if not key.startswith("no_rope")}
    assert _read(open_config, silent) == listed


def test_queries_of_ministral_3_grow_with_every_16384_positions(open_config: OpenConfig) -> None:
    shape = _read(open_config, MINISTRAL_3_8B)
    assert {kind.sharpening for kind in shape.kinds} == {Sharpening(16_384, 0.1)}
    assert {kind.rope.magnitude for kind in shape.kinds} == {1.0}


def test_angles_of_olmo_3_are_rescaled_where_layers_see_everything(open_config: OpenConfig) -> None:
    shape = _read(open_config, OLMO_3_7B)
    sharp = {kind.window: round(kind.rope.magnitude, 4) for kind in shape.kinds}
    assert sharp == {4096: 1.0, None: 1.2079}
    newer = {key: value for key, value in OLMO_3_7B.items() if not key.startswith("rope_")}
    theta = {"rope_theta": OLMO_3_7B["rope_theta"]}
    newer["rope_parameters"] = {
        "full_attention": {**OLMO_3_7B["rope_scaling"], **theta},
        "sliding_attention": {"rope_type": "default", **theta},
    }
    assert _read(open_config, newer) == shape


def test_multipliers_of_granite_are_where_they_belong(open_config: OpenConfig) -> None:
    for document in (GRANITE_33_8B, GRANITE_4_MICRO):
        shape = _read(open_config, document)
        assert shape.scale == document["attention_multiplier"]
        assert shape.embedding_scale == document["embedding_multiplier"]
        assert shape.result_scale == document["residual_multiplier"]
        assert shape.score_scale == 1 / document["logits_scaling"]


def test_what_a_short_config_leaves_out_is_known(open_config: OpenConfig) -> None:
    checkpoint = open_config(GEMMA3_4B)
    shape = family_of(checkpoint).read(checkpoint)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (8, 4, 256)
    assert shape.vocab == 262_208
    assert shape.tied


def test_a_window_of_mistral_that_is_not_mentioned_is_that_of_its_first(
    open_config: OpenConfig,
) -> None:
    silent = {key: value for key, value in MISTRAL_FIRST.items() if key != "sliding_window"}
    shapes = []
    for document in (MISTRAL_FIRST, silent, {**silent, "sliding_window": None}):
        checkpoint = open_config(document)
        shapes.append(family_of(checkpoint).read(checkpoint))
    assert shapes[0] == shapes[1]
    assert shapes[0] != shapes[2]
