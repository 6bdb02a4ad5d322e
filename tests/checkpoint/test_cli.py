"""`appliance bundle build` and `appliance bundle verify`, as the packager types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from appliance.errors import DigestError, UsageError
from installer.ceremony import hold_ceremony
from installer.cli.bundle import app
from tests.conftest import BuildOnce
from tests.fakes.adapters import write_adapter
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.command import run_command
from tests.fakes.media import write_passphrase

PASSPHRASE = "a passphrase for the tests"


@pytest.fixture(scope="module")
def packager(build_once: BuildOnce) -> Path:
    """A packager's directory: keys, passphrase, a checkpoint. Not to be changed."""

    def build(directory: Path) -> None:
        hold_ceremony(directory / "keys", PASSPHRASE.encode(), officers=3, threshold=2)
        write_passphrase(directory / "passphrase", PASSPHRASE.encode() + b"\n")
        write_bert(directory / "checkpoint")

    return build_once("bundle-cli", build)


MAIN = "from installer.cli import main; main()"
INTERRUPTED = """\
import os, signal
from installer.checkpoint.journal import Journal

# Whoever started the tests may have had them ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

append = Journal.append

def interrupted(self, record):
    append(self, record)
    os.kill(os.getpid(), signal.{number})

Journal.append = interrupted
"""

KILLED = """\
import os, signal
from installer.signing import BundleSigner

sign = BundleSigner.sign

def killed(self, directory):
    sign(self, directory)
    os.kill(os.getpid(), signal.SIGKILL)

BundleSigner.sign = killed
"""


@pytest.fixture(autouse=True)
def _environment(packager: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_PASSPHRASE_FILE", str(packager / "passphrase"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")


