"""Projects group keys: they end together, are limited together, and share a cache by choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.access import (
    DEFAULT_PROJECT,
    KeyInfo,
    KeyStore,
    Limits,
    api_of,
    new_key,
    new_project,
)
from appliance.access.limits import LIMIT_NAMES
from appliance.errors import ConflictError, NotFoundError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    with KeyStore(tmp_path / "keys.db") as made:
        yield made


def added(store: KeyStore, name: str, **more: object) -> tuple[KeyInfo, str]:
    key = new_key(name, **more)  # type: ignore[arg-type]
    store.add(key)
    return store.get(key.info.id), key.secret


def test_a_new_database_has_the_default_project(store: KeyStore) -> None:
    (project,) = store.projects.list()
    assert (project.id, project.name) == (DEFAULT_PROJECT, "default")
    assert store.projects.get("default") == store.projects.get(DEFAULT_PROJECT) == project


def test_a_key_keeps_what_it_was_made_with(store: KeyStore) -> None:
    project = new_project("search")
    store.projects.add(project)
    made, whole = added(
        store,
        "crm",
        project=project.id,
        owner="Ada",
        tags=["blue", "müde"],
        models=["guide", "minilm"],
        apis=["chat"],
    )
    assert store.authenticate(whole) == made
    assert (made.project, made.owner, made.tags) == (project.id, "Ada", ("blue", "müde"))
    assert made.may_use("guide")
    assert not made.may_use("other")
    assert made.may_call("chat")
    assert not made.may_call("embeddings")
    assert whole.startswith(made.prefix)


def test_an_admin_key_is_recognised_by_its_prefix(store: KeyStore) -> None:
    made, whole = added(store, "ops", kind="admin")
    assert whole.startswith(f"sk-admin-{made.id}-")
    assert store.authenticate(whole) == made
    assert store.authenticate(whole.replace("sk-admin-", "sk-")) is None
    with pytest.raises(UsageError, match="opens no model"):
        new_key("ops", kind="admin", models=["guide"])


def test_archiving_a_project_ends_its_keys_and_no_other(store: KeyStore) -> None:
    store.projects.add(new_project("search"))
    _, inside = added(store, "crm", project=store.projects.get("search").id)
    _, outside = added(store, "wiki")
    archived = store.projects.archive("search")
    assert archived.archived is not None
    assert store.authenticate(inside) is None
    assert store.authenticate(outside) is not None
    with pytest.raises(ConflictError, match="archived before"):
        store.projects.archive("search")
    with pytest.raises(ConflictError, match="archived"):
        added(store, "late", project=archived.id)


def test_the_default_project_stays(store: KeyStore) -> None:
    with pytest.raises(ConflictError, match="default"):
        store.projects.archive("default")


def test_a_name_stands_for_one_project(store: KeyStore) -> None:
    store.projects.add(new_project("search"))
    with pytest.raises(ConflictError, match="called"):
        store.projects.add(new_project("search"))
    with pytest.raises(NotFoundError):
        store.projects.get("nobody")
    with pytest.raises(UsageError, match="name of a project"):
        new_project("\n")


def test_the_cache_is_shared_only_within_a_project_and_only_by_choice(store: KeyStore) -> None:
    store.projects.add(new_project("search"))
    project = store.projects.get("search").id
    one, two = (added(store, name, project=project)[0] for name in ("a", "b"))
    other, _ = added(store, "c")
    assert len({key.cache_namespace for key in (one, two, other)}) == 3
    store.projects.share_cache("search", shared=True)
    one, two, other = (store.get(key.id) for key in (one, two, other))
    assert one.cache_namespace == two.cache_namespace == project
    assert other.cache_namespace == other.id
    store.projects.share_cache("search", shared=False)
    assert store.get(one.id).cache_namespace == one.id


def test_a_rotated_key_is_the_same_to_everybody(store: KeyStore) -> None:
    old, old_secret = added(store, "crm", owner="Ada", models=["guide"])
    store.limit(old.id, {"requests_per_minute": 7})
    new = new_key("crm", owner="Ada", models=["guide"], lineage=old.lineage)
    replaced = store.rotate(old.id, new, overlap=3600)
    assert replaced.successor == new.info.id
    assert replaced.expires is not None
    rotated = store.get(new.info.id)
    assert (rotated.lineage, rotated.limits.requests_per_minute) == (old.id, 7)
    assert rotated.cache_namespace == old.cache_namespace
    assert store.authenticate(old_secret) is not None, "both work while they overlap"
    assert store.authenticate(new.secret) is not None
    with pytest.raises(ConflictError, match="rotated before"):
        store.rotate(old.id, new_key("crm", lineage=old.lineage), overlap=0)


def test_a_rotation_without_overlap_ends_the_old_key_at_once(store: KeyStore) -> None:
    old, old_secret = added(store, "crm")
    store.rotate(old.id, new_key("crm", lineage=old.lineage), overlap=0)
    assert store.authenticate(old_secret) is None
    with pytest.raises(ConflictError, match="expired"):
        store.rotate(old.id, new_key("crm", lineage=old.lineage), overlap=0)


def test_a_rotation_never_lengthens_a_life(store: KeyStore) -> None:
    first = new_key("crm")
    soon = first.info.created + 60
    store.add(replace(first, info=replace(first.info, expires=soon)))
    new = new_key("crm", lineage=first.info.id)
    assert store.rotate(first.info.id, new, overlap=86_400).expires == soon


LIMIT = st.none() | st.integers(0, 2**53)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(LIMIT_NAMES), LIMIT), st.sampled_from(LIMIT_NAMES), LIMIT)
def test_limits_are_kept_and_changed_one_by_one(
    first: dict[str, int | None], name: str, value: int | None
) -> None:
    with TemporaryDirectory() as directory, KeyStore(Path(directory) / "keys.db") as store:
        key = added(store, "crm")[0]
        store.limit(key.id, first)
        store.projects.limit("default", {"parallel_requests": 3})
        changed = store.limit(key.id, {name: value})
        assert changed.limits == Limits(**first | {name: value})
        assert changed.project_limits == Limits(parallel_requests=3)


def test_a_limit_that_no_number_can_be_is_refused(store: KeyStore) -> None:
    key, _ = added(store, "crm")
    with pytest.raises(UsageError):
        store.limit(key.id, {"tokens_per_day": -1})
    with pytest.raises(UsageError):
        store.limit(key.id, {"tokens_per_day": 2**53 + 1})


@pytest.mark.parametrize(
    ("route", "api"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/responses/{id}", "responses"),
        ("/v1/rerank", "rerank"),
        ("/v2/rerank", "rerank"),
        ("/tokenize", "tokenize"),
        ("unknown", "unknown"),
    ],
)
def test_an_api_is_the_first_word_of_its_route(route: str, api: str) -> None:
    assert api_of(route) == api


def test_an_api_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="chatt"):
        new_key("crm", apis=["chatt"])
