"""The compiler's process on a machine that is described in a file: `gpu_child.py FILE ARGUMENTS`.

Does what `python -m appliance.compiler ARGUMENTS` does, but for what only hardware can do: the
machine is the one in FILE, CUDA's provider is the processor's, and TensorRT's engines are empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.compiler import __main__ as compiler
from appliance.compiler import golden
from appliance.compiler.gpu_compile import Target, compile_cuda
from appliance.compiler.profiles import Sizes, plan
from appliance.compiler.record import Comparison, Outcome
from appliance.compiler.tower_compile import compile_tower_beside


def main(machine: Path, arguments: list[str]) -> int:
    return compiler.reporting(lambda: _dispatch(machine, arguments))


def _dispatch(machine: Path, arguments: list[str]) -> int:
    match arguments:
        case ["--machine"]:
            sys.stdout.write(machine.read_text())
            return 0
        case ["--provider", "cuda", bundle, out, logits, precision, gpus]:
            target = Target("CPUExecutionProvider", "cpu")
            targets = [target] * int(gpus)
            manifest = decode((Path(bundle) / MANIFEST_NAME).read_bytes())
            expected = golden.read(Path(logits))
            compared = compile_cuda(Path(bundle), manifest, Path(out), expected, targets, precision)
            tower = compile_tower_beside(Path(bundle), manifest, Path(out), target)
            made = Outcome(compared=compared, tower=tower)
            sys.stdout.write(msgspec.json.encode(made).decode())
            return 0
        case ["--provider", "tensorrt", _, out, _, sizes]:
            # Engines that nothing can run; what is done with them on a node does not look inside.
            for profile in plan(msgspec.json.decode(sizes, type=Sizes)):
                (Path(out) / profile.graph).write_text(f"names {profile.name}")
                (Path(out) / f"{profile.name}_sm90.engine").write_text(sizes)
            made = Outcome(compared=Comparison(error=0.01, bound=0.02))
            sys.stdout.write(msgspec.json.encode(made).decode())
            return 0
        case _:
            return compiler.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
