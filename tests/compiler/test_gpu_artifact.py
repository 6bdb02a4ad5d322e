"""On a node with a GPU: what is compiled for it, what is refused, what falls back and why.

The GPU computes with the processor's provider (tests/fakes/gpu.py); the rest is what runs on a
node: two interpreters, two processes, the golden prompt, records and keys.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import encode
from appliance.bundle.specs import DecoderSpec
from appliance.compiler import Compiled, Record, ensure_artifacts, open_artifact
from appliance.compiler import artifact as artifacts
from appliance.compiler.artifact import open_named
from appliance.compiler.compile import compile_bundle
from appliance.compiler.gpu_compile import Target, load
from appliance.compiler.hardware import Gpu, NoGpu
from appliance.compiler.memory import candidates, divided, needed, reading_bytes
from appliance.compiler.probe import Array
from appliance.compiler.record import NAME, Refusal, compiled_as, sign
from appliance.compiler.runtime import choose_runtime
from appliance.config import EngineSettings, Layout
from appliance.engine.encoder_runner import EncoderRunner
from appliance.errors import LayoutError, NotFoundError, VerificationError
from appliance.model_store import StoredBundle
from appliance.pb import onnx_graph_pb2 as pb
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from installer.checkpoint.graph.adapted import AdapterInputs
from installer.checkpoint.quantize import Precision
from tests.compiler.conftest import stored
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.encoder_checkpoints import write_qwen3_reranker
from tests.fakes.gpu import ALL_LIBRARIES, H100, machine_with, with_driver, write_release

FLOAT16 = 10


class Node:
    """A node with the GPU that `release` sees."""

    def __init__(self, layout: Layout, node_key: NodeKey, release: Path) -> None:
        self.layout = layout
        self.key = node_key
        self.python = write_release(release, machine_with())
        self.records: list[Record] = []

    def compile(self, *directories: Path, settings: EngineSettings | None = None) -> Compiled:
        return ensure_artifacts(
            self.layout,
            [stored(directory) for directory in directories],
            self.key,
            python=self.python,
            settings=settings,
            made=lambda _bundle, record: self.records.append(record),
        )

    def record(self, compiled: Compiled, directory: Path) -> Record:
        made = compiled.directories[stored(directory).digest]
        return artifacts.read_record(made, self.key.public)


@pytest.fixture
def node(layout: Layout, node_key: NodeKey, tmp_path: Path) -> Node:
    return Node(layout, node_key, tmp_path / "release")


@pytest.fixture(scope="module")
def float_bundle(build_once: BuildOnce) -> Path:
    """With one graph for the processor, which is sooner compiled."""

    def build(directory: Path) -> None:
        checkpoint = write_qwen3(directory / "checkpoint")
        build_bundle(
            checkpoint, directory / "it", name="tiny", version="1", signer=None, precision="fp32"
        )

    return build_once("compiler-float", build) / "it"


@pytest.fixture
def bundle(float_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(float_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def served(decoder_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node that has compiled the w8a8 bundle for its GPU; tests change nothing of it."""
    root = tmp_path_factory.mktemp("served")
    layout = Layout(root / "node")
    node = Node(layout, NodeKey.create(layout.node), root / "release")
    node.compile(decoder_bundle)
    return node


def without_graphs_for_a_gpu(bundle: Path) -> Path:
    """As an older release built it."""
    manifest = stored(bundle).manifest
    old = msgspec.structs.replace(manifest, graphs=manifest.graphs[:1])
    (bundle / MANIFEST_NAME).write_bytes(encode(old))
    return bundle


def test_a_chat_model_is_compiled_for_cuda_and_compared(served: Node) -> None:
    (record,) = served.records
    assert record.provider == "cuda"
    assert [(r.provider, r.code) for r in record.reasons] == [("tensorrt", "library_missing")]
    assert record.compared is not None
    assert 0 < record.compared.error <= record.compared.bound
    assert record.fit is not None
    assert record.fit.precision == "fp16"
    assert [f.path for f in record.files] == ["model.onnx", "weights.bin"]


