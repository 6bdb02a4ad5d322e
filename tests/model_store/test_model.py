"""Any sequence of operations: the store behaves like a dictionary with a history."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.bundle.verify import VerifiedBundle
from appliance.errors import ConflictError, NotFoundError
from appliance.model_store import ModelStore
from tests.model_store.bundles import write_bundle

NAMES = st.sampled_from(["a", "b"])
VERSIONS = st.sampled_from(["1", "2", "3"])
Key = tuple[str, str]


class StoreMachine(RuleBasedStateMachine):
    """The model: what is there, and the chain of active sets."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.store = ModelStore(self.base / "models")
        self.sources: dict[Key, VerifiedBundle] = {}
        self.present: set[Key] = set()
        self.generations: list[tuple[int, dict[str, str]]] = [(0, {})]
        self.current = 0

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    @rule(name=NAMES, version=VERSIONS)
    def import_bundle(self, name: str, version: str) -> None:
        key = (name, version)
        if key not in self.sources:
            self.sources[key] = write_bundle(
                self.base / f"{name}-{version}",
                name=name,
                version=version,
                weights=b"shared" if version == "1" else version.encode(),
                created=int(version),
            )
        self.store.import_bundle(self.sources[key], advance=lambda _: None)
        self.present.add(key)

    @rule(name=NAMES, version=VERSIONS)
    def activate(self, name: str, version: str) -> None:
        if (name, version) not in self.present:
            with pytest.raises(NotFoundError):
                self.store.activate(name, version)
            return
        self.store.activate(name, version)
        self._advance({**self._active(), name: version})

    @rule(name=NAMES)
    def deactivate(self, name: str) -> None:
        active = self._active()
        if name not in active:
            with pytest.raises(NotFoundError):
                self.store.deactivate(name)
            return
        self.store.deactivate(name)
        self._advance({n: v for n, v in active.items() if n != name})

    @rule()
    def rollback(self) -> None:
        parent = self.generations[self.current][0]
        missing = set(self.generations[parent][1].items()) - self.present
        if parent == 0 or missing:
            with pytest.raises(ConflictError):
                self.store.rollback()
            return
        self.store.rollback()
        self.current = parent

    @rule(name=NAMES, version=VERSIONS)
    def remove(self, name: str, version: str) -> None:
        if (name, version) not in self.present:
            with pytest.raises(NotFoundError):
                self.store.remove(name, version)
        elif self._active().get(name) == version:
            with pytest.raises(ConflictError):
                self.store.remove(name, version)
        else:
            self.store.remove(name, version)
            self.present.remove((name, version))

    @rule()
    def collect(self) -> None:
        self.store.collect()
        assert self.store.collect() == 0

    @precondition(lambda self: self.present)
    @rule()
    def open_again(self) -> None:
        self.store = ModelStore(self.base / "models")

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert {(b.name, b.version) for b in self.store.bundles()} == self.present
        assert {n: b.version for n, b in self.store.active().items()} == self._active()
        for bundle in self.store.bundles():
            source = self.sources[bundle.name, bundle.version]
            for entry in source.files:
                copied = (bundle.directory / entry.path).read_bytes()
                assert copied == (source.directory / entry.path).read_bytes()

    def _active(self) -> dict[str, str]:
        return self.generations[self.current][1]

    def _advance(self, models: dict[str, str]) -> None:
        if models != self._active():
            self.generations.append((self.current, models))
            self.current = len(self.generations) - 1


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
