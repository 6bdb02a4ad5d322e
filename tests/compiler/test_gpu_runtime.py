"""The GPU's own ONNX Runtime, on a machine without a GPU: it is refused, by name, never in silence.

Its wheel imports and lists the GPU's providers everywhere; only a session shows what it took.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from appliance.compiler import ensure_artifacts, machine
from appliance.compiler.artifact import read_record
from appliance.compiler.child import compile_in_process, run_compiler
from appliance.compiler.hardware import has_driver
from appliance.config import Layout
from appliance.errors import UnsupportedError
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from tests.checkpoint.drawn import draw_checkpoint
from tests.checkpoint.families import find_models
from tests.checkpoint.families.gemma4 import WIDE
from tests.compiler.conftest import RUNTIME, stored
from tests.conftest import REPOSITORY
from tests.fakes.checkpoints import write_bert, write_qwen2, write_qwen3
from tests.fakes.encoder_checkpoints import (
    write_cross_encoder,
    write_qwen3_embedding,
    write_qwen3_reranker,
)
from tests.fakes.newer_encoders import write_modernbert, write_mpnet
from tests.fakes.no_cuda import write_libraries
from tests.fakes.pooled_decoders import (
    write_embedding_gemma,
    write_embedding_gemma2,
    write_eurobert,
)
from tests.fakes.rotary_encoders import write_gte, write_nomic
from tests.fakes.vision_checkpoints import (
    write_qwen2_5_vl,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
from tests.sweeps import rarely, sampled

MODELS = find_models()
BLOCKS = {"Sub", "Concat", "Max", "Mul", "Add", "Div"}
"""Arithmetic on the sizes of a batch."""

pytestmark = pytest.mark.skipif(has_driver(), reason="this machine has a GPU")

REFUSALS = """
import json, sys
from pathlib import Path
import numpy as np
from appliance.bundle.manifest import decode
from appliance.compiler.gpu_compile import CUDA, compile_cuda
from appliance.compiler.profiles import Sizes, plan
from appliance.compiler.trt_compile import compile_tensorrt
from appliance.errors import ApplianceError

bundle, out = Path(sys.argv[1]), Path(sys.argv[2])
manifest = decode((bundle / "bundle.json").read_bytes())
expected = np.ones((12, manifest.decoder.vocab_size), np.float32)
profiles = plan(Sizes(slots=2, chunk=64, context=64, engines=2))
for compile_it, last in ((compile_cuda, ([CUDA], "fp16")), (compile_tensorrt, (profiles,))):
    try:
        compile_it(bundle, manifest, out, expected, *last)
    except ApplianceError as error:
        print(json.dumps([error.code, error.message]))
"""

OPTIONS = """
import json, sys
from pathlib import Path
from appliance.compiler.gpu_compile import CUDA, session_options
from appliance.engine import session
from appliance.errors import UnsupportedError
import onnxruntime as ort

graph = str(next(Path(sys.argv[1]).glob("graph/*/model.onnx")))
served = {}
def taken(path, options, provider, settings):
    served.update(settings)
    raise UnsupportedError("only the settings are looked at")
session._open = taken
try:
    session.open_cuda_session(Path(sys.argv[1]), record=True)
except UnsupportedError:
    pass
for options in (dict(CUDA.options), served, {**served, "sdpa_kernels": "19"}):
    try:
        ort.InferenceSession(
            graph, session_options(), providers=[(CUDA.provider, options)], enable_fallback=0
        )
    except Exception as error:
        print(json.dumps([options, str(error)]))
"""


SAY = """
import json

def say(session):
    nodes = {}
    for part in session.get_provider_graph_assignment_info():
        kinds = nodes.setdefault(part.ep_name, [])
        kinds += [node.op_type for node in part.get_nodes()]
    print(json.dumps(nodes), flush=True)
"""
"""Who computes which nodes of a session, as a line of JSON."""

READERS = f"""{SAY}
import sys
from pathlib import Path
from appliance.bundle.manifest import decode
from appliance.compiler import gpu_compile, golden_texts
from appliance.compiler.sources import verified_graph, verified_weights
from appliance.engine.session import open_cuda_reader
from appliance.errors import UnsupportedError

