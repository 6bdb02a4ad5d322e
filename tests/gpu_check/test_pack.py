"""What is packed arrives whole, or is refused; nothing of it needs an index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_check.locked import CUDA_LIBRARIES, cuda_packages, node_packages
from gpu_check.pack import CODE, GPU, SITE, UNPACK, write_parts, write_script

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PART = 64 << 10


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A pack of little: a module `appliance`, and two runtimes."""
    folders = {name: tmp_path / "stage" / name for name in (CODE, SITE, GPU)}
    contents = {
        folders[CODE] / "appliance/__init__.py": b"",
        folders[SITE] / "onnxruntime/__init__.py": b"kind = 'processor'",
        folders[SITE] / "noise.bin": os.urandom(3 * PART),
        folders[GPU] / "onnxruntime/__init__.py": b"kind = 'gpu'",
    }
    for path, data in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    directory = tmp_path / "pack"
    directory.mkdir()
    write_parts(tmp_path / "stage", directory, PART)
    write_script(directory, HERE)
    return directory


def unpack(directory: Path, target: Path, *peer: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(directory / UNPACK), str(target), *peer],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def test_parts_are_as_small_as_was_asked_and_become_two_environments(
    packed: Path, tmp_path: Path
) -> None:
    sizes = [part.stat().st_size for part in packed.glob("*.part-*")]
    assert len(sizes) > 4
    assert max(sizes) <= PART
    done = unpack(packed, tmp_path / "there")
    assert done.returncode == 0, done.stderr
    for venv, kind in (("venv", "processor"), ("venv-cuda13", "gpu")):
        python = tmp_path / "there/release" / venv / "bin/python"
        asked = "import appliance, onnxruntime; print(onnxruntime.kind)"
        said = subprocess.run(
            [str(python), "-I", "-c", asked], capture_output=True, text=True, check=True, env={}
        )
        assert said.stdout.strip() == kind
    noise = tmp_path / "there/release/site/noise.bin"
    assert noise.read_bytes() == (tmp_path / "stage/site/noise.bin").read_bytes()
    assert f"--release {tmp_path}/there/release" in done.stdout


def test_cuda_libraries_may_be_those_of_the_peers_python(packed: Path, tmp_path: Path) -> None:
    peer = tmp_path / "peer"
    peer.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    peer.chmod(0o755)
    link = tmp_path / "there/release/site-cuda13/nvidia"
    assert unpack(packed, tmp_path / "there", str(peer)).returncode == 0
    assert not link.exists()
    (tmp_path / "nvidia").mkdir()
    done = unpack(packed, tmp_path / "there", str(peer))
    assert done.returncode == 0
    assert link.resolve() == tmp_path / "nvidia"
    assert f"--peer-python {peer}" in done.stdout


def test_another_commit_is_another_part_and_no_more(packed: Path, tmp_path: Path) -> None:
    before = {part.name: part.read_bytes() for part in packed.glob("*.part-*")}
    later = tmp_path / "later" / CODE / "appliance"
    later.mkdir(parents=True)
    (later / "__init__.py").write_text("later = True")
    write_parts(tmp_path / "later", packed, PART)
    after = {part.name: part.read_bytes() for part in packed.glob("*.part-*")}
    assert {name for name in after if after[name] != before.get(name)} == {"code.part-000"}
    assert unpack(packed, tmp_path / "there").returncode == 0
    assert (tmp_path / "there/repo/appliance/__init__.py").read_text() == "later = True"


@pytest.mark.parametrize("harm", ["change", "remove"])
def test_a_part_that_is_missing_or_changed_is_refused(
    packed: Path, tmp_path: Path, harm: str
) -> None:
    part = packed / "site.part-001"
    if harm == "change":
        part.write_bytes(part.read_bytes()[::-1])
    else:
        part.unlink()
    done = unpack(packed, tmp_path / "there")
    assert done.returncode == 1
    assert "error: a part is missing or was changed" in done.stderr
    assert not (tmp_path / "there").exists()


def test_another_version_of_python_is_refused(packed: Path, tmp_path: Path) -> None:
    write_script(packed, "3.99")
    done = unpack(packed, tmp_path / "there")
    assert done.returncode == 1
    assert "is not Python 3.99" in done.stderr


def test_packages_are_those_of_the_locks_for_that_python() -> None:
    old, new = node_packages("3.11"), node_packages("3.12")
    assert old["numpy"] != new["numpy"]
    assert {"onnxruntime", "onnx-ir", "model-signing", "tokenizers", "cffi"} <= old.keys()
    assert {"ziglang", "huggingface-hub", "pytest"}.isdisjoint(old)
    assert all("--hash=sha256:" in lines for lines in old.values())
    gpu = cuda_packages("3.12")
    assert {"onnxruntime-gpu", "cuda-bindings", *CUDA_LIBRARIES} <= gpu.keys()
    assert "onnxruntime" not in gpu
