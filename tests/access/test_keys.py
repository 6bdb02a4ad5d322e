"""The form of a key, its life, and that its secret is kept nowhere."""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from appliance.access import (
    KeyInfo,
    KeyStore,
    check_readable,
    database,
    new_key,
    new_project,
    secret,
)
from appliance.errors import ConflictError, NotFoundError, StorageError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


def test_a_key_shows_its_id_and_hides_the_rest() -> None:
    key = new_key("crm")
    assert key.secret.startswith(f"sk-{key.info.id}-")
    assert secret.id_of(key.secret) == key.info.id
    assert key.secret not in repr(key)
    assert key.secret.rpartition("-")[2] not in repr(key)


@pytest.mark.parametrize(
    "text", ["", "sk-", "sk-abc", "sk-aaaaaaaa-", "sk-aaaaaaaa-" + "A" * 40, "sk-\u00e4" + "a" * 47]
)
def test_what_is_not_a_key_has_no_id(text: str, path: Path) -> None:
    assert secret.id_of(text) is None
    with KeyStore(path) as store:
        assert store.authenticate(text) is None


@pytest.mark.parametrize("name", ["", " x", "x ", "a\nb", "x" * 65])
def test_a_name_that_would_not_read_well_in_a_list_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name of a key"):
        new_key(name)


def test_a_key_that_expires_in_the_past_is_refused() -> None:
    with pytest.raises(UsageError, match="expire"):
        new_key("crm", expires=1)


def test_only_the_whole_key_authenticates(path: Path) -> None:
    with KeyStore(path) as store:
        info, whole = store.create("crm")
        other, _ = store.create("wiki")
        assert store.authenticate(whole) == info
        wrong = whole[:-1] + ("a" if whole[-1] != "a" else "b")
        assert store.authenticate(wrong) is None
        assert store.authenticate(whole.replace(info.id, other.id)) is None
        assert store.authenticate(whole.replace(info.id, "zzzzzzzz")) is None


def test_the_file_holds_a_hash_and_never_the_secret(path: Path) -> None:
    with KeyStore(path) as store:
        _, whole = store.create("crm")
    content = path.read_bytes()
    assert whole.rpartition("-")[2].encode() not in content
    assert secret.digest(whole) in content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_revocation_that_returned_holds_in_every_process_that_has_the_file_open(
    path: Path,
) -> None:
    with KeyStore(path) as serving, KeyStore(path) as command:
        info, whole = command.create("crm")
        assert serving.authenticate(whole) is not None
        revoked = command.revoke(info.id)
        assert serving.authenticate(whole) is None
        assert revoked.state(time.time()) == "revoked"


def test_a_key_is_revoked_once(path: Path) -> None:
    with KeyStore(path) as store:
        info, _ = store.create("crm")
        store.revoke(info.id)
        with pytest.raises(ConflictError):
            store.revoke(info.id)
        with pytest.raises(NotFoundError):
            store.revoke("zzzzzzzz")


def test_an_expired_key_stays_listed_and_is_worth_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KeyStore(path) as store:
        info, whole = store.create("crm", expires=int(time.time()) + 60)
        assert store.authenticate(whole) == info
        later = time.time() + 61
        monkeypatch.setattr("appliance.access.store.time.time", lambda: later)
        assert store.authenticate(whole) is None
        assert store.list() == (info,)
        assert info.state(later) == "expired"


def test_keys_are_listed_in_the_order_they_were_made(path: Path) -> None:
    with KeyStore(path) as store:
        made = [store.create(name)[0] for name in ("c", "a", "b")]
        assert list(store.list()) == made


def test_commits_are_durable_before_they_return(path: Path) -> None:
    with KeyStore(path) as store:
        connection = store._db.connection
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
        assert connection.execute("PRAGMA synchronous").fetchall() == [(3,)]


def test_processes_that_meet_on_a_new_file_all_get_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 300.0)  # eight commits, on whatever disk
    made: list[KeyInfo] = []

    def work() -> None:
        with KeyStore(path) as store:
            made.append(store.create("crm")[0])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with KeyStore(path) as store:
        assert len(store.list()) == len(made) == 8


def test_a_file_of_a_newer_release_is_refused(path: Path) -> None:
    KeyStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="newer release"):
        KeyStore(path)
    with pytest.raises(StorageError, match="newer release"):
        check_readable(path)


def test_looking_whether_a_file_can_be_read_upgrades_and_makes_none(path: Path) -> None:
    check_readable(path)
    assert not path.exists()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = path.read_bytes()
    check_readable(path)
    assert path.read_bytes() == before
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="cannot be used"):
        check_readable(path)


def test_a_file_that_is_no_database_is_a_typed_error(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"keys\.db"):
        KeyStore(path)


def test_whoever_holds_the_file_too_long_is_named_as_the_cause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.01)
    with KeyStore(path) as keys, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="locked") as refused:
            keys.create("app")
        assert "another command" in refused.value.hint
        other.execute("COMMIT")
        keys.create("app")


@pytest.mark.parametrize(
    "change",
    [
        lambda keys, key: keys.revoke(key.id),
        lambda keys, key: keys.limit(key.id, {"requests_per_minute": 7}),
        lambda keys, key: keys.reserve(key.id, "", 30),
        lambda keys, key: keys.projects.limit(key.project, {"tokens_per_day": 9}),
        lambda keys, key: keys.rotate(key.id, new_key("next", lineage=key.lineage), overlap=60),
        lambda keys, _: keys.create("another"),
    ],
)
def test_a_key_that_was_read_is_what_a_new_reader_finds(
    path: Path, change: Callable[[KeyStore, KeyInfo], object]
) -> None:
    with KeyStore(path) as ours, KeyStore(path) as others:
        info, secret_ = ours.create("app")
        assert ours.authenticate(secret_) == ours.authenticate(secret_) == info
        change(others, info)
        with KeyStore(path) as fresh:
            assert ours.authenticate(secret_) == fresh.authenticate(secret_)
            assert ours.holds(info.id) is fresh.holds(info.id)


def test_a_key_holds_until_it_is_revoked_and_longer_than_it_is_valid(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KeyStore(path) as ours, KeyStore(path) as others:
        info, whole = ours.create("app", expires=int(time.time()) + 60)
        assert ours.holds(info.id)
        later = time.time() + 61
        monkeypatch.setattr("appliance.access.store.time.time", lambda: later)
        assert ours.authenticate(whole) is None
        assert ours.holds(info.id), "expiry is for requests that begin"
        others.revoke(info.id)
        assert not ours.holds(info.id)
        assert not ours.holds("")


def test_a_key_of_an_archived_project_does_not_hold(path: Path) -> None:
    with KeyStore(path) as ours, KeyStore(path) as others:
        project = new_project("team")
        others.projects.add(project)
        key = new_key("app", project=project.id)
        others.add(key)
        assert ours.holds(key.info.id)
        others.projects.archive(project.id)
        assert not ours.holds(key.info.id)
        assert ours.authenticate(key.secret) is None


def test_what_was_read_is_worth_nothing_when_the_file_is_damaged(path: Path) -> None:
    with KeyStore(path) as keys:
        info, secret_ = keys.create("app")
        assert keys.authenticate(secret_) is not None
        path.write_bytes(b"")
        with pytest.raises(StorageError):
            keys.authenticate(secret_)
        with pytest.raises(StorageError):
            keys.holds(info.id)
