"""The files of embedders and rerankers as they are published are understood."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig

from appliance.bundle.specs import EncoderSpec, RerankSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import build_unsigned
from tests.checkpoint.published_encoders import (
    ARCTIC,
    E5_MISTRAL,
    EMBEDDINGGEMMA,
    EUROBERT,
    LABSE,
    MODERNBERT,
    MPNET,
    NOMIC,
)
from tests.fakes.checkpoints import write_llama
from tests.fakes.encoder_checkpoints import make_last_token_embedder
from tests.fakes.newer_encoders import VOCAB, write_modernbert_reranker
from tests.fakes.pooled_decoders import write_embedding_gemma

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"
Layer = tuple[int, int, bool, str]
GEMMA_DENSE: list[Layer] = [(768, 3072, False, IDENTITY), (3072, 768, False, IDENTITY)]


def write(
    directory: Path,
    config: Mapping[str, Any],
    pooling: str,
    longest: int,
    dense: Sequence[Layer] = (),
    *,
    normalize: bool = True,
) -> Checkpoint:
    """The small files of a sentence-transformers directory; weights are not looked at yet."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    documents: dict[str, object] = {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.get("hidden_size", config.get("n_embd")),
            "include_prompt": True,
            **{f"pooling_mode_{mode}": mode.startswith(pooling) for mode in modes},
        },
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
    }
    for index, (inner, outer, bias, activation) in enumerate(dense, 2):
        documents[f"{index}_Dense/config.json"] = {
            "in_features": inner,
            "out_features": outer,
            "bias": bias,
            "activation_function": activation,
        }
        (directory / f"{index}_Dense").mkdir(parents=True)
        (directory / f"{index}_Dense/model.safetensors").touch()
    for name, document in documents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(document))
    return Checkpoint(directory)


@pytest.mark.parametrize(
    ("config", "pooling", "longest", "dense", "normalize", "wanted"),
    [
        pytest.param(MODERNBERT, "cls", 8192, (), False, (768, 8192, None), id="gte-modernbert"),
        pytest.param(MODERNBERT, "mean", 8192, (), True, (768, 8192, None), id="modernbert-embed"),
        pytest.param(MPNET, "mean_tokens", 384, (), True, (768, 384, None), id="all-mpnet"),
        pytest.param(
            EMBEDDINGGEMMA, "mean_tokens", 2048, GEMMA_DENSE, True, (768, 2048, 128), id="gemma"
        ),
        pytest.param(EUROBERT, "mean_tokens", 8192, (), True, (768, 8192, None), id="EuroBERT"),
        pytest.param(NOMIC, "mean_tokens", 8192, (), False, (768, 2048, None), id="nomic-v1.5"),
        pytest.param(ARCTIC, "cls", 8192, (), True, (768, 8192, 256), id="arctic-embed-m-v2.0"),
        pytest.param(
            LABSE, "cls", 256, [(768, 768, True, TANH)], True, (768, 256, None), id="LaBSE"
        ),
    ],
)
def test_a_published_embedder_is_understood(
    tmp_path: Path,
    config: Mapping[str, Any],
    pooling: str,
    longest: int,
    dense: Sequence[Layer],
    normalize: bool,
    wanted: tuple[int, int, int | None],
) -> None:
    pooling = "mean_tokens" if pooling == "mean" else pooling
    checkpoint = write(tmp_path, config, pooling, longest, dense, normalize=normalize)
    family = family_of(checkpoint)
    assert family.kind == "embedding"
    spec: EncoderSpec = family.read(checkpoint).spec()
    fewest = None if spec.min_dimensions is msgspec.UNSET else spec.min_dimensions
    assert (spec.dimensions, spec.max_length, fewest) == wanted
    assert (spec.pooling, spec.normalize) == (pooling.removesuffix("_tokens"), normalize)


def test_layers_see_what_the_publishers_say(tmp_path: Path) -> None:
    modern = write(tmp_path / "m", MODERNBERT, "cls", 8192)
    kinds = family_of(modern).read(modern).body.kinds
    assert Counter(kind.window for kind in kinds) == {None: 8, 65: 14}
    gemma = write(tmp_path / "g", EMBEDDINGGEMMA, "mean_tokens", 2048, GEMMA_DENSE)
    kinds = family_of(gemma).read(gemma).decoder.kinds
    assert Counter(kind.window for kind in kinds) == {None: 4, 257: 20}


