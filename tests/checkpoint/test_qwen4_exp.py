"""Qwen4-Exp beyond the parity table: as published, what a text's end and an index change, what it
is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle.specs import RecurrentSpec, TailSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.ngrams import Ngrams
from installer.checkpoint.graph.pooled_blocks import PooledBlocks
from installer.checkpoint.graph.residual_streams import Streams
from installer.checkpoint.shallow import cut
from tests.checkpoint.byte_runner import OTHER_WAY, Bytes, distance
from tests.checkpoint.conftest import BuildBundle, Built, OpenConfig, build_unsigned
from tests.checkpoint.families.qwen4_exp import QWEN4
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_experts import rows
from tests.checkpoint.test_refusals import edit_json

TOKENS = np.random.default_rng(44).integers(0, 480, 90).tolist()
CHOSEN = 24
"""Tokens that a query of the tests' model reads, beside those of the last block."""
TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 248_044,
    "dtype": "bfloat16",
    "eos_token_id": 248_044,
    "full_attention_interval": 4,
    "hc_count": 4,
    "hc_lowrank": 320,
    "head_dim": 256,
    "heads_per_ngram": 8,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
    "indexer_head_dim": 128,
    "indexer_kv_heads": 1,
    "indexer_n_heads": 4,
    "initializer_range": 0.02,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 12,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "make_ngram_vocab_size_divisible_by": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262_144,
    "model_type": "qwen4_exp_text",
    "moe_intermediate_size": 640,
    "mtp": {
        "hybrid": True,
        "layer_types": ["full_attention"],
        "num_hidden_layers": 1,
        "rope_theta": 10_000_000,
    },
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "ngram_size": 3,
    "ngram_vocab_size_base": 20_000_000,
    "num_attention_heads": 24,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_gate_type": "sigmoid",
    "partial_rotary_factor": 0.25,
    "ple_conv_kernel_size": 4,
    "ple_embed_dim": 2560,
    "ple_layer_ids": [2],
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10_000_000,
        "rope_type": "default",
    },
    "shared_expert_intermediate_size": 640,
    "split_ngram_parts": 128,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 248_320,
}
FLASH_NEXT: Mapping[str, Any] = {
    "architectures": ["Qwen4ExpForConditionalGeneration"],
    "image_token_id": 248_056,
    "language_model_only": False,
    "model_type": "qwen4_exp",
    "text_config": TEXT,
    "tie_word_embeddings": False,
    "video_token_id": 248_057,
    "vision_config": {"depth": 27, "model_type": "qwen4_exp_vision"},
    "vision_end_token_id": 248_054,
    "vision_start_token_id": 248_053,
}
"""Of Qwen3.8-Flash-Next, as several public readers of its config.json have it."""


def test_the_published_config_is_understood(open_config: OpenConfig) -> None:
    checkpoint = open_config(FLASH_NEXT)
    shape = family_of(checkpoint).read(checkpoint)
    assert shape.index == PooledBlocks(heads=4, width=128, size=4, chosen=512)
    assert shape.streams == Streams(count=4, hidden=2560, rank=320, epsilon=1e-6)
    assert shape.ngrams == Ngrams(*((1,), 3, 8, 2560, 4), eos=248_044, vocab=248_320, shards=128)
    assert (shape.ngrams.tables, shape.ngrams.head_width, shape.gate) == (16, 160, "sigmoid")
    spec = shape.spec()
    assert (spec.layers, spec.kv_heads, spec.head_dim, shape.head_dim) == (12, 2, 288, 256)
    assert spec.recurrent == RecurrentSpec(
        *(),
        layers=36,
        heads=48,
        key_dim=128,
        value_dim=128,
        channels=10_240,
        tail=3,
        further=TailSpec(layers=1, channels=10_241, tail=9),
    )
    assert shape.decoder.scale == 256**-0.5
    assert {kind.rope.turned for kind in shape.decoder.kinds} == {64}
    mixture = shape.decoder.mixture
    assert (mixture.experts, mixture.chosen, mixture.shared, mixture.adds_up) == (
        512,
        10,
        640,
        True,
    )


