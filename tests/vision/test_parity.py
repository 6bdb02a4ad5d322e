"""What a model says after images equals what the reference implementation computes."""

from __future__ import annotations

import math
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from appliance.compiler.grid import Grid, feed
from appliance.engine.cache_budget import CacheShape, state_bytes, token_bytes
from appliance.engine.runner import Runner
from appliance.engine.slot_pool import SlotPool
from appliance.engine.vision.decoder import Pixels
from appliance.engine.vision.eyes import Eyes, Shown
from appliance.engine.vision.patches import grid_of, patches
from appliance.engine.vision.runner import VisionRunner
from appliance.engine.vision.sight import Sight, expanded
from appliance.scheduler import Move, Plan, PrefillChunk, Sequence
from installer.checkpoint.graph import builder
from installer.checkpoint.parity_trial import by_rows
from installer.checkpoint.probe import open_graph
from installer.checkpoint.quantize import Precision
from tests.checkpoint.byte_runner import OTHER_WAY
from tests.checkpoint.conftest import Built, build_unsigned
from tests.checkpoint.reference import with_rounded_weights
from tests.checkpoint.runner import relative_error
from tests.checkpoint.table import PROPERTY, Cell
from tests.checkpoint.test_parity_table import Case, w8a8
from tests.vision.conftest import (
    COUNTED,
    EVERY,
    FAMILIES,
    LESS_OFTEN,
    MOST,
    RECURRENT,
    BuildSeeing,
    Seeing,
    picture,
)

TOLERANCE = 1e-4
WITHOUT = ("qwen3_vl_moe", "fp8")
"""Experts are stored as integers or in 16 bits and more."""
ROUNDED = [(f, p) for f in FAMILIES for p in ("int8", "int4", "fp8") if (f, p) != WITHOUT]
ROUNDED += [(f, p) for f in ("qwen3_5", COUNTED) for p in ("int8", "int4", "fp8")]
TABLES = ("pos_embed", "position_embedding")
CAPACITY, PREFIX = 256, 20
IMAGES = (picture(64, 112, seed=1), picture(80, 32, seed=2))
"""Of 4 x 7 and 5 x 2 tokens."""


class Reference:
    """Transformers in fp32, fed with our patches."""

    def __init__(self, model: Seeing) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            model.checkpoint, dtype=torch.float32
        ).eval()
        self._vision = model.vision
        self._counted = model.manifest.family == COUNTED

    def patches(self, image: Pixels) -> np.ndarray:
        """As the reference takes them."""
        cut = patches(image, self._vision)
        return by_rows(cut, grid_of(image, self._vision), self._vision) if self._counted else cut

    def features(self, image: Pixels) -> list[np.ndarray]:
        """What the tower makes of an image, level by level."""
        grid, merge = grid_of(image, self._vision), self._vision.merge
        shape = torch.tensor([[1, grid.rows * merge, grid.columns * merge]])
        given = torch.tensor(self.patches(image))
        with torch.inference_mode():
            if self._counted:
                seen = self.model.model.get_image_features(given, shape)
                return [torch.cat(seen.pooler_output).numpy()]
            seen = self.model.model.visual(given, grid_thw=shape)
        levels = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
        return [level.numpy() for level in levels]

    def logits(self, ids: Listing[int], images: Listing[Pixels]) -> np.ndarray:
        """Logits after each token, [tokens, vocab]; `ids` has the tokens of the images."""
        given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)])}
        if images:
            merge = self._vision.merge
            grids = [grid_of(image, self._vision) for image in images]
            cut = np.concatenate([self.patches(image) for image in images])
            given |= {
                "pixel_values": torch.tensor(cut),
                "image_grid_thw": torch.tensor(
                    [[1, grid.rows * merge, grid.columns * merge] for grid in grids]
                ),
            }
        if images and not self._counted:
            given["mm_token_type_ids"] = (given["input_ids"] == self._vision.image_token).int()
        self.model.model.rope_deltas = None
        with torch.inference_mode():
            logits: np.ndarray = self.model(**given).logits[0].numpy()
        return logits