@pytest.fixture(scope="module")
def deep_bundle(build_once: BuildOnce) -> Path:
    """With layers enough that half of them are about half of the model."""

    def build(directory: Path) -> None:
        checkpoint = write_qwen3(directory / "checkpoint", layers=6)
        build_bundle(
            checkpoint, directory / "it", name="deep", version="1", signer=None, precision="fp16"
        )

    return build_once("compiler-deep", build) / "it"


def with_room_for_half(bundle: Path) -> Gpu:
    """Two GPUs, of which one has no room for the model."""
    manifest = stored(bundle).manifest
    assert manifest.decoder is not None
    whole = candidates(manifest, 0)[0]
    room = needed(divided(whole, manifest.decoder, 2))
    assert room < needed(whole)
    return replace(H100, memory_bytes=room, free=(room, room), numbers=(1, 0), count=2)


def test_one_that_no_gpu_has_room_for_is_compiled_in_stages_for_several(
    node: Node, deep_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = with_room_for_half(deep_bundle)
    write_release(tmp_path / "release", machine_with(two))
    compiled = node.compile(deep_bundle)
    record = node.record(compiled, deep_bundle)
    assert record.provider == "cuda"
    assert record.compared is not None
    assert 0 < record.compared.error <= record.compared.bound
    assert record.fit is not None
    assert record.fit.gpus == 2
    files = {entry.path: entry.size for entry in record.files}
    assert [*files] == ["model-2.onnx", "model.onnx", "weights-2.bin", "weights.bin"]
    assert max(files.values()) < 0.75 * sum(files.values())
    assert "its layers over 2 GPUs" in compiled_as(record)[0]

    values = {"cuda": record.fingerprint, "cpu": {"variant": "cpu"}}
    monkeypatch.setattr(artifacts, "fingerprints", lambda: values)
    place = node.layout.artifacts, record.bundle, node.key.public
    for left, opens in ((two, True), (replace(two, numbers=(1,)), False), (NoGpu("none"), False)):
        monkeypatch.setattr(artifacts, "read_gpu", lambda left=left: left)
        if opens:
            assert open_artifact(*place).record == record
        else:
            with pytest.raises(NotFoundError, match="not compiled"):
                open_artifact(*place)


def test_the_second_gpu_of_a_model_in_stages_must_be_free_too(
    node: Node, deep_bundle: Path, tmp_path: Path
) -> None:
    two = with_room_for_half(deep_bundle)
    busy = replace(two, free=(two.free[0], 1 << 20))
    write_release(tmp_path / "release", machine_with(busy))
    compiled = node.compile(deep_bundle)
    reasons = node.record(compiled, deep_bundle).reasons
    assert [reason.code for reason in reasons] == ["library_missing", "gpu_busy"]
    assert "(GPU 0) has 0.0 GiB free" in reasons[1].message


def test_the_artifact_holds_plain_weights_in_half_precision(served: Node) -> None:
    (record,) = served.records
    graph = served.layout.artifacts / record.key / "model.onnx"
    model = pb.Model.FromString(graph.read_bytes())
    assert not {"DequantizeLinear", "Transpose"} & {node.op_type for node in model.graph.node}
    assert FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}


def test_compiling_for_a_gpu_again_does_nothing(served: Node, decoder_bundle: Path) -> None:
    (record,) = served.records
    directory = served.layout.artifacts / record.key
    times = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    compiled = served.compile(decoder_bundle)
    assert list(compiled.directories.values()) == [directory]
    assert compiled.runtime.on_gpu
    assert compiled.runtime.python.parent.parent.name == "venv-cuda13"
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == times
    assert served.records == [record]


@pytest.fixture
def with_tensorrt(node: Node, tmp_path: Path) -> Node:
    """As if TensorRT's library were there."""
    write_release(tmp_path / "release", machine_with(H100, ALL_LIBRARIES))
    return node


