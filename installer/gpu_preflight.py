"""Whether this node's GPU will be used, and what stands in the way.

Owns the judgement alone; `gpu.look` does the looking. A GPU that these media would use but that
cannot be used as it is, is a blocker: gigabytes are not copied for nothing, and the remedy always
names the way to go on without it. What merely leaves a node slower than it could be is a remark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.errors import Blocker
from installer.gpu import Gpus

DRIVER = (580,)
"""The first branch of the driver that serves CUDA 13 (CUDA 13.0 release notes)."""
OLDEST_DEVICE = 0x1E00
"""PCI ids of Turing begin here; CUDA 13 computes on nothing older (CUDA 13.0 release notes)."""
_WITHOUT = "or leave the GPU unused (`--processor-only`)"


@dataclass(frozen=True, slots=True)
class GpuNeeds:
    """What the media and the operator want of a GPU. `smallest_model` in bytes, 0 for none."""

    offered: bool = False
    """The media have programs for a GPU."""
    wanted: bool = True
    """The operator lets it be used."""
    tensorrt: bool = False
    smallest_model: int = 0
    system_install: bool = True


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is no obstacle, and what could be done about it."""

    code: str
    message: str
    remedy: str


def uses_gpu(gpus: Gpus, needs: GpuNeeds) -> bool:
    """Whether the release for a GPU is the one to install."""
    return gpus.has_driver and needs.offered and needs.wanted


def blockers(gpus: Gpus, needs: GpuNeeds) -> Iterator[Blocker]:
    """What stands in the way of a GPU that is to be used."""
    if not uses_gpu(gpus, needs):
        return
    if gpus.driver and _order(gpus.driver) < DRIVER:
        yield Blocker(
            "gpu_driver",
            f"the NVIDIA driver is {gpus.driver}, CUDA 13 needs {DRIVER[0]} or newer",
            f"install a newer driver and restart the machine, {_WITHOUT}",
        )
    if gpus.gpus and all(0 < gpu.device < OLDEST_DEVICE for gpu in gpus.gpus):
        yield Blocker(
            "gpu_generation",
            f"CUDA 13 does not compute on this GPU ({gpus.describe()})",
            f"use a GPU of the Turing generation or newer, {_WITHOUT}",
        )
    yield from _libraries(gpus)
    yield from _nodes(gpus, needs)


def remarks(gpus: Gpus, needs: GpuNeeds) -> Iterator[Remark]:
    """What leaves the node slower than its GPU would allow."""
    if not needs.wanted:
        return
    if not gpus.has_driver:
        if gpus.gpus and needs.offered:
            yield Remark(
                "gpu_without_driver",
                "there is an NVIDIA GPU, but no driver for it is loaded, so it stays unused",
                f"install driver {DRIVER[0]} or newer, then run this command again",
            )
        return
    if not needs.offered:
        yield Remark(
            "gpu_media",
            f"the media have no programs for the GPU ({gpus.describe()}), so it stays unused",
            "ask the packager for media built with `--target cuda13`",
        )
        return
    if not needs.tensorrt:
        yield Remark(
            "gpu_tensorrt",
            "the media do not have TensorRT's libraries, so the GPU computes through CUDA",
            "ask the packager for media with them if that is too slow",
        )
    yield from _memory(gpus, needs)


def _libraries(gpus: Gpus) -> Iterator[Blocker]:
    """A driver is broken that has lost its other half, or of which only one half was renewed."""
    if gpus.missing_libraries:
        yield Blocker(
            "gpu_libraries",
            f"the NVIDIA driver is loaded, but {_are(gpus.missing_libraries)} not there",
            "install the driver's packages whole (in a container those of its host are passed in, "
            f"as NVIDIA's container toolkit does), {_WITHOUT}",
        )
    if gpus.driver and gpus.libraries and gpus.driver != gpus.libraries:
        yield Blocker(
            "gpu_driver_halves",
            f"the NVIDIA driver that is loaded is {gpus.driver}, its libraries are "
            f"{gpus.libraries}",
            f"restart the machine, so that the driver is loaded anew, {_WITHOUT}",
        )


def _are(names: Sequence[str]) -> str:
    """`names` with the verb that goes with them."""
    return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'}"


def _nodes(gpus: Gpus, needs: GpuNeeds) -> Iterator[Blocker]:
    if gpus.missing_nodes:
        missing = [f"/dev/{name}" for name in gpus.missing_nodes]
        yield Blocker(
            "gpu_devices",
            f"the NVIDIA driver is loaded, but {_are(missing)} not there",
            "run `nvidia-modprobe -c 255 -c 0 -u` as root (in a container have its host pass these "
            f"files in), {_WITHOUT}",
        )
    closed = gpus.closed_nodes(system=needs.system_install)
    if closed:
        yield Blocker(
            "gpu_access",
            f"the engine's user could not open {', '.join(f'/dev/{name}' for name in closed)}",
            "write `options nvidia NVreg_DeviceFileMode=0666` (or NVreg_DeviceFileGID= and the "
            "number of a group of its own) into /etc/modprobe.d/nvidia.conf and restart the "
            f"machine, {_WITHOUT}",
        )


def _memory(gpus: Gpus, needs: GpuNeeds) -> Iterator[Remark]:
    """Only what all signs speak for: weights take no less on the GPU than in the bundle."""
    most = [gpu.memory_at_most for gpu in gpus.gpus]
    known = [size for size in most if size is not None]
    if not known or len(known) < len(most) or not needs.smallest_model:
        return
    largest = max(known)
    together = sum(size for size in known if size == largest)  # a model may be spread over these
    if together < needs.smallest_model:
        show = "no GPU shows" if together == largest else "the GPUs together show no"
        yield Remark(
            "gpu_memory",
            f"{show} more than {together / 1024**3:.0f} GiB of memory, and the smallest "
            f"model on the media has {needs.smallest_model / 1024**3:.1f} GiB, so models will "
            "probably run on the processor",
            "use media with a smaller model, or a GPU with more memory",
        )


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
