"""A manifest says exactly one thing, in exactly one way, and names no place outside the bundle."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle import manifest as manifests
from appliance.bundle.files import MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import RecurrentSpec
from appliance.errors import LayoutError
from tests.conftest import REPOSITORY
from tests.fakes.bundles import write_bundle

FIRST_RELEASE = (REPOSITORY / "tests/golden/0.1/decoder/bundle.json").read_bytes()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


def changed(manifest: Manifest, **fields: Any) -> bytes:
    document = json.loads(manifests.encode(manifest)) | fields
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def entry(path: str, size: int = 1) -> dict[str, object]:
    return {"path": path, "sha256": "0" * 64, "size": size}


def test_a_manifest_survives_a_round_trip(manifest: Manifest) -> None:
    assert manifests.decode(manifests.encode(manifest)) == manifest
    assert changed(manifest) == manifests.encode(manifest)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a//b",
        "./a",
        "a/.",
        "",
        "a\\b",
        "C:x",
        "nul\0",
        "tab\t",
        "é",
        "e\u0301",
        "trailing.",
        "trailing ",
        "x" * 256,
        "bundle.json",
        "model.sig",
    ],
)
def test_paths_that_leave_or_deceive_are_refused(manifest: Manifest, path: str) -> None:
    with pytest.raises(LayoutError) as caught:
        manifests.decode(changed(manifest, files=[entry(path)]))
    assert caught.value.hint


@pytest.mark.parametrize(
    "files",
    [
        [entry("LICENSE"), entry("license")],
        [entry("a"), entry("a")],
        [entry("b"), entry("a")],
        [entry("a", size=0)],
        [entry("a", size=-1)],
        [entry("a", size=MAX_FILE_BYTES + 1)],
        [entry("a") | {"sha256": "0" * 63}],
        [entry("a") | {"sha256": "G" * 64}],
        [entry("a") | {"mode": 7}],
    ],
)
def test_ambiguous_or_impossible_file_lists_are_refused(
    manifest: Manifest, files: list[dict[str, object]]
) -> None:
    with pytest.raises(LayoutError):
        manifests.decode(changed(manifest, files=files))


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "appliance-bundle/2"},
        {"name": "Guide"},
        {"name": "../guide"},
        {"name": ""},
        {"version": "1.0/../2"},
        {"kind": "vision"},
        {"kind": "chat"},
        {"graphs": []},
        {"tokenizer": "elsewhere.json"},
        {"encoder": None},
        {"encoder": {"dimensions": 0, "max_length": 16, "pooling": "mean", "normalize": True}},
        {"unknown": 1},
    ],
)
def test_wrong_fields_are_refused(manifest: Manifest, fields: dict[str, object]) -> None:
    with pytest.raises(LayoutError) as caught:
        manifests.decode(changed(manifest, **fields))
    assert caught.value.path == "bundle.json"


def test_a_graph_for_cuda_of_a_model_that_reads_needs_to_be_reckoned_with(
    manifest: Manifest,
) -> None:
    encoder = manifest.encoder
    assert encoder is not None
    counted = msgspec.structs.replace(encoder, vocab_size=300, token_bytes=2048)
    cuda = msgspec.structs.replace(
        manifest.graph, variant="cuda", precision="fp16", weights=manifest.graph.weights_folder
    )
    graphs = (manifest.graph, cuda)
    whole = msgspec.structs.replace(manifest, encoder=counted, graphs=graphs)
    assert manifests.decode(manifests.encode(whole)) == whole
    without = msgspec.structs.replace(counted, token_bytes=msgspec.UNSET)
    for wrong, match in (
        (msgspec.structs.replace(whole, encoder=without), "needs vocab_size, token_bytes"),
        (
            msgspec.structs.replace(whole, encoder=msgspec.structs.replace(counted, vocab_size=0)),
            "encoder.vocab_size is 0",
        ),
        (
            msgspec.structs.replace(
                whole, graphs=(manifest.graph, msgspec.structs.replace(cuda, variant="trt"))
            ),
            "for CUDA alone",
        ),
    ):
        with pytest.raises(LayoutError, match=match):
            manifests.decode(manifests.encode(wrong))


def test_another_spelling_of_the_same_manifest_is_refused(manifest: Manifest) -> None:
    data = manifests.encode(manifest)
    for other in (data + b"\n", b" " + data, json.dumps(json.loads(data)).encode()):
        with pytest.raises(LayoutError):
            manifests.decode(other)


def test_a_huge_manifest_is_refused_unread() -> None:
    with pytest.raises(LayoutError, match="long"):
        manifests.decode(b"[" * (MAX_MANIFEST_BYTES + 1))


@given(data=st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_no_input_crashes_the_parser(data: bytes) -> None:
    with pytest.raises(LayoutError):
        manifests.decode(data)


@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_changed_manifest_is_refused_or_is_another_bundle(
    manifest: Manifest, position: int, bit: int
) -> None:
    data = bytearray(manifests.encode(manifest))
    data[position % len(data)] ^= 1 << bit
    try:
        manifests.decode(bytes(data))
    except LayoutError:
        return
    assert manifests.digest(bytes(data)) != manifests.digest(manifests.encode(manifest))


def test_the_manifest_of_the_first_release_keeps_its_bytes() -> None:
    # Fields that are newer than it are left out where a bundle does not need them.
    assert manifests.encode(manifests.decode(FIRST_RELEASE)) == FIRST_RELEASE


def test_an_8_bit_cache_and_a_graph_for_prompts_come_together() -> None:
    old = manifests.decode(FIRST_RELEASE)
    document = json.loads(FIRST_RELEASE)
    path = document["graphs"][0]["path"]
    decoder = document["decoder"] | {"cache": "int8"}
    graphs = [document["graphs"][0] | {"prefill": path, "precision": "w8a8"}]
    both = manifests.decode(changed(old, decoder=decoder, graphs=graphs))
    assert both.decoder is not None
    assert (both.decoder.cache, both.graph.prefill) == ("int8", path)
    for fields in ({"decoder": decoder}, {"graphs": graphs}):
        with pytest.raises(LayoutError, match="8-bit cache"):
            manifests.decode(changed(old, **fields))
    graphs[0]["prefill"] = "graph/cpu/absent.onnx"
    with pytest.raises(LayoutError, match="absent"):
        manifests.decode(changed(old, decoder=decoder, graphs=graphs))


def test_graphs_for_other_providers_share_the_weights_and_come_after_the_cpus() -> None:
    old = manifests.decode(FIRST_RELEASE)
    cpu = json.loads(FIRST_RELEASE)["graphs"][0]
    cuda = {"variant": "cuda", "path": cpu["path"], "precision": "fp16", "weights": "graph/cpu"}
    both = manifests.decode(changed(old, graphs=[cpu, cuda]))
    found = both.variant("cuda")
    assert found is not None
    assert found.weights_folder == both.graph.weights_folder == "graph/cpu"
    assert both.variant("trt") is None
    smaller = cuda | {"precision": "int8"}
    three = manifests.decode(changed(old, graphs=[cpu, cuda, smaller]))
    assert [graph.precision for graph in three.variants("cuda")] == ["fp16", "int8"]
    assert three.variant("cuda") == found
    with pytest.raises(LayoutError, match="one graph for the CPU"):
        manifests.decode(changed(old, graphs=[cpu, cuda, cpu | {"precision": "int4"}]))
    with pytest.raises(LayoutError, match="first graph"):
        manifests.decode(changed(old, graphs=[cuda, cpu]))
    with pytest.raises(LayoutError, match="one graph for each variant"):
        manifests.decode(changed(old, graphs=[cpu, cuda, cuda]))
    for folder in ("graph/absent", "graph/cp", "/", ".."):
        with pytest.raises(LayoutError, match="folder"):
            manifests.decode(changed(old, graphs=[cpu, cuda | {"weights": folder}]))


def test_running_states_are_for_the_cpu_and_cuda_and_nothing_guesses_for_them() -> None:
    old = manifests.decode(FIRST_RELEASE)
    document = json.loads(FIRST_RELEASE)
    cpu = document["graphs"][0]
    states = dict.fromkeys(("layers", "heads", "key_dim", "value_dim", "channels", "tail"), 2)
    decoder = document["decoder"] | {"recurrent": states}
    other = {"path": cpu["path"], "precision": "fp16", "weights": "graph/cpu"}
    both = manifests.decode(
        changed(old, decoder=decoder, graphs=[cpu, other | {"variant": "cuda"}])
    )
    assert both.variant("cuda") is not None
    with pytest.raises(LayoutError, match="running state has graphs for the CPU and CUDA"):
        manifests.decode(changed(old, decoder=decoder, graphs=[cpu, other | {"variant": "trt"}]))
    tail = {"layers": 1, "channels": 9, "tail": 3}
    decoder["recurrent"] = states | {"further": tail}
    both = manifests.decode(changed(old, decoder=decoder, graphs=[cpu]))
    assert both.decoder is not None
    assert isinstance(both.decoder.recurrent, RecurrentSpec)
    assert both.decoder.recurrent.nbytes == 4 * (2 * (2 * 2 * 2 + 2 * 2) + 9 * 3)
    with pytest.raises(LayoutError, match="further convolution has graphs for the CPU alone"):
        manifests.decode(changed(old, decoder=decoder, graphs=[cpu, other | {"variant": "cuda"}]))
    decoder["recurrent"] = states | {"further": tail | {"channels": 0}}
    with pytest.raises(LayoutError, match=r"recurrent\.further\.channels is 0"):
        manifests.decode(changed(old, decoder=decoder, graphs=[cpu]))


PROMPT = {
    "start": "<|im_start|>",
    "instruct": "I: ",
    "query": "Q: ",
    "document": "D: ",
    "end": "<|im_end|>",
    "instruction": "find it",
}


@pytest.mark.parametrize("reranker", [{"max_length": 512}, {"max_length": 8192, "prompt": PROMPT}])
def test_a_reranker_has_its_own_words_and_no_other_kind_has_them(
    manifest: Manifest, reranker: dict[str, object]
) -> None:
    fields: dict[str, Any] = {"kind": "rerank", "encoder": None, "reranker": reranker}
    data = changed(manifest, **fields)
    made = manifests.decode(data)
    assert manifests.encode(made) == data
    assert made.spec == made.reranker
    for wrong in (
        {"kind": "rerank"},
        {"reranker": reranker},
        fields | {"reranker": None},
        fields | {"reranker": {"max_length": 0}},
        fields | {"reranker": reranker | {"prompt": {"start": "x"}}},
    ):
        with pytest.raises(LayoutError):
            manifests.decode(changed(manifest, **wrong))


@pytest.mark.parametrize(("fewest", "allowed"), [(1, True), (8, True), (0, False), (9, False)])
def test_vectors_are_cut_to_no_more_numbers_than_they_have(
    manifest: Manifest, fewest: int, allowed: bool
) -> None:
    encoder = {"dimensions": 8, "max_length": 16, "pooling": "last", "normalize": True}
    data = changed(manifest, encoder=encoder | {"min_dimensions": fewest})
    if allowed:
        assert manifests.encode(manifests.decode(data)) == data
    else:
        with pytest.raises(LayoutError, match="min_dimensions"):
            manifests.decode(data)


COMPARED = {
    "reference": "transformers 5.0, torch 2.0",
    "layers": 2,
    "tokens": 160,
    "error": 1_200,
    "bound": 1_000_000,
    "grade_error": 50_000_000,
    "grade_bound": 400_000_000,
}


def test_a_comparison_with_the_reference_is_said_in_full_or_why_there_is_none() -> None:
    old = manifests.decode(FIRST_RELEASE)
    for parity in (
        {"not_run": "torch is not installed"},
        COMPARED,
        COMPARED | {"unpacked_by": "builder"},
        {key: value for key, value in COMPARED.items() if key not in {"error", "bound"}},
    ):
        data = changed(old, parity=parity)
        assert manifests.encode(manifests.decode(data)) == data
    assert str(manifests.decode(changed(old, parity=COMPARED)).parity).endswith(
        "first 2 layers: relative error 1.2e-06 in fp32, 0.05 as built (allowed 0.4)"
    )
    for parity in (
        {},
        COMPARED | {"not_run": "but it was"},
        {key: value for key, value in COMPARED.items() if key != "reference"},
        COMPARED | {"error": 1_000_001},
        COMPARED | {"grade_error": -1},
        COMPARED | {"unpacked_by": "nobody"},
        {"not_run": "torch is not installed", "unpacked_by": "builder"},
        COMPARED | {"trusted": True},
    ):
        with pytest.raises(LayoutError):
            manifests.decode(changed(old, parity=parity))
