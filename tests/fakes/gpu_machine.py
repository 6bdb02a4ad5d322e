"""The kernel's trees of a machine with NVIDIA GPUs, as far as anybody looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

H100, A100, L4, V100, P100 = 0x2330, 0x20B2, 0x27B8, 0x1DB6, 0x15F8
"""PCI device ids."""
DRIVER = "580.95.05"
NODES = ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
GIB = 1024**3


def gpu_machine(
    root: Path,
    *,
    driver: str = DRIVER,
    devices: Sequence[int] = (H100,),
    nodes: Sequence[str] = NODES,
    aperture: int = 128 * GIB,
    mode: int = 0o666,
    libraries: str | None = "",
) -> Path:
    """Write the trees below the new directory `root`; returns it.

    Without `driver` the GPUs are on the bus and that is all. `aperture` is the size of the
    region through which the processor sees a GPU's memory, in bytes. `libraries` is the version of
    the driver that its libraries are of if that is another one, or None for a driver without.
    """
    for number, device in enumerate(devices):
        address = f"0000:{number + 1:02x}:00.0"
        _pci(root, address, vendor=0x10DE, device=device, kind=0x030200, aperture=aperture)
        if driver:
            about = f"Model: \t\t NVIDIA {device:04X}\nIRQ:   \t\t 160\nBus Type: \t PCIe\n"
            _write(root / f"proc/driver/nvidia/gpus/{address}/information", about)
    _pci(root, "0000:00:1f.0", vendor=0x8086, device=0x7A04, kind=0x060100, aperture=0)
    _pci(root, "0000:00:02.0", vendor=0x8086, device=0x4680, kind=0x030000, aperture=GIB)
    if driver:
        _write(root / "proc/driver/nvidia/version", version_text(driver))
        for name in nodes:
            _write(root / "dev" / name, "")
            (root / "dev" / name).chmod(mode)
    if driver and libraries is not None:
        _libraries(root, libraries or driver)
    return root


def _libraries(root: Path, version: str) -> None:
    """As a distribution lays them down, in a directory that the linker knows from its cache."""
    place = "usr/lib/nvidia/current"
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        _write(root / place / f"{name.removesuffix('1')}{version}", "")
        (root / place / name).unlink(missing_ok=True)
        (root / place / name).symlink_to(f"{name.removesuffix('1')}{version}")
    names = "".join(f"/{place}/{name}\0" for name in ("libcuda.so.1", "libnvidia-ml.so.1"))
    _write(root / "etc/ld.so.cache", f"glibc-ld.so.cache1.1\0\0{names}")


def version_text(driver: str, *, is_open: bool = True) -> str:
    """What /proc/driver/nvidia/version says."""
    kind = "Open Kernel Module for x86_64" if is_open else "x86_64 Kernel Module"
    return (
        f"NVRM version: NVIDIA UNIX {kind}  {driver}  Release Build  (user@host)  "
        "Tue Sep 30 10:11:12 UTC 2025\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )


def _pci(root: Path, address: str, *, vendor: int, device: int, kind: int, aperture: int) -> None:
    place = root / "sys/bus/pci/devices" / address
    _write(place / "vendor", f"0x{vendor:04x}\n")
    _write(place / "device", f"0x{device:04x}\n")
    _write(place / "class", f"0x{kind:06x}\n")
    start = 0x2000000000
    regions = [(0xE0000000, 0xE0FFFFFF), (start, start + aperture - 1) if aperture else (0, 0)]
    lines = [f"0x{first:016x} 0x{last:016x} 0x000000000014220c\n" for first, last in regions]
    _write(place / "resource", "".join(lines))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