def appliance(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """`appliance bundle`, in a process of its own after `script` if there is one."""
    if not script:
        return run_command("bundle", *words)
    return subprocess.run(
        [sys.executable, "-c", script + MAIN, "bundle", *words],
        capture_output=True,
        text=True,
        check=False,
    )


def build(
    packager: Path, out: Path, *words: str, script: str = ""
) -> subprocess.CompletedProcess[str]:
    named = ("--name", "tiny", "--version", "1.0", "--out", str(out))
    keys = ("--keys", str(packager / "keys"))
    words = words if "--parity" in words else (*words, "--parity", "off")
    checkpoint = str(packager / "checkpoint")
    return appliance("build", checkpoint, *named, *keys, *words, script=script)


def test_a_bundle_is_built_and_verified(packager: Path, tmp_path: Path) -> None:
    done = build(packager, tmp_path / "it", "--json")
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert (built["name"], built["precision"], built["kind"]) == ("tiny", "int8", "embedding")
    assert "building the bert graph in int8" in done.stderr
    assert built["parity"] == "not compared: switched off"
    done = appliance("verify", str(tmp_path / "it"), "--keys", str(packager / "keys"))
    assert done.returncode == 0, done.stderr
    assert built["digest"] in done.stdout


def test_a_build_that_was_killed_while_it_signed_goes_on(packager: Path, tmp_path: Path) -> None:
    assert build(packager, tmp_path / "it", script=KILLED).returncode < 0
    assert (tmp_path / ".it.partial/bundle/model.sig").is_file()
    done = build(packager, tmp_path / "it")
    assert done.returncode == 0, done.stderr
    assert "going on" in done.stderr
    done = appliance("verify", str(tmp_path / "it"), "--keys", str(packager / "keys"))
    assert done.returncode == 0, done.stderr


def test_a_signer_that_no_node_would_accept_is_refused_before_the_work(
    packager: Path, tmp_path: Path
) -> None:
    keys = shutil.copytree(packager / "keys", tmp_path / "keys")
    hold_ceremony(tmp_path / "other", PASSPHRASE.encode())
    shutil.copy(tmp_path / "other/private/model-signer.pem", keys / "private")
    done = build(packager, tmp_path / "it", "--keys", str(keys))
    assert done.returncode == 5
    assert "signers.json does not list it" in done.stderr
    assert "hashing" not in done.stderr


def test_a_base_that_is_no_bundle_is_named(packager: Path, tmp_path: Path) -> None:
    base = write_qwen3(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base)
    named = ("--name", "a", "--version", "1", "--out", str(tmp_path / "it"))
    keys = ("--keys", str(packager / "keys"))
    done = appliance("build", str(tmp_path / "adapter"), "--base", str(base), *named, *keys)
    assert done.returncode != 0
    assert "is not a bundle" in done.stderr


def test_a_flipped_byte_is_found_and_named(packager: Path, tmp_path: Path) -> None:
    assert build(packager, tmp_path / "it").returncode == 0
    weights = tmp_path / "it/graph/cpu/weights-00001.bin"
    data = bytearray(weights.read_bytes())
    data[1234] ^= 1
    weights.write_bytes(data)
    keys = str(packager / "keys")
    done = appliance("verify", str(tmp_path / "it"), "--keys", keys, "--json")
    assert done.returncode == 5
    error = json.loads(done.stderr[done.stderr.index("{") :])["error"]
    assert error["path"] == "graph/cpu/weights-00001.bin"


def test_refusals_are_an_error_and_a_hint(packager: Path, tmp_path: Path) -> None:
    done = build(packager, tmp_path / "it", "--precision", "int4")
    assert done.returncode == 6
    assert done.stderr.startswith("error: ")
    assert "\nhint: choose one of int8, fp32" in done.stderr
    assert not (tmp_path / "it").exists()


def test_an_adapter_is_built_for_the_base_that_is_named(packager: Path, tmp_path: Path) -> None:
    base = write_qwen3(tmp_path / "checkpoint")
    lora = write_adapter(tmp_path / "lora", base, targets=("q", "v"))
    keys = ("--keys", str(packager / "keys"))
    passphrase = ("--passphrase-file", str(packager / "passphrase"))

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, [*words, *keys])

    def build_it(checkpoint: Path, name: str, *words: str) -> Any:
        named = ("--name", name, "--version", "1.0", "--out", str(tmp_path / name))
        return run("build", str(checkpoint), *named, *words, *passphrase, "--json")

    at = ("--base", str(tmp_path / "base"))
    as_base = ("--precision", "fp32", "--adapters", "--parity", "off")
    assert build_it(base, "base", *as_base).exit_code == 0
    for words in ((), (*at, "--precision", "fp32"), (*at, "--adapters")):
        assert isinstance(build_it(lora, "support", *words).exception, UsageError)
    assert isinstance(build_it(base, "support", *at).exception, UsageError)
    shown = json.loads(build_it(lora, "support", *at).stdout)
    assert (shown["kind"], shown["base"], shown["rank"]) == ("adapter", "base", 4)
    assert shown["targets"] == "q v"
    assert run("verify", str(tmp_path / "support")).exit_code == 0
    weights = tmp_path / "support/adapter/00000.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    refusal = run("verify", str(tmp_path / "support")).exception
    assert isinstance(refusal, DigestError)
    assert refusal.path == "adapter/00000.bin"


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGHUP", 129), ("SIGTERM", 143)])
def test_a_stop_leaves_a_build_that_goes_on_and_says_so(
    packager: Path, tmp_path: Path, number: str, status: int
) -> None:
    done = build(packager, tmp_path / "it", script=INTERRUPTED.format(number=number))
    assert done.returncode == status, done.stderr
    assert "stopped: what is done is kept" in done.stderr
    assert not (tmp_path / "it").exists()
    done = build(packager, tmp_path / "it")
    assert done.returncode == 0, done.stderr
    assert "going on with the build that was stopped" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.slow
def test_the_comparison_with_the_reference_is_shown_wherever_the_bundle_is(
    packager: Path, tmp_path: Path
) -> None:
    done = build(packager, tmp_path / "it", "--parity", "required")
    assert done.returncode == 0, done.stderr
    shown = "first 2 layers: relative error"
    assert shown in done.stdout
    keys = str(packager / "keys")
    done = appliance("verify", str(tmp_path / "it"), "--keys", keys, "--json")
    assert shown in json.loads(done.stdout)["parity"]
