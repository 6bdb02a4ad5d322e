"""What cannot be built of a model that sees is refused by name; manifests are checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.bundle import manifest as manifests
from appliance.bundle.manifest import Manifest
from appliance.errors import CheckpointError, LayoutError
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from installer.progress import NoProgress
from tests.checkpoint.conftest import build_unsigned
from tests.fakes.seeing_states import write_qwen3_5
from tests.fakes.vision_checkpoints import TEMPLATE, write_qwen2_5_vl, write_qwen3_vl
from tests.vision.conftest import BuildSeeing

Edit = Callable[[dict[str, Any]], Any]


class Notes(NoProgress):
    """What the builder notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def edited(path: Path, edit: Edit) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def put(section: str, key: str, value: object) -> Edit:
    return lambda config: (config[section] if section else config).update({key: value})


CONFIG: list[tuple[Edit, str]] = [
    (put("", "quantum", 1), "quantum"),
    (put("text_config", "attention_bias", True), "attention_bias"),
    (put("text_config", "tie_word_embeddings", False), "tie_word_embeddings"),
    (put("text_config", "rope_scaling", {"rope_type": "default"}), "mrope_section"),
    (put("text_config", "rope_scaling", {"mrope_section": [8, 8, 8]}), "mrope_section"),
    (
        put(
            "text_config", "rope_scaling", {"mrope_section": [6, 5, 5], "mrope_interleaved": False}
        ),
        "mrope_interleaved",
    ),
    (put("vision_config", "hidden_act", "relu"), "hidden_act"),
    (put("vision_config", "out_hidden_size", 32), "out_hidden_size"),
    (put("vision_config", "num_position_embeddings", 35), "num_position_embeddings"),
    (put("vision_config", "deepstack_visual_indexes", [7]), "deepstack_visual_indexes"),
    (put("vision_config", "rope_parameters", {"rope_type": "other"}), "rope_parameters"),
    (put("vision_config", "window_size", 112), "window_size"),
    (lambda c: c.pop("vision_config"), "vision_config"),
    (put("", "image_token_id", 5), "image_token_id"),
]
PROCESSOR: list[tuple[Edit, str]] = [
    (put("", "patch_size", 14), "patch_size"),
    (put("", "resample", 2), "resample"),
    (put("", "do_normalize", False), "do_normalize"),
    (put("", "image_std", [0.5]), "image_std"),
    (put("", "image_mean", "grey"), "image_mean"),
    (put("", "crop_size", 224), "crop_size"),
    (put("", "size", {"height": 224, "width": 224}), "shortest_edge"),
    (put("", "image_processor_type", "CLIPImageProcessor"), "image_processor_type"),
]


@pytest.mark.parametrize(
    ("file", "edit", "name"),
    [("config.json", *case) for case in CONFIG]
    + [("preprocessor_config.json", *case) for case in PROCESSOR],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_the_model_is_refused_by_name(
    tmp_path: Path, file: str, edit: Edit, name: str
) -> None:
    checkpoint = write_qwen3_vl(tmp_path / "checkpoint")
    edited(checkpoint / file, edit)
    with pytest.raises(CheckpointError, match=name):
        build_unsigned(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (put("vision_config", "window_size", 30), "window_size"),
        (put("vision_config", "in_chans", 4), "in_chans"),
        (put("", "use_sliding_window", True), "use_sliding_window"),
        (put("", "rope_scaling", {"type": "yarn", "mrope_section": [2, 3, 3]}), "yarn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_a_windowed_model_is_refused_by_name(
    tmp_path: Path, edit: Edit, name: str
) -> None:
    checkpoint = write_qwen2_5_vl(tmp_path / "checkpoint")
    edited(checkpoint / "config.json", edit)
    with pytest.raises(CheckpointError, match=name):
        build_unsigned(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (put("vision_config", "deepstack_visual_indexes", [0]), "deepstack_visual_indexes"),
        (put("text_config", "rope_parameters", {"rope_theta": 1e7}), "mrope_section"),
        (lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[3, 3, 3]), "mrope_"),
        (put("text_config", "quantum", 1), "quantum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_a_model_with_running_states_is_refused_by_name(
    tmp_path: Path, edit: Edit, name: str
) -> None:
    checkpoint = write_qwen3_5(tmp_path / "checkpoint")
    edited(checkpoint / "config.json", edit)
    with pytest.raises(CheckpointError, match=name):
        build_unsigned(checkpoint, tmp_path / "out")


def test_with_running_states_the_default_sees_and_eight_bit_slots_are_for_words_alone(
    tmp_path: Path,
) -> None:
    checkpoint = write_qwen3_5(tmp_path / "checkpoint")

    def build(precision: Precision | None) -> tuple[Manifest, list[str]]:
        notes, out = Notes(), tmp_path / f"{precision}"
        manifest = build_bundle(
            *(checkpoint, out),
            name="tiny",
            version="1.0",
            precision=precision,
            signer=None,
            progress=notes,
        )
        return manifest, notes.said

    manifest, said = build(None)
    assert (manifest.graph.precision, bool(manifest.vision), said) == ("int8", True, [])
    manifest, said = build("w8a8")
    assert (manifest.graph.precision, bool(manifest.vision)) == ("w8a8", False)
    assert [note.partition(":")[0] for note in said] == ["what sees images is left out"]


def test_axes_of_rope_are_not_taken_by_a_model_for_words(tmp_path: Path) -> None:
    checkpoint = write_qwen2_5_vl(tmp_path / "checkpoint")
    edited(
        checkpoint / "config.json",
        lambda c: c.update({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}),
    )
    with pytest.raises(CheckpointError, match="mrope"):
        build_unsigned(checkpoint, tmp_path / "out")


def test_an_eight_bit_cache_is_refused_for_a_model_that_sees(tmp_path: Path) -> None:
    checkpoint = write_qwen3_vl(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"w8a8: .* take words alone"):
        build_unsigned(checkpoint, tmp_path / "out", precision="w8a8")


def test_a_template_that_hides_images_is_refused(tmp_path: Path) -> None:
    checkpoint = write_qwen3_vl(tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE.replace("<|image_pad|>", ""))
    with pytest.raises(CheckpointError, match=r"image_pad.*for an image"):
        build_unsigned(checkpoint, tmp_path / "out")


def test_untied_checkpoints_in_the_newer_names_are_built(tmp_path: Path) -> None:
    manifest = build_unsigned(
        write_qwen3_vl(tmp_path / "checkpoint", tied=False), tmp_path / "out", precision="int4"
    )
    assert [graph.variant for graph in manifest.graphs] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("graph", "graph/vision/absent.onnx"),
        ("graph", "graph/cpu/model.onnx"),
        ("image_token", 1 << 20),
        ("image_token", -1),
        ("patch", 0),
        ("merge", -2),
        ("min_pixels", 1 << 30),
        ("max_pixels", 1),
        ("std", [0.0, 0.5, 0.5]),
        ("mean", [1e9, 0.5, 0.5]),
        ("mean", [0.5, 0.5]),
        ("side", 0),
        ("colour", 1),
        ("around", [1, 1 << 20]),
        ("around", [1]),
        ("table", "edges"),
        ("sizing", "sides"),
        ("resample", "nearest"),
    ],
)
def test_a_manifest_that_no_image_fits_is_refused(
    seeing: BuildSeeing, field: str, value: object
) -> None:
    document = json.loads(manifests.encode(seeing("qwen3_vl").manifest))
    document["vision"][field] = value
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(LayoutError):
        manifests.decode(data)
