"""Gemma 4: its published configs are understood, and layers differ in heads, caches and keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from appliance.bundle.manifest import decode, encode
from appliance.bundle.specs import DecoderSpec, LayerHeads
from appliance.errors import CheckpointError, LayoutError
from installer.checkpoint import build_bundle
from installer.checkpoint.families.gemma4_shape import GemmaShape
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.rope import Basis, read_scaling
from installer.checkpoint.plan import make_plan
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.shallow import cut
from tests.checkpoint.conftest import BuildBundle, OpenConfig

_ROPES = {
    "full_attention": {
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
        "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
}


def _published(
    sizes: tuple[int, ...], period: int, *, model_type: str = "gemma4", **text: object
) -> dict[str, Any]:
    """`sizes`: hidden, inner, layers, heads, kv heads, context, window."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "sliding_window"),
    )
    kinds = ["full_attention" if at % period == 0 else "sliding_attention" for at in range(1, 61)]
    return {
        "architectures": [
            f"Gemma4{'Unified' * model_type.endswith('unified')}ForConditionalGeneration"
        ],
        "audio_config": None,
        "audio_token_id": 258_881,
        "boa_token_id": 256_000,
        "boi_token_id": 255_999,
        "dtype": "bfloat16",
        "eoa_token_id": 258_883,
        "eoi_token_id": 258_882,
        "eos_token_id": [1, 106],
        "image_token_id": 258_880,
        "initializer_range": 0.02,
        "model_type": model_type,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_k_eq_v": False,
            "dtype": "bfloat16",
            "enable_moe_block": False,
            "eos_token_id": 1,
            "final_logit_softcapping": 30.0,
            "global_head_dim": 512,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": kinds[: sizes[2]],
            "model_type": f"{model_type}_text",
            "moe_intermediate_size": None,
            "num_experts": None,
            "num_global_key_value_heads": None,
            "rms_norm_eps": 1e-06,
            "rope_parameters": _ROPES,
            "tie_word_embeddings": True,
            "top_k_experts": None,
            "use_bidirectional_attention": None,
            "use_cache": True,
            "vocab_size": 262_144,
            **dict(zip(names, sizes, strict=True)),
            **text,
        },
        "tie_word_embeddings": True,
        "video_token_id": 258_884,
        "vision_config": {"model_type": "gemma4_vision"},
    }


E2B = _published(
    (1536, 6144, 35, 8, 1, 131_072, 512),
    5,
    hidden_size_per_layer_input=256,
    num_kv_shared_layers=20,
    use_double_wide_mlp=True,
    vocab_size_per_layer_input=262_144,
)
DENSE_31B = _published(
    (5376, 21_504, 60, 32, 16, 262_144, 1024),
    6,
    attention_k_eq_v=True,
    hidden_size_per_layer_input=0,
    num_global_key_value_heads=4,
    num_kv_shared_layers=0,
    use_bidirectional_attention="vision",
    use_double_wide_mlp=False,
    vocab_size_per_layer_input=262_144,
)
UNIFIED_12B = _published(
    (3840, 15_360, 48, 16, 8, 262_144, 1024),
    6,
    model_type="gemma4_unified",
    attention_k_eq_v=True,
    num_global_key_value_heads=1,
    use_bidirectional_attention="vision",
)
NEAR, FAR = LayerHeads(kv_heads=16, head_dim=256), LayerHeads(kv_heads=4, head_dim=512)


def shape_of(open_config: OpenConfig, document: Mapping[str, Any]) -> GemmaShape:
    checkpoint = open_config(document)
    shape: GemmaShape = family_of(checkpoint).read(checkpoint)
    return shape


def test_the_layers_of_31b_differ_in_their_heads(open_config: OpenConfig) -> None:
    shape = shape_of(open_config, DENSE_31B)
    spec = shape.spec()
    assert (spec.layers, spec.kv_heads, spec.head_dim) == (60, 16, 512)
    assert spec.layer_heads[:6] == (NEAR,) * 5 + (FAR,)
    assert Counter(spec.layer_heads) == {NEAR: 50, FAR: 10}
    assert shape.alike == frozenset(range(5, 60, 6))
    assert (shape.signal, shape.widened, shape.decoder.score_cap) == (0, 1, 30.0)
    assert Counter(kind.window for kind in shape.decoder.kinds) == {1024: 50, None: 10}


def test_later_layers_of_e2b_read_the_keys_of_the_last_that_have_some(
    open_config: OpenConfig,
) -> None:
    shape = shape_of(open_config, E2B)
    sources = Counter(kind.shares for kind in shape.decoder.kinds)
    assert sources == {None: 15, 13: 16, 14: 4}
    assert [shape.decoder.place(layer) for layer in (0, 14, 15, 19, 34)] == [0, 14, 13, 14, 14]
    spec = shape.spec()
    assert spec.layers == len(spec.layer_heads) == 15
    assert (shape.signal, shape.signals, shape.widened) == (256, 262_144, 2)
    assert not shape.alike


def test_the_unified_12b_has_no_second_signal(open_config: OpenConfig) -> None:
    shape = shape_of(open_config, UNIFIED_12B)
    assert shape.signal == 0
    assert LayerHeads(kv_heads=1, head_dim=512) in shape.spec().layer_heads


def test_a_window_as_wide_as_the_context_does_not_make_a_layer_see_everything(
    open_config: OpenConfig,
) -> None:
    text = {**DENSE_31B["text_config"], "max_position_embeddings": 1024}
    shape = shape_of(open_config, {**DENSE_31B, "text_config": text})
    assert {kind.window for kind in shape.decoder.kinds} == {None}
    assert shape.alike == frozenset(range(5, 60, 6))


