"""A bundle with a draft model: its files, its words, and what may not guess for what."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from typer.testing import CliRunner

from appliance.bundle import manifest as manifests
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import DraftSpec
from appliance.errors import ApplianceError, CheckpointError, LayoutError
from appliance.fsops import walk_files
from installer.ceremony import hold_ceremony
from installer.checkpoint import build_bundle
from installer.checkpoint.draft import with_draft
from installer.checkpoint.plan import make_plan
from installer.checkpoint.quantize import Precision
from installer.checkpoint.reader import Checkpoint
from installer.cli.bundle import app, draft_fields
from tests.conftest import BuildOnce
from tests.fakes.adapters import write_adapter
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.media import write_passphrase


def build(checkpoint: Path, out: Path, draft: Path, precision: Precision = "w8a8") -> Manifest:
    return build_bundle(
        checkpoint, out, name="m", version="1", precision=precision, signer=None, created=1,
        draft=draft,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(build_once: BuildOnce) -> Path:
    """A checkpoint, one for its drafts, and the bundle of both. Not to be changed."""

    def make(directory: Path) -> None:
        write_qwen3(directory / "checkpoint")
        write_qwen3(directory / "small", layers=1, hidden=32)
        build(directory / "checkpoint", directory / "bundle", directory / "small")

    return build_once("draft-bundle", make)


@pytest.fixture
def small(home: Path, tmp_path: Path) -> Path:
    """A copy of the draft's checkpoint, to be changed."""
    return shutil.copytree(home / "small", tmp_path / "small")


def manifest_of(bundle: Path) -> Manifest:
    return manifests.decode((bundle / "bundle.json").read_bytes())


def test_a_draft_model_lies_in_a_folder_of_its_own(home: Path) -> None:
    files = [path for path in walk_files(home / "bundle") if path.startswith("draft/")]
    assert files == [
        "draft/LICENSE",
        "draft/graph/cpu/model.onnx",
        "draft/graph/cpu/prefill.onnx",
        "draft/graph/cpu/weights-00001.bin",
        "draft/graph/native/model.onnx",
    ]
    manifest = manifest_of(home / "bundle")
    assert set(files) < {entry.path for entry in manifest.files}, "so they are signed"


def test_the_manifest_says_what_drafts(home: Path) -> None:
    manifest, small = manifest_of(home / "bundle"), Checkpoint(home / "small")
    draft = manifest.draft
    assert isinstance(draft, DraftSpec)
    assert (draft.family, draft.license) == ("qwen3", "CC0-1.0")
    assert (draft.decoder.layers, draft.decoder.vocab_size, draft.decoder.cache) == (1, 512, "int8")
    assert [graph.variant for graph in draft.graphs] == ["cpu", "native"]
    for name in ("config.json", "tokenizer.json"):
        small.bytes(name)
    assert len(draft.checkpoint_sha256) == 64
    assert draft.checkpoint_sha256 != manifest.checkpoint_sha256
    assert draft_fields(manifest) == {
        "draft": f"qwen3, 1 layers, checkpoint {draft.checkpoint_sha256[:12]}, CC0-1.0"
    }


def test_a_bundle_without_one_has_the_bytes_that_it_had(home: Path, tmp_path: Path) -> None:
    plain = build_bundle(
        home / "checkpoint", tmp_path / "it", name="m", version="1", signer=None, created=1
    )
    assert b'"draft"' not in manifests.encode(plain)
    drafted = manifest_of(home / "bundle")
    both = {entry.path: entry.sha256 for entry in drafted.files}
    for entry in plain.files:
        assert both[entry.path] == entry.sha256 or entry.path == "mlbom.cdx.json"
    assert draft_fields(plain) == {}


def test_the_bill_of_materials_names_both_models(home: Path) -> None:
    text = (home / "bundle/mlbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = json.loads(text)["metadata"]["component"]["components"]
    (model,) = (part for part in parts if part["type"] == "machine-learning-model")
    assert model["licenses"][0]["license"]["id"] == "CC0-1.0"
    draft = manifest_of(home / "bundle").draft
    assert isinstance(draft, DraftSpec)
    assert draft.checkpoint_sha256 in {entry["value"] for entry in model["properties"]}


def test_the_same_checkpoints_give_the_same_bundle(home: Path, tmp_path: Path) -> None:
    again = build(home / "checkpoint", tmp_path / "it", home / "small")
    assert again == manifest_of(home / "bundle")


def refused(checkpoint: Path, out: Path, draft: Path, precision: Precision = "w8a8") -> str:
    """The code of the refusal, which leaves nothing behind."""
    with pytest.raises(ApplianceError) as refusal:
        build(checkpoint, out, draft, precision)
    assert refusal.value.hint
    assert not list(out.parent.glob(f"*{out.name}*"))
    return refusal.value.code


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "fp32"])
def test_a_model_that_verifies_nothing_takes_none(
    home: Path, tmp_path: Path, precision: Precision
) -> None:
    code = refused(home / "checkpoint", tmp_path / "it", home / "small", precision)
    assert code == "draft_not_verified"


