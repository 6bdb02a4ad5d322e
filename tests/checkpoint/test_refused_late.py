"""What a build was refused for after hours of work, or in the middle of going on, can be put right.

Only where the weights themselves are refused is nothing kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.errors import CapacityError, CheckpointError, ConflictError
from installer.checkpoint import build_bundle, parity_child
from installer.progress import Advance, NoProgress
from tests.checkpoint.conftest import BuildBundle, Built
from tests.checkpoint.test_resume import assert_same, build_it, stopped
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.disk import leave_room

KEPT = "what is done is kept"
WEIGHTS = "model.safetensors"
CREATED = 1_700_000_000


class Watching(NoProgress):
    """Remembers what was begun; `then` is called with each title of a step."""

    def __init__(self, then: Callable[[str], object] = lambda _title: None) -> None:
        self.titles: list[str] = []
        self._then = then

    def step(self, title: str) -> None:
        self.titles.append(title)
        self._then(title)

    def note(self, text: str) -> None:
        self.titles.append(text)

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        self.titles.append(title)
        yield lambda _count: None


def build(checkpoint: Path, out: Path, progress: NoProgress | None = None, **more: Any) -> None:
    identity: dict[str, Any] = {"name": "tiny", "version": "1.0", "created": CREATED}
    build_bundle(
        checkpoint, out, precision="w8a8", signer=None, progress=progress, **identity, **more
    )


@pytest.fixture
def model(built: BuildBundle, tmp_path: Path) -> Built:
    """A checkpoint that a test may change, and the bundle that comes of it as it is."""
    whole = built("qwen3", "w8a8")
    return Built(shutil.copytree(whole.checkpoint, tmp_path / "checkpoint"), whole.bundle)


def with_tensors(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS, {"format": "pt"})


def assert_goes_on(model: Built, out: Path, **more: Any) -> None:
    progress = Watching()
    build(model.checkpoint, out, progress, **more)
    assert any(title.startswith("going on") for title in progress.titles)
    assert_same(out, model)


def test_a_licence_that_is_missing_costs_no_weights(model: Built, tmp_path: Path) -> None:
    stopped(model, tmp_path / "it", "w8a8", 9)
    text = (model.checkpoint / "LICENSE").rename(tmp_path / "text")
    with pytest.raises(CheckpointError, match="no licence text"):
        build(model.checkpoint, tmp_path / "it")
    progress = Watching()
    build(model.checkpoint, tmp_path / "it", progress, license_file=text)
    assert any(title.startswith("going on") for title in progress.titles)
    weights = "graph/cpu/weights-00001.bin"
    assert (tmp_path / "it" / weights).read_bytes() == (model.bundle / weights).read_bytes()


def test_another_checkpoint_named_by_mistake_costs_no_weights(model: Built, tmp_path: Path) -> None:
    stopped(model, tmp_path / "it", "w8a8", 9)
    broken = shutil.copytree(model.checkpoint, tmp_path / "broken")
    with_tensors(broken, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match="no tensor") as caught:
        build(broken, tmp_path / "it")
    assert KEPT in caught.value.hint
    assert_goes_on(model, tmp_path / "it")


def test_a_comparison_that_cannot_be_made_is_refused_first_and_costs_no_weights(
    model: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "it", "w8a8", 9)
    monkeypatch.setattr(parity_child, "LIBRARIES", ("no_such_library",))
    progress = Watching()
    with pytest.raises(CheckpointError, match="no_such_library") as caught:
        build(model.checkpoint, tmp_path / "it", progress, parity="required")
    assert KEPT in caught.value.hint
    assert progress.titles == [], "not even the checkpoint was hashed"
    assert_goes_on(model, tmp_path / "it")


def test_a_draft_model_that_is_refused_costs_the_model_no_weights(
    model: Built, tmp_path: Path
) -> None:
    small = write_qwen3(tmp_path / "small", seed=3)

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][0] = np.inf

    with_tensors(small, spoil)
    with pytest.raises(CheckpointError, match=r"the draft model: .* not finite") as caught:
        build(model.checkpoint, tmp_path / "it", draft=small)
    assert KEPT in caught.value.hint
    assert_goes_on(model, tmp_path / "it")


def test_a_bundle_that_came_there_meanwhile_is_not_written_over(
    model: Built, tmp_path: Path
) -> None:
    out = tmp_path / "it"
    with pytest.raises(ConflictError, match="exists") as caught:
        build(model.checkpoint, out, Watching(lambda _title: out.mkdir(exist_ok=True)))
    assert KEPT in caught.value.hint
    out.rmdir()
    assert_goes_on(model, out)


def test_texts_that_are_gone_are_not_in_the_bundle_that_goes_on(
    model: Built, built: BuildBundle, tmp_path: Path
) -> None:
    out = tmp_path / "it"
    with pytest.raises(ConflictError):
        build(model.checkpoint, out, Watching(lambda _title: out.mkdir(exist_ok=True)))
    out.rmdir()
    assert (tmp_path / ".it.partial/bundle/MODEL_CARD.md").is_file()
    (model.checkpoint / "README.md").unlink()
    progress = Watching()
    build(model.checkpoint, out, progress, kind="chat")
    assert any(title.startswith("going on") for title in progress.titles)
    assert not (out / "MODEL_CARD.md").exists()


def test_where_the_weights_are_refused_nothing_is_kept(model: Built, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"][0] = np.inf

    with_tensors(model.checkpoint, spoil)
    with pytest.raises(CheckpointError, match="not finite") as caught:
        build(model.checkpoint, tmp_path / "it")
    assert KEPT not in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_tensor_without_a_place_is_found_before_the_first_is_read(
    model: Built, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.bias"
    with_tensors(model.checkpoint, lambda tensors: tensors.update({name: np.ones(64, "f4")}))
    progress = Watching()
    with pytest.raises(CheckpointError, match=name):
        build(model.checkpoint, tmp_path / "it", progress)
    assert progress.titles == []


def test_a_disk_without_room_is_found_before_the_checkpoint_is_hashed(
    model: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room(monkeypatch, 1_000_000)
    progress = Watching()
    with pytest.raises(CapacityError, match=r"still needs .* MB.* has 1\.0 MB free"):
        build(model.checkpoint, tmp_path / "it", progress)
    assert progress.titles == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_build_that_was_stopped_can_go_on_with_a_draft_model(
    model: Built, tmp_path: Path
) -> None:
    small = write_qwen3(tmp_path / "small", seed=3)
    stopped(model, tmp_path / "it", "w8a8", 9)
    build(model.checkpoint, tmp_path / "whole", draft=small)
    assert_goes_on(Built(model.checkpoint, tmp_path / "whole"), tmp_path / "it", draft=small)
    assert build_it(model.checkpoint, tmp_path / "plain", "w8a8") == []
