"""MiMo-7B: a decoder like Qwen2's, and a head that predicts the token after the next.

The head is one more layer of the same kind. Its input at a position is made of the state that the
decoder has there behind its last layer, before the last norm, and of the vector of the token that
came next; what it gives out goes through a norm of its own and the decoder's table of outputs.
Fed with what it gave out, it predicts on. Only what native operators compute has the head: see
docs/decisions/0253-a-head-that-predicts.md. Reference: MiMo (2025, arXiv:2505.07608),
`MiMoForCausalLM`; how the authors run the head is public with vLLM.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from installer.checkpoint.families import qwen2
from installer.checkpoint.graph import decoder, decoder_shape
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.byte_slots import Observed
from installer.checkpoint.graph.decoder import Form
from installer.checkpoint.graph.decoder_shape import DecoderShape
from installer.checkpoint.graph.kinds import read_late_windows
from installer.checkpoint.graph.native import NativeHead
from installer.checkpoint.reader import Checkpoint

_HEADS = "model.mtp_layers."
_AT = f"{_HEADS}0"
_END = 1 << 31
"""Beyond any position."""


def read(checkpoint: Checkpoint) -> DecoderShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    config.expect("architectures", ["MiMoForCausalLM"])
    config.expect("attention_bias", True)
    config.expect("use_mrope", False)
    config.expect("use_sliding_window", False)
    config.expect("num_nextn_predict_layers", 0, 1)
    predicts = config.whole("num_nextn_predict_layers", 0) > 0
    shape = decoder_shape.read_decoder(config, kinds=read_late_windows)
    config.finish(decoder_shape.HARMLESS_KEYS)
    kinds = (*shape.kinds, shape.kinds[-1]) if predicts else shape.kinds
    return replace(shape, predicts=predicts, kinds=kinds)


def build(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the decoder's graph in one of its forms."""
    attention, states = decoder.build_decoder(graph, shape, form, qwen2.project, decoder.swiglu)
    if not shape.predicts:
        graph.tensors.leave_out(_HEADS)
    elif isinstance(attention, Observed):
        _observe(graph, shape, attention, states)


def head_of(shape: DecoderShape) -> DecoderShape:
    """The head's own layer."""
    return replace(shape, layers=1, kinds=shape.kinds[-1:], predicts=False)


def build_head(graph: GraphBuilder, shape: DecoderShape, form: Form) -> None:
    """Write the head's graph; `shape` is the head's.

    Nothing behind the attention is computed but for the rows from which something is wanted: for
    the rest only their keys and values count.
    """
    attention = form(graph, shape)
    assert isinstance(attention, NativeHead)
    embeddings = decoder.input_table(graph, shape)
    stream = _joined(graph, shape, attention.states, embeddings.lookup(attention.ids))
    x, stream = _norm(graph, shape, "input_layernorm", stream, None)
    attended = attention.attend(0, qwen2.project(graph, shape, _AT, x))
    result = decoder.conclude_plainly(graph, shape, _AT, attention.choose(attended))
    x, stream = _norm(graph, shape, "post_attention_layernorm", attention.choose(stream), result)
    stream = graph.add(stream, decoder.swiglu(graph, shape, _AT, x))
    states, _ = _norm(graph, shape, "final_layernorm", stream, None)
    attention.hand_on(states)
    attention.conclude(decoder.output_table(graph, shape, embeddings).scores(states))


def _observe(
    graph: GraphBuilder, shape: DecoderShape, attention: Observed, states: ir.Value
) -> None:
    """Measure the head's keys and values, too; all else of it is written so that it is stored.

    Behind the last token comes that one again, since nothing else is known to.
    """
    ids, axis, end = attention.ids, graph.constant([1]), graph.constant([_END])
    rest = graph.op("Slice", ids, graph.constant([1]), end, axis)
    last = graph.op("Slice", ids, graph.constant([-1]), end, axis)
    words = decoder.input_table(graph, shape).lookup(graph.op("Concat", rest, last, axis=1))
    stream = _joined(graph, shape, states, words)
    x, stream = _norm(graph, shape, "input_layernorm", stream, None)
    attended = attention.attend(shape.layers, qwen2.project(graph, shape, _AT, x))
    result = decoder.conclude_plainly(graph, shape, _AT, attended)
    x, stream = _norm(graph, shape, "post_attention_layernorm", stream, result)
    _norm(graph, shape, "final_layernorm", stream, decoder.swiglu(graph, shape, _AT, x))


def _joined(
    graph: GraphBuilder, shape: DecoderShape, states: ir.Value, words: ir.Value
) -> ir.Value:
    """State and word of each token, normed and then joined: the state comes first."""
    state, _ = _norm(graph, shape, "hidden_layernorm", states, None)
    word, _ = _norm(graph, shape, "token_layernorm", words, None)
    both = graph.op("Concat", state, word, axis=-1)
    return graph.linear(both, f"{_AT}.input_proj", 2 * shape.hidden, shape.hidden)


def _norm(
    graph: GraphBuilder, shape: DecoderShape, name: str, stream: ir.Value, result: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    return decoder.norm_of_sum(graph, shape, f"{_AT}.{name}", stream, result)
