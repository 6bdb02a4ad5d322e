"""Mixtures of 2026 beyond the parity table: as published, by other names, and what they refuse."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.families.mistral_large4 import native_name
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.shallow import cut
from tests.checkpoint import published_mixtures as published
from tests.checkpoint.conftest import BuildBundle, Built, OpenConfig, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.checkpoint.test_refusals import edit_json
from tests.fakes.packers import CompressedInts, write_packed

TOKENS = np.random.default_rng(43).integers(0, 480, 90).tolist()
Windows = dict[int | None, int]
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, int, int, int], Windows]] = {
    "Mistral Small 4": (published.MISTRAL_SMALL_4, (128, 4, 2048, 2048), {None: 36}),
    "Mistral Large 4": (published.MISTRAL_LARGE_4, (128, 4, 6144, 6144), {None: 72}),
    "Kimi-K2.5": (published.KIMI_K25, (384, 8, 2048, 2048), {None: 61}),
    "Hy3": (published.HY3, (192, 8, 1536, 1536), {None: 80}),
    "K-EXAONE-236B": (published.K_EXAONE, (128, 8, 2048, 2048), {128: 36, None: 12}),
    "Trinity-Nano": (published.TRINITY_NANO, (128, 8, 256, 256), {2048: 42, None: 14}),
    "North-Mini-Code": (published.NORTH_MINI_CODE, (128, 8, 768, 0), {4096: 36, None: 13}),
    "A.X-K1": (published.AXK1, (192, 8, 2048, 2048), {None: 61}),
}
"""Name -> config.json; experts, how many are chosen, their width and that of what all go through;
and how many layers have which window."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    document, mixture, windows = PUBLISHED[name]
    checkpoint = open_config(copy.deepcopy(document))
    shape = family_of(checkpoint).read(checkpoint)
    decoder = getattr(shape, "decoder", shape)
    read = decoder.mixture
    assert (read.experts, read.chosen, read.inner, read.shared) == mixture
    assert Counter(kind.window for kind in decoder.kinds) == windows
    said = document.get("text_config", document)
    assert (decoder.context, decoder.vocab) == (
        said["max_position_embeddings"],
        said["vocab_size"],
    )


def test_queries_of_mistral_small_4_grow_behind_8192_tokens(open_config: OpenConfig) -> None:
    checkpoint = open_config(copy.deepcopy(published.MISTRAL_SMALL_4))
    shape = family_of(checkpoint).read(checkpoint)
    (kind,) = set(shape.decoder.kinds)
    assert (kind.sharpening.every, kind.sharpening.weight, kind.rope.turned) == (8192, 0.1, 64)
    assert checkpoint.packing is not None
    assert checkpoint.packing.bits is None


def test_a_quantization_that_the_language_model_states_is_found(open_config: OpenConfig) -> None:
    document = copy.deepcopy(published.KIMI_K25)
    packing = open_config(document).packing
    assert packing is not None
    assert packing.label == "compressed-tensors, 4 bits in groups of 32"
    outer = dict(document["text_config"]["quantization_config"])
    assert open_config({**document, "quantization_config": outer}).packing == packing
    outer["format"] = "float-quantized"
    with pytest.raises(CheckpointError, match="quantization_config differs from that of text"):
        open_config({**document, "quantization_config": outer})


def test_kimi_with_experts_in_4_bits_is_read_as_published(
    built: BuildBundle, tmp_path: Path
) -> None:
    plain = built("kimi-k2.5", "fp32").checkpoint
    packed = tmp_path / "packed"
    twin = write_packed(plain, packed, CompressedInts(bits=4, group=16))

    def state_inside(config: dict[str, Any]) -> None:
        config["text_config"]["quantization_config"] = config.pop("quantization_config")
        config["text_config"]["model_type"] = "kimi_k2"
        config["architectures"] = ["KimiK25ForConditionalGeneration"]

    edit_json(packed / "config.json", state_inside)
    assert_computes(packed, tmp_path / "bundle", twin)


