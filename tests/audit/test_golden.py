"""The formats on disk are those of release 0.1: an old log verifies, a new one is the same bytes.

To write the files of a new release: `python -m tests.audit.test_golden DIRECTORY`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from appliance.audit.event import (
    Admin,
    Event,
    Heartbeat,
    Install,
    Recovery,
    Reject,
    Request,
    Response,
    Tokens,
    decode_leaf,
    encode_leaf,
    place,
)
from appliance.audit.fsck import verify
from appliance.audit.journal import Journal
from appliance.audit.note import Ed25519Signer
from appliance.audit.reader import read_events
from appliance.audit.signer import EpochSigner
from appliance.audit.state import read_state
from appliance.audit.tree import Tree
from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests/golden/0.1/audit"
SIGNER = Ed25519Signer("golden.example/audit", hashlib.sha256(b"golden").digest())
RECORDS = 262
"""One full tile and bundle, and a partial one."""


def golden_event(seq: int) -> Event:
    """Events of every type in turn, the same at every run."""
    t_utc = f"2026-11-23T08:{seq // 60:02d}:{seq % 60:02d}.{seq:06d}Z"
    request_id, route = f"req-{seq // 8}", "/v1/chat/completions"
    events: list[Event] = [
        Request(
            request_id=request_id,
            key_id="key-1",
            route=route,
            model="guide",
            peer="127.0.0.1",
            bundle_digest="sha256:" + "0" * 64,
            params_digest="sha256:" + "1" * 64,
            tenant="städtische Werke",
        ),
        Response(
            request_id=request_id,
            key_id="key-1",
            route=route,
            model="guide",
            outcome="ok",
            finish_reason="stop",
            status=200,
            tokens=Tokens(prompt=12, cached=4, generated=seq, reasoning=2, delivered=seq),
        ),
        Reject(request_id=f"rej-{seq}", route="/v1/models", status=401, code="key_unknown"),
        Admin(action="keys.revoke", actor="root", target="key-1", reason='"lost"'),
        Install(version="0.1.0", actor="root", previous="", digest="sha256:" + "2" * 64),
        Recovery(reason="open_requests", closed_requests=1),
        Heartbeat(),
        Admin(action="models.activate", outcome="error", target="guide", version="1.0.0"),
    ]
    event = events[seq % len(events)]
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return type(event)(**fields | {"t_utc": t_utc, "t_mono_ns": 1_000_000 + seq})


def write_golden(directory: Path) -> None:
    """Write the log with the real writer, record times and boot fixed."""

    def leaves_from(first: int) -> list[bytes]:
        return [
            encode_leaf(place(golden_event(seq), seq=seq, boot_id="b" * 32, epoch=0))
            for seq in range(first, min(first + 100, RECORDS))
        ]

    directory.mkdir(parents=True, exist_ok=True)
    Journal.create(directory)
    (directory / "audit.vkey").write_text(f"{SIGNER.verifier.vkey}\n")
    Tree.create(directory, [SIGNER], SIGNER.name)
    tree = Tree(directory, lambda: EpochSigner(0, SIGNER))
    journal = Journal(directory, segment_bytes=1 << 20, floor=lambda: read_state(directory).size)
    while journal.next_seq < RECORDS:
        journal.append(leaves_from)
    tree.publish(RECORDS)
    journal.close()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_log_of_release_0_1_still_verifies() -> None:
    report = verify(GOLDEN, SIGNER.verifier.vkey)
    assert report.findings == []
    assert report.size == RECORDS
    assert set(report.records) == {
        "REQ", "RES", "REJECT", "ADMIN", "INSTALL", "RECOVERY", "HEARTBEAT",
    }  # fmt: skip


def test_records_of_release_0_1_are_still_understood() -> None:
    events = [event for _, event in read_events(GOLDEN)]
    expected = [place(golden_event(i), seq=i, boot_id="b" * 32, epoch=0) for i in range(RECORDS)]
    assert events == expected


def test_what_is_written_today_is_what_release_0_1_wrote(tmp_path: Path) -> None:
    write_golden(tmp_path)
    golden, now = contents(GOLDEN), contents(tmp_path)
    assert now.keys() == golden.keys()
    for name, data in golden.items():
        assert now[name] == data, name


def test_a_leaf_of_release_0_1_is_this_line() -> None:
    leaf = (
        b'{"boot_id":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","epoch":0,"finish_reason":"stop",'
        b'"key_id":"key-1","model":"guide","outcome":"ok","request_id":"req-0",'
        b'"route":"/v1/chat/completions","seq":1,"status":200,"t_mono_ns":1000001,'
        b'"t_utc":"2026-11-23T08:00:01.000001Z",'
        b'"tokens":{"cached":4,"delivered":1,"generated":1,"prompt":12,"reasoning":2},'
        b'"type":"RES","v":1}'
    )
    assert encode_leaf(decode_leaf(leaf)) == leaf
    assert leaf in contents(GOLDEN)["tile/entries/000"]


def test_records_of_version_2_are_these_lines() -> None:
    lines = (REPOSITORY / "tests/golden/0.2/audit/leaves").read_bytes().splitlines()
    records = [decode_leaf(line) for line in lines]
    assert [encode_leaf(record) for record in records] == lines
    first, second = records
    assert isinstance(first, Response)
    assert isinstance(second, Response)
    assert (first.v, first.price, first.cost, first.batch) == (2, 7, 1234, False)
    assert (second.v, second.price, second.cost, second.batch) == (2, 0, 0, True)


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
