"""More models than there is memory for are refused, before anything is copied or recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.audit import create_signer
from appliance.bundle.verify import VerifiedBundle
from appliance.config import Config, Layout
from appliance.errors import CapacityError
from installer import memory
from installer.models import Models
from installer.node import PrefixNode
from installer.progress import NoProgress
from tests.model_store.bundles import write_bundle


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A node whose log can be written."""
    config = Config(Layout(tmp_path / "node"))
    PrefixNode(config.layout).prepare()
    create_signer(config.layout.audit_key, "test")
    return config


@pytest.fixture
def models(config: Config) -> Models:
    return Models(config, PrefixNode(config.layout), NoProgress())


@pytest.fixture
def coming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[VerifiedBundle]:
    """Two models, of which this machine has memory for one."""
    bundles = [write_bundle(tmp_path / name, name=name, version="1") for name in ("a", "b")]
    room = memory.needed({"a": bundles[0].manifest}, gpu=False)
    assert room > memory.BASE_BYTES
    monkeypatch.setattr(memory, "there", lambda: room)
    return bundles


def test_a_model_that_does_not_fit_beside_the_others_is_not_added(
    models: Models, coming: list[VerifiedBundle]
) -> None:
    """It would be served at once: the kernel would end the engine, and all models with it."""
    models.store.import_bundle(coming[0], advance=lambda _: None)
    models.store.activate("a", "1")
    with pytest.raises(CapacityError, match="a, b need 512 MiB of memory together") as caught:
        models.add(coming[1:])
    assert "`appliance models remove NAME VERSION --active`" in caught.value.hint
    assert [bundle.name for bundle in models.store.bundles()] == ["a"]


def test_nor_is_one_activated_that_was_added_before(
    config: Config, models: Models, coming: list[VerifiedBundle]
) -> None:
    for bundle in coming:
        models.store.import_bundle(bundle, advance=lambda _: None)
    models.store.activate("a", "1")
    with pytest.raises(CapacityError):
        models.activate("b", "1")
    assert list(models.store.active()) == ["a"]
    assert list(config.layout.audit.iterdir()) == []


def test_a_node_that_gets_by_with_less_may_change_to_what_takes_no_more(
    coming: list[VerifiedBundle],
) -> None:
    both = {bundle.manifest.name: bundle.manifest for bundle in coming}
    memory.require(both, before=both, gpu=False)
    with pytest.raises(CapacityError):
        memory.require(both, before={"a": both["a"]}, gpu=False)


def test_a_machine_has_memory() -> None:
    assert memory.there() > memory.BASE_BYTES
