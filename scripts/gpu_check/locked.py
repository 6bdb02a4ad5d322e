"""Which locked packages a GPU machine needs: those of a node, and what builds a bundle.

Owns the choice from requirements/*.txt. Asks what is installed here what each package requires, so
it runs in the environment of `scripts/setup`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import requires

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench_peers.work import REPOSITORY

CUDA_LIBRARIES = frozenset(
    {
        *("nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13"),
        *("nvidia-cufft", "nvidia-curand", "nvidia-nvjitlink"),
    }
)
"""What a machine with a PyTorch for CUDA 13 has already."""
_ONLY_TO_COMPILE = frozenset({"hatchling", "ziglang"})
_LINE = re.compile(r"(?P<name>[a-z0-9-]+)==[^ ]+(?: ; (?P<marker>[^\\]+?))?(?: \\)?")


def node_packages(python: str) -> dict[str, str]:
    """Name -> its lines in the lock, of all that runs an engine and builds a bundle."""
    locked = _locked("dev.txt", python)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"]["packager"]]
    left_out = _ONLY_TO_COMPILE.union(_lines("node.exclude"))
    found: dict[str, str] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or name in left_out or name not in locked:
            continue
        found[name] = locked[name]
        waiting += _required(name, requirement.extras, python)
    return found


def cuda_packages(python: str) -> dict[str, str]:
    """The same of what a GPU's environment has besides."""
    there = node_packages(python)
    locked = _locked("cuda13.txt", python)
    names = ("onnxruntime-gpu", "cuda-", "nvidia-")
    return {
        name: lines
        for name, lines in locked.items()
        if name not in there and name.startswith(names)
    }


def _required(name: str, extras: set[str], python: str) -> Iterator[str]:
    """What the installed package `name` requires, with these extras."""
    for text in requires(name) or ():
        marker = Requirement(text).marker
        if marker is None or any(_holds(marker, python, extra) for extra in ("", *extras)):
            yield text


def _lines(file: str) -> list[str]:
    """Of requirements/`file`."""
    return (REPOSITORY / "requirements" / file).read_text("utf-8").splitlines()


def _locked(file: str, python: str) -> dict[str, str]:
    """Name -> lines of the entry in requirements/`file` that is for this version of Python."""
    found: dict[str, str] = {}
    name = None
    for line in _lines(file):
        match = _LINE.fullmatch(line.strip())
        if match is not None:
            marker = match["marker"]
            wanted = marker is None or _holds(Marker(marker), python, "")
            name = match["name"] if wanted else None
            if name is not None:
                found[name] = f"{name}=={line.split('==')[1].split(' ')[0]} \\\n"
        elif name is not None and line.strip().startswith("--hash"):
            found[name] += line + "\n"
    return found


def _holds(marker: Marker, python: str, extra: str) -> bool:
    environment: Mapping[str, str] = {
        "python_version": python, "python_full_version": f"{python}.0", "extra": extra
    }  # fmt: skip
    return marker.evaluate(dict(environment))
