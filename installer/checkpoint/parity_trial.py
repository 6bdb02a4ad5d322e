"""What the parity gate asks of each kind of models: one trial, the same for both sides.

Owns the prompt (text, tokens from the whole vocabulary, an image in front of them for models that
see), how the reference's process is told of it, and how a graph computes it: logits of the last
tokens, a text's embedding, or the logits that a reranker's scores are made of, since a sigmoid
near 1 would hide what differs. Knows nothing of processes and bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec, EncoderSpec, RerankSpec, Spec, VisionSpec
from appliance.compiler.grid import Grid, feed, patch_places
from appliance.compiler.probe import Array, advance, empty_cache
from appliance.errors import UnsupportedError
from installer.checkpoint.calibration import TEXTS, spread
from installer.checkpoint.families.cross_encoder import CrossEncoderShape
from installer.checkpoint.families.qwen3_encoder import RerankerShape
from installer.checkpoint.graph.tower import TowerShape
from installer.checkpoint.parity_dense import Layer, dense_layers
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer

Float32 = npt.NDArray[np.float32]
Asked = dict[str, object]
"""What the reference's process reads, as JSON."""

TOKENS = 160
"""Longer than the shortest sliding window there is (128)."""
ROWS = 24
"""The last tokens of the prompt, whose outputs are compared."""
_WORDS_BEFORE = 40
_IMAGE = Grid(5, 6)
"""Larger than a window of a tower that attends in windows (4 x 4), and not square."""
_PIECES = 8
"""Texts of a reranker, each longer than the one before."""
_POOLINGS: Mapping[str, Callable[[Float32], Float32]] = {
    "mean": lambda rows: rows.mean(0),
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}


class Trial(Protocol):
    """One question, for the reference and for a graph."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of the longest text."""
        ...

    def asked(self, directory: Path) -> Asked:
        """For the reference's process; arrays are put into `directory`."""
        ...

    def wanted(self, rows: Float32) -> Float32:
        """The reference's rows as the graph gives them out."""
        ...

    def computed(self, session: ort.InferenceSession, tower: Path | None) -> Float32:
        """What the graph gives out; raises UnsupportedError."""
        ...


def make_trial(
    checkpoint: Checkpoint,
    tokenizer: CheckpointTokenizer,
    shape: Any,  # noqa: ANN401  # the family's own
    vision: VisionSpec | None,
    open_tower: Callable[[Path], ort.InferenceSession],
) -> Trial:
    """The trial of a model of this shape, which was read of `checkpoint`."""
    spec: Spec = shape.spec()
    most = spec.context_length if isinstance(spec, DecoderSpec) else spec.max_length
    tokens = _prompt(checkpoint.config, tokenizer, shape.vocab, min(TOKENS, most))
    if isinstance(spec, DecoderSpec):
        picture = None if vision is None else _Picture(vision, shape.tower, open_tower)
        return _Continuation(tokens if picture is None else picture.within(tokens), spec, picture)
    if isinstance(spec, EncoderSpec):
        return _Embedding(tokens, spec, dense_layers(checkpoint.tensors, shape.sentence))
    assert isinstance(spec, RerankSpec)
    return _Ranking(tokens, shape)


def with_logits(shape: Any) -> Any:  # noqa: ANN401  # the family's own
    """The same model; of a reranker, one whose scores are logits."""
    if isinstance(shape, CrossEncoderShape | RerankerShape):
        return replace(shape, sigmoid=False)
    return shape


