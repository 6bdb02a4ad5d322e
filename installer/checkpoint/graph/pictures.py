"""A decoder that reads images between its words: features in place of embeddings.

Owns the inputs that such a decoder's graph has beside those of cached.py, and its forms over
float slots. Where positions have three axes they come in as three numbers a token (time, row,
column), since what stands behind an image counts on from its longer side (M-RoPE; Wang et al.,
Qwen2-VL, 2024); else an image's tokens are counted like words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from installer.checkpoint.graph.angles import Tables
from installer.checkpoint.graph.attention import FloatSlots, HalfSlots
from installer.checkpoint.graph.builder import GraphBuilder
from installer.checkpoint.graph.decoder import Heads
from installer.checkpoint.graph.decoder_shape import AroundDecoder, DecoderShape, ReadKinds
from installer.checkpoint.graph.kinds import FULL, Kinds, LayerKind, read_kinds
from installer.checkpoint.graph.operators import MICROSOFT
from installer.checkpoint.graph.rope import AXES, Axes, Rope, read_rope
from installer.checkpoint.graph.tower import TowerShape, rotations
from installer.checkpoint.quantize import Float32
from installer.checkpoint.settings import Settings


@dataclass(frozen=True, slots=True)
class PictureShape(AroundDecoder):
    """A decoder with its tower.

    Attributes:
        image_token: the token that stands for an image in the prompt.
    """

    tower: TowerShape
    image_token: int


def read_axes(axes: Axes) -> ReadKinds:
    """Reads layers that see all tokens before them, at positions of three axes."""

    def read(config: Settings, head_dim: int) -> Kinds:
        rope = read_rope(config, head_dim, names={"mrope": "default"}, axes=axes)
        layers = config.integer("num_hidden_layers")
        return read_kinds(config, {FULL: LayerKind(rope)}, [FULL] * layers)

    return read


class CountedPictureSlots(FloatSlots):
    """Float slots; a token is a word, or one of an image's features, counted alike."""

    def __init__(self, graph: GraphBuilder, shape: DecoderShape, picture: PictureShape) -> None:
        super().__init__(graph, shape)
        self._levels = picture.tower.levels
        self._placed_by(graph, shape)
        self._features = graph.input(
            "features", graph.dtype, (self._levels, "features", shape.hidden)
        )
        self._index = graph.input("feature_index", ir.DataType.INT64, ("batch", "tokens"))

    def _placed_by(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        """Nothing is given of positions."""

    def embed(self, words: ir.Value) -> ir.Value:
        """What enters the first layer: the word's embedding, or the image's feature."""
        graph = self._graph
        zero = graph.constant([0])
        shown = graph.op("Unsqueeze", graph.op("Greater", self._index, zero), graph.constant([-1]))
        return graph.op("Where", shown, self._level(0), words)

    def deepen(self, layer: int, result: ir.Value) -> ir.Value:
        """`result` of a layer with the features of the next level, which words have zeros of."""
        if layer + 1 >= self._levels:
            return result
        by = self._shape.divisors(self._graph).stream
        return self._graph.add(result, self._graph.divide(self._level(layer + 1), by))

    def _level(self, level: int) -> ir.Value:
        """Features of one level, [batch, tokens, hidden]."""
        graph = self._graph
        axis = graph.constant([0])
        one = graph.op("Slice", self._features, *(graph.constant([n]) for n in (level, level + 1)))
        return graph.op("Gather", graph.op("Squeeze", one, axis), self._index, axis=0)


class PictureSlots(CountedPictureSlots):
    """The same at positions of three axes."""

    def _placed_by(self, graph: GraphBuilder, shape: DecoderShape) -> None:
        positions = graph.input("positions", ir.DataType.INT64, ("batch", "tokens", AXES))
        self._numbers = self._count_rows(positions)
        turns = rotations(graph, positions, frequencies(shape.kinds[0].rope))
        self._turns = [self._table(x, shape.kinds[0].rope.turned // 2) for x in turns]

    def attend(self, layer: int, heads: Heads, bias: ir.Value | None = None) -> ir.Value:
        queries, keys, values = heads
        past = self._past(layer, self._graph.dtype)
        attended, *present = self._kernel(
            layer,
            *(self._turn(queries, self._shape.heads), self._turn(keys, self._shape.kv_heads)),
            *(values, *past),
            *(self._seqlens, self._total),
            rotate=False,
            bias=bias,
        )
        self._present(layer, present, self._graph.dtype)
        return attended

    def _make_tables(self) -> Sequence[Tables]:
        """None: positions of three axes are too many for tables."""
        return ()

    def _table(self, x: ir.Value, width: int) -> ir.Value:
        """Cosines or sines [batch, tokens, width] as the kernel takes them: a row a token."""
        rows = self._graph.op("Reshape", x, self._graph.constant([-1, width]))
        narrow = self._graph.dtype != ir.DataType.FLOAT
        return self._graph.op("Cast", rows, to=self._graph.dtype) if narrow else rows

    def _turn(self, x: ir.Value, heads: int) -> ir.Value:
        """x [batch, tokens, heads * head_dim], of each head what turns at its token's angles."""
        turned, attributes = self._shape.kinds[0].rope.turned, {}
        if turned != self._shape.head_dim:
            attributes = {"num_heads": heads, "rotary_embedding_dim": turned}
        return self._graph.op(
            "RotaryEmbedding", x, self._numbers, *self._turns, domain=MICROSOFT, **attributes
        )

    def _count_rows(self, positions: ir.Value) -> ir.Value:
        """The rows of [batch, tokens] numbered as they lie in memory, in that shape."""
        graph = self._graph
        shape = graph.op("Shape", positions, start=0, end=2)
        row = graph.op("Slice", shape, *(graph.constant([n]) for n in (0, 1)))
        width = graph.op("Slice", shape, *(graph.constant([n]) for n in (1, 2)))
        count = graph.op("Squeeze", graph.op("Mul", row, width), graph.constant([0]))
        ends = (graph.array(f"const.{n}", np.asarray(n, np.int64)) for n in (0, 1))
        first, step = ends
        return graph.op("Reshape", graph.op("Range", first, count, step), shape)


class HalfPictureSlots(PictureSlots, HalfSlots):
    """The same over slots of 16-bit floats, for the CUDA provider."""


class HalfCountedPictureSlots(CountedPictureSlots, HalfSlots):
    """Those that count, over slots of 16-bit floats."""


def slots_of(form: object, *, counted: bool = False) -> type[CountedPictureSlots]:
    """The form of a decoder that reads images in place of one that reads words alone; tokens of
    images are `counted` like words, or have three axes."""
    if counted:
        return HalfCountedPictureSlots if form is HalfSlots else CountedPictureSlots
    return HalfPictureSlots if form is HalfSlots else PictureSlots


def frequencies(rope: Rope) -> Float32:
    """[3, turned / 2]: radians per position of each axis; every pair turns with one."""
    assert rope.sections is not None
    each = np.array(rope.frequencies, np.float32)
    axes = np.array(rope.sections.axes(len(each)))
    mine: Float32 = np.where(axes == np.arange(AXES)[:, None], each, np.float32(0))
    return mine.astype(np.float32)
