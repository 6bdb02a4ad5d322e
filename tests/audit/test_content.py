"""Content modes: what a commitment hides, what only the auditor opens, what is never in clear."""

from __future__ import annotations

import base64
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from appliance.audit.content import ContentKeeper, committed, parse_auditor, unseal
from appliance.audit.event import Request
from appliance.audit.log import AuditLog
from appliance.audit.signer import create_signer
from appliance.config import AuditSettings, Layout, parse_config
from appliance.errors import AuditError, AuditUnavailableError, ConfigError, UsageError
from tests.audit.sample import ORIGIN
from tests.fakes.command import run_command

CANARY = b'{"messages": "the canary sings at noon"}'


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    create_signer(layout.audit_key, ORIGIN)
    return layout


@pytest.fixture
def auditor() -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(bytes(range(32)))


def sealing(auditor: X25519PrivateKey) -> AuditSettings:
    public = base64.b64encode(auditor.public_key().public_bytes_raw()).decode()
    return AuditSettings(content="sealed", auditor_key=public)


def everything(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_metadata_keeps_nothing(layout: Layout) -> None:
    keeper = ContentKeeper(layout, AuditSettings())
    kept = keeper.keep("req-1", "asked", CANARY)
    assert (kept.commit, kept.ref, keeper.keeps) == ("", "", False)


def test_a_commitment_is_to_one_content_of_one_part_of_one_request(layout: Layout) -> None:
    keeper = ContentKeeper(layout, AuditSettings(content="commit"))
    kept = keeper.keep("req-1", "asked", CANARY)
    assert kept.ref == ""
    assert kept.commit == committed(layout, "req-1", "asked", CANARY)
    others = {
        committed(layout, "req-1", "asked", CANARY + b" "),
        committed(layout, "req-1", "answered", CANARY),
        committed(layout, "req-2", "asked", CANARY),
    }
    assert kept.commit not in others
    assert len(others) == 3
    again = ContentKeeper(layout, AuditSettings(content="commit"))
    assert again.keep("req-1", "asked", CANARY) == kept, "the secret is the node's"


def test_only_the_auditor_opens_what_is_sealed(layout: Layout, auditor: X25519PrivateKey) -> None:
    kept = ContentKeeper(layout, sealing(auditor)).keep("req-1", "answered", CANARY)
    sealed = (layout.audit_content / kept.ref).read_bytes()
    assert unseal(sealed, kept.ref, auditor, kept.commit) == CANARY
    assert b"canary" not in everything(layout.root)
    with pytest.raises(AuditError, match="does not open"):
        unseal(sealed, kept.ref, X25519PrivateKey.generate(), kept.commit)
    with pytest.raises(AuditError, match="does not open"):
        unseal(sealed, kept.ref.replace("req-1", "req-2"), auditor, kept.commit)
    with pytest.raises(AuditError, match="does not open"):
        unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]), kept.ref, auditor, kept.commit)


def test_sealed_content_is_what_its_record_commits_to(
    layout: Layout, auditor: X25519PrivateKey
) -> None:
    keeper = ContentKeeper(layout, sealing(auditor))
    one = keeper.keep("req-1", "asked", CANARY)
    first = (layout.audit_content / one.ref).read_bytes()
    other = keeper.keep("req-1", "asked", b"something else")
    assert one.ref == other.ref
    assert one.commit != other.commit
    with pytest.raises(AuditError, match="commits to"):
        unseal(first, one.ref, auditor, other.commit)


def test_content_that_cannot_be_kept_closes_the_log(
    layout: Layout, auditor: X25519PrivateKey
) -> None:
    layout.audit_content.write_bytes(b"a file where the directory should be")
    with pytest.raises(AuditUnavailableError):
        ContentKeeper(layout, sealing(auditor)).keep("req-1", "asked", CANARY)


def test_nothing_to_keep_is_not_committed_to(layout: Layout) -> None:
    keeper = ContentKeeper(layout, AuditSettings(content="commit"))
    assert keeper.keep("req-1", "asked", b"").commit == ""


@pytest.mark.parametrize(
    "lines",
    [
        'content = "everything"',
        'content = "sealed"',
        'content = "sealed"\nauditor_key = "c2hvcnQ="',
        'auditor_key = "not base64"',
        f'auditor_key = "{"A" * 43}="',
        f'content = "commit"\nauditor_key = "{"A" * 43}="',
    ],
)
def test_a_mode_that_cannot_be_is_refused_by_name(tmp_path: Path, lines: str) -> None:
    with pytest.raises(ConfigError, match=r"audit\.(content|auditor_key)"):
        parse_config(f"[audit]\n{lines}\n".encode(), Layout(tmp_path))


def test_an_auditor_s_key_is_taken(tmp_path: Path, auditor: X25519PrivateKey) -> None:
    settings = sealing(auditor)
    text = f'[audit]\ncontent = "sealed"\nauditor_key = "{settings.auditor_key}"\n'
    assert parse_config(text.encode(), Layout(tmp_path)).audit == replace(settings)
    assert parse_auditor(settings.auditor_key) == auditor.public_key().public_bytes_raw()
    with pytest.raises(UsageError):
        parse_auditor("AAAA")


def record_exchange(layout: Layout, settings: AuditSettings) -> int:
    """Keep the canary as what was asked; the number of the record."""
    kept = ContentKeeper(layout, settings).keep("req-1", "asked", CANARY)
    asked = Request(
        request_id="req-1",
        key_id="key-1",
        route="/v1/chat/completions",
        model="guide",
        content_commit=kept.commit,
        content_ref=kept.ref,
    )
    with AuditLog.open(layout.audit, layout.audit_key, settings) as log:
        [number] = log.append([asked])
        log.checkpoint()
    return number


def match(layout: Layout, number: int) -> subprocess.CompletedProcess[str]:
    body = layout.root / "body"
    body.write_bytes(CANARY)
    root = ["--root", str(layout.root)]
    return run_command("audit", "match-content", str(number), str(body), *root)


def test_only_what_was_committed_to_can_be_matched(
    layout: Layout, auditor: X25519PrivateKey
) -> None:
    for settings, status, said in (
        (AuditSettings(content="commit"), 0, "commits to exactly this"),
        (AuditSettings(), 3, "commits to no content"),
        (sealing(auditor), 2, "is sealed, and its salt with it"),
    ):
        done = match(layout, record_exchange(layout, settings))
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), done.stderr


def test_sealed_content_that_was_erased_or_altered_is_said_to_be(
    layout: Layout, auditor: X25519PrivateKey
) -> None:
    number = record_exchange(layout, sealing(auditor))
    key = layout.root / "private"
    key.write_bytes(base64.b64encode(auditor.private_bytes_raw()))

    def open_it() -> subprocess.CompletedProcess[str]:
        arguments = [str(number), str(layout.audit_content), "--key", str(key)]
        return run_command("audit", "open-content", *arguments, "--dir", str(layout.audit))

    [file] = layout.audit_content.rglob("*.asked")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "the file was altered" in open_it().stderr
    file.unlink()
    assert "the content was erased" in open_it().stderr