def _prompt(
    config: Mapping[str, object], tokenizer: CheckpointTokenizer, vocab: int, count: int
) -> tuple[int, ...]:
    """Text, and then tokens from the whole vocabulary but those that mean something to a model."""
    text = tokenizer.encode(TEXTS[0])[: TOKENS // 2]
    special = _special(config)
    return tuple([*text, *(i for i in spread(vocab, 2 * TOKENS) if i not in special)][:count])


def _special(config: Mapping[str, object]) -> set[int]:
    nested = config.get("text_config")
    documents = [config, nested] if isinstance(nested, dict) else [config]
    return {
        value
        for document in documents
        for key, value in document.items()
        if key.endswith("_token_id") and isinstance(value, int)
    }


class _Picture:
    """One image of random patches, behind the first words of a prompt."""

    def __init__(
        self,
        vision: VisionSpec,
        tower: TowerShape,
        open_tower: Callable[[Path], ort.InferenceSession],
    ) -> None:
        self._vision = vision
        self._counted = tower.counted
        self._open = open_tower
        width = 3 * vision.temporal * vision.patch**2
        count = _IMAGE.tokens * vision.merge**2
        random = np.random.default_rng(0)
        self._patches: Float32 = random.standard_normal((count, width), np.float32)

    def within(self, words: Sequence[int]) -> tuple[int, ...]:
        """As many tokens, those of the image among them."""
        image = [self._vision.image_token] * _IMAGE.tokens
        return tuple([*words[:_WORDS_BEFORE], *image, *words[_WORDS_BEFORE:]][: len(words)])

    def asked(self, directory: Path) -> Asked:
        merge = self._vision.merge
        path = directory / "patches.npy"
        told = by_rows(self._patches, _IMAGE, self._vision) if self._counted else self._patches
        np.save(path, told, allow_pickle=False)
        grid = [1, _IMAGE.rows * merge, _IMAGE.columns * merge]
        return {"patches": str(path), "grid": grid, "token": self._vision.image_token}

    def beside(self, tower: Path, tokens: Sequence[int]) -> dict[str, Array]:
        """What the decoder takes for the image, as the engine gives it."""
        given = {"patches": self._patches, **feed(_IMAGE, self._vision)}
        features = self._open(tower).run(None, given)[0]
        own = np.array(tokens) == self._vision.image_token
        start, count = int(own.argmax()), len(tokens)
        stop = start + _IMAGE.tokens
        positions = np.empty((count, 3), np.int64)
        positions[:start] = np.arange(start)[:, None]
        positions[start:stop] = _IMAGE.positions(start)
        positions[stop:] = (start + _IMAGE.span + np.arange(count - stop))[:, None]
        beside: dict[str, Array] = {
            "features": np.concatenate([np.zeros_like(features[:, :1]), features], axis=1),
            "feature_index": np.where(own, own.cumsum(), 0)[None],
        }
        return beside if self._counted else {**beside, "positions": positions[None]}


def by_rows(patches: Float32, grid: Grid, vision: VisionSpec) -> Float32:
    """An image's patches row by row, each frame with all of its colours, as a reference takes them
    whose decoder counts tokens."""
    places = patch_places(grid, vision.merge)
    dots = vision.patch**2
    apart = patches[np.lexsort((places[:, 1], places[:, 0]))]
    turned = apart.reshape(len(apart), -1, vision.temporal, dots).transpose(0, 2, 1, 3)
    ordered: Float32 = turned.reshape(patches.shape)
    return ordered


@dataclass(frozen=True, slots=True)
class _Continuation:
    """Logits of the last tokens of a prompt, behind an image if the model sees."""

    tokens: tuple[int, ...]
    spec: DecoderSpec
    picture: _Picture | None

    def asked(self, directory: Path) -> Asked:
        image = None if self.picture is None else self.picture.asked(directory)
        return _asked("logits", [{"tokens": self.tokens}], rows=ROWS, image=image)

    def wanted(self, rows: Float32) -> Float32:
        return rows

    def computed(self, session: ort.InferenceSession, tower: Path | None) -> Float32:
        beside = None
        if self.picture is not None:
            assert tower is not None, "a model that sees has a tower"
            beside = self.picture.beside(tower, self.tokens)
        rows = min(ROWS, len(self.tokens))
        cache = empty_cache(session, self.spec, len(self.tokens))
        made = advance(session, cache, 0, self.tokens, rows, beside)
        logits: Float32 = made["logits"]
        return logits


@dataclass(frozen=True, slots=True)
class _Embedding:
    """The vector of a text."""

    tokens: tuple[int, ...]
    spec: EncoderSpec
    dense: Sequence[Layer]

    def asked(self, _directory: Path) -> Asked:
        return _asked("states", [{"tokens": self.tokens}], rows=len(self.tokens))

    def wanted(self, rows: Float32) -> Float32:
        vector = _POOLINGS[self.spec.pooling](rows)
        for layer in self.dense:
            vector = layer(vector)
        return vector / np.linalg.norm(vector) if self.spec.normalize else vector

    def computed(self, session: ort.InferenceSession, _tower: Path | None) -> Float32:
        embeddings: Float32 = _run(session, "embeddings", self.tokens)[0]
        return embeddings


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The logits of several texts, each longer than the one before."""

    tokens: tuple[int, ...]
    shape: CrossEncoderShape | RerankerShape

    def asked(self, _directory: Path) -> Asked:
        inputs: list[Asked] = [{"tokens": text} for text in self._texts()]
        if isinstance(self.shape, RerankerShape):
            return _asked("odds", inputs, odds=[self.shape.yes, self.shape.no])
        if self.shape.body.types > 1:
            inputs = [one | {"types": _types(text)} for one, text in self._paired(inputs)]
        return _asked("label", inputs)

    def wanted(self, rows: Float32) -> Float32:
        return rows

    def computed(self, session: ort.InferenceSession, _tower: Path | None) -> Float32:
        return np.concatenate([_run(session, "scores", text) for text in self._texts()])

    def _texts(self) -> list[tuple[int, ...]]:
        count = len(self.tokens)
        return [self.tokens[: -(-count * part // _PIECES)] for part in range(1, _PIECES + 1)]

    def _paired(self, inputs: Sequence[Asked]) -> list[tuple[Asked, tuple[int, ...]]]:
        return list(zip(inputs, self._texts(), strict=True))


def _asked(take: str, inputs: Sequence[Mapping[str, object]], **more: object) -> Asked:
    return {"take": take, "inputs": list(inputs), "rows": 0, "image": None, "odds": None, **more}


def _types(tokens: Sequence[int]) -> list[int]:
    """The second half is the document."""
    return [int(at >= len(tokens) // 2) for at in range(len(tokens))]


def _run(session: ort.InferenceSession, output: str, tokens: Sequence[int]) -> Float32:
    """One text through a graph without a cache."""
    ids = np.array([tokens], np.int64)
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.array([_types(tokens)], np.int64),
    }
    names = {entry.name for entry in session.get_inputs()}
    if not names <= known.keys():
        raise UnsupportedError("the graph has inputs that the parity gate does not know")
    made: Float32 = session.run([output], {name: known[name] for name in names})[0]
    return made
