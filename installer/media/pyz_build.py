"""The making of appliance.pyz: the installer and its libraries in one file for a bare CPython.

Owns its contents and their byte order: the same wheels and root give the same bytes, so that a
second packager can reproduce the fingerprint. Refuses nothing that a wheel holds; what goes in
was checked against the lock.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import BytesParser
from importlib.resources import files

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from installer.media.lockfile import PYTHONS, environment
from installer.media.wheelhouse import Wheel

ROOTS = ("appliance", "cryptography", "msgspec", "rich", "securesystemslib", "tuf", "typer")
"""What the installer imports before the node has an environment of its own."""
UNUSED = frozenset({"urllib3"})
"""Left out: tuf fetches with it, and a node fetches nothing."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)


def build_pyz(wheels: Sequence[Wheel], root: bytes) -> bytes:
    """The bytes of an appliance.pyz with the needed ones of `wheels` and the anchor `root`."""
    buffer = io.BytesIO()
    buffer.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", files("installer").joinpath("unpack.py").read_bytes())
        _add(archive, "root.json", root)
        for name, wheel in sorted(_placed(_needed(wheels))):
            _add(archive, name, wheel.path.read_bytes())
    return buffer.getvalue()


def _needed(wheels: Sequence[Wheel]) -> list[Wheel]:
    """The wheels that ROOTS require, followed through the wheels' own metadata."""
    by_project: dict[str, list[Wheel]] = {}
    for wheel in wheels:
        by_project.setdefault(wheel.project, []).append(wheel)
    wanted, queue = set[str](), list(ROOTS)
    while queue:
        project = queue.pop()
        if project in wanted or project in UNUSED or project not in by_project:
            continue
        wanted.add(project)
        if project != "appliance":
            queue += _requirements(by_project[project][0])
    return [wheel for project in sorted(wanted) for wheel in by_project[project]]


def _requirements(wheel: Wheel) -> list[str]:
    with zipfile.ZipFile(wheel.path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(archive.read(name))
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    return [
        canonicalize_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None
        or any(requirement.marker.evaluate(environment(python)) for python in PYTHONS)
    ]


def _placed(wheels: Iterable[Wheel]) -> Iterable[tuple[str, Wheel]]:
    """Name inside the archive: by interpreter where a project has one wheel for each."""
    wheels = list(wheels)
    projects = [wheel.project for wheel in wheels]
    for wheel in wheels:
        if projects.count(wheel.project) == 1:
            yield f"wheels/any/{wheel.path.name}", wheel
        else:
            for python in wheel.pythons:
                yield f"wheels/cp{python.replace('.', '')}/{wheel.path.name}", wheel


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EARLIEST)
    info.create_system, info.external_attr = 3, 0o100644 << 16
    archive.writestr(info, data)
