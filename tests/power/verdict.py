"""What must hold of a node after its power was cut, judged from its disk alone."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing

from appliance.access import KeyStore
from appliance.audit import AuditLog, read_events
from appliance.audit.event import AnyEvent, Keyroll, Recovery, Request, Response
from appliance.audit.fsck import verify
from appliance.compiler import open_artifact
from appliance.config import Config
from appliance.fsops import hash_regular
from appliance.metering import Meter, catch_up, rebuild
from appliance.model_store import ModelStore
from appliance.trust.node_key import PUBLIC_NAME, NodePublicKey
from tests.power.load import Acknowledged


def assert_kept(config: Config, told: Acknowledged, later: list[AnyEvent], at: int) -> None:
    """Everything acknowledged before `at` is there, and nothing that `later`, the log of the
    machine whose power stayed, does not have."""
    audit = config.layout.audit
    vkey = (config.layout.audit_key / "audit.vkey").read_text().strip()
    assert verify(audit, vkey).findings == [], "a crash alone is never reported as tampering"
    with AuditLog.open(audit, config.layout.audit_key, config.audit) as log:
        log.recover()
    assert verify(audit, vkey).findings == []
    events = [event for _, event in read_events(audit)]
    same = next((i for i, e in enumerate(events) if i >= len(later) or e != later[i]), len(events))
    for event in events[same:]:
        closing_record = isinstance(event, Response) and event.outcome == "aborted"
        assert closing_record or isinstance(event, Recovery), f"forged: {event}"
    ended = sum(isinstance(e, Keyroll) for e in events)
    assert ended >= sum(when < at for when in told.rolled), "the end of an epoch is lost"
    _assert_answers(events, told, at)
    _assert_bill(config, events)
    _assert_keys(config, told, at)
    _assert_models(config, told, at)


def _assert_answers(events: list[AnyEvent], told: Acknowledged, at: int) -> None:
    requests = Counter(e.request_id for e in events if isinstance(e, Request))
    results = {e.request_id: e for e in events if isinstance(e, Response)}
    assert requests == Counter(e.request_id for e in events if isinstance(e, Response))
    assert set(requests.values()) <= {1}
    for request_id, (when, prompt, generated) in told.answers.items():
        if when < at:
            assert request_id in results, "an acknowledged record is lost"
            tokens = results[request_id].tokens
            assert (tokens.prompt, tokens.generated) == (prompt, generated)


def _assert_bill(config: Config, events: list[AnyEvent]) -> None:
    with Meter(config.layout.usage_db) as meter:
        catch_up(meter, config.layout.audit)
        settled = list(meter.rows())
        assert {r.request_id for r in settled} == {
            e.request_id for e in events if isinstance(e, Response)
        }
        rebuild(meter, config.layout.audit)
        assert list(meter.rows()) == settled
    for path in (config.layout.keys_db, config.layout.usage_db):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _assert_keys(config: Config, told: Acknowledged, at: int) -> None:
    with KeyStore(config.layout.keys_db) as keys:
        revoked = {key.id for key in keys.list() if key.revoked is not None}
    lost = {key for key, when in told.revoked.items() if when < at} - revoked
    assert not lost, "a revoked key opens again"


def _assert_models(config: Config, told: Acknowledged, at: int) -> None:
    layout = config.layout
    store = ModelStore(layout.models)
    least = max((number for number, when in told.activated if when < at), default=0)
    assert store.current_generation().number >= least, "an activation is lost"
    node = NodePublicKey.load(layout.node / PUBLIC_NAME)
    assert store.active()
    for bundle in store.active().values():
        for entry in bundle.manifest.files:
            found = hash_regular(bundle.directory / entry.path, name=entry.path)
            assert found == (entry.size, entry.sha256)
        open_artifact(layout.artifacts, bundle.digest, node)