def rename(change: Callable[[str], str | None]) -> Callable[[Path], None]:
    """Tensors by other names; None leaves one out."""

    def apply(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        named = {change(name): values for name, values in load_file(path).items()}
        kept = {name: values for name, values in named.items() if name is not None}
        save_file(kept, path, {"format": "pt"})

    return apply


def of_the_library(name: str) -> str:
    """Hunyuan 3's names as the reference library has them."""
    for written, read in (
        ("mlp.router.gate.", "mlp.gate."),
        ("mlp.expert_bias", "mlp.e_score_correction_bias"),
        ("mlp.shared_mlp.", "mlp.shared_experts."),
    ):
        name = name.replace(written, read)
    return name


def stack_experts(checkpoint: Path) -> None:
    """All experts of a layer in two tensors, and a norm that layers without experts do not use."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    for layer in (1, 2):
        at = f"model.layers.{layer}.mlp.experts"
        gates, ups, downs = (
            [weights.pop(f"{at}.{e}.{end}_proj.weight") for e in range(16)]
            for end in ("gate", "up", "down")
        )
        weights[f"{at}.gate_up_proj"] = np.stack(
            [np.concatenate(both) for both in zip(gates, ups, strict=True)]
        )
        weights[f"{at}.down_proj"] = np.stack(downs)
    weights["model.layers.0.post_mlp_layernorm.weight"] = np.ones(64, np.float32)
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hy-v3", rename(of_the_library)),
        ("k-exaone", rename(lambda n: n.replace("mlp.e_score", "mlp.gate.e_score"))),
        ("axk1", rename(lambda n: None if "e_score" in n else n)),
        ("axk1", stack_experts),
    ],
)
def test_tensors_may_have_other_names_and_shapes(
    built: BuildBundle, tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(built(name, "fp32").checkpoint, changed)
    change(changed)
    assert_computes(changed, tmp_path / "bundle", changed)


def test_layers_of_hunyuan_3_that_predict_further_tokens_are_left_out(
    built: BuildBundle, tmp_path: Path
) -> None:
    model, changed = built("hy-v3", "int4"), tmp_path / "changed"
    shutil.copytree(model.checkpoint, changed)
    edit_json(changed / "config.json", lambda c: c.update(num_nextn_predict_layers=1))
    weights = load_file(changed / "model.safetensors")
    last = {n: v for n, v in weights.items() if n.startswith("model.layers.2.")}
    weights |= {n.replace("layers.2.", "layers.3."): v for n, v in last.items()}
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    build_unsigned(changed, tmp_path / "bundle", precision="int4")
    for path in (model.bundle / "graph").rglob("*.*"):
        other = tmp_path / "bundle" / path.relative_to(model.bundle)
        assert path.read_bytes() == other.read_bytes()


def assert_computes(checkpoint: Path, bundle: Path, reference: Path) -> None:
    build_unsigned(checkpoint, bundle, precision="fp32")
    model = Built(checkpoint, bundle)
    got = SlotRunner(model.graph, model.spec, capacity=128).prefill(0, TOKENS)
    assert relative_error(got, ReferenceDecoder(reference).logits(TOKENS)[-1]) <= 1e-4


def test_names_of_mistral_large_4_stay_as_they_are(built: BuildBundle) -> None:
    names = load_file(built("mistral-large4", "fp32").checkpoint / "model.safetensors").keys()
    assert all(native_name(name) == name for name in names)


def test_the_first_layers_are_few_whatever_latents_later_ones_read() -> None:
    sources = {"kv_source_layers": list(range(72)), "no_rope_layers": [1, 1, 1, 0] * 18}
    text = published.MISTRAL_LARGE_4["text_config"] | sources
    shallow = cut(published.MISTRAL_LARGE_4 | {"text_config": text})
    assert shallow is not None
    assert shallow.layers == 4


INSIDE = {"mistral-large4"}
"""Whose keys are those of a part."""


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("hy-v3", "qk_norm", False, "qk_norm"),
        ("hy-v3", "moe_router_use_sigmoid", False, "moe_router_use_sigmoid"),
        ("hy-v3", "expert_hidden_dim", 64, "expert_hidden_dim"),
        ("hy-v3", "mlp_bias", True, "mlp_bias"),
        ("hy-v3", "mlp_layer_types", ["dense", "other", "sparse"], "mlp_layer_types"),
        ("k-exaone", "layer_types", None, "sliding_window_pattern"),
        ("k-exaone", "is_moe_layer", [True] * 4, "is_moe_layer"),
        ("k-exaone", "scoring_func", "softmax", "scoring_func"),
        ("axk1", "q_lora_rank", None, "q_lora_rank"),
        ("axk1", "moe_layer_freq", 2, "moe_layer_freq"),
        ("afmoe", "route_norm", False, "route_norm"),
        ("afmoe", "score_func", "softmax", "score_func"),
        ("afmoe", "num_expert_groups", 2, "num_expert_groups"),
        ("cohere2-moe", "expert_selection_fn", "other", "expert_selection_fn"),
        ("cohere2-moe", "shared_expert_combination_strategy", "other", "combination_strategy"),
        ("cohere2-moe", "use_qk_norm", True, "use_qk_norm"),
        ("cohere2-moe", "layer_norm_bias", True, "layer_norm_bias"),
        ("mistral-large4", "n_group", 2, "n_group"),
        ("mistral-large4", "norm_topk_prob", False, "norm_topk_prob"),
        ("mistral-large4", "kv_source_layers", [0, 0, 2, 1, 4], "kv_source_layers"),
        ("mistral-large4", "kv_source_layers", [0, 1, 2, 2, 4], "kv_source_layers"),
        ("mistral-large4", "kv_source_layers", [0, 1, 2, 0, 1], "kv_source_layers"),
        ("mistral-large4", "kv_source_layers", [0, 0], "kv_source_layers"),
        ("mistral-large4", "no_rope_layers", [1, 1], "no_rope_layers"),
        ("mistral-large4", "indexer_types", ["shared"] * 5, "indexer_types"),
        ("mistral-large4", "layer_types", ["full_attention"] * 5, "layer_types"),
    ],
)
def test_what_the_graph_cannot_express_is_refused_by_name(
    built: BuildBundle, tmp_path: Path, name: str, key: str, value: object, said: str
) -> None:
    shutil.copy(built(name, "fp32").checkpoint / "config.json", tmp_path)

    def change(config: dict[str, Any]) -> None:
        (config["text_config"] if name in INSIDE else config)[key] = value

    edit_json(tmp_path / "config.json", change)
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        family_of(checkpoint).read(checkpoint)
