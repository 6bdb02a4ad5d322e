"""Artifacts are compiled once, signed, verified to the byte, and replaced when they are not."""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.footprint import artifact_bytes, least_bytes
from appliance.compiler import (
    Artifact,
    artifact_key,
    compile_in_process,
    ensure_artifact,
    fingerprint,
    open_artifact,
)
from appliance.compiler.compile import EXACT_PRODUCTS, compile_bundle, load
from appliance.compiler.probe import run_probe
from appliance.config import Layout
from appliance.errors import (
    ApplianceError,
    CapacityError,
    DigestError,
    LayoutError,
    NotFoundError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from appliance.model_store import StoredBundle
from appliance.pb import onnx_graph_pb2 as pb
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.compiler.conftest import stored
from tests.fakes.checkpoints import write_qwen3
from tests.sweeps import sampled

PYTHON = Path(sys.executable)


def test_a_compiled_bundle_computes_what_the_bundle_computes(
    bundle: Path, encoder_bundle: Path, layout: Layout, node_key: NodeKey
) -> None:
    for directory in (bundle, encoder_bundle):
        model = stored(directory)
        ensure_artifact(layout, model, node_key)
        artifact = open_artifact(layout.artifacts, model.digest, node_key.public)
        spec = model.manifest.decoder or model.manifest.encoder
        assert spec is not None
        options = ort.SessionOptions()
        options.add_session_config_entry(*EXACT_PRODUCTS)
        plain = ort.InferenceSession(
            directory / model.manifest.graph.path, options, providers=["CPUExecutionProvider"]
        )
        for got, wanted in zip(
            run_probe(load(artifact.directory / "model.onnx"), spec),
            run_probe(plain, spec),
            strict=True,
        ):
            assert np.allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_the_record_names_everything(compiled: Compiled) -> None:
    artifact, model = compiled.open(), compiled.model
    assert artifact.directory == compiled.layout.artifacts / artifact.key
    assert artifact.record.bundle == model.digest
    assert artifact.record.fingerprint == fingerprint()
    assert artifact.key == artifact_key(model.digest, fingerprint())
    names = [f.path for f in artifact.record.files]
    assert names == ["model.onnx", "prefill.onnx", "weights.bin"]
    size = sum(f.size for f in artifact.record.files)
    assert size <= 1.2 * artifact_bytes(model.manifest, gpu=False)


GRADES: list[Precision] = ["fp32", "fp16", "fp8", "w8a8", "w4a8", "int8", "int4"]


@pytest.mark.parametrize("grade", GRADES)
def test_what_it_takes_of_the_disk_was_reckoned_before(tmp_path: Path, grade: Precision) -> None:
    checkpoint = write_qwen3(
        tmp_path / "checkpoint", hidden=256, intermediate=1024, head_dim=64, layers=3
    )
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    build_bundle(checkpoint, bundle, name="m", version="1", signer=None, precision=grade)
    out.mkdir()
    manifest = stored(bundle).manifest
    compile_bundle(bundle, manifest, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    assert least_bytes(manifest) <= size <= 1.05 * artifact_bytes(manifest, gpu=False)


def test_what_the_disk_has_no_room_for_is_not_begun(
    bundle: Path, layout: Layout, node_key: NodeKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stored(bundle)
    needed, real = least_bytes(model.manifest), shutil.disk_usage(bundle)

    def usage(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=free))

    usage(needed - 1)
    with pytest.raises(CapacityError, match="or more; the disk") as refusal:
        ensure_artifact(layout, model, node_key)
    assert refusal.value.code == "disk_full"
    assert not [path for path in layout.artifacts.iterdir() if path.is_dir()]
    usage(needed)
    directory = ensure_artifact(layout, model, node_key)
    assert sum(path.stat().st_size for path in directory.iterdir()) >= needed


def test_8_bit_floats_are_what_they_stand_for_once_compiled(tmp_path: Path) -> None:
    checkpoint, bundle, out = (tmp_path / name for name in ("checkpoint", "bundle", "out"))
    build_bundle(
        write_qwen3(checkpoint), bundle, name="m", version="1", signer=None, precision="fp8"
    )
    out.mkdir()
    compile_bundle(bundle, stored(bundle).manifest, out)
    graph = pb.Model.FromString((out / "model.onnx").read_bytes()).graph
    assert not {node.op_type for node in graph.node} & {"DequantizeLinear", "Transpose"}


def test_compiling_again_does_nothing(bundle: Path, layout: Layout, node_key: NodeKey) -> None:
    said: list[str] = []
    first = ensure_artifact(layout, stored(bundle), node_key, progress=said.append)
    times = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert ensure_artifact(layout, stored(bundle), node_key, progress=said.append) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == times
    assert len(said) == 1


def test_the_engines_user_can_read_artifacts_and_nobody_can_write_them(
    compiled: Compiled,
) -> None:
    directory = compiled.open().directory
    for path in (directory.parent, directory):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) in {0o444, 0o644}


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, type[ApplianceError]]] = {
    "a flipped weight": (lambda d: flip(d / "weights.bin", 5000), DigestError),
    "a flipped graph": (lambda d: flip(d / "model.onnx", 40), DigestError),
    "a flipped graph for prompts": (lambda d: flip(d / "prefill.onnx", 40), DigestError),
    "no graph for prompts": (lambda d: (d / "prefill.onnx").unlink(), LayoutError),
    "a flipped record": (lambda d: flip(d / "record.json", 30), VerificationError),
    "no record": (lambda d: (d / "record.json").unlink(), VerificationError),
    "no weights": (lambda d: (d / "weights.bin").unlink(), LayoutError),
    "one more file": (lambda d: (d / "custom_op.so").write_bytes(b"\x7fELF"), LayoutError),
    "a link": (lambda d: (d / "link").symlink_to("/etc/passwd"), LayoutError),
    "cut weights": (lambda d: cut(d / "weights.bin"), LayoutError),
}


