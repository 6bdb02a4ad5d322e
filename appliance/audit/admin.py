"""One administrative record, for commands and the installer.

Owns the open-append-publish-close round and the change of identity that it takes: a command
runs as root, the log belongs to the daemon's user, and every file must stay that user's even
if the command is killed half-way. Refuses fields that are not declared in event.py.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.audit.event import Admin, Event, Install, clip
from appliance.audit.log import AuditLog
from appliance.audit.room import Room, is_full
from appliance.config import AuditSettings, Layout
from appliance.errors import AuditUnavailableError

_LOGIN_UID = Path("/proc/self/loginuid")
_NO_LOGIN = 2**32 - 1


def admin_event(layout: Layout, settings: AuditSettings, action: str, **details: str) -> int:
    """Append and publish one record; returns its number.

    `action` is `noun.verb`; `install` writes an INSTALL record instead of ADMIN. `details` are
    fields of that record in event.py: outcome, target, version, previous, digest, reason.
    Raises AuditUnavailableError, AuditError, NotFoundError without a signing key.
    """
    shown = {name: clip(value) for name, value in details.items()}
    actor = login_name()
    if action == "install":
        event: Admin | Install = Install(actor=actor, **shown)  # type: ignore[arg-type]
    else:
        event = Admin(action=action, actor=actor, **shown)  # type: ignore[arg-type]
    done: list[int] = []
    with acting_as_owner(layout.audit):
        try:
            _record(layout, settings, event, done)
        except AuditUnavailableError as error:
            if not (is_full(error) and Room(layout.audit, settings.ballast_bytes).give_up()):
                raise
            _record(layout, settings, event, done)
    return done[0]


def _record(layout: Layout, settings: AuditSettings, event: Event, done: list[int]) -> None:
    """Append `event`, unless `done` has its number, and publish it."""
    with AuditLog.open(layout.audit, layout.audit_key, settings) as log:
        if not done:
            done += log.append([event])
        log.checkpoint()


@contextmanager
def acting_as_owner(directory: Path) -> Iterator[None]:
    """While in it, a root process has the effective user and group of `directory`'s owner.

    Process-wide, so for commands only, never for a daemon. Does nothing without root, or if
    the directory does not exist yet.
    """
    owner = directory.stat() if os.geteuid() == 0 and directory.exists() else None
    if owner is None or owner.st_uid == 0:
        yield
        return
    group, user = os.getegid(), os.geteuid()
    os.setegid(owner.st_gid)
    try:
        os.seteuid(owner.st_uid)
        try:
            yield
        finally:
            os.seteuid(user)
    finally:
        os.setegid(group)


def login_name() -> str:
    """Who logged in, however they became root since: the kernel's login uid, else our own."""
    try:
        uid = int(_LOGIN_UID.read_text("ascii"))
    except (OSError, ValueError):
        uid = _NO_LOGIN
    if uid == _NO_LOGIN:
        uid = os.getuid()
    try:
        return clip(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)