class Sequences:
    """Drives the runner as the engine does: plans over slots of one pool."""

    def __init__(self, model: Seeing, slots: int = 2) -> None:
        self._runner = self._open(model, slots)
        self.kept = 0 if model.decoder.recurrent else None
        """Number of the snapshot that a prefix is cut at, where it cannot be cut elsewhere."""

    def _open(self, model: Seeing, slots: int) -> Runner:
        spec = model.decoder
        shape = CacheShape(slots, CAPACITY, token_bytes(spec), state_bytes(spec))
        graph = model.bundle / model.manifest.graph.path
        pool = SlotPool(model.decoder, shape)
        return VisionRunner(open_graph(graph), pool, model.decoder.vocab_size, CAPACITY)

    def prefill(
        self, sequence: Sequence, slot: int, count: int, snapshot: int | None = None
    ) -> np.ndarray:
        """The next `count` tokens; logits after the last of all, if it is among them."""
        chunk = PrefillChunk(sequence, slot, sequence.computed, count, snapshot)
        logits = self._run(Plan(prefills=(chunk,)))
        sequence.computed += count
        return logits

    def copy(self, source: int, target: int, count: int) -> None:
        """Begin another sequence with the first `count` tokens of one, as a cached prefix does."""
        self._runner.run(Plan(moves=(Move(source, target, count, snapshot=self.kept),)))

    def decode(self, sequences: Listing[Sequence], tokens: Listing[int]) -> np.ndarray:
        """One more token of each, in slots 0 and on."""
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.tokens.append(token)
        logits = self._run(Plan(decodes=tuple(sequences)))
        for sequence in sequences:
            sequence.computed += 1
        return logits

    def _run(self, plan: Plan) -> np.ndarray:
        logits = self._runner.run(plan)
        return np.array([logits[row] for row in range(len(logits))])


def sight_of(
    model: Seeing, prompt: Listing[int], images: Listing[Pixels]
) -> tuple[list[int], Sight]:
    vision = model.vision
    ids, starts = expanded(prompt, vision.image_token, [grid_of(i, vision) for i in images])
    eyes = Eyes(open_graph(model.bundle / vision.graph), vision)
    return ids, eyes.see(Shown(ids, starts, list(images)), lambda: False)


def text(count: int, seed: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, 400, count).tolist()
    return ids


def prompt_of(model: Seeing, images: int) -> list[int]:
    """Words, an image, words, an image, ..., words."""
    ids = text(9, 0)
    for number in range(images):
        ids += [model.vision.image_token, *text(5 + 3 * number, number + 1)]
    return ids


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("images", [IMAGES[:1], IMAGES], ids=["one", "two"])
def test_logits_after_images_equal_the_reference_whole_in_pieces_and_decoded(
    seeing: BuildSeeing, family: str, images: Listing[Pixels], record_property: Any
) -> None:
    model = seeing(family)
    reference = Reference(model)
    ids, sight = sight_of(model, prompt_of(model, len(images)), images)
    wanted = reference.logits(ids, images)
    runner = Sequences(model, slots=3)

    whole = Sequence(sight.keyed(ids), beside=sight)
    errors = {"prefill": [relative_error(runner.prefill(whole, 0, len(ids))[0], wanted[-1])]}

    # Pieces that end before, in and behind each image.
    cut = Sequence(sight.keyed(ids), beside=sight)
    for size in (4, 11, 5, 7, 1, 7):
        behind = cut.computed + size
        runner.prefill(cut, 1, size, runner.kept if behind == PREFIX else None)
    left = len(ids) - cut.computed
    errors["chunked"] = [relative_error(runner.prefill(cut, 1, left)[0], wanted[-1])]

    # A prefix that ends in the first image.
    cached = Sequence(sight.keyed(ids), beside=sight)
    cached.computed = PREFIX
    runner.copy(1, 2, PREFIX)
    left = len(ids) - cached.computed
    errors["prefix"] = [relative_error(runner.prefill(cached, 2, left)[0], wanted[-1])]

    errors["ragged"] = []
    for token in (17, 3, 250):
        got = runner.decode([whole, cut], [token, token])
        ids = [*ids, token]
        wanted = reference.logits(ids, images)
        errors["ragged"] += [relative_error(row, wanted[-1]) for row in got]
    for run, those in errors.items():
        _record(record_property, family, run, max(those))
        assert max(those) <= TOLERANCE


