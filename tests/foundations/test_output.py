"""Every command speaks the same way when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from installer.cli import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def broken_node(tmp_path: Path) -> Path:
    config = tmp_path / "etc/appliance/appliance.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[api]\nport = 80\n")
    return tmp_path


def test_an_error_is_one_line_and_a_hint_on_standard_error(tmp_path: Path) -> None:
    done = run("keys", "create", "app", "--root", str(broken_node(tmp_path)))
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path}")
    assert first.endswith("/appliance.toml: unknown setting api.port")
    assert second.startswith("hint: settings are ")


def test_with_json_an_error_is_one_document_on_standard_error(tmp_path: Path) -> None:
    done = run("keys", "create", "app", "--json", "--root", str(broken_node(tmp_path)))
    assert done.returncode == 2
    assert done.stdout == ""
    assert json.loads(done.stderr)["error"]["code"] == "config_invalid"


def test_the_command_starts_without_loading_the_heavy_libraries() -> None:
    code = (
        "import sys, installer.cli\n"
        "print([m for m in ('numpy', 'onnxruntime', 'grpc', 'torch', 'onnx', 'transformers')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
