"""The compiler's own process: `python -m appliance.compiler BUNDLE_DIR OUT_DIR`.

Reads the bundle's manifest, compiles it into the empty OUT_DIR, and says on the last line of
standard error, as JSON, what went wrong. Other forms:

    --machine                                what this interpreter can compute on, as JSON
    --golden BUNDLE_DIR OUT_DIR              the processor's results of the golden prompt or texts
    --provider cuda BUNDLE_DIR OUT_DIR GOLDEN_DIR PRECISION GPUS
    --provider tensorrt BUNDLE_DIR OUT_DIR GOLDEN_DIR SIZES
                                             compile for a GPU; the comparison, as JSON
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.files import MANIFEST_NAME, MAX_MANIFEST_BYTES
from appliance.bundle.manifest import Manifest, decode
from appliance.errors import ApplianceError, UnsupportedError, VerificationError
from appliance.fsops import read_regular

if TYPE_CHECKING:
    from appliance.compiler.record import Outcome

_NICENESS = 10
"""Models that are being served go first."""


def main(arguments: list[str]) -> int:
    """Returns the process's exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the model
    os.nice(_NICENESS)
    return reporting(lambda: _dispatch(arguments))


def reporting(work: Callable[[], int]) -> int:
    """The exit status of `work`; what it raises is said as JSON on standard error."""
    try:
        return work()
    except ApplianceError as error:
        report = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, VerificationError):
            report["path"] = error.path
        sys.stderr.write(json.dumps(report) + "\n")
        return error.exit_status


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["--machine"]:
            from appliance.compiler import machine

            sys.stdout.write(machine.encode(machine.read_machine()).decode() + "\n")
        case ["--golden", bundle_dir, out_dir]:
            from appliance.compiler.compile import write_golden

            write_golden(Path(bundle_dir), _manifest(Path(bundle_dir)), Path(out_dir))
        case ["--provider", "cuda", bundle_dir, out_dir, golden_dir, precision, gpus]:
            _compile_for_cuda(
                Path(bundle_dir), Path(out_dir), Path(golden_dir), precision, int(gpus)
            )
        case ["--provider", "tensorrt", bundle_dir, out_dir, golden_dir, sizes]:
            _compile_for_tensorrt(Path(bundle_dir), Path(out_dir), Path(golden_dir), sizes)
        case [bundle_dir, out_dir]:
            from appliance.compiler.compile import compile_bundle

            compile_bundle(Path(bundle_dir), _manifest(Path(bundle_dir)), Path(out_dir))
        case _:
            sys.stderr.write(f"{__doc__}\n")
            return 2
    return 0


def _compile_for_cuda(
    bundle_dir: Path, out_dir: Path, golden_dir: Path, precision: str, gpus: int
) -> None:
    from appliance.compiler import golden
    from appliance.compiler.artifact import GRAPH_NAME, of_stage
    from appliance.compiler.gpu_compile import compile_cuda, cuda_targets
    from appliance.compiler.libraries import read_libraries
    from appliance.compiler.record import Outcome
    from appliance.compiler.recording import why_unrecorded
    from appliance.compiler.tower_compile import compile_tower_beside

    _refuse_missing(read_libraries().missing_cuda)
    manifest = _manifest(bundle_dir)
    targets = cuda_targets(gpus, manifest.spec)
    expected = golden.read(golden_dir)
    compared = compile_cuda(bundle_dir, manifest, out_dir, expected, targets, precision)
    tower = compile_tower_beside(bundle_dir, manifest, out_dir, targets[0])
    unrecorded = None
    if manifest.decoder is not None:
        stages = [out_dir / of_stage(GRAPH_NAME, number) for number in range(gpus)]
        unrecorded = why_unrecorded(stages, manifest.decoder, targets)
    _say(Outcome(compared=compared, tower=tower, unrecorded=unrecorded))


def _compile_for_tensorrt(bundle_dir: Path, out_dir: Path, golden_dir: Path, sizes: str) -> None:
    import msgspec

    from appliance.compiler import golden
    from appliance.compiler.libraries import read_libraries
    from appliance.compiler.profiles import Sizes, plan
    from appliance.compiler.record import Outcome
    from appliance.compiler.trt_compile import compile_tensorrt

    libraries = read_libraries()
    _refuse_missing(libraries.missing_cuda or libraries.missing_tensorrt)
    manifest, expected = _manifest(bundle_dir), golden.read(golden_dir)
    profiles = plan(msgspec.json.decode(sizes, type=Sizes))
    compared = compile_tensorrt(bundle_dir, manifest, out_dir, expected, profiles)
    _say(Outcome(compared=compared))


def _refuse_missing(library: str) -> None:
    if library:
        raise UnsupportedError(library, code="library_missing")


def _say(made: Outcome) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(made).decode() + "\n")


def _manifest(bundle_dir: Path) -> Manifest:
    path = bundle_dir / MANIFEST_NAME
    return decode(read_regular(path, limit=MAX_MANIFEST_BYTES, name=MANIFEST_NAME))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
