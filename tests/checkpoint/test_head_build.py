"""A bundle with a head that predicts further tokens: files, words, and when there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from appliance.bundle import manifest as manifests
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import FileEntry, HeadSpec, Parity
from appliance.compiler.compile import compile_bundle
from appliance.errors import CheckpointError, LayoutError
from appliance.native import library
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from installer.cli.bundle import draft_fields
from installer.progress import NoProgress
from tests.checkpoint.conftest import BuildBundle
from tests.fakes.checkpoints import write_mimo, write_qwen3

HEAD = "graph/native/head.onnx"
native = pytest.mark.skipif(not library.supported(), reason="needs native operators")


class Notes(NoProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def build(
    checkpoint: Path, out: Path, precision: Precision = "w8a8", draft: Path | None = None
) -> tuple[Manifest, str]:
    """The manifest, and what was noted."""
    notes = Notes()
    manifest = build_bundle(
        checkpoint, out, name="m", version="1", precision=precision, signer=None, created=1,
        draft=draft, progress=notes,
    )  # fmt: skip
    return manifest, "\n".join(notes.notes)


def change(checkpoint: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def test_the_head_is_a_graph_over_the_models_own_weights(built: BuildBundle) -> None:
    model = built("mimo", "w8a8")
    manifest = model.manifest
    assert HEAD in {entry.path for entry in manifest.files}, "so it is signed"
    assert isinstance(manifest.head, HeadSpec)
    decoder = manifest.decoder
    assert decoder is not None
    assert manifest.head.decoder == msgspec.structs.replace(decoder, layers=1)
    assert manifest.head.hidden == 64
    assert draft_fields(manifest) == {"head": "one layer that predicts further tokens"}
    graph = (model.bundle / HEAD).read_bytes()
    assert b"model.embed_tokens.weight.integers" in graph
    assert b"lm_head.weight.integers" in graph


def test_tables_of_tokens_are_stored_once(built: BuildBundle, tmp_path: Path) -> None:
    plain = write_mimo(tmp_path / "plain", predicts=0)
    size = sum(entry.size for entry in build(plain, tmp_path / "it")[0].files if _weights(entry))
    own = sum(entry.size for entry in built("mimo", "w8a8").manifest.files if _weights(entry))
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64 * 64  # more than its matrices have
    assert 0 < own - size < 1.2 * layer


def _weights(entry: FileEntry) -> bool:
    return entry.path.endswith(".bin")


def test_the_same_checkpoint_gives_the_same_bundle(built: BuildBundle, tmp_path: Path) -> None:
    one, _ = build(built("mimo", "w8a8").checkpoint, tmp_path / "one")
    assert one == build(built("mimo", "w8a8").checkpoint, tmp_path / "two")[0]


@pytest.mark.parametrize("predicts", [0, None])
def test_a_checkpoint_without_one_has_a_bundle_without(
    tmp_path: Path, predicts: int | None
) -> None:
    checkpoint = write_mimo(tmp_path / "plain", predicts=0)
    change(checkpoint, lambda config: config.update(num_nextn_predict_layers=predicts))
    manifest, said = build(checkpoint, tmp_path / "it")
    assert b'"head"' not in manifests.encode(manifest)
    assert manifest.variant("native") is not None
    assert draft_fields(manifest) == {}
    assert said == ""
    assert b"states" not in (tmp_path / "it/graph/native/model.onnx").read_bytes()


def test_a_bundle_of_another_family_has_no_states(tmp_path: Path) -> None:
    manifest, _ = build(write_qwen3(tmp_path / "plain"), tmp_path / "it")
    assert b'"head"' not in manifests.encode(manifest)
    assert b"states" not in (tmp_path / "it/graph/native/model.onnx").read_bytes()


def test_a_grade_without_native_operators_leaves_it_out_and_says_so(
    built: BuildBundle, tmp_path: Path
) -> None:
    manifest, said = build(built("mimo", "w8a8").checkpoint, tmp_path / "it", "int4")
    assert manifest.head is msgspec.UNSET
    assert "left out: native operators alone compute it, and a bundle in int4" in said


def test_a_draft_model_takes_its_place_and_that_is_said(built: BuildBundle, tmp_path: Path) -> None:
    small = write_mimo(tmp_path / "small", layers=1)
    manifest, said = build(built("mimo", "w8a8").checkpoint, tmp_path / "it", draft=small)
    assert manifest.head is msgspec.UNSET
    assert manifest.of_draft is not None
    assert "left out: a draft model guesses in its place" in said
    assert not list((tmp_path / "it").rglob("head.onnx"))


@pytest.mark.slow
def test_the_model_is_compared_by_the_name_that_the_reference_has(
    built: BuildBundle, tmp_path: Path
) -> None:
    manifest = build_bundle(
        built("mimo", "w8a8").checkpoint, tmp_path / "it", name="m", version="1",
        precision="w8a8", signer=None, created=1, parity="required",
    )  # fmt: skip
    assert isinstance(manifest.parity, Parity)
    assert isinstance(manifest.parity.error, int)
    assert 0 < manifest.parity.error < 10_000, "parts per billion"


def test_several_heads_are_refused_by_the_key(tmp_path: Path) -> None:
    checkpoint = write_mimo(tmp_path / "it", predicts=2)
    with pytest.raises(CheckpointError, match="num_nextn_predict_layers = 2 is not supported"):
        build(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_mrope", True), ("use_sliding_window", True), ("attention_bias", False)],
)
def test_what_the_graph_cannot_express_is_refused_by_the_key(
    tmp_path: Path, key: str, value: object
) -> None:
    checkpoint = write_mimo(tmp_path / "it")
    change(checkpoint, lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match=f"{key} = {value} is not supported"):
        build(checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(
    "name",
    [
        *("token_layernorm.weight", "final_layernorm.weight"),
        *("input_proj.weight", "self_attn.k_proj.bias"),
    ],
)
@pytest.mark.parametrize("missing", [True, False])
def test_a_head_that_is_incomplete_or_misshapen_is_refused_by_the_tensor(
    tmp_path: Path, name: str, missing: bool
) -> None:
    checkpoint, tensor = write_mimo(tmp_path / "it"), f"model.mtp_layers.0.{name}"
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    values = weights.pop(tensor)
    if not missing:
        weights[tensor] = np.ascontiguousarray(np.concatenate([values, values]))
    save_file(weights, path, {"format": "pt"})
    said = f"has no tensor {tensor}" if missing else f"{tensor} has the shape"
    with pytest.raises(CheckpointError, match=said):
        build(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def _no_native(document: dict[str, Any]) -> None:
    document["graphs"] = [g for g in document["graphs"] if g["variant"] != "native"]


def _absent(document: dict[str, Any]) -> None:
    document["head"]["graph"] = "graph/native/absent.onnx"


def _the_models_graph(document: dict[str, Any]) -> None:
    document["head"]["graph"] = document["graphs"][0]["path"]


def _two_layers(document: dict[str, Any]) -> None:
    document["head"]["decoder"]["layers"] = 2


def _other_heads(document: dict[str, Any]) -> None:
    document["head"]["decoder"]["kv_heads"] += 1


def _float_cache(document: dict[str, Any]) -> None:
    del document["head"]["decoder"]["cache"]


def _no_width(document: dict[str, Any]) -> None:
    document["head"]["hidden"] = 0


def _more(document: dict[str, Any]) -> None:
    document["head"]["depth"] = 1


@pytest.mark.parametrize(
    "edit",
    [
        *(_no_native, _absent, _the_models_graph, _two_layers, _other_heads, _float_cache),
        *(_no_width, _more),
    ],
)
def test_a_manifest_with_a_head_that_cannot_be_is_refused(
    built: BuildBundle, edit: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads((built("mimo", "w8a8").bundle / "bundle.json").read_bytes())
    edit(document)
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(LayoutError, match="not a valid manifest"):
        manifests.decode(data)


def test_a_manifest_with_a_head_and_a_draft_model_is_refused(
    built: BuildBundle, tmp_path: Path
) -> None:
    model = built("mimo", "w8a8")
    small = write_mimo(tmp_path / "small", layers=1)
    drafted, _ = build(model.checkpoint, tmp_path / "it", draft=small)
    entry = next(entry for entry in model.manifest.files if entry.path == HEAD)
    files = tuple(sorted((*drafted.files, entry), key=lambda each: each.path))
    both = msgspec.structs.replace(drafted, head=model.manifest.head, files=files)
    with pytest.raises(LayoutError, match="both a draft model and a head"):
        manifests.decode(manifests.encode(both))


@native
def test_it_is_compiled_over_the_packed_weights_of_the_model(
    built: BuildBundle, tmp_path: Path
) -> None:
    model = built("mimo", "w8a8")
    compile_bundle(model.bundle, model.manifest, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"native.onnx", "native-head.onnx", "weights.bin"}


def test_a_processor_without_native_operators_gets_no_head(
    built: BuildBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "supported", lambda: False)
    model = built("mimo", "w8a8")
    compile_bundle(model.bundle, model.manifest, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.onnx", "prefill.onnx", "weights.bin"}
