"""Requirements locked by hash, as `scripts/lock` writes them.

Owns the reading of a lock and its reduction to one interpreter. Refuses requirements without an
exact version or without hashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from appliance.errors import UsageError

PYTHONS = ("3.11", "3.12", "3.13")
"""The CPython versions that media carry wheels for."""
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One locked requirement; `marker` is empty or an environment marker (PEP 508)."""

    name: str
    version: str
    marker: str
    hashes: frozenset[str]

    def applies(self, python: str) -> bool:
        """Whether CPython `python` on 64-bit x86 Linux needs it."""
        if not self.marker:
            return True
        marker = Requirement(f"{self.name} ; {self.marker}").marker
        assert marker is not None
        return marker.evaluate(environment(python))


def parse_lock(text: str) -> tuple[Pin, ...]:
    """The pins of a lock, each once. Raises UsageError naming the line."""
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        head = line.split(" --hash", 1)[0].strip()
        hashes = frozenset(_HASH.findall(line))
        try:
            requirement = Requirement(head)
        except InvalidRequirement as error:
            raise _bad(head, str(error)) from None
        exact = [s.version for s in requirement.specifier if s.operator == "=="]
        if not hashes or len(exact) != 1 or len(requirement.specifier) != 1:
            raise _bad(head, "it needs one exact version and at least one SHA-256")
        pins.append(
            Pin(
                canonicalize_name(requirement.name),
                exact[0],
                str(requirement.marker or ""),
                hashes,
            )
        )
    return tuple(dict.fromkeys(pins))


def write_lock(pins: Iterable[Pin], *, markers: bool = False) -> str:
    """`pins` as pip reads them; without markers, unless they are asked for."""
    lines = []
    for pin in pins:
        hashes = " \\\n".join(f"    --hash=sha256:{value}" for value in sorted(pin.hashes))
        marker = f" ; {pin.marker}" if markers and pin.marker else ""
        lines.append(f"{pin.name}=={pin.version}{marker} \\\n{hashes}\n")
    return "".join(lines)


def environment(python: str) -> dict[str, str]:
    """The marker environment of CPython `python` on 64-bit x86 Linux (PEP 508)."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
        "extra": "",
    }


def _bad(head: str, reason: str) -> UsageError:
    return UsageError(
        f"the lock is not valid at {head!r}: {reason}", hint="make it again with scripts/lock"
    )