def test_engines_are_recorded_file_by_file_under_a_key_with_their_shapes(
    with_tensorrt: Node, bundle: Path
) -> None:
    small = EngineSettings(max_sequences=2, token_budget=64, max_context=128)
    compiled = with_tensorrt.compile(bundle, settings=small)
    record = with_tensorrt.record(compiled, bundle)
    assert (record.provider, record.reasons) == ("tensorrt", ())
    assert record.fingerprint["tensorrt"] == "10.16.1"
    assert record.fingerprint["shapes"] == "2 64 128"
    names = ["decode-1-1-of-128", "decode-2-2-of-128", "prefill-of-128"]
    assert [f.path for f in record.files] == [
        f"{name}{end}" for name in names for end in (".onnx", "_sm90.engine")
    ]
    assert record.fit is not None
    other = with_tensorrt.compile(bundle, settings=replace(small, max_sequences=3))
    assert with_tensorrt.record(other, bundle).key != record.key


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_a_base_with_room_for_adapters_is_computed_by_cuda_and_says_why_not_tensorrt(
    with_tensorrt: Node, tmp_path: Path, precision: Precision
) -> None:
    checkpoint, out = write_qwen3(tmp_path / "checkpoint"), tmp_path / "it"
    build_bundle(
        checkpoint, out, name="base", version="1", signer=None, precision=precision, adapters=True
    )
    record = with_tensorrt.record(with_tensorrt.compile(out), out)
    assert record.provider == "cuda"
    (reason,) = record.reasons
    assert (reason.provider, reason.code) == ("tensorrt", "no_variant")
    assert reason.message == "the bundle has room for adapters, which graphs for it have not"
    assert record.compared is not None
    assert 0 < record.compared.error <= record.compared.bound