def test_a_quarter_of_a_wide_head_turns_as_slowly_as_if_all_did() -> None:
    rope = read_scaling(
        Settings({"rope_type": "proportional", "partial_rotary_factor": 0.25}, ""),
        Basis(1e6, 512, 1024),
    )
    assert rope.turned == 512
    frequencies = np.array(rope.frequencies)
    assert frequencies[:64] == pytest.approx(1e6 ** -(np.arange(64) / 256), rel=1e-5)
    assert not frequencies[64:].any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"enable_moe_block": True}, "enable_moe_block"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"layer_types": ["full_attention"] * 34 + ["sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"] * 34}, "layer_types"),
        ({"num_kv_shared_layers": 34}, "no layer of full_attention"),
        ({"per_layer_config": {"00": {"head_dim": 128}}}, "several widths"),
        ({"per_layer_config": {"4": {"heads": 2}}}, "heads"),
        ({"rope_parameters": {**_ROPES, "other": {}}}, "other"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma3_text"}, "model_type"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    open_config: OpenConfig, changes: dict[str, object], named: str
) -> None:
    document = {**E2B, "text_config": {**E2B["text_config"], **changes}}
    with pytest.raises(CheckpointError, match=named):
        shape_of(open_config, document)


def test_heads_may_be_said_layer_by_layer(open_config: OpenConfig) -> None:
    kinds = DENSE_31B["text_config"]["layer_types"]
    own = {
        f"{layer:02}": {"head_dim": 512, "num_key_value_heads": 4}
        for layer, kind in enumerate(kinds)
        if kind == "full_attention"
    }
    text = {**DENSE_31B["text_config"], "per_layer_config": own}
    del text["global_head_dim"], text["num_global_key_value_heads"]
    found = shape_of(open_config, {**DENSE_31B, "text_config": text}).spec()
    assert found == shape_of(open_config, DENSE_31B).spec()


def test_a_model_whose_layers_need_each_other_is_compared_whole() -> None:
    found = cut(E2B)
    assert found is not None
    assert found.layers == 35
    shorter = cut(DENSE_31B)
    assert shorter is not None
    assert shorter.layers == 6


def test_the_manifest_says_the_heads_of_each_layer(built: BuildBundle) -> None:
    spec = built("gemma4-small", "w8a8").spec
    assert isinstance(spec, DecoderSpec)
    near, far = LayerHeads(kv_heads=2, head_dim=32), LayerHeads(kv_heads=2, head_dim=64)
    assert spec.heads == (near, far, near)
    assert spec.query_heads == 4
    graphs = built("gemma4-small", "w8a8").manifest.graphs
    assert [(g.variant, g.precision) for g in graphs[1:]] == [("cuda", "fp16"), ("cuda", "int8")]


def test_the_grade_of_native_operators_is_refused_with_the_reason(built: BuildBundle) -> None:
    checkpoint = Checkpoint(built("gemma4", "fp32").checkpoint)
    with pytest.raises(CheckpointError, match="not built in w4a8: native operators take"):
        make_plan(checkpoint, "w4a8", None, 10**9, None)


@pytest.mark.parametrize("which", ["model", "draft"])
def test_nothing_guesses_for_it_and_it_guesses_for_nobody(
    built: BuildBundle, tmp_path: Path, which: str
) -> None:
    uneven, other = built("gemma4", "fp32").checkpoint, built("qwen3", "fp32").checkpoint
    own, draft = (uneven, other) if which == "model" else (other, uneven)
    with pytest.raises(CheckpointError, match=r"differ in their heads|cannot draft"):
        build_bundle(
            own,
            tmp_path / "bundle",
            name="tiny",
            version="1.0",
            precision="w8a8",
            signer=None,
            draft=draft,
        )


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        ((), "contradicts"),
        ((LayerHeads(kv_heads=2, head_dim=64),) * 2, "contradicts"),
        ((LayerHeads(kv_heads=2, head_dim=32),) * 3, "contradicts"),
        (
            (LayerHeads(kv_heads=2, head_dim=64),) * 2 + (LayerHeads(kv_heads=0, head_dim=32),),
            "is 0",
        ),
    ],
)
def test_a_manifest_whose_heads_contradict_it_is_refused(
    built: BuildBundle, heads: tuple[LayerHeads, ...], named: str
) -> None:
    manifest = built("gemma4-small", "w8a8").manifest
    assert manifest.decoder is not None
    changed = msgspec.structs.replace(manifest.decoder, heads=heads)
    with pytest.raises(LayoutError, match=named):
        decode(encode(msgspec.structs.replace(manifest, decoder=changed)))


@pytest.mark.parametrize("variant", ["trt", "native"])
def test_a_manifest_with_such_heads_has_no_graph_that_takes_them_to_be_alike(
    built: BuildBundle, variant: Any
) -> None:
    manifest = built("gemma4-small", "w8a8").manifest
    further = msgspec.structs.replace(manifest.graphs[0], variant=variant, prefill=msgspec.UNSET)
    graphs = (*manifest.graphs, further)
    with pytest.raises(LayoutError, match="for the CPU and CUDA alone"):
        decode(encode(msgspec.structs.replace(manifest, graphs=graphs)))


def test_a_graph_for_cuda_over_such_heads_needs_to_know_how_many_read_them(
    built: BuildBundle,
) -> None:
    manifest = built("gemma4-small", "w8a8").manifest
    assert manifest.decoder is not None
    changed = msgspec.structs.replace(manifest.decoder, query_heads=msgspec.UNSET)
    with pytest.raises(LayoutError, match=r"needs decoder\.query_heads"):
        decode(encode(msgspec.structs.replace(manifest, decoder=changed)))
    # As bundles were before they had one.
    decode(encode(msgspec.structs.replace(manifest, decoder=changed, graphs=manifest.graphs[:1])))
