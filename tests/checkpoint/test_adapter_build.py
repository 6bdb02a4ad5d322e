"""Building the bundle of an adapter: what is in it, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode
from appliance.errors import (
    CapacityError,
    CheckpointError,
    ConflictError,
    LockedError,
    UnsupportedError,
    UsageError,
)
from installer.checkpoint import build_bundle
from installer.checkpoint.adapter_build import build_adapter
from installer.checkpoint.unfinished import unfinished
from tests.conftest import BuildOnce
from tests.fakes.adapters import write_adapter
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.disk import leave_room

WEIGHTS = "adapter_model.safetensors"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def home(build_once: BuildOnce) -> Path:
    """`base` is a bundle for adapters, `plain` one without, `lora` an adapter."""

    def build(directory: Path) -> None:
        checkpoint = write_qwen3(directory / "checkpoint")
        for name in ("base", "plain"):
            build_bundle(
                checkpoint, directory / name, name=name, version="1", precision="fp32",
                adapters=name == "base", signer=None, created=1,
            )  # fmt: skip
        write_adapter(directory / "lora", checkpoint)

    return build_once("adapter-builds", build)


@pytest.fixture
def lora(home: Path, tmp_path: Path) -> Path:
    """A copy of the adapter that a test may change."""
    return shutil.copytree(home / "lora", tmp_path / "lora")


def manifest(directory: Path) -> Manifest:
    return decode((directory / MANIFEST_NAME).read_bytes())


def built(lora: Path, out: Path, base: Path, **changes: Any) -> Manifest:
    given: dict[str, Any] = {"name": "it", "version": "1", "signer": None, "created": 1}
    return build_adapter(lora, out, base=base, base_manifest=manifest(base), **(given | changes))


def configured(lora: Path, **keys: object) -> None:
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def with_tensors(lora: Path, change: Any) -> None:
    tensors = load_file(lora / WEIGHTS)
    change(tensors)
    save_file(tensors, lora / WEIGHTS, {"format": "pt"})


def test_the_same_adapter_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        built(home / "lora", tmp_path / name, home / "base")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*"))
    assert [str(f) for f in files if f.suffix == ".bin"] == [
        "adapter/00000.bin", "adapter/00001.bin",
    ]  # fmt: skip
    for file in files:
        if (tmp_path / "one" / file).is_file():
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_manifest_names_the_base_by_its_checkpoint(home: Path, tmp_path: Path) -> None:
    made = built(home / "lora", tmp_path / "it", home / "base")
    spec = made.as_adapter
    assert spec is not None
    base = manifest(home / "base")
    assert (spec.base.name, spec.base.checkpoint_sha256) == ("base", base.checkpoint_sha256)
    assert (made.kind, spec.rank, spec.layers, made.license) == ("adapter", 4, 2, "Apache-2.0")
    assert [t.name for t in spec.targets] == ["q", "k", "v", "o", "gate", "up", "down"]


def test_targets_given_as_a_pattern_are_those_of_the_tensors(
    lora: Path, home: Path, tmp_path: Path
) -> None:
    configured(lora, target_modules="all-linear")
    spec = built(lora, tmp_path / "it", home / "base").as_adapter
    assert spec is not None
    assert len(spec.targets) == 7


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"a_key_of_next_year": 1}, "a_key_of_next_year"),
        ({"r": 5}, "has the shape"),
        ({"r": 513}, "r = 513"),
        ({"r": 0}, "r = 0"),
        ({"lora_alpha": "much"}, "lora_alpha"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(
    lora: Path, home: Path, tmp_path: Path, keys: dict[str, object], named: str
) -> None:
    configured(lora, **keys)
    with pytest.raises(CheckpointError) as refusal:
        built(lora, tmp_path / "it", home / "base")
    assert named in refusal.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora"]


def _drop(tensors: dict[str, Any]) -> None:
    del tensors[f"{FIRST}.lora_B.weight"]


def _magnitude(tensors: dict[str, Any]) -> None:
    tensors[f"{FIRST}.lora_magnitude_vector"] = np.ones(64, np.float32)


def _embedding(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.ones((4, 512), np.float32)


def _third_layer(tensors: dict[str, Any]) -> None:
    tensors[FIRST.replace("layers.0", "layers.2") + ".lora_A.weight"] = np.ones((4, 64), np.float32)


def _transposed(tensors: dict[str, Any]) -> None:
    name = f"{FIRST}.lora_A.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def _not_a_number(tensors: dict[str, Any]) -> None:
    tensors[f"{FIRST}.lora_A.weight"][1, 2] = np.nan


def _huge(tensors: dict[str, Any]) -> None:
    tensors[f"{FIRST}.lora_B.weight"][1, 2] = 1e20


def _integers(tensors: dict[str, Any]) -> None:
    tensors[f"{FIRST}.lora_A.weight"] = np.ones((4, 64), np.int8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_drop, "has no tensor base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
        (_magnitude, "lora_magnitude_vector has no place"),
        (_embedding, "embed_tokens.lora_embedding_A has no place"),
        (_third_layer, "layers.2.self_attn.q_proj.lora_A.weight has no place"),
        (_transposed, "lora_A.weight has the shape [64, 4]"),
        (_not_a_number, "lora_A.weight has values that are not finite"),
        (_huge, "lora_B.weight has values that are not finite, or beyond"),
        (_integers, "has the element type I8"),
    ],
)
def test_tensors_that_are_not_the_bases_are_refused(
    lora: Path, home: Path, tmp_path: Path, change: Any, named: str
) -> None:
    with_tensors(lora, change)
    with pytest.raises(CheckpointError) as refusal:
        built(lora, tmp_path / "it", home / "base")
    assert named in refusal.value.message


def test_pickled_weights_are_refused(lora: Path, home: Path, tmp_path: Path) -> None:
    (lora / WEIGHTS).rename(lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        built(lora, tmp_path / "it", home / "base")


def test_a_template_that_is_not_the_bases_is_refused(
    lora: Path, home: Path, tmp_path: Path
) -> None:
    template = (home / "base/tokenizer/chat_template.jinja").read_text()
    (lora / "chat_template.jinja").write_text(template)
    built(lora, tmp_path / "same", home / "base")
    (lora / "chat_template.jinja").write_text(template + "!")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja of the adapter is not"):
        built(lora, tmp_path / "it", home / "base")


def test_a_base_that_takes_no_adapters_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        built(home / "lora", tmp_path / "it", home / "plain")
    assert refusal.value.code == "adapters_not_built"
    build_bundle(
        write_bert(tmp_path / "words"), tmp_path / "bert", name="bert", version="1", signer=None
    )
    with pytest.raises(UnsupportedError, match="cannot be the base"):
        built(home / "lora", tmp_path / "it", tmp_path / "bert")
    with pytest.raises(CheckpointError, match="takes no adapters"):
        build_bundle(
            tmp_path / "words", tmp_path / "b", name="b", version="1", adapters=True, signer=None
        )


def test_an_adapter_of_a_wider_model_is_refused(home: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "wide", write_qwen3(tmp_path / "c", hidden=80))
    with pytest.raises(CheckpointError, match="has the shape"):
        built(other, tmp_path / "it", home / "base")


def test_names_are_the_packagers_own(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="base's name"):
        built(home / "lora", tmp_path / "it", home / "base", name="base")
    with pytest.raises(UsageError):
        built(home / "lora", tmp_path / "it", home / "base", version="One")
    (tmp_path / "it").mkdir()
    with pytest.raises(ConflictError):
        built(home / "lora", tmp_path / "it", home / "base")


def test_sixteen_bit_weights_are_stored_as_they_are(home: Path, tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "l", home / "checkpoint", dtype="bfloat16", targets=("k",))
    built(lora, tmp_path / "it", home / "base")
    stored = np.fromfile(tmp_path / "it/adapter/00001.bin", "<f4")
    tensors: dict[str, Any] = load_file(lora / WEIGHTS)
    name = FIRST.replace("layers.0", "layers.1").replace("q_proj", "k_proj")
    down = tensors[f"{name}.lora_A.weight"].astype(np.float32)
    assert tensors[f"{name}.lora_A.weight"].dtype == ml_dtypes.bfloat16
    assert (stored[: down.size] == down.ravel()).all()
    up = tensors[f"{name}.lora_B.weight"].astype(np.float32).T * np.float32(8 / 4)
    assert (stored[down.size :] == up.ravel()).all()


def test_a_second_build_at_the_same_place_is_refused(home: Path, tmp_path: Path) -> None:
    with unfinished(tmp_path / "it") as first:
        first.begin_anew()
        (first.bundle / "of the first").write_bytes(b"")
        with pytest.raises(LockedError, match="another process"):
            built(home / "lora", tmp_path / "it", home / "base")
        assert (first.bundle / "of the first").exists(), "and leaves the first alone"
    built(home / "lora", tmp_path / "it", home / "base")
    assert not (tmp_path / "it/of the first").exists(), "what was left is not used"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_an_adapter_leaves_the_unfinished_build_of_a_model_alone(
    home: Path, tmp_path: Path
) -> None:
    with unfinished(tmp_path / "it") as model:
        model.begin("a key", "graph/cpu")
        weights = model.bundle / "graph/cpu/weights-00001.bin"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"hours of work")
    with pytest.raises(ConflictError, match="unfinished build of a model"):
        built(home / "lora", tmp_path / "it", home / "base")
    assert weights.read_bytes() == b"hours of work"


def test_an_adapter_that_is_stopped_or_finds_no_room_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("installer.checkpoint.adapter_build.check_base", interrupt)
        with pytest.raises(KeyboardInterrupt):
            built(home / "lora", tmp_path / "it", home / "base")
    with monkeypatch.context() as patch:
        leave_room(patch, 1_000_000)
        with pytest.raises(CapacityError, match="the bundle needs"):
            built(home / "lora", tmp_path / "it", home / "base")
    assert list(tmp_path.iterdir()) == []