def test_rows_of_adapters_that_are_multiplied_otherwise_are_found_by_the_golden_prompt(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = write_qwen3(tmp_path / "checkpoint"), tmp_path / "it"
    with monkeypatch.context() as patch:
        # The graph for CUDA leaves half of what adapters add out.
        added = AdapterInputs.added

        def halved(self: AdapterInputs, y: ir.Value, x: ir.Value, *rest: Any) -> ir.Value:
            graph = self._graph
            if graph.dtype != ir.DataType.FLOAT16:
                return added(self, y, x, *rest)
            half = graph.constant([0.5])
            half = graph.op("Cast", half, to=graph.dtype)
            return graph.op(
                "Add", y, graph.op("Mul", half, graph.op("Sub", added(self, y, x, *rest), y))
            )

        patch.setattr(AdapterInputs, "added", halved)
        build_bundle(
            checkpoint, out, name="base", version="1", signer=None, precision="fp32", adapters=True
        )
    record = node.record(node.compile(out), out)
    assert record.provider == "cpu"
    assert [r.code for r in record.reasons if r.provider == "cuda"] == ["golden_differs"]


def test_engines_that_the_disk_has_no_room_for_are_not_begun(
    with_tensorrt: Node, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = EngineSettings(max_sequences=2, token_budget=64, max_context=128)
    first = with_tensorrt.compile(bundle, settings=small)
    fit, real = with_tensorrt.record(first, bundle).fit, shutil.disk_usage(bundle)
    assert fit is not None
    shutil.rmtree(with_tensorrt.layout.artifacts)
    # Three engines, of which each has the weights; `fit` counts two.
    free = fit.weights // 2 * 3 - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=free))
    record = with_tensorrt.record(with_tensorrt.compile(bundle, settings=small), bundle)
    assert record.provider == "cuda"
    assert [(r.provider, r.code) for r in record.reasons] == [("tensorrt", "disk_full")]


def test_a_library_among_the_engines_is_not_trusted(
    with_tensorrt: Node, bundle: Path, tmp_path: Path
) -> None:
    on_gpu = tmp_path / "release/venv-cuda13/bin/python"
    script = on_gpu.read_text().splitlines()
    script.insert(1, '[ "$4" = --provider ] && touch "$7/plugin.so"')
    on_gpu.write_text("\n".join(script))
    with pytest.raises(LayoutError, match=r"plugin\.so"):
        with_tensorrt.compile(bundle)


def test_another_driver_is_another_artifact_and_the_old_one_stays(
    node: Node, bundle: Path, tmp_path: Path
) -> None:
    before = node.compile(bundle)
    write_release(tmp_path / "release", machine_with(with_driver(H100, "590.44.01")))
    after = node.compile(bundle)
    (old,), (new,) = before.directories.values(), after.directories.values()
    assert old != new
    assert old.is_dir()
    assert node.record(after, bundle).fingerprint["driver"] == "590.44.01"


def test_without_a_usable_gpu_the_processor_computes_and_the_record_says_why(
    node: Node, bundle: Path, tmp_path: Path
) -> None:
    write_release(tmp_path / "release", machine_with(replace(H100, driver="550.54", cuda=(12, 4))))
    compiled = node.compile(bundle)
    assert not compiled.runtime.on_gpu
    assert compiled.runtime.python == node.python
    record = node.record(compiled, bundle)
    assert record.provider == "cpu"
    assert {r.code for r in record.reasons} == {"driver_too_old"}
    opened = open_artifact(node.layout.artifacts, stored(bundle).digest, node.key.public)
    assert opened.provider == "cpu"


def test_reasons_are_those_of_today(node: Node, bundle: Path, tmp_path: Path) -> None:
    old = replace(H100, driver="550.54", cuda=(12, 4))
    write_release(tmp_path / "release", machine_with(old))
    node.compile(bundle)
    shutil.rmtree(tmp_path / "release/venv-cuda13")
    compiled = node.compile(bundle)
    assert [{r.code for r in record.reasons} for record in node.records] == [
        {"driver_too_old"},
        {"no_gpu"},
    ]
    assert node.record(compiled, bundle) == node.records[-1]
    opened = open_artifact(node.layout.artifacts, stored(bundle).digest, node.key.public)
    assert opened.record == node.records[-1]


@pytest.fixture
def old_encoder(encoder_bundle: Path, tmp_path: Path) -> Path:
    """An embedding model as an older release built it."""
    return without_graphs_for_a_gpu(Path(shutil.copytree(encoder_bundle, tmp_path / "old")))


def test_an_older_embedding_model_beside_one_on_the_gpu_is_computed_by_its_runtime(
    node: Node, bundle: Path, old_encoder: Path
) -> None:
    compiled = node.compile(bundle, old_encoder)
    assert compiled.runtime.on_gpu
    record = node.record(compiled, old_encoder)
    assert record.provider == "cpu"
    assert "gpu" in record.fingerprint
    assert {r.code for r in record.reasons} == {"no_variant"}


def test_a_node_with_older_embedding_models_alone_keeps_the_processors_runtime(
    node: Node, old_encoder: Path
) -> None:
    compiled = node.compile(old_encoder)
    assert not compiled.runtime.on_gpu
    assert {r.code for r in node.record(compiled, old_encoder).reasons} == {"no_variant"}


@pytest.fixture(scope="module")
def reranker_bundle(build_once: BuildOnce) -> Path:
    """A decoder that ranks, in fp32."""

    def build(directory: Path) -> None:
        checkpoint = write_qwen3_reranker(directory / "checkpoint")
        build_bundle(
            checkpoint, directory / "it", name="judge", version="1", signer=None, precision="fp32"
        )

    return build_once("compiler-reranker", build) / "it"


def test_models_that_read_are_compiled_for_cuda_and_compared(
    node: Node, encoder_bundle: Path, reranker_bundle: Path
) -> None:
    compiled = node.compile(encoder_bundle, reranker_bundle)
    assert compiled.runtime.on_gpu
    for directory in (encoder_bundle, reranker_bundle):
        record = node.record(compiled, directory)
        assert record.provider == "cuda"
        assert [(r.provider, r.code) for r in record.reasons] == [("tensorrt", "no_variant")]
        assert record.compared is not None
        assert 0 < record.compared.error <= record.compared.bound / 2
        assert record.fit is not None
        spec = stored(directory).manifest.spec
        assert not isinstance(spec, DecoderSpec)
        assert record.fit.precision == "fp16"
        assert record.fit.slot == spec.max_length * reading_bytes(spec)
        assert [f.path for f in record.files] == ["model.onnx", "weights.bin"]


def test_their_blocks_of_integers_become_floats_where_those_fit(
    node: Node, encoder_bundle: Path, tmp_path: Path
) -> None:
    def operators(compiled: Compiled) -> set[str]:
        (directory,) = compiled.directories.values()
        graph = pb.Model.FromString((directory / "model.onnx").read_bytes()).graph
        return {node.op_type for node in graph.node}

    large = operators(node.compile(encoder_bundle))
    assert "MultiHeadAttention" in large
    assert not large & {"DequantizeLinear", "Transpose", "MatMulNBits", "GatherBlockQuantized"}
    wide, compact = candidates(stored(encoder_bundle).manifest, 0)
    small = replace(H100, memory_bytes=needed(wide) - 1, free=(needed(wide) - 1,))
    assert needed(compact) <= small.memory_bytes
    write_release(tmp_path / "release", machine_with(small))
    shutil.rmtree(node.layout.artifacts)
    compiled = node.compile(encoder_bundle)
    fit = node.record(compiled, encoder_bundle).fit
    assert fit is not None
    assert fit.precision == "int8"
    assert "MatMulNBits" in operators(compiled)


def test_what_is_compiled_for_cuda_gives_the_processors_vectors_in_any_batch(
    node: Node, encoder_bundle: Path, tmp_path: Path
) -> None:
    def vectors(directory: Path, target: Target) -> Array:
        runner = EncoderRunner(load(directory / "model.onnx", target))
        texts = [[2, *range(10, 10 + count), 3] for count in (60, 7, 1, 30)]
        alone = [runner.run([text])[0] for text in texts]
        together = runner.run(texts)
        assert np.abs(together - alone).max() <= 2e-3
        return together

    (on_gpu,) = node.compile(encoder_bundle).directories.values()
    beside = tmp_path / "cpu"
    beside.mkdir()
    compile_bundle(encoder_bundle, stored(encoder_bundle).manifest, beside)
    processor = Target("CPUExecutionProvider", "cpu")
    made, wanted = (vectors(directory, processor) for directory in (on_gpu, beside))
    # Unit vectors; what differs is what the processor rounds, activations to 8 bits among it.
    assert np.linalg.norm(made - wanted, axis=1).max() <= 0.05


def test_where_one_model_cannot_use_the_gpus_runtime_none_does_and_all_say_why(
    node: Node, bundle: Path, old_encoder: Path, tmp_path: Path
) -> None:
    # The GPU's runtime dies of everything that is for the processor.
    on_gpu = tmp_path / "release/venv-cuda13/bin/python"
    script = on_gpu.read_text().splitlines()
    script.insert(1, 'case "$4" in --*) ;; *) kill -9 $$ ;; esac')
    on_gpu.write_text("\n".join(script))
    compiled = node.compile(bundle, old_encoder)
    assert not compiled.runtime.on_gpu
    chat = node.record(compiled, bundle)
    assert chat.provider == "cpu"
    assert [(r.provider, r.code) for r in chat.reasons] == [
        ("tensorrt", "library_missing"),
        ("cuda", "beside"),
    ]
    assert "signal 9" in chat.reasons[1].message
    assert {r.code for r in node.record(compiled, old_encoder).reasons} == {"no_variant"}


def test_a_compilation_that_dies_is_a_reason_and_leaves_nothing_behind(
    node: Node, bundle: Path, tmp_path: Path
) -> None:
    on_gpu = tmp_path / "release/venv-cuda13/bin/python"
    script = on_gpu.read_text().splitlines()
    script.insert(1, '[ "$4" = --provider ] && kill -11 $$')
    on_gpu.write_text("\n".join(script))
    record = node.record(node.compile(bundle), bundle)
    assert record.provider == "cpu"
    expected = Refusal(
        provider="cuda", code="compiler_died", message="the compiler was ended by signal 11"
    )
    assert record.reasons[-1] == expected
    names = {path.name for path in node.layout.artifacts.iterdir()}
    assert names == {".lock", record.key}


def test_a_gpu_that_others_use_is_a_reason_before_anything_is_tried(
    node: Node, bundle: Path, tmp_path: Path
) -> None:
    write_release(tmp_path / "release", machine_with(replace(H100, free=(1 << 29,))))
    record = node.record(node.compile(bundle), bundle)
    assert record.reasons[-1].code == "gpu_busy"
    assert "0.5 GiB free" in record.reasons[-1].message
    # It is no verdict for ever.
    write_release(tmp_path / "release", machine_with())
    assert node.record(node.compile(bundle), bundle).provider == "cuda"


def test_what_the_child_claims_is_held_to_the_bound(
    node: Node, bundle: Path, tmp_path: Path
) -> None:
    on_gpu = tmp_path / "release/venv-cuda13/bin/python"
    for claim, code in (
        ('{"compared": {"error": 0.9, "bound": 0.25}}', "golden_differs"),
        ("fine", "unsupported"),
    ):
        write_release(tmp_path / "release", machine_with())
        script = on_gpu.read_text()
        answer = f"""[ "$4" = --provider ] && {{ echo '{claim}'; exit 0; }}"""
        on_gpu.write_text(script.replace("\n", f"\n{answer}\n", 1))
        record = node.record(node.compile(bundle), bundle)
        assert record.reasons[-1].code == code


def test_artifacts_beside_are_looked_at_by_record_and_size(
    node: Node, bundle: Path, encoder_bundle: Path
) -> None:
    (directory,) = node.compile(bundle).directories.values()
    weights = directory / "weights.bin"
    weights.chmod(0o644)
    data = weights.read_bytes()

    def add(path: Path) -> None:
        others = [stored(bundle)]
        ensure_artifacts(node.layout, [stored(path)], node.key, beside=others, python=node.python)

    weights.write_bytes(b"?" + data[1:])
    add(encoder_bundle)
    assert weights.read_bytes() != data
    weights.write_bytes(data[1:])
    add(encoder_bundle)
    assert weights.stat().st_size == len(data)


def test_a_bundle_that_rotted_is_an_error_and_no_reason(node: Node, bundle: Path) -> None:
    weights = bundle / "graph/cpu/weights-00001.bin"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    with pytest.raises(VerificationError):
        node.compile(bundle)
    assert [path.name for path in node.layout.artifacts.iterdir()] == [".lock"]


def test_an_artifact_for_another_provider_is_refused(node: Node, bundle: Path) -> None:
    compiled = node.compile(bundle)
    (directory,) = compiled.directories.values()
    record = node.record(compiled, bundle)
    opened = open_named(directory, record.key, record.bundle, node.key.public, "cuda")
    assert opened.provider == "cuda"
    with pytest.raises(LayoutError, match="another artifact"):
        open_named(directory, record.key, record.bundle, node.key.public, "cpu")
    (directory / NAME).write_bytes(sign(msgspec.structs.replace(record, provider="cpu"), node.key))
    with pytest.raises(LayoutError, match="another artifact"):
        open_named(directory, record.key, record.bundle, node.key.public, "cuda")
    (directory / NAME).unlink()
    with pytest.raises(VerificationError):
        open_named(directory, record.key, record.bundle, node.key.public, "cuda")


def test_the_processors_runtime_never_opens_what_is_for_a_gpu(
    served: Node, decoder_bundle: Path
) -> None:
    with pytest.raises(NotFoundError, match="not compiled"):
        open_artifact(served.layout.artifacts, stored(decoder_bundle).digest, served.key.public)


def test_the_engine_takes_the_fastest_that_was_compiled_and_fails_closed(
    node: Node, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory,) = node.compile(bundle).directories.values()
    machine = machine_with(H100, ALL_LIBRARIES)
    monkeypatch.setattr(artifacts, "fingerprints", lambda: machine.fingerprints)
    digest = stored(bundle).digest
    assert open_artifact(node.layout.artifacts, digest, node.key.public).provider == "cuda"
    (directory / "weights.bin").unlink()
    with pytest.raises(LayoutError):
        open_artifact(node.layout.artifacts, digest, node.key.public)


def test_an_interpreter_that_does_not_start_is_a_reason(node: Node, tmp_path: Path) -> None:
    on_gpu = tmp_path / "release/venv-cuda13/bin/python"
    on_gpu.write_text("#!/bin/sh\nexit 3\n")
    runtime = choose_runtime(node.python)
    assert not runtime.on_gpu
    assert runtime.reason is not None
    assert "status 3" in runtime.reason.message
    on_gpu.write_text("#!/bin/sh\necho '{}'\n")
    assert not choose_runtime(node.python).on_gpu


def test_an_older_bundle_falls_to_the_processor(node: Node, bundle: Path) -> None:
    old: StoredBundle = stored(without_graphs_for_a_gpu(bundle))
    compiled = node.compile(bundle)
    assert not compiled.runtime.on_gpu
    assert {r.code for r in node.record(compiled, bundle).reasons} == {"no_variant"}
    assert old.digest in compiled.directories
