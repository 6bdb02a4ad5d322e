"""The compiler's own process: `python -m appliance.compiler BUNDLE_DIR OUT_DIR`.

Reads the bundle's manifest, compiles it into the empty OUT_DIR, and says on the last line of
standard error, as JSON, what went wrong. `--fingerprint` prints what artifacts made by this
interpreter depend on.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from appliance.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, decode
from appliance.errors import ApplianceError, VerificationError
from appliance.fsops import read_regular

_NICENESS = 10
"""Models that are being served go first."""


def main(arguments: list[str]) -> int:
    """Returns the process's exit status."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the model
    os.nice(_NICENESS)
    match arguments:
        case ["--fingerprint"]:
            from appliance.compiler.fingerprint import fingerprint

            sys.stdout.write(json.dumps(fingerprint()))
            return 0
        case [bundle_dir, out_dir]:
            return _compile(Path(bundle_dir), Path(out_dir))
        case _:
            sys.stderr.write("usage: python -m appliance.compiler BUNDLE_DIR OUT_DIR\n")
            return 2


def _compile(bundle_dir: Path, out_dir: Path) -> int:
    from appliance.compiler.compile import compile_bundle

    try:
        document = read_regular(
            bundle_dir / MANIFEST_NAME, limit=MAX_MANIFEST_BYTES, name=MANIFEST_NAME
        )
        compile_bundle(bundle_dir, decode(document), out_dir)
    except ApplianceError as error:
        report = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, VerificationError):
            report["path"] = error.path
        sys.stderr.write(json.dumps(report) + "\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
