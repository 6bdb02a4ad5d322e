"""Records keep the form that they had; what is new in them is left out where it says nothing."""

from __future__ import annotations

import msgspec
import pytest

from appliance.bundle.specs import FileEntry
from appliance.compiler.record import Comparison, Fit, Record, Refusal, sign, verify
from appliance.config import Layout
from appliance.errors import LayoutError
from appliance.trust.node_key import NodeKey

OLD = (
    b'{"bundle":"aa","created":1700000000,"files":[{"path":"model.onnx","sha256":"bb","size":3}],'
    b'"fingerprint":{"variant":"cpu"},"key":"cc"}'
)
"""What release 0.1 signs."""
NEW = (
    b'{"bundle":"aa","compared":{"bound":0.25,"error":0.04},"created":1700000000,'
    b'"files":[{"path":"model.onnx","sha256":"bb","size":3}],"fingerprint":{"variant":"cuda"},'
    b'"fit":{"memory":85520809984,"precision":"fp16","slot":5,"weights":4},"key":"cc",'
    b'"provider":"cuda","reasons":[{"code":"library_missing","message":"libnvinfer.so.10",'
    b'"provider":"tensorrt"}]}'
)

FILES = (FileEntry(path="model.onnx", size=3, sha256="bb"),)


def test_a_record_for_the_processor_has_the_bytes_that_it_had() -> None:
    record = msgspec.json.decode(OLD, type=Record)
    assert (record.provider, record.reasons, record.compared, record.fit) == ("cpu", (), None, None)
    assert msgspec.json.encode(record, order="sorted") == OLD


def test_a_record_for_a_gpu_says_why_and_how_near() -> None:
    record = Record(
        bundle="aa",
        key="cc",
        fingerprint={"variant": "cuda"},
        files=FILES,
        created=1_700_000_000,
        provider="cuda",
        reasons=(Refusal(provider="tensorrt", code="library_missing", message="libnvinfer.so.10"),),
        compared=Comparison(error=0.04, bound=0.25),
        fit=Fit(precision="fp16", weights=4, slot=5, memory=85_520_809_984),
    )
    assert msgspec.json.encode(record, order="sorted") == NEW
    assert msgspec.json.decode(NEW, type=Record) == record


def test_what_the_node_signs_it_reads_back(layout: Layout, node_key: NodeKey) -> None:
    record = msgspec.json.decode(NEW, type=Record)
    assert verify(sign(record, node_key), node_key.public, path="p") == record


def test_a_record_with_a_provider_that_nobody_has_is_refused(node_key: NodeKey) -> None:
    from appliance.compiler.record import PAYLOAD_TYPE

    odd = node_key.sign(NEW.replace(b'"provider":"cuda"', b'"provider":"rocm"'), PAYLOAD_TYPE)
    with pytest.raises(LayoutError, match="not an artifact record"):
        verify(odd, node_key.public, path="p")