def test_only_a_chat_model_drafts_and_only_for_one(home: Path, tmp_path: Path) -> None:
    words = write_bert(tmp_path / "words")
    assert refused(home / "checkpoint", tmp_path / "it", words) == "draft_unfit"
    assert refused(words, tmp_path / "it", home / "small", "int8") == "draft_not_verified"


def test_another_tokenizer_is_refused_by_the_token(home: Path, small: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = json.loads((small / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (small / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as refusal:
        build(home / "checkpoint", tmp_path / "it", small)
    assert refusal.value.code == "draft_tokenizer_differs"
    assert repr(min(first, second)) in refusal.value.message
    assert "token 300" in refusal.value.message


def test_a_model_with_other_tokens_is_refused(home: Path, tmp_path: Path) -> None:
    other = write_qwen3(tmp_path / "other", vocab=520, layers=1)
    assert refused(home / "checkpoint", tmp_path / "it", other) == "draft_tokenizer_differs"


def test_its_licence_is_its_own_or_named(home: Path, small: Path, tmp_path: Path) -> None:
    (small / "LICENSE").unlink()
    assert refused(home / "checkpoint", tmp_path / "it", small) == "checkpoint_unsupported"
    text = tmp_path / "text"
    text.write_text("Do as you like.\n")
    plan = make_plan(Checkpoint(home / "checkpoint"), "w8a8", None, 10**9, None)
    draft = with_draft(plan, small, text).draft
    assert draft is not None
    assert draft.licence.text == "Do as you like.\n"


def _other_cache(document: dict[str, Any]) -> None:
    del document["draft"]["decoder"]["cache"]


def _no_graph(document: dict[str, Any]) -> None:
    document["draft"]["graphs"] = []


def _on_a_gpu(document: dict[str, Any]) -> None:
    document["draft"]["graphs"].append(
        {"path": "graph/cuda/model.onnx", "precision": "fp16", "variant": "cuda"}
    )


def _absent(document: dict[str, Any]) -> None:
    document["draft"]["graphs"][0]["path"] = "draft/graph/cpu/absent.onnx"


def _the_models_weights(document: dict[str, Any]) -> None:
    document["draft"]["graphs"][1]["weights"] = "graph/cpu"


def _without_prompts(document: dict[str, Any]) -> None:
    del document["draft"]["graphs"][0]["prefill"]


def _no_layers(document: dict[str, Any]) -> None:
    document["draft"]["decoder"]["layers"] = 0


def _no_origin(document: dict[str, Any]) -> None:
    document["draft"]["checkpoint_sha256"] = "none"


def _of_a_float_model(document: dict[str, Any]) -> None:
    del document["decoder"]["cache"]
    document["graphs"] = document["graphs"][:1]
    del document["graphs"][0]["prefill"]


@pytest.mark.parametrize(
    "change",
    [
        *(_other_cache, _no_graph, _on_a_gpu, _absent, _the_models_weights, _without_prompts),
        *(_no_layers, _no_origin, _of_a_float_model),
    ],
)
def test_a_manifest_with_a_draft_model_that_cannot_be_is_refused(
    home: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads((home / "bundle/bundle.json").read_bytes())
    change(document)
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    with pytest.raises(LayoutError, match="not a valid manifest"):
        manifests.decode(data)


def test_an_adapter_takes_no_draft_model(home: Path, tmp_path: Path) -> None:
    hold_ceremony(tmp_path / "keys", b"a passphrase for the tests", officers=1, threshold=1)
    write_passphrase(tmp_path / "passphrase", b"a passphrase for the tests\n")
    adapter = write_adapter(tmp_path / "adapter", home / "checkpoint")
    result = CliRunner().invoke(
        app,
        [
            *(
                "build",
                str(adapter),
                "--name",
                "a",
                "--version",
                "1",
                "--out",
                str(tmp_path / "it"),
            ),
            *("--keys", str(tmp_path / "keys")),
            *("--draft", str(home / "small")),
            *("--passphrase-file", str(tmp_path / "passphrase")),
        ],
    )
    assert isinstance(result.exception, ApplianceError)
    assert "--draft" in result.exception.message
