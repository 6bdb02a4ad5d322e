"""The first key is shown exactly once, whatever happens in between."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from appliance.access import KeyStore
from appliance.config import Layout
from installer.first_key import first_key_was_shown, offer_first_key
from installer.proof import KEY_NAME


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    for directory in (layout.access, layout.install_state):
        directory.mkdir(parents=True)
    return layout


def works(layout: Layout, secret: str) -> bool:
    with KeyStore(layout.keys_db) as keys:
        return keys.authenticate(secret) is not None


def test_a_new_node_gets_one_key_and_only_one(layout: Layout) -> None:
    secret = offer_first_key(layout)
    assert secret is not None
    assert works(layout, secret)
    first_key_was_shown(layout)
    assert offer_first_key(layout) is None


def test_a_key_that_was_never_shown_is_offered_again(layout: Layout) -> None:
    secret = offer_first_key(layout)
    assert offer_first_key(layout) == secret
    with KeyStore(layout.keys_db) as keys:
        assert len(keys.list()) == 1


def test_a_crash_before_the_key_was_stored_loses_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeyStore, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            offer_first_key(layout)
    secret = offer_first_key(layout)
    assert secret is not None
    assert works(layout, secret)


def test_the_secret_is_gone_from_the_disk_once_it_was_shown(layout: Layout) -> None:
    secret = offer_first_key(layout)
    assert secret is not None
    first_key_was_shown(layout)
    first_key_was_shown(layout)
    for path in layout.state.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_while_it_waits_only_its_owner_can_read_it(layout: Layout) -> None:
    offer_first_key(layout)
    (pending,) = layout.install_state.iterdir()
    assert pending.stat().st_mode & 0o077 == 0


def test_the_installers_own_key_does_not_count(layout: Layout) -> None:
    with KeyStore(layout.keys_db) as keys:
        info, _ = keys.create(KEY_NAME, expires=int(time.time()) + 60)
        keys.revoke(info.id)
    assert offer_first_key(layout) is not None


def test_a_node_whose_operator_made_keys_gets_none(layout: Layout) -> None:
    with KeyStore(layout.keys_db) as keys:
        keys.create("billing")
    assert offer_first_key(layout) is None