bundle, out = Path(sys.argv[1]), Path(sys.argv[2])
manifest = decode((bundle / "bundle.json").read_bytes())
weights = verified_weights(bundle, manifest)
gpu_compile.quiet()
for graph in manifest.variants("cuda"):
    made = out / graph.precision
    made.mkdir()
    data = verified_graph(bundle, manifest, graph.path, weights)
    gpu_compile.optimize(data, bundle / graph.weights_folder, made, gpu_compile.CUDA)
    session = gpu_compile.load(made / "model.onnx", gpu_compile.CUDA)
    gpu_compile.refuse_the_processor(session, gpu_compile.CUDA)
    say(session)
    print("opened by", open_cuda_reader(made).get_providers()[0], flush=True)
    try:
        golden_texts.outputs(session, manifest.spec)
    except UnsupportedError:
        pass  # a kernel asked for what stands in for nothing
"""


DECODERS = f"""{SAY}
import sys
from pathlib import Path
import numpy as np
import onnxruntime as ort
from appliance.bundle.manifest import decode
from appliance.bundle.specs import VisionSpec
from appliance.compiler import gpu_compile, golden
from appliance.compiler.merging import merge_products
from appliance.compiler.probe import run_tower_probe
from appliance.compiler.recording import why_unrecorded
from appliance.compiler.sources import verified_graph, verified_weights
from appliance.engine.device import draw_graphs
from appliance.engine.session import open_small_session
from appliance.errors import UnsupportedError

bundle, out, plain = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "plain"
precision = sys.argv[4]
manifest = decode((bundle / "bundle.json").read_bytes())
(CUDA,) = gpu_compile.cuda_targets(1, manifest.spec)
used = gpu_compile.Target(CUDA.provider, CUDA.device) if plain else CUDA

def compile(path, weights_folder, names):
    weights = verified_weights(bundle, manifest, weights_folder)
    graph = verified_graph(bundle, manifest, path, weights)
    if names[0] == "model.onnx":
        graph = merge_products(graph)
    gpu_compile.optimize(graph, bundle / weights_folder, out, CUDA, names)
    session = gpu_compile.load(out / names[0], used)
    gpu_compile.refuse_the_processor(session, used)
    say(session)
    return session

gpu_compile.quiet()
(graph,) = [g for g in manifest.variants("cuda") if g.precision == precision]
session = compile(graph.path, graph.weights_folder, ("model.onnx", "weights.bin"))
try:
    golden.on_device([session], [session], manifest.decoder, [("cuda", 0)])
except (UnsupportedError, IndexError):
    pass  # nothing that comes out means anything
why = why_unrecorded([out / "model.onnx"], manifest.decoder, [CUDA])
print(*("recorded",) if why is None else ("not", why.message))
for make in (draw_graphs.sums, draw_graphs.likeliest, draw_graphs.changed):
    say(open_small_session(make(manifest.decoder.vocab_size), "cuda"))
if isinstance(manifest.vision, VisionSpec):
    print("tower", flush=True)
    vision, names = manifest.vision, ("vision.onnx", "vision.bin")
    run_tower_probe(compile(vision.cuda, vision.graph.rpartition("/")[0], names), vision)
"""


SERVED = """
import sys
from pathlib import Path
from appliance.engine.session import open_cuda_session

open_cuda_session(Path(sys.argv[2]), record=True)
"""


PRODUCTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gpu_check.kinds import timed
from gpu_check.products import Shape, measure_products, names
from appliance.compiler import gpu_compile
from appliance.engine.session import open_cuda_reader

def opened(folder):
    session = open_cuda_reader(folder)
    gpu_compile.refuse_the_processor(
        gpu_compile.load(folder / "model.onnx", gpu_compile.CUDA), gpu_compile.CUDA
    )
    return session

shape = Shape(hidden=256, inner=512, times=2)
steps = measure_products(Path(sys.argv[2]), opened, "cuda", timed, shape)
print(list(steps) == list(names()))
"""