def test_a_decoder_that_embeds_is_read_by_its_last_token(tmp_path: Path) -> None:
    write_llama(tmp_path / "c")
    make_last_token_embedder(tmp_path / "c", 4096, max_length=4096)
    (tmp_path / "c/config.json").write_text(json.dumps(E5_MISTRAL))
    checkpoint = Checkpoint(tmp_path / "c")
    shape = family_of(checkpoint).read(checkpoint)
    assert {kind.window for kind in shape.decoder.kinds} == {4096}
    assert (shape.spec().pooling, shape.spec().max_length) == ("last", 4096)


def test_a_published_reranker_is_understood(tmp_path: Path) -> None:
    write_modernbert_reranker(tmp_path / "c")
    config = MODERNBERT | {
        "architectures": ["ModernBertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    (tmp_path / "c/config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path / "c")
    spec: RerankSpec = family_of(checkpoint).read(checkpoint).spec()
    assert (spec.max_length, spec.sigmoid) == (8192, True)


@pytest.mark.parametrize(
    ("config", "change", "pattern"),
    [
        (MODERNBERT, {"norm_bias": True}, "norm_bias"),
        (MODERNBERT, {"mlp_bias": True}, "mlp_bias"),
        (MODERNBERT, {"local_attention": 1}, "local_attention"),
        (MODERNBERT, {"hidden_activation": "silu"}, "hidden_activation"),
        (MODERNBERT, {"layer_types": ["full_attention"]}, "layer_types"),
        (MODERNBERT, {"unheard_of": 1}, "unheard_of"),
        (MPNET, {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets"),
        (MPNET, {"pad_token_id": 0}, "pad_token_id"),
        (EMBEDDINGGEMMA, {"use_bidirectional_attention": False}, "use_bidirectional"),
        (EMBEDDINGGEMMA, {"use_bidirectional_attention": None}, "use_bidirectional"),
        (EUROBERT, {"mlp_bias": True}, "mlp_bias"),
        (NOMIC, {"prenorm": True}, "prenorm"),
        (
            NOMIC,
            {"rotary_scaling_factor": 2, "max_trained_positions": None},
            "rotary_scaling_factor",
        ),
        (NOMIC, {"hidden_size": 512}, "hidden_size"),
        (NOMIC, {"num_experts": 8}, "num_experts"),
        (ARCTIC, {"logn_attention_scale": True}, "logn_attention_scale"),
        (ARCTIC, {"rope_scaling": {"factor": 8.0, "type": "ntk"}}, "ntk"),
    ],
)
def test_what_no_graph_expresses_is_refused_by_name(
    tmp_path: Path, config: Mapping[str, Any], change: Mapping[str, Any], pattern: str
) -> None:
    checkpoint = write(tmp_path, {**config, **change}, "mean_tokens", 512)
    with pytest.raises(CheckpointError, match=pattern):
        family_of(checkpoint).read(checkpoint)


def test_a_chat_model_of_gemma_s_layers_does_not_see_what_comes(tmp_path: Path) -> None:
    config = EMBEDDINGGEMMA | {"architectures": ["Gemma3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    assert family_of(checkpoint).kind == "chat"
    with pytest.raises(CheckpointError, match="use_bidirectional_attention"):
        family_of(checkpoint).read(checkpoint)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"in_features": 512}, "in_features"),
        ({"activation_function": "torch.nn.modules.activation.Mish"}, "activation_function"),
        ({"module_input_name": "token_embeddings"}, "module_input_name"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_dense_layers_that_no_graph_expresses_are_refused_by_name(
    tmp_path: Path, change: Mapping[str, Any], pattern: str
) -> None:
    checkpoint = write(tmp_path, EMBEDDINGGEMMA, "mean_tokens", 512, GEMMA_DENSE)
    path = tmp_path / "2_Dense/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=pattern):
        family_of(checkpoint).read(checkpoint)


@pytest.mark.parametrize(("left", "hint"), [("pytorch_model.bin", "pickled"), ("", "incomplete")])
def test_dense_layers_need_their_weights(tmp_path: Path, left: str, hint: str) -> None:
    checkpoint = write(tmp_path, EMBEDDINGGEMMA, "mean_tokens", 512, GEMMA_DENSE)
    (tmp_path / "3_Dense/model.safetensors").unlink()
    if left:
        (tmp_path / "3_Dense" / left).touch()
    with pytest.raises(CheckpointError, match=r"no 3_Dense/model\.safetensors") as caught:
        family_of(checkpoint).read(checkpoint)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "kinds",
    [
        ["Transformer", "Dense", "Pooling"],
        ["Transformer", "Pooling", "Normalize", "Dense"],
        ["Transformer", "Pooling", "LayerNorm", "Normalize"],
        ["Transformer"],
    ],
)
def test_other_orders_of_modules_are_refused(tmp_path: Path, kinds: Sequence[str]) -> None:
    checkpoint = write(tmp_path, MODERNBERT, "mean_tokens", 512)
    modules = [{"path": f"{i}_{kind}" if i else "", "type": kind} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"modules Transformer.* not supported"):
        family_of(checkpoint).read(checkpoint)


def test_a_text_model_s_tokenizer_may_have_a_control_token_of_images(tmp_path: Path) -> None:
    checkpoint = write_embedding_gemma(tmp_path / "c")
    path = checkpoint / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"word{at}" for at in range(VOCAB - tokenizer.get_vocab_size())])
    tokenizer.add_special_tokens(["<image_soft_token>"])
    assert tokenizer.token_to_id("<image_soft_token>") == VOCAB
    tokenizer.save(str(path))
    manifest = build_unsigned(checkpoint, tmp_path / "it", precision="fp32")
    bundled = Tokenizer.from_file(str(tmp_path / "it" / manifest.tokenizer))
    assert bundled.token_to_id("<image_soft_token>") is None
    text = "Which word5 is active?"
    assert bundled.encode(text).ids == tokenizer.encode(text).ids
    tokenizer.add_tokens(["plain"])
    tokenizer.save(str(path))
    with pytest.raises(CheckpointError, match=f"the model only {VOCAB} tokens"):
        build_unsigned(checkpoint, tmp_path / "other", precision="fp32")


def embeddinggemma2(directory: Path) -> dict[str, Any]:
    """config.json as the reference library writes it; what the publisher says is its default."""
    AutoConfig.for_model("embedding_gemma2").save_pretrained(directory)
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config | {"architectures": ["EmbeddingGemma2Model"]}


@pytest.mark.parametrize(("longest", "context"), [(2048, 2048), (None, 8192)])
def test_embeddinggemma_2_is_understood_as_the_reference_has_it(
    tmp_path: Path, longest: int | None, context: int
) -> None:
    config = embeddinggemma2(tmp_path)
    checkpoint = write(tmp_path, config | {"hidden_size": 768}, "mean_tokens", longest or 1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if longest is None:
        (tmp_path / "sentence_bert_config.json").unlink()
    checkpoint = Checkpoint(tmp_path)
    shape = family_of(checkpoint).read(checkpoint)
    assert Counter(kind.window for kind in shape.kinds) == {None: 4, 513: 20}
    assert Counter((one.head_dim, one.kv_heads) for one in shape.sizes) == {
        (512, 1): 4,
        (256, 2): 20,
    }
    assert (shape.spec().dimensions, shape.spec().max_length) == (768, context)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}, "layer_types"),
        ({"per_layer_config": {"5": {"head_dim": 64}}}, "several widths"),
        ({"per_layer_config": {"5": {"unheard_of": 64}}}, "unheard_of"),
        ({"per_layer_config": {"24": {"head_dim": 64}}}, "24"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_of_embeddinggemma_2_what_no_graph_expresses_is_refused_by_name(
    tmp_path: Path, change: Mapping[str, Any], pattern: str
) -> None:
    config = embeddinggemma2(tmp_path)
    write(tmp_path, config | {"hidden_size": 768}, "mean_tokens", 512)
    config["text_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=pattern):
        family_of(checkpoint).read(checkpoint)
