"""The compiler's process on a machine that is described in a file: `gpu_child.py FILE ARGUMENTS`.

Does what `python -m appliance.compiler ARGUMENTS` does, but for what only hardware can do: the
machine is the one in FILE, and CUDA's provider is the processor's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from appliance.bundle.manifest import MANIFEST_NAME, decode
from appliance.compiler import __main__ as compiler
from appliance.compiler import golden
from appliance.compiler.gpu_compile import Target, compile_cuda


def main(machine: Path, arguments: list[str]) -> int:
    match arguments:
        case ["--machine"]:
            sys.stdout.write(machine.read_text())
            return 0
        case ["--provider", "cuda", bundle, out, logits]:
            target = Target("CPUExecutionProvider", "cpu")
            manifest = decode((Path(bundle) / MANIFEST_NAME).read_bytes())
            expected = golden.read(Path(logits))
            compared = compile_cuda(Path(bundle), manifest, Path(out), expected, target)
            sys.stdout.write(msgspec.json.encode(compared).decode())
            return 0
        case _:
            return compiler.main(arguments)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
