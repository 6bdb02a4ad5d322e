"""What a node installs is locked by hash, and only what the lock names gets on media."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import UnavailableError, UsageError
from installer.media.lockfile import PYTHONS, Pin, parse_lock, write_lock
from installer.media.wheelhouse import Locks, Wheelhouse, _portions, build_own_wheel
from tests.conftest import REPOSITORY
from tests.fakes.disk import make_read_only, small_disk
from tests.fakes.media import WHEELS
from tests.media.conftest import Site

HASH = "0" * 64


@pytest.fixture(scope="module")
def one_wheel(site: Site) -> str:
    """A lock of one small project; `site` has filled the cache."""
    assert site.media.is_dir()
    pins = parse_lock(Locks.of_checkout().node)
    return write_lock(pin for pin in pins if pin.name == "mdurl")


# Locks


@pytest.mark.parametrize("name", ["node.txt", "bootstrap.txt", "cuda13.txt", "dev.txt"])
def test_committed_locks_pin_everything_and_name_no_address(name: str) -> None:
    text = (REPOSITORY / "requirements" / name).read_text()
    assert "://" not in text
    assert "--index" not in text
    assert parse_lock(text)


def test_a_node_gets_what_was_tested() -> None:
    tested = parse_lock((REPOSITORY / "requirements/dev.txt").read_text())
    shipped = parse_lock(Locks.of_checkout().node)
    versions = {(pin.name, pin.version) for pin in tested}
    assert {(pin.name, pin.version) for pin in shipped} <= versions


def test_a_node_gets_no_client_of_a_model_hub() -> None:
    names = {pin.name for pin in parse_lock(Locks.of_checkout().node)}
    assert "tokenizers" in names
    assert not names & {"huggingface-hub", "hf-xet", "requests", "httpx", "httpx2", "torch"}


def test_the_tokenizer_works_without_the_hub_client() -> None:
    program = """
import sys
sys.modules["huggingface_hub"] = None  # importing it fails
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE
t = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
assert Tokenizer.from_str(t.to_str()).encode("abab").ids == [2, 2]
assert DecodeStream().step(t, 2) == "ab"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("python", PYTHONS)
def test_markers_are_those_of_the_node_not_of_this_interpreter(python: str) -> None:
    lock = f"""\
a==1 ; python_full_version < '3.12' \\
    --hash=sha256:{HASH}
b==1 ; sys_platform == 'win32' \\
    --hash=sha256:{HASH}
c==1 ; platform_machine == 'x86_64' and implementation_name == 'cpython' \\
    --hash=sha256:{HASH}
"""
    applying = {pin.name for pin in parse_lock(lock) if pin.applies(python)}
    assert applying == ({"a", "c"} if python == "3.11" else {"c"})


@pytest.mark.parametrize(
    "line", ["a==1", f"a>=1 --hash=sha256:{HASH}", f"a --hash=sha256:{HASH}", "-r other.txt"]
)
def test_a_loose_lock_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="lock"):
        parse_lock(line + "\n")


# Wheels


def test_the_lock_chooses_one_wheel_for_each_interpreter(site: Site) -> None:
    assert site.media.is_dir()
    lock = Locks.of_checkout().node
    wheels = Wheelhouse(WHEELS).wheels(lock)
    for python in PYTHONS:
        projects = [wheel.project for wheel in wheels if python in wheel.pythons]
        assert len(projects) == len(set(projects))
        assert set(projects) == {pin.name for pin in parse_lock(lock) if pin.applies(python)}


def test_what_is_large_is_fetched_and_named_by_itself() -> None:
    names = ["a", "nvidia-cublas", "b", "onnxruntime-gpu", "onnxruntime"]
    pins = [Pin(name, "1", "", frozenset()) for name in names]
    portions = [[pin.name for pin in portion] for portion in _portions(pins)]
    assert portions == [["a", "b", "onnxruntime"], ["nvidia-cublas"], ["onnxruntime-gpu"]]
    assert list(_portions([])) == []


def test_an_altered_cached_wheel_is_fetched_again(
    one_wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only_from(WHEELS, monkeypatch)
    (wheel,) = Wheelhouse(tmp_path).wheels(one_wheel)
    good = wheel.path.read_bytes()
    wheel.path.write_bytes(good[:-1] + b"!")
    (again,) = Wheelhouse(tmp_path).wheels(one_wheel)
    assert again.path.read_bytes() == good


def test_a_wheel_whose_hash_is_not_in_the_lock_is_never_taken(
    one_wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    for path in WHEELS.glob("mdurl-*.whl"):
        (source / path.name).write_bytes(path.read_bytes() + b"!")
    _only_from(source, monkeypatch)
    with pytest.raises(UnavailableError, match="pip"):
        Wheelhouse(cache).wheels(one_wheel)
    assert not list(cache.glob("*.whl"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_cache_that_nobody_can_change_is_used_as_it_is(one_wheel: str, tmp_path: Path) -> None:
    (wheel,) = Wheelhouse(WHEELS).wheels(one_wheel)
    with small_disk(tmp_path / "disc", 50_000_000):
        shutil.copy(wheel.path, tmp_path / "disc")
        make_read_only(tmp_path / "disc")
        (found,) = Wheelhouse(tmp_path / "disc").wheels(one_wheel)
    assert found.sha256 == wheel.sha256


def test_without_an_index_the_error_says_what_to_check(
    one_wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").mkdir()
    _only_from(tmp_path / "nothing", monkeypatch)
    with pytest.raises(UnavailableError) as caught:
        Wheelhouse(tmp_path / "cache").wheels(one_wheel)
    assert "index" in caught.value.hint


def test_our_own_wheel_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (build_own_wheel(tmp_path / name) for name in ("one", "two"))
    assert (first.sha256, first.size) == (second.sha256, second.size)


def _only_from(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip see `directory` and nothing else, whatever this machine is configured with."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
