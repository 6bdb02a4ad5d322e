"""Everything that a GPU machine without a network or an index needs for `scripts/gpu-check`.

Owns the pack: three archives (the code, what it needs, the GPU's runtime), each cut into parts that
a narrow way takes, and a script that checks and joins them. The code is apart, so that another
commit is one small part. The peer comes from the machine's own Python, and so may CUDA's libraries.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from appliance.fsops import hash_regular
from bench_peers.work import REPOSITORY, say
from gpu_check.locked import CUDA_LIBRARIES, cuda_packages, node_packages

CODE, SITE, GPU = "code", "site", "gpu"
CHECKSUMS, UNPACK = "parts.sha256", "unpack.sh"
_NATIVE = "appliance/native"
_XZ = ("xz", "-T0", "-6", "-c")


def pack(directory: Path, part_bytes: int, python: str, *, gpu: bool, cuda_libraries: bool) -> None:
    """Write the parts and the script into `directory`, for interpreters of version `python`."""
    with _stage(directory) as stage:
        _export(stage / CODE)
        _install(node_packages(python), stage / SITE, python)
        if gpu:
            left_out = frozenset() if cuda_libraries else CUDA_LIBRARIES
            packages = cuda_packages(python)
            chosen = {name: packages[name] for name in packages if name not in left_out}
            _install(chosen, stage / GPU, python)
        for old in directory.glob("*.part-*"):
            old.unlink()
        write_parts(stage, directory, part_bytes)
        write_script(directory, python)


def pack_code(directory: Path, part_bytes: int) -> None:
    """Replace the code in the pack in `directory`: the other parts stay, and need not go again."""
    with _stage(directory) as stage:
        _export(stage / CODE)
        write_parts(stage, directory, part_bytes)


def write_parts(stage: Path, directory: Path, part_bytes: int) -> None:
    """Each folder in `stage` as NAME.part-000 and so on, and the digests of all that are there."""
    for folder in sorted(path for path in stage.iterdir() if path.is_dir()):
        for old in directory.glob(f"{folder.name}.part-*"):
            old.unlink()
        parts = _compress(folder, directory, part_bytes)
        size = sum(part.stat().st_size for part in parts)
        say(f"{folder.name}: {size / (1 << 20):.1f} MiB in {len(parts)} parts")
    there = sorted(directory.glob("*.part-*"))
    lines = [f"{hash_regular(part, name=part.name)[1]}  {part.name}\n" for part in there]
    (directory / CHECKSUMS).write_text("".join(lines))


@contextmanager
def _stage(directory: Path) -> Iterator[Path]:
    """A folder for what is packed, which goes away."""
    directory.mkdir(parents=True, exist_ok=True)
    stage = directory / ".stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
    finally:
        shutil.rmtree(stage)


def write_script(directory: Path, python: str) -> None:
    """The script that joins the parts and makes the two environments."""
    text = (Path(__file__).parent / UNPACK).read_text("utf-8")
    target = directory / UNPACK
    target.write_text(text.replace("@PYTHON@", python), "utf-8")
    target.chmod(target.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _export(target: Path) -> None:
    """The repository at HEAD, with the compiled operators, which are not in it."""
    target.mkdir()
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive, check=True)
    for path in (REPOSITORY / _NATIVE).glob("libappliance_native.*"):
        shutil.copy2(path, target / _NATIVE)


def _install(packages: Mapping[str, str], target: Path, python: str) -> None:
    """Unpack these wheels, each the one that the lock names."""
    lock = target.parent / f"{target.name}.txt"
    lock.write_text("".join(packages.values()))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-qq", "--target", str(target)),
            *("--python-version", python, "--only-binary=:all:", "--no-compile"),
            *("--no-deps", "--require-hashes", "-r", str(lock)),
        ],
        check=True,
    )


def _compress(folder: Path, directory: Path, part_bytes: int) -> list[Path]:
    """A compressed archive of what is in `folder`, cut into parts."""
    with (
        subprocess.Popen(["tar", "-c", "-C", str(folder), "."], stdout=subprocess.PIPE) as tar,
        subprocess.Popen(_XZ, stdin=tar.stdout, stdout=subprocess.PIPE) as xz,
    ):
        assert tar.stdout is not None
        assert xz.stdout is not None
        tar.stdout.close()  # of this process: tar is told when xz ends
        parts = list(_cut(xz.stdout, directory / folder.name, part_bytes))
    if tar.returncode or xz.returncode:
        raise SystemExit(f"error: {folder.name} could not be compressed")
    return parts


def _cut(stream: IO[bytes], stem: Path, part_bytes: int) -> Iterator[Path]:
    number = 0
    while piece := stream.read(part_bytes):
        part = stem.with_name(f"{stem.name}.part-{number:03}")
        part.write_bytes(piece)
        yield part
        number += 1
