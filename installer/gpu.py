"""The NVIDIA GPUs of this machine, as its kernel shows them in /proc, /sys and /dev.

Owns the looking, also for the driver's libraries, of which it loads none: so it works before
anything is installed, and where the driver is broken.
Refuses to guess: how much memory a GPU has is nowhere in these trees, only (on most servers' GPUs)
how much it can have at most; the compiler asks the driver later.
"""

from __future__ import annotations

import grp
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from installer import driver_libraries

MACHINE = Path("/")
"""Where the kernel's trees are; tests name a directory with trees of their own."""
CONTROL, UNIFIED_MEMORY = "nvidiactl", "nvidia-uvm"
_TOOLS = "nvidia-uvm-tools"
_VENDOR = 0x10DE
_DISPLAY_CLASS = 0x03
"""PCI base class of display controllers, 3D controllers among them."""
_REGIONS = 6
"""Regions of a PCI function. The largest is the one that shows the GPU's memory."""
_SMALL_APERTURE = 512 * 1024**2
"""Up to here that region is a window; a larger one covers the whole memory."""
_VERSION = re.compile(r"\s(\d{3,}(?:\.\d+)+)\s")
_GPU_NODE = re.compile(r"nvidia\d+")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU on the PCI bus.

    Attributes:
        model: the driver's name for it; empty if no driver says one.
        device: PCI device id; they grow with the generations.
        memory_at_most: bytes, unless the firmware has narrowed its region; None if unknown.
    """

    model: str
    device: int
    memory_at_most: int | None


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """One of the driver's files in /dev; `group` is who may open it, if not everybody may."""

    name: str
    open_to_all: bool
    group: str | None
    open_to_us: bool


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the kernel shows, and of a driver that it has loaded the libraries.

    Attributes:
        driver: version of the loaded driver, or empty.
        missing_libraries: what programs need of a loaded driver and would not find.
        libraries: version of the driver that its libraries are of; empty if unknown.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    nodes: tuple[DeviceNode, ...] = ()
    missing_libraries: tuple[str, ...] = ()
    libraries: str = ""

    @property
    def has_driver(self) -> bool:
        """Whether NVIDIA's driver runs here."""
        return bool(self.driver) or any(node.name == CONTROL for node in self.nodes)

    @property
    def missing_nodes(self) -> tuple[str, ...]:
        """The files in /dev that computing needs and that are not there."""
        names = {node.name for node in self.nodes}
        missing = [name for name in (CONTROL, UNIFIED_MEMORY) if name not in names]
        if not any(_GPU_NODE.fullmatch(name) for name in names):
            missing.insert(0, "nvidia0")
        return tuple(missing)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that whoever computes must be in, as far as they help."""
        found = {node.group for node in self.nodes if not node.open_to_all and node.group}
        return tuple(sorted(found))

    def closed_nodes(self, *, system: bool) -> tuple[str, ...]:
        """Those that the engine could not open: as its own user (`system`), else as us."""
        return tuple(
            node.name
            for node in self.nodes
            if not (node.open_to_all or (node.group if system else node.open_to_us))
        )

    def describe(self) -> str:
        """Names and driver, for people."""
        names = [gpu.model or f"NVIDIA GPU {gpu.device:04x}" for gpu in self.gpus]
        counted = [
            f"{names.count(name)}x {name}" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        ] or ["NVIDIA GPU"]
        driver = f"driver {self.driver}" if self.driver else "no driver"
        return f"{', '.join(counted)}; {driver}"


def look(machine: Path = MACHINE) -> Gpus:
    """The GPUs of the machine whose kernel's trees are below `machine`. Changes nothing."""
    proc = machine / "proc/driver/nvidia"
    version = _VERSION.search(_text(proc / "version"))
    seen = Gpus(
        gpus=tuple(_on_the_bus(machine, _models(proc))),
        driver=version[1] if version else "",
        nodes=tuple(_nodes(machine / "dev")),
    )
    if not seen.has_driver:
        return seen
    missing, libraries = driver_libraries.missing(machine), driver_libraries.version(machine)
    return replace(seen, missing_libraries=missing, libraries=libraries)


def _models(proc: Path) -> dict[str, str]:
    """Bus address -> the driver's name of the GPU there."""
    models = {}
    for path in sorted(proc.glob("gpus/*/information")):
        fields = dict(_field(line) for line in _text(path).splitlines())
        models[path.parent.name.lower()] = fields.get("Model", "")
    return models


def _on_the_bus(machine: Path, models: dict[str, str]) -> Iterator[Gpu]:
    bus = machine / "sys/bus/pci/devices"
    seen = set()
    for path in sorted(bus.glob("*")):
        is_display = _number(path / "class") >> 16 == _DISPLAY_CLASS
        if is_display and _number(path / "vendor") == _VENDOR:
            seen.add(path.name.lower())
            model = models.get(path.name.lower(), "")
            yield Gpu(model, _number(path / "device"), _memory_at_most(path / "resource"))
    for address in models.keys() - seen:  # a container may hide the bus
        yield Gpu(models[address], 0, None)


def _memory_at_most(resource: Path) -> int | None:
    """Bytes of the region through which the processor sees all of the GPU's memory, or None.

    A line of `resource` is first address, last address, flags (Documentation/PCI/sysfs-pci.rst).
    """
    try:
        regions = [line.split() for line in _text(resource).splitlines()[:_REGIONS]]
        sizes = [int(last, 16) - int(first, 16) + 1 for first, last, _ in regions]
    except ValueError:
        return None
    largest = max(sizes, default=0)
    return largest if largest > _SMALL_APERTURE else None


def _nodes(dev: Path) -> Iterator[DeviceNode]:
    for path in sorted(dev.glob("nvidia*")):
        if path.name in (CONTROL, UNIFIED_MEMORY, _TOOLS) or _GPU_NODE.fullmatch(path.name):
            status = path.stat()
            yield DeviceNode(
                path.name,
                open_to_all=status.st_mode & 0o006 == 0o006,
                group=_group(status),
                open_to_us=os.access(path, os.R_OK | os.W_OK),
            )


def _group(status: os.stat_result) -> str | None:
    """The group that may open it, unless that is root's."""
    if status.st_gid == 0 or status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) != 0o060:
        return None
    try:
        return grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        return str(status.st_gid)


def unit_nodes(gpus: Gpus) -> tuple[str, ...]:
    """Paths in /dev that the engine is to have, whether they are there yet or not."""
    names: Iterable[str] = (node.name for node in gpus.nodes if _GPU_NODE.fullmatch(node.name))
    numbered = sorted(names, key=lambda name: int(name.removeprefix("nvidia"))) or ["nvidia0"]
    return tuple(f"/dev/{name}" for name in (*numbered, CONTROL, UNIFIED_MEMORY, _TOOLS))


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _number(path: Path) -> int:
    try:
        return int(_text(path), 16)
    except ValueError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
