"""Commands leave a record, in the name of whoever logged in, owned by the daemon's user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from appliance.audit.admin import acting_as_owner, admin_event
from appliance.audit.event import Admin, Install
from appliance.audit.log import AuditLog
from appliance.audit.reader import read_events
from appliance.audit.signer import create_signer
from appliance.config import AuditSettings, Layout
from appliance.errors import NotFoundError
from tests.audit.sample import ORIGIN

DAEMON = 54321
"""A user and group that nobody else has."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    create_signer(layout.audit_key, ORIGIN)
    return layout


def test_an_administrative_record_says_who_did_what(layout: Layout) -> None:
    settings = AuditSettings()
    assert admin_event(layout, settings, "keys.revoke", target="key-1", reason="lost") == 0
    assert admin_event(layout, settings, "install", version="0.1.0", digest="sha256:00") == 1
    revoked, installed = (event for _, event in read_events(layout.audit))
    assert isinstance(revoked, Admin)
    assert (revoked.action, revoked.target, revoked.reason) == ("keys.revoke", "key-1", "lost")
    assert revoked.actor
    assert isinstance(installed, Install)
    assert installed.version == "0.1.0"


def test_the_record_is_published_when_the_command_ends(layout: Layout) -> None:
    admin_event(layout, AuditSettings(), "models.activate", target="guide")
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        assert log.published.size == 1


def test_hostile_names_are_made_printable(layout: Layout) -> None:
    admin_event(layout, AuditSettings(), "models.add", target="a\nb\x1b[31m" + "x" * 500)
    [(_, event)] = read_events(layout.audit)
    assert isinstance(event, Admin)
    assert event.target.isprintable()


def test_an_undeclared_field_is_a_bug(layout: Layout) -> None:
    with pytest.raises(TypeError):
        admin_event(layout, AuditSettings(), "models.add", prompt="text")


def test_without_a_key_there_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        admin_event(Layout(tmp_path), AuditSettings(), "models.add")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_leaves_no_file_of_its_own() -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own is closed to other users
        leave_no_file_of_root(Layout(Path(root)))


def leave_no_file_of_root(layout: Layout) -> None:
    create_signer(layout.audit_key, ORIGIN)
    admin_event(layout, AuditSettings(), "keys.create", target="first")
    for path in [layout.audit, layout.audit_key]:
        for entry in [path, *path.rglob("*")]:
            os.chown(entry, DAEMON, DAEMON)
    for parent in (layout.root, layout.state, *layout.state.parents[:2]):
        parent.chmod(0o755)
    admin_event(layout, AuditSettings(), "keys.create", target="second")
    assert os.geteuid() == 0
    for entry in [layout.audit, *layout.audit.rglob("*")]:
        assert (entry.stat().st_uid, entry.stat().st_gid) == (DAEMON, DAEMON), entry


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_identity_returns_after_an_error(tmp_path: Path) -> None:
    os.chown(tmp_path, DAEMON, DAEMON)
    identity = (0, 0)

    def fail() -> None:
        nonlocal identity
        with acting_as_owner(tmp_path):
            identity = (os.geteuid(), os.getegid())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert identity == (DAEMON, DAEMON)
    assert (os.geteuid(), os.getegid()) == (0, 0)