def test_the_first_layers_have_one_of_each_kind() -> None:
    shallow = cut(dict(FLASH_NEXT))
    assert shallow is not None
    text: Any = shallow.config["text_config"]
    assert (shallow.layers, text["ple_layer_ids"]) == (4, [2])
    later = cut(TEXT | {"ple_layer_ids": [2, 9]})
    assert later is not None
    assert (later.layers, later.config["ple_layer_ids"]) == (4, [2])
    first = cut(TEXT | {"ple_layer_ids": [6]})
    assert first is not None
    assert (first.layers, first.config["ple_layer_ids"]) == (6, [6])


def test_nothing_is_seen_behind_the_end_of_a_text(built: BuildBundle) -> None:
    model = built("qwen4-exp", "fp32")
    (end, *_) = np.ravel(json.loads((model.checkpoint / "config.json").read_text())["eos_token_id"])
    tokens = [*TOKENS[:9], end, *TOKENS[9:20], end, end, TOKENS[20], end, *TOKENS[21:40], end]
    reference, wanted = ReferenceDecoder(model.checkpoint), []
    for pieces in ([len(tokens)], [10, 1, 11, 1, 2, 20], [1] * len(tokens)):
        runner, at = SlotRunner(model.graph, model.spec, capacity=64), 0
        for size in pieces:
            logits, at = runner.prefill(0, tokens[at : at + size]), at + size
        wanted.append(relative_error(logits, reference.logits(tokens)[-1]))
    assert max(wanted) <= 1e-4
    other = [*tokens[:8], TOKENS[50], *tokens[9:]]
    behind = reference.logits(other)[10] - reference.logits(tokens)[10]
    assert np.abs(behind).max() > 1e-3, "states know what was before the end all the same"


def test_rows_of_different_lengths_are_what_they_are_alone(built: BuildBundle) -> None:
    model, lengths = built("qwen4-exp", "w8a8"), (40, 5, 17, 71)
    together, alone = Bytes(model), [Bytes(model) for _ in lengths]
    for slot, length in enumerate(lengths):
        prompt = TOKENS[slot : slot + length]
        together.prefill(prompt, slot=slot)
        alone[slot].prefill(prompt)
    got, wanted = [], []
    for step in range(6):
        said = TOKENS[step : step + 4]
        starts = [length + step for length in lengths]
        got.append(together.decode(starts, [[token] for token in said]))
        own = zip(alone, starts, said, strict=True)
        wanted.append(np.concatenate([one.decode([at], [[token]]) for one, at, token in own]))
    assert distance(np.concatenate(got), np.concatenate(wanted)) <= OTHER_WAY


@pytest.mark.parametrize(("key", "value"), [("indexer_budget", 96), ("indexer_compress_ratio", 1)])
def test_an_index_finds_fewer_than_all_and_other_blocks_than_tokens(
    built: BuildBundle, tmp_path: Path, key: str, value: int
) -> None:
    model = built("qwen4-exp", "fp32")
    other = tmp_path / "other"
    shutil.copytree(model.checkpoint, other)
    edit_json(other / "config.json", lambda config: config.update({key: value}))
    build_unsigned(other, tmp_path / "bundle", precision="fp32")
    changed, own = (
        rows(SlotRunner(one.graph, one.spec, capacity=128), TOKENS)
        for one in (Built(other, tmp_path / "bundle"), model)
    )
    assert relative_error(own[:CHOSEN], changed[:CHOSEN]) <= 1e-5
    assert relative_error(own[CHOSEN:], changed[CHOSEN:]) > 0.02
    assert relative_error(changed, ReferenceDecoder(other).logits(TOKENS)) <= 1e-4


