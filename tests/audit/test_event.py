"""Leaves: one event, one byte form, and only declared fields."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.audit.event import (
    MAX_LEAF_BYTES,
    MAX_TEXT,
    Admin,
    AnyEvent,
    Event,
    Heartbeat,
    Install,
    Recovery,
    Reject,
    Request,
    Response,
    Tokens,
    clip,
    decode_leaf,
    encode_leaf,
    place,
    timestamp,
    unix_seconds,
)
from appliance.audit.state import decode_state
from appliance.errors import AuditError, UsageError

text = st.text().map(clip)
count = st.integers(0, 2**53)
tokens = st.builds(
    Tokens, prompt=count, cached=count, generated=count, reasoning=count, delivered=count
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(
        Request,
        **dict.fromkeys(
            (
                "request_id",
                "key_id",
                "route",
                "model",
                "tenant",
                "peer",
                "bundle_digest",
                "params_digest",
                "content_commit",
                "content_ref",
            ),
            text,
        ),
    ),
    st.builds(
        Response,
        outcome=st.sampled_from(["ok", "cancelled", "error", "aborted"]),
        tokens=tokens,
        status=count,
        **dict.fromkeys(("request_id", "key_id", "route", "model", "finish_reason", "code"), text),
    ),
    st.builds(
        Reject, status=count, **dict.fromkeys(("request_id", "route", "code", "model"), text)
    ),
    st.builds(Admin, **dict.fromkeys(("action", "actor", "target", "reason"), text)),
    st.builds(Install, **dict.fromkeys(("version", "actor", "previous"), text)),
    st.builds(Recovery, reason=st.just("torn_tail"), truncated_bytes=count),
    st.builds(Heartbeat),
)


def leaf_of(event: Event, seq: int = 5) -> bytes:
    return encode_leaf(place(event, seq=seq, boot_id="b" * 32, epoch=0))


@given(events, st.integers(0, 2**53))
def test_a_leaf_reads_back_as_the_same_record(event: Event, seq: int) -> None:
    record = decode_leaf(leaf_of(event, seq))
    assert record == place(event, seq=seq, boot_id="b" * 32, epoch=0)
    assert encode_leaf(record) == leaf_of(event, seq)


@given(events)
def test_a_leaf_is_sorted_json_without_spaces_and_short_enough(event: Event) -> None:
    leaf = leaf_of(event)
    document = json.loads(leaf)
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert leaf == plain.encode()
    assert len(leaf) <= MAX_LEAF_BYTES


@pytest.mark.parametrize(
    "change",
    [
        lambda leaf: leaf + b" ",
        lambda leaf: leaf.replace(b'","', b'", "', 1),
        lambda leaf: leaf.replace(b'"model":"guide",', b""),
        lambda leaf: leaf.replace(b'"v":1', b'"v":2'),
        lambda leaf: leaf.replace(b'"v":1', b'"prompt":"text","v":1'),
        lambda leaf: leaf.replace(b"guide", b"gu\\u0069de"),
        lambda leaf: leaf.replace(b'"type":"REQ"', b'"type":"OTHER"'),
        lambda leaf: leaf[:-1],
        lambda leaf: b"",
    ],
)
def test_any_other_spelling_of_a_leaf_is_refused(change: object) -> None:
    leaf = leaf_of(Request(request_id="r", key_id="k", route="/v1", model="guide"))
    assert callable(change)
    with pytest.raises(AuditError):
        decode_leaf(change(leaf))


@given(st.data())
def test_no_altered_bytes_of_a_leaf_crash_the_reader(data: st.DataObject) -> None:
    leaf = leaf_of(data.draw(events))
    position = data.draw(st.integers(0, len(leaf) - 1))
    altered = leaf[:position] + data.draw(st.binary(min_size=1, max_size=3)) + leaf[position + 1 :]
    with suppress(AuditError):
        assert encode_leaf(decode_leaf(altered)) == altered


@given(st.binary())
def test_no_bytes_at_all_are_taken_for_a_state(data: bytes) -> None:
    with pytest.raises(AuditError):
        decode_state(data)


@pytest.mark.parametrize("value", ["x" * (MAX_TEXT + 1), "line\nbreak", "\ud800", "\x00"])
def test_a_field_that_is_long_or_not_printable_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="model"):
        Request(request_id="r", key_id="k", route="/v1", model=value)


@given(st.text())
def test_clip_makes_any_text_fit_and_leaves_good_text_alone(value: str) -> None:
    event = Admin(action=clip(value))
    assert len(event.action) <= MAX_TEXT
    if value.isprintable() and len(value) <= MAX_TEXT:
        assert event.action == value


def test_a_timestamp_becomes_whole_unix_seconds() -> None:
    assert unix_seconds("1970-01-01T00:00:01.999999Z") == 1
    assert unix_seconds("2026-11-23T00:00:00.000000Z") == 1795392000
    assert unix_seconds(timestamp()) > 1_700_000_000
    for wrong in ("", "yesterday", "2026-11-23T00:00:00"):
        with pytest.raises(AuditError):
            unix_seconds(wrong)


def test_no_event_has_a_field_for_content_or_secrets() -> None:
    names = {name for kind in AnyEvent.__args__ for name in kind.__struct_fields__}
    assert not names & {"prompt", "messages", "content", "text", "answer", "secret", "api_key"}


RECORD = b'{"boot_id":"b","epoch":0,"key_id":"k","model":"m","outcome":"ok"'
REST = b'"request_id":"r","route":"/v1","seq":1,"t_mono_ns":1,"t_utc":"t","type":"RES","v":'


def test_a_record_is_of_the_lowest_version_that_can_say_it() -> None:
    plain = RECORD + b"," + REST + b"1}"
    priced = RECORD + b',"price":3,' + REST + b"2}"
    for leaf in (plain, priced):
        assert encode_leaf(decode_leaf(leaf)) == leaf
    for leaf in (plain[:-2] + b"2}", priced[:-2] + b"1}"):
        with pytest.raises(AuditError, match="canonical"):
            decode_leaf(leaf)
    with pytest.raises(AuditError, match="version 3"):
        decode_leaf(plain[:-2] + b"3}")