@pytest.mark.parametrize("family", MOST)
def test_words_beside_an_image_in_one_batch_are_as_without(
    seeing: BuildSeeing, family: str
) -> None:
    model = seeing(family)
    reference = Reference(model)
    ids, sight = sight_of(model, prompt_of(model, 1), IMAGES[:1])
    words, runner = text(20, 5), Sequences(model)
    pair = [Sequence(sight.keyed(ids), beside=sight), Sequence(words)]
    runner.prefill(pair[0], 0, len(ids))
    last = runner.prefill(pair[1], 1, len(words))[0]
    assert relative_error(last, reference.logits(words, ())[-1]) <= TOLERANCE
    got = runner.decode(pair, [5, 6])
    assert relative_error(got[0], reference.logits([*ids, 5], IMAGES[:1])[-1]) <= TOLERANCE
    assert relative_error(got[1], reference.logits([*words, 6], ())[-1]) <= TOLERANCE


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2)], ids=str)
def test_the_tower_sees_what_the_reference_sees(
    seeing: BuildSeeing, family: str, size: tuple[int, int], record_property: Any
) -> None:
    model = seeing(family)
    vision, grid = model.vision, Grid(*size)
    side = vision.patch * vision.merge
    image = picture(size[0] * side, size[1] * side)
    session = open_graph(model.bundle / vision.graph)
    got = session.run(None, {"patches": patches(image, vision), **feed(grid, vision)})[0]
    wanted = Reference(model).features(image)
    assert len(got) == len(wanted)
    errors = [relative_error(level, f) for level, f in zip(got, wanted, strict=True)]
    _record(record_property, family, "tower", max(errors))
    assert max(errors) <= TOLERANCE


@pytest.mark.parametrize("family", MOST)
@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.1), ("fp16", 0.01)])
def test_rounded_weights_stay_near(
    seeing: BuildSeeing, family: str, precision: str, bound: float
) -> None:
    exact, rounded = seeing(family), seeing(family, precision)
    logits = []
    for model in (exact, rounded):
        ids, sight = sight_of(model, prompt_of(model, 2), IMAGES)
        runner = Sequences(model)
        logits.append(runner.prefill(Sequence(sight.keyed(ids), beside=sight), 0, len(ids))[0])
    distance = np.linalg.norm(logits[1] - logits[0]) / np.linalg.norm(logits[0])
    assert math.isfinite(distance)
    assert distance <= bound


@pytest.mark.parametrize(("family", "precision"), ROUNDED)
def test_rounded_weights_give_the_reference_s_logits(
    seeing: BuildSeeing, tmp_path: Path, family: str, precision: Precision, record_property: Any
) -> None:
    """With plain activations, as the decoders of the parity table."""
    # What is not a product stays in floats, which this grade has in 16 bits.
    checkpoint, kept = seeing(family).checkpoint, () if precision == "fp8" else TABLES
    rounded = with_rounded_weights(checkpoint, tmp_path / "rounded", precision, kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "INT8_ACTIVATIONS", 0)
        build_unsigned(checkpoint, tmp_path / "plain", precision=precision)
    model = Seeing(rounded, tmp_path / "plain")
    ids, sight = sight_of(model, prompt_of(model, 2), IMAGES)
    got = Sequences(model).prefill(Sequence(sight.keyed(ids), beside=sight), 0, len(ids))[0]
    error = relative_error(got, Reference(model).logits(ids, IMAGES)[-1])
    _record(record_property, family, precision, error)
    assert error <= TOLERANCE


@pytest.mark.parametrize("family", [RECURRENT[0], *LESS_OFTEN])
def test_in_the_grade_of_words_alone_it_is_its_language_model(
    seeing: BuildSeeing, tmp_path: Path, family: str, record_property: Any
) -> None:
    model = seeing(family, "w8a8")
    assert not model.manifest.vision
    assert {graph.variant for graph in model.manifest.graphs} == {"cpu", "cuda"}
    own = Built(model.checkpoint, model.bundle)
    error = w8a8(Case(family, lambda *_: own, tmp_path))
    record_property(PROPERTY, Cell(family, "w8a8", error, OTHER_WAY, "images").as_property())
    assert error <= OTHER_WAY


def _record(record_property: Any, family: str, run: str, error: float) -> None:
    cell = Cell(family, run, error, TOLERANCE, "images")
    record_property(PROPERTY, cell.as_property())
