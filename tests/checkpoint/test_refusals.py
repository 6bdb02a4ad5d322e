"""What the builder cannot express is refused by its name, before any weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError, UsageError
from installer.checkpoint import build_bundle
from installer.checkpoint.graph.rope import ORIGINAL
from tests.checkpoint.conftest import BuildBundle, build_unsigned
from tests.fakes.checkpoints import write_bert, write_llama, write_qwen2, write_qwen3

Edit = Callable[[dict[str, Any]], Any]


def edit_json(path: Path, edit: Edit) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def refused(checkpoint: Path, tmp_path: Path, pattern: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=pattern) as caught:
        build_unsigned(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return caught.value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling.Evil"}),
        ("quantization_config", {"quant_method": "gptq"}),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("use_sliding_window", 1),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("layer_types", ["full_attention"]),
        ("layer_types", "full_attention"),
        ("architectures", ["Qwen3ForSequenceClassification"]),
        ("logit_scale", 0.5),
        ("head_dim", 24),
        ("hidden_size", "64"),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("tie_word_embeddings", 1),
    ],
)
def test_a_key_that_changes_the_model_is_refused_by_name(
    tmp_path: Path, key: str, value: object
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update({key: value}))
    refused(checkpoint, tmp_path, key)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("rope_scaling", {"rope_type": "axial", "factor": 4.0}, "axial"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "llama_4": 0.1}, "llama_4"),
        ("rope_scaling", {"type": "dynamic", "factor": 4.0, "alpha": 9}, "alpha"),
        ("rope_scaling", {"type": "dynamic", "factor": 4.0, ORIGINAL: 64}, ORIGINAL),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1e6}, "short_factor"),
        ("rope_scaling", {"type": "longrope", "short_factor": [1.0]}, "short_factor"),
        ("rope_scaling", {"type": "longrope", "short_factor": [1] * 7 + [0]}, "short_factor"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "mrope": [1]}, "mrope"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 2.0}, "low_freq_factor"),
        ("rope_parameters", {"rope_theta": 1e6, "partial_rotary_factor": 0.5}, "partial_rotary"),
    ],
)
def test_a_rope_scaling_without_a_graph_is_refused_by_name(
    tmp_path: Path, key: str, value: object, named: str
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update({key: value}))
    refused(checkpoint, tmp_path, named)


@pytest.mark.parametrize(
    ("write", "key", "value"),
    [
        (write_llama, "mlp_bias", True),
        (write_llama, "pretraining_tp", 2),
        (write_qwen2, "layer_types", ["full_attention", "chunked_attention"]),
        (write_bert, "hidden_act", "relu"),
        (write_bert, "position_embedding_type", "relative_key"),
        (write_bert, "is_decoder", True),
        (write_bert, "embedding_size", 32),
    ],
)
def test_other_families_refuse_by_name_too(
    tmp_path: Path, write: Callable[[Path], Path], key: str, value: object
) -> None:
    checkpoint = write(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update({key: value}))
    refused(checkpoint, tmp_path, key)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("ministral", {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
        ("phi3", {"full_attn_mod": 2}, "full_attn_mod"),
        ("phi3", {"partial_rotary_factor": 0.6}, "turn, not a multiple of 16"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"rope_parameters": {"full_attention": {}, "other": {}}}, "other"),
        ("gemma3-with-images", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("ministral3", {"rope_parameters": None}, "rope_parameters"),
        ("ministral3", {"layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
        ("mistral3", {"text_config": {"model_type": "other"}}, "text_config: .*'other'"),
        ("mistral3", {"text_config": None}, "text_config"),
        ("mistral3", {"architectures": ["LlavaForConditionalGeneration"]}, "architectures"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv"),
        ("olmo3", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "rope_parameters: "),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3", {"no_rope_layers": [1, 2, 1]}, "no_rope_layers"),
        ("granite", {"attention_bias": True}, "attention_bias"),
        ("granite", {"residual_multiplier": 0.0}, "residual_multiplier"),
        ("granite-hybrid", {"normalization_function": "layernorm"}, "normalization_function"),
        ("granite-hybrid", {"position_embedding_type": "alibi"}, "position_embedding_type"),
        ("glm4", {"partial_rotary_factor": 0.6}, "turn, not a multiple of 16"),
        ("seed-oss", {"mlp_bias": True}, "mlp_bias"),
        ("apertus", {"hidden_act": "silu"}, "hidden_act"),
        ("cohere2", {"use_parallel_block": False}, "use_parallel_block"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere2", {"layer_switch": 3}, "layer_switch"),
        ("apertus", {"post_norm": True}, "post_norm"),
    ],
)
def test_a_dense_family_refuses_what_it_cannot_express(
    built: BuildBundle, tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built(name, "fp32").checkpoint, checkpoint)
    edit_json(checkpoint / "config.json", lambda c: c.update(changes))
    refused(checkpoint, tmp_path, named)


def test_matrices_stored_together_must_have_the_rows_that_config_json_means(
    built: BuildBundle, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built("phi3", "fp32").checkpoint, checkpoint)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    rewrite(checkpoint, lambda w: w.update({name: w[name][:-16].copy()}))
    refused(checkpoint, tmp_path, rf"{name}.*\[112, 64\].*\[128, 64\]")


def test_a_window_without_its_size_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_qwen2(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update(use_sliding_window=True))
    refused(checkpoint, tmp_path, "sliding_window")


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update(model_type="fuyu"))
    error = refused(checkpoint, tmp_path, "fuyu")
    assert "qwen3" in error.hint


@pytest.mark.parametrize("family", ["minimax_text_01", "mamba2"])
def test_a_family_with_a_running_state_of_another_kind_is_refused_with_that_reason(
    tmp_path: Path, family: str
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update(model_type=family))
    error = refused(checkpoint, tmp_path, f"'{family}' has layers that keep a running state")
    assert "MiniMax-M2" in error.hint


def test_null_keys_are_absent_keys(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit_json(checkpoint / "config.json", lambda c: c.update(quantization_config=None, new=None))
    build_unsigned(checkpoint, tmp_path / "out")


def test_remote_code_of_the_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit_json(
        checkpoint / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": "x"})
    )
    refused(checkpoint, tmp_path, "tokenizer_config.json: auto_map")


def test_pickled_weights_are_refused_by_name_and_never_opened(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    pickled = checkpoint / "pytorch_model.bin"
    (checkpoint / "model.safetensors").rename(pickled)
    pickled.chmod(0)
    refused(checkpoint, tmp_path, r"pickled \(pytorch_model.bin\)")


@pytest.mark.parametrize(
    ("there", "named", "helps"),
    [
        ("model-q4.gguf", r"GGUF \(model-q4.gguf\)", "publisher's directory with safetensors"),
        ("model-00001-of-00002.safetensors", "index.json", "download model.safetensors.index"),
        ("consolidated.safetensors", "own layout", "layout of transformers"),
        ("model.safetensors.incomplete", "no model.safetensors", "incomplete"),
    ],
)
def test_weights_of_another_form_are_named_and_what_helps(
    tmp_path: Path, there: str, named: str, helps: str
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").rename(checkpoint / there)
    assert helps in refused(checkpoint, tmp_path, named).hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_in_place_of_a_large_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n"
    (checkpoint / name).write_text(pointer)
    assert "git lfs pull" in refused(checkpoint, tmp_path, f"{name} is a pointer").hint


def test_an_older_tokenizer_is_named_and_how_to_convert_it(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").rename(checkpoint / "tokenizer.model")
    assert "save_pretrained" in refused(checkpoint, tmp_path, "tokenizer.json").hint


def test_a_tokenizer_in_mistrals_own_format_is_named(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").rename(checkpoint / "tekken.json")
    assert "tekken.json is Mistral's" in refused(checkpoint, tmp_path, "tokenizer.json").hint


def test_a_hub_name_is_no_directory(tmp_path: Path) -> None:
    error = refused(Path("Qwen/Qwen3-0.6B"), tmp_path, "there is no directory Qwen/Qwen3-0.6B")
    assert "download" in error.hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / name).unlink()
    refused(checkpoint, tmp_path, name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_document_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / name).write_bytes(content)
    refused(checkpoint, tmp_path, name)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_damaged_weights_file_is_named(tmp_path: Path, cut: int) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    refused(checkpoint, tmp_path, "model.safetensors")


def rewrite(checkpoint: Path, edit: Edit) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(checkpoint, lambda w: w.pop(name))
    refused(checkpoint, tmp_path, name)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(checkpoint, lambda w: w.update({name: np.zeros(64, np.float32)}))
    refused(checkpoint, tmp_path, name)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(checkpoint, lambda w: w.update({name: w[name].T.copy()}))
    refused(checkpoint, tmp_path, rf"{name}.*\[128, 64\].*\[64, 128\]")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    name = "model.layers.0.mlp.down_proj.weight"

    def spoil(weights: dict[str, Any]) -> None:
        weights[name][3, 5] = value

    rewrite(checkpoint, spoil)
    refused(checkpoint, tmp_path, name)


def test_a_graph_whose_numbers_overflow_does_not_pass_the_probe(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")

    def enlarge(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][:] = 3e38

    rewrite(checkpoint, enlarge)
    refused(checkpoint, tmp_path, "not finite")


def test_integer_weights_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(checkpoint, lambda w: w.update({name: w[name].astype(np.int8)}))
    refused(checkpoint, tmp_path, f"{name}.*I8")


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "model.bin", "a/b.safetensors", 7]
)
def test_a_shard_outside_the_checkpoint_is_refused(tmp_path: Path, file: object) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint", max_shard_bytes=60_000)
    index = checkpoint / "model.safetensors.index.json"
    edit_json(index, lambda i: i["weight_map"].update({"model.norm.weight": file}))
    refused(checkpoint, tmp_path, "model.safetensors.index.json names")


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint", max_shard_bytes=60_000)
    index = checkpoint / "model.safetensors.index.json"
    edit_json(index, lambda i: i["weight_map"].pop("model.norm.weight"))
    refused(checkpoint, tmp_path, "disagree on model.norm.weight")


def test_a_checkpoint_without_licence_text_needs_one(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "LICENSE").unlink()
    error = refused(checkpoint, tmp_path, "licence")
    assert "--license-file" in error.hint


def test_a_licence_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    with pytest.raises(UsageError, match="nowhere"):
        build_bundle(
            checkpoint,
            tmp_path / "out",
            name="m",
            version="1",
            signer=None,
            license_file=tmp_path / "nowhere",
        )


def test_an_encoder_at_four_bits_is_refused(tmp_path: Path) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="int4"):
        build_unsigned(checkpoint, tmp_path / "out", precision="int4")


@pytest.mark.parametrize(
    ("edit", "pattern"),
    [
        (lambda m: m.append({"type": "sentence_transformers.models.Dense", "path": "3"}), "Dense"),
        (lambda m: m.pop(1), "Normalize"),
        (lambda m: m[1].update(path="../1_Pooling"), "1_Pooling"),
        (lambda m: m[0].update(path="0_Transformer"), "transformer"),
    ],
)
def test_sentence_modules_without_a_graph_are_refused(
    tmp_path: Path, edit: Edit, pattern: str
) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    edit_json(checkpoint / "modules.json", edit)
    refused(checkpoint, tmp_path, pattern)


@pytest.mark.parametrize(
    ("key", "value"),
    [("pooling_mode_max_tokens", True), ("pooling_mode_cls_token", True), ("new_mode", True)],
)
def test_unknown_poolings_are_refused(tmp_path: Path, key: str, value: object) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    edit_json(checkpoint / "1_Pooling/config.json", lambda c: c.update({key: value}))
    refused(checkpoint, tmp_path, "pooling|new_mode")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    other = write_qwen3(tmp_path / "other", vocab=600)
    (checkpoint / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    refused(checkpoint, tmp_path, "512 tokens")
