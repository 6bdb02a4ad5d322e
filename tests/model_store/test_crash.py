"""A process that dies between any two file operations leaves a store that works and goes on.

The child is the real code under an audit hook (PEP 578) that ends the process, without any
clean-up, at the n-th file operation; n runs until the operation finishes undisturbed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appliance.model_store import ModelStore
from tests.model_store.bundles import write_bundle

_OPERATIONS = frozenset(
    ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.chmod")
)
_DIED, _FINISHED, _FAILED = 41, 0, 42


def dies_at(operation: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that ends at the n-th file operation; False if it finished."""
    pid = os.fork()
    if pid == 0:
        left = operation

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            if event in _OPERATIONS:
                left -= 1
                if left < 0:
                    os._exit(_DIED)

        try:
            sys.addaudithook(count)
            action()
            os._exit(_FINISHED)
        except BaseException:
            os._exit(_FAILED)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (_DIED, _FINISHED), "the action failed for a reason of its own"
    return status == _DIED


def ignore(_count: int) -> None:
    """Progress that nobody watches."""


def test_an_import_killed_anywhere_is_absent_or_whole_and_can_be_repeated(tmp_path: Path) -> None:
    old = write_bundle(tmp_path / "old", name="a", version="1")
    new = write_bundle(tmp_path / "new", name="a", version="2", weights=b"new weights")
    operation, died = 0, True
    while died:
        store = ModelStore(tmp_path / f"models-{operation}")
        store.import_bundle(old, advance=ignore)
        store.activate("a", "1")
        died = dies_at(operation, partial(store.import_bundle, new, advance=ignore))
        assert [b.version for b in store.bundles()] in (["1"], ["1", "2"])
        assert store.active()["a"].version == "1"
        stored = store.import_bundle(new, advance=ignore)
        weights = stored.directory / "graph/cpu/weights-00001.bin"
        assert weights.read_bytes() == b"new weights"
        store.collect()
        assert [b.version for b in store.bundles()] == ["1", "2"]
        assert list((tmp_path / f"models-{operation}/bundles").glob(".*")) == []
        operation += 1
    assert operation > 20, "the sweep covered the operation"


def test_a_change_killed_anywhere_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    bundles = [write_bundle(tmp_path / v, name="a", version=v) for v in ("1", "2")]
    changes: dict[str, Callable[[ModelStore], object]] = {
        "activate": lambda store: store.activate("a", "2"),
        "rollback": lambda store: store.rollback(),
        "deactivate": lambda store: store.deactivate("a"),
        "remove": lambda store: store.remove("a", "1"),
        "collect": lambda store: store.collect(),
    }
    for word, change in changes.items():
        operation, died = 0, True
        while died:
            store = ModelStore(tmp_path / f"{word}-{operation}")
            for bundle in bundles:
                store.import_bundle(bundle, advance=ignore)
            store.activate("a", "1")
            if word in ("rollback", "remove", "collect"):
                store.activate("a", "2")
            if word == "collect":
                store.remove("a", "1")
            before = _state(store)
            died = dies_at(operation, partial(change, store))
            after_crash = _state(store)
            if after_crash == before:
                change(store)
            elif word == "collect":
                raise AssertionError("collecting changes nothing that can be seen")
            assert _state(store)["active"] == {
                "activate": ["2"], "rollback": ["1"], "deactivate": [],
                "remove": ["2"], "collect": ["2"],
            }[word]  # fmt: skip
            store.collect()
            operation += 1


def _state(store: ModelStore) -> dict[str, list[str]]:
    return {
        "active": [b.version for b in store.active().values()],
        "bundles": [b.version for b in store.bundles()],
    }
