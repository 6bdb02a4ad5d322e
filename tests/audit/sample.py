"""Sample events and logs for the tests of the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.audit.event import Event, Request, Response, Tokens
from appliance.audit.fsck import Report, verify
from appliance.audit.log import AuditLog
from appliance.audit.signer import VKEY_NAME, create_signer
from appliance.config import AuditSettings

ORIGIN = "node.example/audit"


def request(name: object) -> Request:
    return Request(
        request_id=f"req-{name}",
        key_id="key-1",
        route="/v1/chat/completions",
        model="guide",
        peer="127.0.0.1",
    )


def response(name: object, *, prompt: int = 7, generated: int = 3) -> Response:
    return Response(
        request_id=f"req-{name}",
        key_id="key-1",
        route="/v1/chat/completions",
        model="guide",
        outcome="ok",
        finish_reason="stop",
        status=200,
        tokens=Tokens(prompt=prompt, generated=generated, delivered=generated),
    )


def exchange(name: object) -> list[Event]:
    """A request and its response."""
    return [request(name), response(name)]


@contextmanager
def open_log(base: Path, settings: AuditSettings | None = None) -> Iterator[AuditLog]:
    """The log in `base`/audit with the key in `base`/key, both created at the first call."""
    create_signer(base / "key", ORIGIN)
    with AuditLog.open(base / "audit", base / "key", settings or AuditSettings()) as log:
        yield log


def check(base: Path, *, since: bytes | None = None) -> Report:
    """Verify the log in `base` with its key pinned."""
    return verify(base / "audit", pinned_key(base), since=since)


def pinned_key(base: Path) -> str:
    """The key of epoch 0, as an auditor keeps it."""
    return (base / "key" / VKEY_NAME).read_text("ascii").strip()


def assert_verifies(base: Path) -> Report:
    """Every storage test ends with it."""
    report = check(base)
    assert report.findings == []
    return report
