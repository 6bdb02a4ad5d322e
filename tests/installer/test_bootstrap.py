"""appliance.pyz carries few libraries: the first half must need no others."""

from __future__ import annotations

import subprocess
import sys

_BLOCKED = (
    "numpy", "onnxruntime", "grpc", "google.protobuf", "sqlite_utils", "starlette", "uvicorn",
    "tokenizers", "jinja2", "prometheus_client", "torch", "transformers", "onnx", "packaging",
)  # fmt: skip
_IMPORT = """
import sys
blocked = set(sys.argv[1:])
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import installer.bootstrap, installer.install, installer.node, installer.media, installer.staging
"""


def test_the_first_half_imports_nothing_that_comes_with_the_release() -> None:
    subprocess.run([sys.executable, "-c", _IMPORT, *_BLOCKED], check=True)


def test_the_bootstrap_offers_the_install_command_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from installer.bootstrap import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "install" in done.stdout
    assert "models" not in done.stdout
