"""The committed protobuf code is what the protocol file generates."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import REPOSITORY

NAMES = (
    "engine_v1_pb2.py",
    "engine_v1_pb2.pyi",
    "engine_v1_pb2_grpc.py",
    "onnx_graph_pb2.py",
    "onnx_graph_pb2.pyi",
)


def test_generated_code_is_up_to_date_and_unedited(tmp_path: Path) -> None:
    subprocess.run([REPOSITORY / "scripts/gen-protos", "--out", tmp_path], check=True, timeout=120)
    for name in NAMES:
        committed = (REPOSITORY / "appliance/pb" / name).read_text()
        assert (tmp_path / "appliance/pb" / name).read_text() == committed, "run scripts/gen-protos"
