"""A bundle holds what docs/bundle-format.md says, signed, and the same bytes every time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from safetensors.numpy import load_file, save_file

from appliance.bundle.verify import verify_contents, verify_metadata
from appliance.config import source_date_epoch
from appliance.errors import CheckpointError, ConfigError, ConflictError, StorageError, UsageError
from appliance.fsops import walk_files
from installer.ceremony import hold_ceremony
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import SCHEMES, Precision
from installer.checkpoint.reader import Checkpoint
from installer.keyring import MODEL_SIGNER, Keyring
from installer.signing import BundleSigner
from tests.checkpoint.conftest import BuildBundle, Built, build_unsigned
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error
from tests.fakes.checkpoints import write_bert, write_qwen3

PASSPHRASE = b"a passphrase for the tests"


def test_a_chat_bundle_has_exactly_its_files(built: BuildBundle) -> None:
    bundle = built("qwen3", "int4").bundle
    assert list(walk_files(bundle)) == [
        "LICENSE",
        "MODEL_CARD.md",
        "bundle.json",
        "graph/cpu/model.onnx",
        "graph/cpu/weights-00001.bin",
        "graph/cuda/model.onnx",
        "mlbom.cdx.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
    ]


def test_a_chat_manifest_says_what_the_engine_needs(built: BuildBundle) -> None:
    manifest = built("qwen3", "int4").manifest
    assert (manifest.kind, manifest.family, manifest.license) == ("chat", "qwen3", "CC0-1.0")
    decoder, generation, prompting = manifest.decoder, manifest.generation, manifest.prompting
    assert decoder is not None
    assert generation is not None
    assert prompting is not None
    assert (decoder.layers, decoder.kv_heads, decoder.head_dim) == (2, 2, 16)
    assert (decoder.vocab_size, decoder.context_length) == (512, 512)
    assert len(generation.eos_token_ids) == 2
    assert (generation.temperature, generation.top_p, generation.top_k) == (0.6, 0.95, 20)
    assert generation.thinking
    assert (prompting.reasoning_start, prompting.reasoning_end) == ("<think>", "</think>")
    assert (prompting.tool_format, prompting.eos_token) == ("hermes", "<|im_end|>")


def test_an_embedding_manifest_says_what_the_engine_needs(built: BuildBundle) -> None:
    manifest = built("bert-cls-raw", "int8").manifest
    assert manifest.kind == "embedding"
    assert manifest.decoder is None
    encoder = manifest.encoder
    assert encoder is not None
    assert (encoder.dimensions, encoder.max_length) == (64, 64)
    assert (encoder.pooling, encoder.normalize) == ("cls", False)


def test_the_same_checkpoint_gives_the_same_bytes(built: BuildBundle, tmp_path: Path) -> None:
    models: list[tuple[str, Precision]] = [
        ("qwen3-untied-bf16-sharded", "int8"),
        ("qwen2", "w8a8"),
        ("bert", "int8"),
    ]
    for name, precision in models:
        model = built(name, precision)
        copy = tmp_path / "copied" / name
        shutil.copytree(model.checkpoint, copy)  # other times, another place
        build_unsigned(copy, tmp_path / name, precision=precision)
        files = walk_files(model.bundle)
        assert files == walk_files(tmp_path / name)
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (model.bundle / file).read_bytes()


@pytest.mark.parametrize("write", [write_qwen3, write_bert])
def test_what_a_checkpoint_is_known_by_covers_its_weights(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    digests = set()
    for change in (0.0, 0.5):
        checkpoint = write(tmp_path / f"checkpoint-{change}")
        weights = load_file(checkpoint / "model.safetensors")
        next(iter(weights.values())).flat[0] += change
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        manifest = build_unsigned(checkpoint, tmp_path / f"bundle-{change}")
        digests.add(manifest.checkpoint_sha256)
    assert len(digests) == 2


def test_source_date_epoch_is_the_time_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    manifest = build_bundle(checkpoint, tmp_path / "it", name="b", version="1", signer=None)
    assert manifest.created == 0
    bom = json.loads((tmp_path / "it/mlbom.cdx.json").read_bytes())
    assert bom["metadata"]["timestamp"] == "1970-01-01T00:00:00+00:00"


@pytest.mark.parametrize("seconds", ["soon", "-5", "1e9", "9" * 20])
def test_a_source_date_that_is_no_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", seconds)
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH"):
        source_date_epoch()


def test_a_signed_bundle_verifies_as_a_node_would(tmp_path: Path) -> None:
    hold_ceremony(tmp_path / "keys", PASSPHRASE, officers=3, threshold=2)
    keyring = Keyring(tmp_path / "keys")
    signer = BundleSigner(keyring.key_file(MODEL_SIGNER), PASSPHRASE)
    manifest = build_bundle(
        write_qwen3(tmp_path / "checkpoint"),
        tmp_path / "bundle",
        name="tiny",
        version="1.0",
        signer=signer,
    )
    verified = verify_metadata(tmp_path / "bundle", keyring.model_signers())
    verify_contents(verified, lambda _count: None)
    assert verified.manifest == manifest


def test_the_bill_of_materials_is_valid_and_complete(built: BuildBundle) -> None:
    model = built("qwen3", "int4")
    text = (model.bundle / "mlbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    component = json.loads(text)["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["licenses"][0]["license"]["id"] == "CC0-1.0"
    assert component["modelCard"]["modelParameters"]["architectureFamily"] == "qwen3"
    listed = {file["name"]: file["hashes"][0]["content"] for file in component["components"]}
    expected = {f.path: f.sha256 for f in model.manifest.files if f.path != "mlbom.cdx.json"}
    assert listed == expected


@pytest.mark.parametrize("precision", list(SCHEMES))
@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied-bf16-sharded"])
def test_weights_are_spread_over_files_of_limited_size(
    built: BuildBundle, tmp_path: Path, name: str, precision: Precision
) -> None:
    # With this limit the embedding table (32 to 128 kB) must be split by columns.
    limit = 33_000 if precision == "fp32" else 17_000
    whole = built(name, precision)
    build_unsigned(
        whole.checkpoint,
        tmp_path / "it",
        precision=precision,
        max_file_bytes=limit,
    )
    split = Built(whole.checkpoint, tmp_path / "it")
    weights = sorted((split.bundle / "graph/cpu").glob("weights-*.bin"))
    assert len(weights) > 3
    assert all(0 < path.stat().st_size <= limit for path in weights)
    tokens = list(range(40))
    one, other = (SlotRunner(m.graph, m.spec, capacity=64) for m in (whole, split))
    # Each part of a table is rounded by itself: with a scale a row that gives other integers.
    most = 0.1 if precision == "w8a8" else 1e-4
    assert relative_error(other.prefill(0, tokens), one.prefill(0, tokens)) <= most


def test_a_matrix_that_fits_no_file_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"gate_proj.*20000") as caught:
        build_unsigned(checkpoint, tmp_path / "it", precision="fp32", max_file_bytes=20_000)
    assert "--precision int4" in caught.value.hint
    assert not (tmp_path / "it").exists()


def test_tied_tables_are_stored_once(built: BuildBundle) -> None:
    limits: dict[Precision, float] = {"fp32": 4.1, "int8": 1.4, "w8a8": 1.2}
    for precision, bytes_per_weight in limits.items():
        model = built("qwen3", precision)
        weights = (
            sum(f.size for f in model.manifest.files if f.path.endswith(".bin")) - 2 * 512 * 8 * 4
        )  # the tables of cosines and sines
        parameters = 512 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64 + 32) + 64
        assert weights <= parameters * bytes_per_weight


def test_a_checkpoint_saved_again_by_the_reference_gives_the_same_weights(
    built: BuildBundle, tmp_path: Path
) -> None:
    # Its newer config.json says the same in other keys: rope_parameters, layer_types, dtype.
    model = built("qwen3", "int8")
    again = tmp_path / "again"
    shutil.copytree(model.checkpoint, again)
    (again / "config.json").unlink()
    (again / "model.safetensors").unlink()
    ReferenceDecoder(model.checkpoint).model.save_pretrained(again)
    assert "rope_parameters" in json.loads((again / "config.json").read_text())
    build_unsigned(again, tmp_path / "it", precision="int8")
    for file in ("graph/cpu/model.onnx", "graph/cpu/weights-00001.bin"):
        assert (tmp_path / "it" / file).read_bytes() == (model.bundle / file).read_bytes()


def test_an_existing_directory_is_never_touched(tmp_path: Path) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    (tmp_path / "it").mkdir()
    with pytest.raises(ConflictError):
        build_unsigned(checkpoint, tmp_path / "it")
    assert not any((tmp_path / "it").iterdir())


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        build_unsigned(checkpoint, tmp_path / "it", precision="fp32", max_file_bytes=20_000)
    assert set(tmp_path.iterdir()) == before


def test_a_full_or_read_only_disk_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        build_unsigned(write_bert(tmp_path / "checkpoint"), tmp_path / "file" / "it")


def test_a_leftover_of_a_killed_build_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".it.partial/graph").mkdir(parents=True)
    (tmp_path / ".it.partial/graph/old").write_bytes(b"old")
    build_unsigned(write_bert(tmp_path / "checkpoint"), tmp_path / "it")
    assert "graph/old" not in walk_files(tmp_path / "it")
    assert not (tmp_path / ".it.partial").exists()


@pytest.mark.parametrize(
    ("name", "version"), [("Tiny", "1"), ("a b", "1"), ("a", ""), ("a", "v/1")]
)
def test_names_that_no_manifest_can_hold_are_refused(
    tmp_path: Path, name: str, version: str
) -> None:
    with pytest.raises(UsageError):
        build_bundle(tmp_path, tmp_path / "it", name=name, version=version, signer=None)


def test_a_checkpoint_is_known_by_its_weights_before_anything_of_them_was_read(
    tmp_path: Path,
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    before = Checkpoint(checkpoint)
    assert "model.safetensors" in before.files_read()
    first = before.digest(lambda _count: None)
    path = checkpoint / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert Checkpoint(checkpoint).digest(lambda _count: None) != first