REPLACED = {"a flipped weight", "no record", "a link"}
"""Of each kind of error one; the full run has all damages replaced."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A node, its key, and a model that was compiled for it."""

    layout: Layout
    node_key: NodeKey
    model: StoredBundle

    def ensure(self) -> Path:
        return ensure_artifact(self.layout, self.model, self.node_key)

    def open(self) -> Artifact:
        return open_artifact(self.layout.artifacts, self.model.digest, self.node_key.public)


@pytest.fixture(scope="module")
def compiled(decoder_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A node whose artifact no test changes."""
    layout = Layout(tmp_path_factory.mktemp("compiled"))
    made = Compiled(layout, NodeKey.create(layout.node), stored(decoder_bundle))
    made.ensure()
    return made


@pytest.fixture
def copied(compiled: Compiled, layout: Layout) -> Compiled:
    """The same, for a test to change."""
    shutil.copytree(compiled.layout.artifacts, layout.artifacts)
    return replace(compiled, layout=layout)


def damage(node: Compiled, name: str) -> Path:
    """Damage the artifact; refused, it is an error of the named kind and says where."""
    directory = node.open().directory
    do, error = DAMAGES[name]
    do(directory)
    with pytest.raises(error) as caught:
        node.open()
    assert isinstance(caught.value, VerificationError)
    assert caught.value.path.startswith(directory.name)
    return directory


@pytest.mark.parametrize("name", DAMAGES)
def test_an_altered_artifact_is_refused(copied: Compiled, name: str) -> None:
    damage(copied, name)


@pytest.mark.parametrize("name", sampled(DAMAGES, REPLACED))
def test_an_altered_artifact_is_replaced(copied: Compiled, name: str) -> None:
    directory = damage(copied, name)
    copied.ensure()
    copied.open()
    assert [p.name for p in directory.parent.iterdir() if p.name != ".lock"] == [directory.name]


def test_a_record_with_any_flipped_byte_is_refused(copied: Compiled) -> None:
    record = copied.open().directory / "record.json"
    data = record.read_bytes()
    for at in range(0, len(data), 13):
        record.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(VerificationError):
            copied.open()


def test_another_nodes_artifact_is_refused(compiled: Compiled, node_key: NodeKey) -> None:
    with pytest.raises(SignatureError, match="another node"):
        replace(compiled, node_key=node_key).open()


def test_one_artifact_cannot_stand_in_for_another(copied: Compiled, encoder_bundle: Path) -> None:
    genuine, other = copied.open().directory, stored(encoder_bundle)
    shutil.copytree(genuine, genuine.parent / artifact_key(other.digest, fingerprint()))
    with pytest.raises(LayoutError, match="another artifact"):
        replace(copied, model=other).open()


def test_a_model_that_was_never_compiled_is_not_found(layout: Layout, node_key: NodeKey) -> None:
    with pytest.raises(NotFoundError, match="not compiled") as caught:
        open_artifact(layout.artifacts, "0" * 64, node_key.public)
    assert caught.value.hint


def test_another_machine_means_another_artifact(tmp_path: Path) -> None:
    text = Path("/proc/cpuinfo").read_text()
    assert "avx2" in text
    (tmp_path / "older").write_text(text.replace("avx2", "none"))
    (tmp_path / "kernel").write_text(text.replace("flags\t\t: ", "flags\t\t: new_security_flag "))
    keys = {artifact_key("0" * 64, fingerprint(tmp_path / name)) for name in ("older", "kernel")}
    assert artifact_key("0" * 64, fingerprint()) in keys
    assert len(keys) == 2


@pytest.mark.parametrize(
    "name", ["graph/cpu/model.onnx", "graph/cpu/prefill.onnx", "graph/cpu/weights-00001.bin"]
)
def test_a_bundle_file_that_rotted_is_not_compiled(
    bundle: Path, layout: Layout, node_key: NodeKey, name: str
) -> None:
    flip(bundle / name, 77)
    with pytest.raises(DigestError) as caught:
        ensure_artifact(layout, stored(bundle), node_key)
    assert caught.value.path == name
    assert [p.name for p in layout.artifacts.iterdir()] == [".lock"]


def test_the_childs_errors_arrive_whole(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST_NAME).write_bytes(b"{}")
    with pytest.raises(LayoutError) as caught:
        compile_in_process(bundle, tmp_path / "out", python=PYTHON)
    assert caught.value.path == MANIFEST_NAME
    assert caught.value.hint


def test_a_child_that_dies_is_a_typed_error(bundle: Path, tmp_path: Path) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    with pytest.raises(UnsupportedError, match="signal 9"):
        compile_in_process(bundle, tmp_path / "out", python=killer)
    with pytest.raises(UnsupportedError, match="cannot be started"):
        compile_in_process(bundle, tmp_path / "again", python=tmp_path / "absent")


def test_leftovers_of_a_killed_compilation_are_removed(
    bundle: Path, layout: Layout, node_key: NodeKey
) -> None:
    (layout.artifacts / ".incoming-old").mkdir(parents=True)
    (layout.artifacts / ".incoming-old/weights.bin").write_bytes(b"half")
    directory = ensure_artifact(layout, stored(bundle), node_key)
    assert {p.name for p in layout.artifacts.iterdir()} == {".lock", directory.name}


def test_a_child_that_leaves_links_or_more_files_is_not_trusted(
    bundle: Path, layout: Layout, node_key: NodeKey, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    for left in ("ln -s {secret} $5/weights.bin", "touch $5/custom_op.so", "mkdir $5/weights.bin"):
        python = tmp_path / "python"
        python.write_text(
            "#!/bin/sh\n"
            f'[ "$4" = --machine ] && exec {sys.executable} "$@"\n'
            f"{left.format(secret=secret)}\n"
        )
        python.chmod(0o755)
        with pytest.raises(LayoutError):
            ensure_artifact(layout, stored(bundle), node_key, python=python)
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert [p.name for p in layout.artifacts.iterdir()] == [".lock"]
