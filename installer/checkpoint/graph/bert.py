"""BERT as a sentence encoder: post-norm transformer, pooling, and unit length if so published.

Owns the encoder graph's inputs and outputs (docs/bundle-format.md) and the reading of a
sentence-transformers directory: modules.json says what follows the transformer. Refuses modules
it has no graph for, such as Dense.
References: Devlin et al., BERT (2019); Reimers and Gurevych, Sentence-BERT (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from appliance.bundle.manifest import EncoderSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph.builder import MICROSOFT, GraphBuilder
from installer.checkpoint.graph.table import Table
from installer.checkpoint.quantize import Float32
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

_HARMLESS_KEYS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"),
        *("initializer_range", "gradient_checkpointing", "use_cache", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path"),
    }
)
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS: dict[str, Literal["mean", "cls"]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """The numbers of an encoder. Counts, but for `epsilon`."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    epsilon: float
    max_length: int
    pooling: Literal["mean", "cls"]
    normalize: bool

    def spec(self) -> EncoderSpec:
        return EncoderSpec(
            dimensions=self.hidden,
            max_length=self.max_length,
            pooling=self.pooling,
            normalize=self.normalize,
        )


def read(checkpoint: Checkpoint) -> EncoderShape:
    """Read the checkpoint's JSON files. Raises CheckpointError naming what it cannot express."""
    pooling_path, normalize = _read_modules(checkpoint)
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["BertModel"])
    config.expect("hidden_act", "gelu")
    config.expect("position_embedding_type", "absolute")
    config.expect("is_decoder", False)
    config.expect("add_cross_attention", False)
    positions = config.integer("max_position_embeddings")
    shape = EncoderShape(
        vocab=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        layers=config.integer("num_hidden_layers"),
        heads=config.integer("num_attention_heads"),
        inner=config.integer("intermediate_size"),
        positions=positions,
        types=config.integer("type_vocab_size", 2),
        epsilon=config.number("layer_norm_eps", 1e-12),
        max_length=min(positions, _read_max_length(checkpoint, positions)),
        pooling=_read_pooling(checkpoint.settings(f"{pooling_path}/config.json")),
        normalize=normalize,
    )
    config.finish(_HARMLESS_KEYS)
    return shape


def build(graph: GraphBuilder, shape: EncoderShape) -> None:
    """Write the graph."""
    ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "tokens"))
    mask = graph.input("attention_mask", ir.DataType.INT64, ("batch", "tokens"))
    padding = graph.op("Cast", mask, to=ir.DataType.INT32)
    x = _embed(graph, shape, ids)
    for layer in range(shape.layers):
        at = f"encoder.layer.{layer}"
        attended = _attend(graph, shape, f"{at}.attention.self", x, padding)
        result = graph.linear(
            attended, f"{at}.attention.output.dense", shape.hidden, shape.hidden, bias=True
        )
        x = _norm(graph, shape, f"{at}.attention.output.LayerNorm", x, result)
        inner = graph.linear(x, f"{at}.intermediate.dense", shape.hidden, shape.inner, bias=True)
        inner = graph.op("Gelu", inner, domain=MICROSOFT)
        result = graph.linear(inner, f"{at}.output.dense", shape.inner, shape.hidden, bias=True)
        x = _norm(graph, shape, f"{at}.output.LayerNorm", x, result)
    pooled = _mean(graph, x, mask) if shape.pooling == "mean" else _first(graph, x)
    if shape.normalize:
        pooled = graph.op("LpNormalization", pooled, axis=-1, p=2)
    graph.output(pooled, "embeddings", ("batch", shape.hidden))


def _embed(graph: GraphBuilder, shape: EncoderShape, ids: ir.Value) -> ir.Value:
    words = Table(graph, "embeddings.word_embeddings.weight", shape.vocab, shape.hidden)
    tokens = graph.op("Shape", ids, start=1, end=2)
    table = graph.floats(
        "embeddings.positions", (shape.positions, shape.hidden), _positions(graph, shape)
    )
    positions = graph.op("Slice", table, graph.constant([0]), tokens, graph.constant([0]))
    embedded = graph.op("Add", words.lookup(ids), positions)
    return _norm(graph, shape, "embeddings.LayerNorm", embedded, None)


