"""CUDA's libraries of a machine without a GPU: whatever is called says that there is no device.

The CUDA provider loads with them and reads its options, which is all that can be had of it here.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

_NEEDED = re.compile(r"\(NEEDED\).*\[(lib(?:cuda|cudart|cublas|cublasLt|curand)\.so\.\d+)\]")
_NO_DEVICE = 100
"""cudaErrorNoDevice, CUDA Runtime API, section 6.36."""


def write_libraries(provider: Path, folder: Path) -> None:
    """Put into `folder` each library of CUDA's that the shared object `provider` asks for."""
    names = _NEEDED.findall(_said("readelf", "-dW", str(provider)))
    symbols: dict[str, set[str]] = defaultdict(set)
    for line in _said("nm", "-D", "-u", "--with-symbol-versions", str(provider)).splitlines():
        symbol, _, version = line.split()[-1].partition("@")
        if "cu" in symbol:
            symbols[version if version in names else ""].add(symbol)
    for name in names:
        own = symbols[name] if name in symbols else symbols[""]
        _write(folder / name, own, versioned=name in symbols)


def _write(path: Path, symbols: set[str], *, versioned: bool) -> None:
    source = path.with_suffix(".c")
    source.write_text("".join(map(_function, sorted(symbols))))
    script = path.with_suffix(".map")
    script.write_text(f"{path.name} {{ *; }};" if versioned else "{ global: *; };")
    _said(
        *("cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{path.name}"),
        *(f"-Wl,--version-script={script}", "-o", str(path), str(source)),
    )


def _function(symbol: str) -> str:
    if symbol.endswith(("String", "Name")):
        return f'const char *{symbol}() {{ return "no device"; }}\n'
    return f"long {symbol}() {{ return {_NO_DEVICE}; }}\n"


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
