"""Safetensors are read as the public library reads them, and hostile ones refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from appliance.errors import CheckpointError
from installer.checkpoint.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from tests.checkpoint.conftest import build_unsigned
from tests.fakes.checkpoints import write_qwen3

Header = dict[str, Any]


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> Header:
    count = (end - begin) // 4
    return {
        "dtype": dtype,
        "shape": [count] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def write(path: Path, header: object, data: int = 32, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(text) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + text + bytes(data))
    return path


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"a": entry(0, 16), "b": entry(8, 24), "c": entry(24, 32)}, "b overlaps"),
        ({"a": entry(0, 32), "b": entry(0, 32)}, "b overlaps"),
        ({"a": entry(0, 8), "b": entry(16, 32)}, "b leaves a hole"),
        ({"a": entry(4, 32)}, "a leaves a hole"),
        ({"a": entry(0, 16)}, "describes"),
        ({"a": entry(0, 64)}, "describes"),
        ({"a": entry(0, 1 << 62)}, "describes"),
        ({"a": entry(0, 32, [9])}, "a has 32 bytes, its shape 36"),
        ({"a": entry(0, 32, [1 << 40, 1 << 40])}, "a has 32 bytes"),
        ({"a": entry(0, 32, [-2, -4])}, "a has the shape"),
        ({"a": entry(0, 32, [True, 8])}, "a has the shape"),
        ({"a": entry(0, 32, [1] * 100)}, "a has the shape"),
        ({"a": entry(32, 0, [8])}, "a has the data_offsets"),
        ({"a": entry(-8, 24, [8])}, "a has the data_offsets"),
        ({"a": entry(0, 32) | {"data_offsets": [0, 1 << 70]}}, "a has the data_offsets"),
        ({"a": entry(0, 32, dtype="F4")}, "a has the element type 'F4'"),
        ({"a": entry(0, 32) | {"dtype": ["F32"]}}, "a has the element type"),
        ({"a": {"dtype": "F32"}}, "a has no dtype, shape"),
        ({"a": entry(0, 32) | {"code": "x"}}, "a has no dtype, shape"),
        ({"a": 7}, "a has no dtype, shape"),
        ([], "not a JSON object"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a":{},"a":{}}', "'a' twice"),
        (b'{"a":{"dtype":"F32","dtype":"F16"}}', "'dtype' twice"),
    ],
)
def test_a_header_that_is_not_exactly_the_file_is_refused_by_name(
    tmp_path: Path, header: object, named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"it\.safetensors.*{named}") as caught:
        SafetensorsFile(write(tmp_path / "it.safetensors", header), "it.safetensors")
    assert caught.value.hint


@pytest.mark.parametrize("length", [1000, MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "it", {"a": entry(0, 8)}, 8, length=length)
    if length == MAX_HEADER_BYTES + 1:
        os.truncate(path, length + 100)  # long enough, and sparse
    with pytest.raises(CheckpointError, match=f"claims {length} bytes"):
        SafetensorsFile(path, "it")


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "link":
        path.symlink_to(write(tmp_path / "real", {"a": entry(0, 32)}))
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(CheckpointError, match=r"it cannot be used") as caught:
        SafetensorsFile(path, "it")
    assert "cp -rL" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md"]
)
def test_a_link_in_a_checkpoint_is_not_followed(tmp_path: Path, name: str) -> None:
    # A model card that is a link to a key would end up in the bundle.
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}.*(link|cannot be used)"):
        build_unsigned(checkpoint, tmp_path / "out")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint", max_shard_bytes=60_000)
    shards = sorted(checkpoint.glob("*.safetensors"))
    first, last = load_file(shards[0]), load_file(shards[-1])
    name = next(iter(first))
    save_file(last | {name: first[name]}, shards[-1])
    with pytest.raises(CheckpointError, match=f"{name} is both in"):
        build_unsigned(checkpoint, tmp_path / "out")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "it", {"a": entry(0, 32)})
    with SafetensorsFile(path, "it") as file:
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(CheckpointError, match="shorter"):
            file.get_tensor("a")


@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 5),
    start=st.none() | st.integers(-10, 10),
    stop=st.none() | st.integers(-10, 10),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8]),
)
@settings(max_examples=60, deadline=None)
def test_every_run_of_rows_is_the_public_librarys(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    width: int,
    start: int | None,
    stop: int | None,
    dtype: type,
) -> None:
    path = tmp_path_factory.mktemp("it") / "it"
    table: npt.NDArray[Any] = np.arange(rows * width * 2).reshape(rows, width, 2).astype(dtype)
    save_file({"x": table, "y": np.ones(3, np.float32)}, path)
    with SafetensorsFile(path, "it") as file:
        assert sorted(file.keys()) == ["x", "y"]
        part = file.get_slice("x")
        assert (part.get_shape(), part[start:stop].dtype) == ([rows, width, 2], table.dtype)
        np.testing.assert_array_equal(part[start:stop], table[start:stop])
        np.testing.assert_array_equal(part[start:stop, 1:, 0], table[start:stop, 1:, 0])
        np.testing.assert_array_equal(file.get_tensor("x"), load_file(path)["x"])
        for row in range(rows):
            np.testing.assert_array_equal(part[row], table[row])


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "nonsense"
    path.write_bytes(data)
    with pytest.raises(CheckpointError), SafetensorsFile(path, "it") as file:
        raise CheckpointError(f"an empty file is one: {list(file.keys())}")