def test_it_lists_its_providers_and_says_what_it_lacks(on_gpu: Path) -> None:
    listed = subprocess.run(
        [on_gpu, "-I", "-c", "import onnxruntime as o; print(o.get_available_providers())"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "CUDAExecutionProvider" in listed.stdout
    seen = machine.decode(run_compiler(on_gpu, ["--machine"]))
    assert seen.gpu is None
    assert seen.reason
    assert seen.libraries is not None
    assert "libcuda.so.1" in seen.libraries.missing_cuda
    assert "libnvinfer.so.10" in seen.libraries.missing_tensorrt
    assert list(seen.fingerprints) == ["cpu"]
    assert seen.fingerprints["cpu"]["onnxruntime"].endswith(" gpu")


def test_a_session_that_takes_the_processor_is_refused(
    on_gpu: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [on_gpu, "-I", "-c", REFUSALS, bundle, out], capture_output=True, text=True, check=True
    )
    cuda, tensorrt = (json.loads(line) for line in done.stdout.splitlines())
    assert cuda[0] == "provider_not_taken"
    assert "CPUExecutionProvider" in cuda[1]
    # TensorRT's provider raises where CUDA's gives way.
    assert tensorrt[0] == "unsupported"
    assert "TensorRT" in tensorrt[1]


def test_the_cuda_provider_reads_the_options_that_it_is_given(
    on_gpu: Path, bundle: Path, tmp_path: Path
) -> None:
    write_libraries(RUNTIME / "onnxruntime/capi/libonnxruntime_providers_cuda.so", tmp_path)
    done = subprocess.run(
        [on_gpu, "-I", "-c", OPTIONS, bundle],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    compiling, serving, mistyped = (json.loads(line) for line in done.stdout.splitlines())
    for options, said in (compiling, serving):
        assert options["sdpa_kernel"] == "19"
        assert options["arena_extend_strategy"] == "kSameAsRequested"
        assert "Unknown provider option" not in said
        assert "no device" in said
    assert "Unknown provider option" in mistyped[1]


OFTEN: list[tuple[Callable[[Path], Path], set[str], set[str]]] = [
    (write_bert, {"EFFICIENT_ATTENTION"}, set()),
    # How long the longest text is, one number that the kernel wants in this machine's memory.
    (write_qwen3_reranker, {"FLASH_ATTENTION"}, {"Squeeze", "Cast"}),
    # Windows as published: in how many blocks a text is, and of what shape, a few numbers. Narrow
    # blocks have their small table of products.
    (write_embedding_gemma, {"EFFICIENT_ATTENTION", "MATH"}, BLOCKS),
    # What is added to all products of heads: a table for texts of 512 tokens at most.
    (write_mpnet, {"MATH"}, set()),
]
"""Which kernels for attention, and what is not the device's; one of each kind."""
LESS_OFTEN: list[tuple[Callable[[Path], Path], set[str], set[str]]] = [
    (write_cross_encoder, {"EFFICIENT_ATTENTION"}, set()),
    (write_qwen3_embedding, {"FLASH_ATTENTION"}, {"Squeeze", "Cast"}),
    (write_gte, {"EFFICIENT_ATTENTION"}, set()),
    (write_nomic, {"EFFICIENT_ATTENTION"}, set()),
    (write_eurobert, {"EFFICIENT_ATTENTION"}, set()),
    (partial(write_modernbert, window=128), {"EFFICIENT_ATTENTION"}, BLOCKS),
    (write_embedding_gemma2, {"EFFICIENT_ATTENTION", "MATH"}, BLOCKS),
]


@pytest.mark.parametrize(
    ("write", "kernels", "beside"),
    [*OFTEN, *rarely(LESS_OFTEN)],
)
def test_the_cuda_provider_takes_models_that_read_whole_and_keeps_tables_of_products_where_said(
    on_gpu: Path,
    cuda_libraries: Path,
    tmp_path: Path,
    write: Callable[[Path], Path],
    kernels: set[str],
    beside: set[str],
) -> None:
    checkpoint, bundle = write(tmp_path / "checkpoint"), tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="int8")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [on_gpu, "-I", "-c", READERS, bundle, tmp_path / "out"],
        env=os.environ
        | {"LD_LIBRARY_PATH": str(cuda_libraries), "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    graphs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(graphs) == 2
    for nodes in graphs:
        assert set(nodes.get("CPUExecutionProvider", ())) == beside
        assert "CUDAExecutionProvider" in nodes
    assert done.stdout.count("opened by CUDAExecutionProvider") == 2
    assert set(re.findall(r"SdpaKernel=(\w+)", done.stdout)) == kernels


def said_of_a_decoder(
    on_gpu: Path, libraries: Path, bundle: Path, folder: Path, how: str, precision: str = "fp16"
) -> str:
    """What the provider does with all graphs that a GPU has of a chat model."""
    (folder / "out").mkdir()
    done = subprocess.run(
        [on_gpu, "-I", "-c", DECODERS, bundle, folder / "out", how, precision],
        env=os.environ
        | {"LD_LIBRARY_PATH": str(libraries), "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SIZES = {"Concat", "Slice", "Mul", "Squeeze"}
"""Arithmetic on the sizes of a step, which no provider does elsewhere; its result is recorded."""


def kernels(said: str) -> list[str]:
    """For attention, in the order of the runs, each once for a row of layers."""
    found = re.findall(r"SdpaKernel=(\w+)", said)
    return [kernel for kernel, before in zip(found, ["", *found], strict=False) if kernel != before]


def providers(said: str) -> list[dict[str, list[str]]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


OF_A_KIND = {"gemma3", "gemma4-small", "gpt-oss", "deepseek-v3", "qwen3.5", "nemotron-h-moe"}
"""Decoders that differ in what a provider could refuse; the full run has every family."""


@pytest.mark.parametrize(
    "name",
    sampled((name for name, it in MODELS.items() if it.main and it.on_gpus), OF_A_KIND),
)
def test_the_cuda_provider_takes_decoders_whole_and_plans_no_attention(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path, name: str
) -> None:
    checkpoint, bundle = MODELS[name].write(tmp_path / "checkpoint"), tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="fp16")
    said = said_of_a_decoder(on_gpu, cuda_libraries, bundle, tmp_path, "ours")
    decoder, *draws = providers(said)
    assert set(decoder.get("CPUExecutionProvider", ())) <= SIZES
    assert [set(nodes) for nodes in draws] == [{"CUDAExecutionProvider"}] * 3
    # Of experts nothing can be run over stand-ins: their kernels ask the device for more.
    assert ("recorded" in said) != MODELS[name].experts
    assert "CUDNN_FLASH_ATTENTION" not in kernels(said)


def test_single_tokens_of_usual_heads_go_through_a_kernel_of_their_own(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint", head_dim=128)
    bundle = tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="fp16")
    said = said_of_a_decoder(on_gpu, cuda_libraries, bundle, tmp_path, "ours")
    assert kernels(said)[:2] == ["FLASH_ATTENTION", "XQA"]
    assert {*kernels(said)} == {"FLASH_ATTENTION", "XQA"}
    nodes = Counter(providers(said)[0]["CUDAExecutionProvider"])
    layers = nodes["GroupQueryAttention"]
    products = nodes["MatMul"] + nodes["FusedMatMul"]
    assert products == 4 * layers, "two of seven products, and one of two, are one"
    # What keeps numbers within 16 bits takes one kernel of the whole graph, that of embeddings.
    assert nodes["FusedMatMul"] == nodes["QuickGelu"] == layers
    assert nodes["Mul"] == layers + 1
    # Norms of queries and keys have become attention's own, or there were two more a layer.
    assert nodes["SimplifiedLayerNormalization"] + nodes["SkipSimplifiedLayerNormalization"] == (
        2 * layers + 1
    )


def test_wide_heads_store_products_and_widen_no_keys(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    """As Gemma 4 is published: heads of 256 numbers beside some of 512."""
    checkpoint = draw_checkpoint(tmp_path / "checkpoint", WIDE)
    bundle = tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="fp16")
    said = said_of_a_decoder(on_gpu, cuda_libraries, bundle, tmp_path, "ours")
    assert {*kernels(said)} == {"FLASH_ATTENTION", "XQA", "MATH"}
    assert "recorded" in said


@pytest.mark.parametrize("write", [write_qwen3, *rarely([write_qwen2])])
def test_8_bit_floats_are_multiplied_as_they_are(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    checkpoint, bundle = write(tmp_path / "checkpoint"), tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="fp8")
    said = said_of_a_decoder(on_gpu, cuda_libraries, bundle, tmp_path, "ours", "fp8")
    decoder = providers(said)[0]
    assert set(decoder.get("CPUExecutionProvider", ())) <= SIZES
    nodes = Counter(decoder["CUDAExecutionProvider"])
    assert nodes["MatMulBlockQuantizedFp8Weight"] == 7 * nodes["GroupQueryAttention"]
    assert not nodes["MatMul"] + nodes["DequantizeLinear"]
    # Gated halves, what heads have read, and once embeddings.
    assert nodes["Mul"] == 2 * nodes["GroupQueryAttention"] + 1
    assert "recorded" in said
    stored = sum(path.stat().st_size for path in (bundle / "graph/cpu").glob("weights-*.bin"))
    assert (tmp_path / "out/weights.bin").stat().st_size < 1.1 * stored, "nothing became floats"


def test_the_products_that_gpu_check_measures_are_all_taken(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [on_gpu, "-I", "-c", PRODUCTS, REPOSITORY / "scripts", tmp_path / "products"],
        env=os.environ | {"LD_LIBRARY_PATH": str(cuda_libraries)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


def test_left_alone_it_would_have_cudnn_plan_each_piece_of_a_prompt(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = write_qwen3(tmp_path / "checkpoint"), tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="fp16")
    said = said_of_a_decoder(on_gpu, cuda_libraries, bundle, tmp_path, "plain")
    assert kernels(said)[0] == "CUDNN_FLASH_ATTENTION"


def test_weights_take_of_the_device_what_they_have(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint", hidden=512, intermediate=8192, vocab=20_000)
    bundle = tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="fp16")
    (tmp_path / "out").mkdir()
    for program in (DECODERS, SERVED):
        done = subprocess.run(
            [on_gpu, "-I", "-c", program, bundle, tmp_path / "out", "ours", "fp16"],
            env=os.environ | {"LD_LIBRARY_PATH": str(cuda_libraries)},
            capture_output=True,
            text=True,
            check=True,
        )
    weights = (tmp_path / "out/weights.bin").stat().st_size
    assert weights > 60 << 20
    (taken,) = re.findall(r"taken of device 0: (\d+)", done.stderr)
    # In the file, weights begin at round places.
    assert 0.99 * weights <= int(taken) <= 1.1 * weights


@pytest.mark.parametrize(
    "write",
    [write_qwen3_vl, *rarely([write_qwen2_5_vl, write_qwen3_vl_moe])],
)
def test_the_cuda_provider_takes_models_that_see_and_their_towers(
    on_gpu: Path, cuda_libraries: Path, tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    checkpoint, bundle = write(tmp_path / "checkpoint"), tmp_path / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision="int8")
    said = said_of_a_decoder(on_gpu, cuda_libraries, bundle, tmp_path, "ours")
    decoder, *draws, tower = providers(said)
    assert set(decoder.get("CPUExecutionProvider", ())) <= SIZES
    assert [set(nodes) for nodes in (*draws, tower)] == [{"CUDAExecutionProvider"}] * 4
    assert ("recorded" in said) == (write is not write_qwen3_vl_moe), (
        "experts are not run over stand-ins"
    )
    assert "CUDNN_FLASH_ATTENTION" not in kernels(said)
    assert "EFFICIENT_ATTENTION" in kernels(said.partition("tower")[2]), "no table of products"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_compilers_process_names_the_missing_library(
    on_gpu: Path, bundle: Path, tmp_path: Path, provider: str
) -> None:
    arguments = ["--provider", provider, str(bundle), str(tmp_path / "out"), str(tmp_path)]
    sizes = json.dumps({"slots": 1, "chunk": 16, "context": 64, "engines": 2})
    arguments += [sizes] if provider == "tensorrt" else ["fp16", "2"]
    with pytest.raises(UnsupportedError, match=r"libcuda\.so\.1") as caught:
        run_compiler(on_gpu, arguments)
    assert caught.value.code == "library_missing"


def test_a_node_with_it_but_no_gpu_computes_on_the_processor_and_says_why(
    release: Path, bundle: Path, layout: Layout, node_key: NodeKey
) -> None:
    python = release / "venv/bin/python"
    compiled = ensure_artifacts(layout, [stored(bundle)], node_key, python=python)
    assert compiled.runtime.python == python
    (directory,) = compiled.directories.values()
    record = read_record(directory, node_key.public)
    assert record.provider == "cpu"
    assert [reason.code for reason in record.reasons] == ["no_gpu", "no_gpu"]


def test_what_its_processors_kernels_lack_is_refused_and_what_they_have_is_compiled(
    on_gpu: Path, bundle: Path, encoder_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="ONNX Runtime refuses the graph"):
        compile_in_process(bundle, tmp_path / "chat", python=on_gpu)
    compile_in_process(encoder_bundle, tmp_path / "embedding", python=on_gpu)
    assert (tmp_path / "embedding/model.onnx").is_file()