def test_a_table_in_one_piece_is_what_its_shards_are(built: BuildBundle, tmp_path: Path) -> None:
    model = built("qwen4-exp", "int8")
    weights = load_file(model.checkpoint / "model.safetensors")
    for layer in (0, 2):
        at = f"model.layers.{layer}.ple.ple_embedding.ngram_embedding"
        shards = [weights.pop(f"{at}.shard_{number}.weight") for number in range(5)]
        weights[f"{at}.weight"] = np.concatenate(shards)
    whole = tmp_path / "whole"
    shutil.copytree(model.checkpoint, whole)
    save_file(weights, whole / "model.safetensors", {"format": "pt"})
    build_unsigned(whole, tmp_path / "bundle", precision="int8")
    for file in model.graph.parent.iterdir():
        assert (tmp_path / "bundle/graph/cpu" / file.name).read_bytes() == file.read_bytes()


def test_the_words_of_a_model_that_sees_are_built_alone(built: BuildBundle, tmp_path: Path) -> None:
    words = built("qwen4-exp", "fp32")
    seeing = tmp_path / "seeing"
    shutil.copytree(words.checkpoint, seeing)
    weights = {
        name.replace("model.", "model.language_model.", 1): values
        for name, values in load_file(words.checkpoint / "model.safetensors").items()
    }
    weights |= {"model.visual.x.weight": np.ones((2, 2), np.float32)}
    weights |= {"mtp.fc.weight": np.ones((2, 2), np.float32)}
    save_file(weights, seeing / "model.safetensors", {"format": "pt"})
    text = json.loads((words.checkpoint / "config.json").read_text())
    text.pop("architectures")
    document = {**FLASH_NEXT, "text_config": text}
    (seeing / "config.json").write_text(json.dumps(document))
    manifest = build_unsigned(seeing, tmp_path / "bundle", precision="fp32")
    assert [graph.variant for graph in manifest.graphs] == ["cpu"]
    one, other = (
        SlotRunner(model.graph, model.spec, capacity=64).prefill(0, TOKENS[:40])
        for model in (words, Built(seeing, tmp_path / "bundle"))
    )
    assert (one == other).all()


@pytest.mark.parametrize("name", ["layer_multipliers", "ngram_heads_offsets"])
def test_numbers_of_a_hash_that_belong_to_other_tables_are_refused(
    built: BuildBundle, tmp_path: Path, name: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(built("qwen4-exp", "fp32").checkpoint, other)
    weights = load_file(other / "model.safetensors")
    weights[f"model.layers.2.ple.ple_embedding.{name}"] += 1 << 54
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="numbers of a hash"):
        build_unsigned(other, tmp_path / "bundle", precision="fp32")


@pytest.mark.parametrize("grade", ["fp16", "fp8", "w4a8"])
def test_grades_of_a_gpu_and_of_native_operators_are_refused_with_the_reason(
    built: BuildBundle, tmp_path: Path, grade: Any
) -> None:
    checkpoint = built("qwen4-exp", "fp32").checkpoint
    with pytest.raises(CheckpointError, match=f"not built in {grade}: .*(alone|native)"):
        build_unsigned(checkpoint, tmp_path / "bundle", precision=grade)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"indexer_budget": 30}, "indexer_budget"),
        ({"indexer_kv_heads": 2}, "indexer_kv_heads"),
        ({"indexer_n_heads": None}, "indexer_n_heads"),
        ({"indexer_head_dim": 40}, "an index of 40"),
        ({"ple_layer_ids": [2]}, "ple_layer_ids"),
        ({"ple_layer_ids": [0]}, "ple_embed_dim"),
        ({"ple_embed_dim": 90}, "ple_embed_dim"),
        ({"ple_conv_kernel_size": 1}, "ple_conv_kernel_size"),
        ({"eos_token_id": None}, "eos_token_id"),
        ({"output_gate_type": "swish"}, "output_gate_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_types": ["linear_attention", "sliding_attention"] * 2}, "layer_types"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hc_norm_kind": "layer"}, "hc_norm_kind"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(
    open_config: OpenConfig, change: dict[str, Any], named: str
) -> None:
    checkpoint = open_config({**QWEN4, **change})
    with pytest.raises(CheckpointError, match=named):
        family_of(checkpoint).read(checkpoint)
