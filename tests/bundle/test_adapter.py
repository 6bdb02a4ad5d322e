"""What an adapter's manifest may say, and which base it fits."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest
from msgspec.structs import replace

from appliance.bundle.adapter import check_any_base, check_base, check_set
from appliance.bundle.manifest import Manifest, decode, encode
from appliance.bundle.specs import (
    Adapted,
    AdapterBase,
    AdapterSpec,
    AdapterTarget,
    DecoderSpec,
    FileEntry,
    Generation,
    Graph,
    Prompting,
)
from appliance.errors import ConflictError, LayoutError, UnsupportedError

Q = AdapterTarget(name="q", inner=64, outer=32)
UP = AdapterTarget(name="up", inner=64, outer=128)
SPEC = AdapterSpec(
    base=AdapterBase(name="base", family="qwen3", checkpoint_sha256="b" * 64),
    rank=4,
    layers=2,
    targets=(Q,),
)


def entry(path: str, size: int = 10) -> FileEntry:
    return FileEntry(path=path, size=size, sha256="0" * 64)


def adapter(spec: AdapterSpec = SPEC, **changes: Any) -> Manifest:
    files = [entry("LICENSE"), *(entry(path, max(1, spec.file_size)) for path in spec.files)]
    made = Manifest(
        format="appliance-bundle/1",
        name="it",
        version="1",
        kind="adapter",
        family="qwen3",
        created=1,
        license="MIT",
        checkpoint_sha256="a" * 64,
        files=tuple(files),
        graphs=(),
        tokenizer="",
        adapter=spec,
    )
    return replace(made, **changes)


FILES = (
    "g/adapted.onnx", "g/cuda.onnx", "g/model.onnx", "g/trt.onnx", "g/weights-00001.bin", "t",
)  # fmt: skip


def base(**changes: Any) -> Manifest:
    graph = Graph(
        variant="cpu",
        path="g/model.onnx",
        precision="fp32",
        adapted=Adapted(path="g/adapted.onnx", targets=(Q, UP)),
    )
    made = Manifest(
        format="appliance-bundle/1",
        name="base",
        version="1",
        kind="chat",
        family="qwen3",
        created=1,
        license="MIT",
        checkpoint_sha256="b" * 64,
        files=tuple(map(entry, FILES)),
        graphs=(graph,),
        tokenizer="t",
        decoder=DecoderSpec(layers=2, kv_heads=1, head_dim=16, vocab_size=9, context_length=8),
        generation=Generation(eos_token_ids=(1,)),
        prompting=Prompting(template="t"),
    )
    return replace(made, **changes)


def on_a_gpu(variant: Literal["cuda", "trt"], room: str) -> Graph:
    """A graph for a GPU, with room for adapters in the one at `room`."""
    path = f"g/{variant}.onnx"
    adapted = Adapted(path=room, targets=(Q, UP))
    return Graph(variant=variant, path=path, precision="fp16", weights="g", adapted=adapted)


def test_manifests_survive_their_bytes() -> None:
    for_cuda = base(graphs=(base().graph, on_a_gpu("cuda", "g/cuda.onnx")))
    for manifest in (adapter(), base(), for_cuda):
        assert decode(encode(manifest)) == manifest


def test_a_manifest_without_adapters_has_no_trace_of_them() -> None:
    plain = replace(base(), graphs=(replace(base().graph, adapted=msgspec.UNSET),))
    assert b"adapt" not in encode(replace(plain, files=plain.files[1:]))


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (adapter(replace(SPEC, rank=0)), "its rank is 0"),
        (adapter(replace(SPEC, rank=513)), "its rank is 513"),
        (adapter(replace(SPEC, layers=0)), "in 0 layers"),
        (adapter(replace(SPEC, targets=())), "need a target"),
        (adapter(replace(SPEC, targets=(Q, Q))), "each one once"),
        (adapter(replace(SPEC, targets=(replace(Q, inner=-1),))), "has the widths -1, 32"),
        (adapter(files=adapter().files[:-1]), "one file of weights for each layer"),
        (adapter(files=(*adapter().files, entry("adapter/00002.bin"))), "one file of weights"),
        (
            adapter(files=(*adapter().files[:2], entry("adapter/00001.bin", 8))),
            "adapter/00001.bin has 8 bytes; rank and targets mean 1536",
        ),
        (adapter(family="llama"), "its base is 'base' of the family 'qwen3'"),
        (
            adapter(replace(SPEC, base=replace(SPEC.base, name="../x"))),
            "its base is '../x'",
        ),
        (adapter(tokenizer="LICENSE"), "neither graphs nor anything else"),
        (adapter(graphs=base().graphs), "neither graphs nor anything else"),
        (adapter(adapter=msgspec.UNSET), "belongs to an adapter, and to nothing else"),
        (base(adapter=SPEC), "belongs to an adapter, and to nothing else"),
        (
            base(graphs=(replace(base().graph, adapted=Adapted(path="no", targets=(Q,))),)),
            "it names 'no', which is not among its files",
        ),
        (
            base(
                graphs=(
                    replace(
                        base().graph,
                        adapted=Adapted(path="g/adapted.onnx", targets=(Q,), prefill="t"),
                    ),
                )
            ),
            "as many as there are without",
        ),
        (base(graphs=(base().graph, on_a_gpu("trt", "g/trt.onnx"))), "are for the CPU and CUDA"),
        (base(graphs=(base().graph, on_a_gpu("cuda", "t"))), "has room for adapters itself"),
        (
            base(
                graphs=(replace(base().graph, adapted=Adapted(path="g/model.onnx", targets=(Q,))),)
            ),
            "has room for adapters itself, and no other has",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(manifest: Manifest, reason: str) -> None:
    manifest = replace(manifest, files=tuple(sorted(manifest.files, key=lambda e: e.path)))
    with pytest.raises(LayoutError) as refusal:
        decode(encode(manifest))
    assert reason in refusal.value.message


def test_an_adapter_fits_every_grade_and_version_of_its_base() -> None:
    check_base(adapter(), base())
    check_base(adapter(), base(version="2", created=9))
    check_set({"it": adapter(), "base": base()})


@pytest.mark.parametrize(
    "other",
    [base(name="else"), base(checkpoint_sha256="c" * 64), base(family="qwen2")],
)
def test_an_adapter_of_another_base_is_refused_by_name(other: Manifest) -> None:
    with pytest.raises(ConflictError) as refusal:
        check_base(adapter(), other)
    assert refusal.value.code == "adapter_base_differs"
    assert "it 1 is an adapter of base, checkpoint bbbbbbbbbbbb" in refusal.value.message


def test_a_base_that_was_built_without_graphs_for_adapters_is_refused() -> None:
    plain = base(graphs=(replace(base().graph, adapted=msgspec.UNSET),))
    with pytest.raises(UnsupportedError) as refusal:
        check_base(adapter(), plain)
    assert refusal.value.code == "adapters_not_built"
    assert "--adapters" in refusal.value.hint


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, targets=(replace(Q, outer=64),)),
        replace(SPEC, targets=(AdapterTarget(name="o", inner=32, outer=64),)),
        replace(SPEC, layers=3),
    ],
)
def test_an_adapter_of_another_shape_is_refused(spec: AdapterSpec) -> None:
    with pytest.raises(LayoutError, match="not the shape of its base"):
        check_base(adapter(spec), base())


def test_a_missing_base_is_named_with_its_checkpoint() -> None:
    lone = {"it": adapter()}
    for models in (lone, lone | {"base": adapter(name="base")}):
        with pytest.raises(ConflictError) as refusal:
            check_set(models)
        assert refusal.value.code == "adapter_base_missing"
        assert "b" * 64 in refusal.value.hint
    with pytest.raises(ConflictError) as refusal:
        check_any_base(adapter(), [])
    assert refusal.value.code == "adapter_base_missing"
    with pytest.raises(ConflictError) as refusal:
        check_any_base(adapter(), [base(checkpoint_sha256="c" * 64)])
    assert refusal.value.code == "adapter_base_differs"
    check_any_base(adapter(), [base(version="2"), base(checkpoint_sha256="c" * 64)])