def _positions(graph: GraphBuilder, shape: EncoderShape) -> Iterator[Float32]:
    """Position embeddings plus the embedding of token type 0, the only type a sentence has."""
    types = "embeddings.token_type_embeddings.weight"
    graph.tensors.expect(types, (shape.types, shape.hidden))
    first_type = next(graph.tensors.rows(types))[0]
    table = "embeddings.position_embeddings.weight"
    graph.tensors.expect(table, (shape.positions, shape.hidden))
    for piece in graph.tensors.rows(table):
        yield np.add(piece, first_type, dtype=np.float32)


def _attend(
    graph: GraphBuilder, shape: EncoderShape, at: str, x: ir.Value, padding: ir.Value
) -> ir.Value:
    heads = (
        graph.linear(x, f"{at}.{name}", shape.hidden, shape.hidden, bias=True)
        for name in ("query", "key", "value")
    )
    return graph.op(
        "MultiHeadAttention",
        *(*heads, None, padding),
        domain=MICROSOFT,
        num_heads=shape.heads,
        scale=(shape.hidden // shape.heads) ** -0.5,
    )


def _norm(
    graph: GraphBuilder, shape: EncoderShape, name: str, x: ir.Value, result: ir.Value | None
) -> ir.Value:
    """Layer norm of x + result."""
    gain = graph.vector(f"{name}.weight", shape.hidden)
    shift = graph.vector(f"{name}.bias", shape.hidden)
    if result is None:
        return graph.op("LayerNormalization", x, gain, shift, axis=-1, epsilon=shape.epsilon)
    return graph.op(
        "SkipLayerNormalization",
        *(x, result, gain, shift),
        domain=MICROSOFT,
        epsilon=shape.epsilon,
    )


def _mean(graph: GraphBuilder, x: ir.Value, mask: ir.Value) -> ir.Value:
    """Mean over the tokens that are not padding; x [B, S, hidden] -> [B, hidden]."""
    weights = graph.op("Cast", mask, to=ir.DataType.FLOAT)
    weights = graph.op("Unsqueeze", weights, graph.constant([-1]))
    axis = graph.constant([1])
    total = graph.op("ReduceSum", graph.op("Mul", x, weights), axis, keepdims=0)
    count = graph.op("ReduceSum", weights, axis, keepdims=0)
    return graph.op("Div", total, graph.op("Max", count, graph.constant([1e-9])))


def _first(graph: GraphBuilder, x: ir.Value) -> ir.Value:
    """The first token's row, which BERT calls CLS."""
    first = graph.op("Gather", x, graph.constant([0]), axis=1)
    return graph.op("Squeeze", first, graph.constant([1]))


def _read_modules(checkpoint: Checkpoint) -> tuple[str, bool]:
    """(path of the pooling module, whether the embedding is scaled to unit length)."""
    modules = checkpoint.json("modules.json")
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise CheckpointError("modules.json is not a list of modules")
    kinds = tuple(str(module.get("type")).rsplit(".", 1)[-1] for module in modules)
    if kinds not in {_MODULES[:2], _MODULES}:
        raise CheckpointError(
            f"modules.json: the modules {', '.join(kinds)} are not supported",
            hint="a sentence encoder is Transformer, Pooling and, optionally, Normalize",
        )
    path = modules[1].get("path")
    if not isinstance(path, str) or not path or path.startswith("/") or ".." in path.split("/"):
        raise CheckpointError(f"modules.json: the path {path!r} is not inside the checkpoint")
    if modules[0].get("path") != "":
        raise CheckpointError("modules.json: the transformer is not at the checkpoint's top")
    return path, len(kinds) == len(_MODULES)


def _read_pooling(settings: Settings) -> Literal["mean", "cls"]:
    settings.ignore("word_embedding_dimension", "include_prompt")
    chosen = [pooling for key, pooling in _POOLINGS.items() if settings.flag(key, False)]
    for key in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"):
        settings.expect(f"pooling_mode_{key}", False)
    settings.finish()
    if len(chosen) != 1:
        raise CheckpointError("the pooling module must choose one of mean and cls")
    return chosen[0]


def _read_max_length(checkpoint: Checkpoint, default: int) -> int:
    name = "sentence_bert_config.json"
    if not checkpoint.has(name):
        return default
    settings = checkpoint.settings(name)
    settings.ignore("do_lower_case")  # the tokenizer's normalizer does that
    length = settings.integer("max_seq_length", default)
    settings.finish()
    return length
