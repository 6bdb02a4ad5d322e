"""A decoder that reads images, by its graph for CUDA over a device of ordinary memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.config import EngineSettings
from appliance.engine.device.device import HostDevice
from appliance.engine.device.draw import DeviceDraw
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.runner import Runner
from appliance.scheduler import Plan, PrefillChunk, Sequence
from installer.checkpoint.probe import open_graph
from tests.checkpoint.runner import relative_error
from tests.engine.device.on_host import cut_for, placed
from tests.engine.device.processor import on_processor
from tests.vision.conftest import EVERY, FAMILIES, MOST, BuildSeeing, Seeing
from tests.vision.test_parity import (
    CAPACITY,
    IMAGES,
    PREFIX,
    Reference,
    Sequences,
    prompt_of,
    sight_of,
    text,
)

MEMORY = 512 << 20
TOLERANCE = 0.02
"""Of 16-bit floats, as for words (tests/checkpoint/test_half_parity.py)."""


class OnDevice(Sequences):
    """The same plans over slots in a device's memory.

    `compiled`: the graph of an artifact, in place of the bundle's. `cut`: a folder for the graph in
    two stages.
    """

    def __init__(
        self, model: Seeing, slots: int, compiled: Path | None = None, cut: Path | None = None
    ) -> None:
        self._compiled, self._cut = compiled, cut
        super().__init__(model, slots)

    def _open(self, model: Seeing, slots: int) -> Runner:
        self.device = HostDevice(MEMORY)
        graph = model.manifest.variant("cuda")
        assert graph is not None
        path, weights = model.bundle / graph.path, model.bundle / graph.weights_folder
        if self._cut is not None:
            sessions = cut_for(2, model.decoder, path, weights, self._cut)
        elif self._compiled is not None:
            sessions = [open_graph(self._compiled)]
        else:
            sessions = [open_graph(path, weights)]
        settings = EngineSettings(max_sequences=slots, max_context=CAPACITY)
        stages = placed(sessions, model.decoder, settings, [self.device] * len(sessions))
        draws = DeviceDraw(self.device, model.decoder.vocab_size, on_processor)
        self.runner = DeviceRunner([*stages], model.decoder, CAPACITY, draws, record=False)
        self.runner.warm_up()
        return self.runner


@contextmanager
def on_device(
    model: Seeing, slots: int = 3, compiled: Path | None = None, cut: Path | None = None
) -> Iterator[OnDevice]:
    sequences = OnDevice(model, slots, compiled, cut)
    yield sequences
    sequences.runner.close()
    assert sequences.device.free_bytes() == MEMORY


@pytest.mark.parametrize("family", EVERY)
def test_logits_after_images_are_the_references_whole_in_pieces_and_decoded(
    seeing: BuildSeeing, family: str
) -> None:
    _assert_the_references(seeing(family))


@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_images_are_seen_by_a_model_in_stages(
    seeing: BuildSeeing, family: str, tmp_path: Path
) -> None:
    _assert_the_references(seeing(family), tmp_path / "stages")


def _assert_the_references(model: Seeing, stages: Path | None = None) -> None:
    reference = Reference(model)
    ids, sight = sight_of(model, prompt_of(model, len(IMAGES)), IMAGES)
    wanted = reference.logits(ids, IMAGES)[-1]
    with on_device(model, cut=stages) as runner:
        whole = Sequence(sight.keyed(ids), beside=sight)
        assert relative_error(runner.prefill(whole, 0, len(ids))[0], wanted) <= TOLERANCE

        # Pieces that end before, in and behind each image.
        cut = Sequence(sight.keyed(ids), beside=sight)
        for size in (4, 11, 5, 7, 1, 7):
            kept = runner.kept if cut.computed + size == PREFIX else None
            assert not len(runner.prefill(cut, 1, size, kept))
        rest = runner.prefill(cut, 1, len(ids) - cut.computed)
        assert relative_error(rest[0], wanted) <= TOLERANCE

        # A prefix that ends in the first image.
        cached = Sequence(sight.keyed(ids), beside=sight)
        cached.computed = PREFIX
        runner.copy(1, 2, PREFIX)
        rest = runner.prefill(cached, 2, len(ids) - cached.computed)
        assert relative_error(rest[0], wanted) <= TOLERANCE

        for token in (17, 3, 250):
            got = runner.decode([whole, cut], [token, token])
            ids = [*ids, token]
            wanted = reference.logits(ids, IMAGES)[-1]
            assert max(relative_error(row, wanted) for row in got) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_behind_images_is_verified_in_one_step(seeing: BuildSeeing, family: str) -> None:
    model = seeing(family)
    reference = Reference(model)
    ids, sight = sight_of(model, prompt_of(model, len(IMAGES)), IMAGES)
    seen = Sequence(sight.keyed(ids), beside=sight)
    with on_device(model) as runner:
        runner.prefill(seen, 0, len(ids))
        seen.tokens.append(17)
        assert runner.runner.most_drafted(1) >= 2
        logits = runner.runner.run(Plan(decodes=(seen,), drafts=((3, 250),)))
        assert len(logits) == 3
        for row, end in enumerate((17, 3, 250)):
            ids = [*ids, end]
            wanted = reference.logits(ids, IMAGES)[-1]
            assert relative_error(logits[row], wanted) <= TOLERANCE


@pytest.mark.parametrize("family", MOST)
def test_words_beside_an_image_are_as_without_it(seeing: BuildSeeing, family: str) -> None:
    model = seeing(family)
    reference = Reference(model)
    ids, sight = sight_of(model, prompt_of(model, 1), IMAGES[:1])
    words, others = text(20, 5), text(18, 6)
    seen, *read = (
        Sequence(sight.keyed(ids), beside=sight), Sequence(words), Sequence(others)
    )  # fmt: skip
    with on_device(model) as runner:
        runner.prefill(seen, 0, len(ids))
        plan = Plan(prefills=(PrefillChunk(read[0], 1, 0, 20), PrefillChunk(read[1], 2, 0, 18)))
        logits = runner.runner.run(plan)
        for row, prompt in enumerate((words, others)):
            assert relative_error(logits[row], reference.logits(prompt, ())[-1]) <= TOLERANCE
        for sequence in read:
            sequence.computed = len(sequence.tokens)
        got = runner.decode([seen, *read], [5, 6, 7])
        for row, (prompt, shown) in enumerate(
            (([*ids, 5], IMAGES[:1]), ([*words, 6], ()), ([*others, 7], ()))
        ):
            assert relative_error(got[row], reference.logits(prompt, shown)[-1]) <= TOLERANCE


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_every_grade_of_a_model_that_sees_has_a_graph_for_cuda(
    seeing: BuildSeeing, precision: str
) -> None:
    model = seeing("qwen3_vl", precision)
    ids, sight = sight_of(model, prompt_of(model, 2), IMAGES)
    expected = Sequences(model).prefill(Sequence(sight.keyed(ids), beside=sight), 0, len(ids))[0]
    with on_device(model) as runner:
        got = runner.prefill(Sequence(sight.keyed(ids), beside=sight), 0, len(ids))[0]
    assert relative_error(got, expected) <= 0.1
