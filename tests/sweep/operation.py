"""One operation of an operator or of the endpoint, in a process of its own that may be killed.

    python -m tests.sweep.operation revoke|add|activate|settle BASE

The real code, on a node below BASE that `prepare` made. It writes `begun` and, after the operation
was acknowledged, `acked`, each in one unbuffered write. Compiling is left out: it is a process of
its own, which tests/e2e kills.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.access import KeyStore
from appliance.audit import AuditLog, admin_event, create_signer
from appliance.bundle.verify import VerifiedBundle
from appliance.config import Config, Layout
from appliance.metering import Meter, usage_row
from appliance.model_store import StoredBundle
from installer.models import Models
from installer.node import node_at
from installer.progress import NoProgress
from tests.audit.sample import ORIGIN, exchange
from tests.model_store.bundles import write_bundle

SETTLED = 4
"""Exchanges of one `settle`."""


class Uncompiled(Models):
    """The models of a node whose bundles need no compiling."""

    def compile(self, bundles: Sequence[StoredBundle]) -> None:
        """Nothing to do."""


def models(base: Path) -> Models:
    layout = Layout(base)
    return Uncompiled(Config(layout), node_at(layout), NoProgress())


def bundle(base: Path, version: str) -> VerifiedBundle:
    return write_bundle(base / f"bundle-{version}", name="guide", version=version)


def prepare(base: Path) -> None:
    """A node with a key, an active model, a second version of it, and served requests."""
    layout = Layout(base)
    for directory in (layout.audit, layout.access, layout.metering, layout.install_state):
        directory.mkdir(parents=True)
    create_signer(layout.audit_key, ORIGIN)
    with KeyStore(layout.keys_db) as keys:
        keys.create("crm")
    changed = models(base)
    for version in ("1", "2"):
        changed.add([bundle(base, version)])
    changed.activate("guide", "1")
    write_bundle(base / "bundle-3", name="guide", version="3")
    settle(base, "before")


def revoke(base: Path) -> None:
    """As `appliance keys revoke` does: the key, then the record."""
    layout = Layout(base)
    with KeyStore(layout.keys_db) as keys:
        key = keys.list()[0]
        keys.revoke(key.id)
    admin_event(layout, Config(layout).audit, "keys.revoke", target=key.id)


def add(base: Path) -> None:
    """As `appliance models add` does with a new version of a model."""
    changed = models(base)
    with changed.changing():
        (added,) = changed.add([bundle(base, "3")])
        changed.record("models.add", added)


def activate(base: Path) -> None:
    """As `appliance models activate` does."""
    changed = models(base)
    with changed.changing():
        changed.activate("guide", "2")


def settle(base: Path, name: str = "settled") -> None:
    """As the endpoint does with requests: REQ and RES, then the bill."""
    layout = Layout(base)
    with (
        AuditLog.open(layout.audit, layout.audit_key, Config(layout).audit) as log,
        Meter(layout.usage_db) as meter,
    ):
        for i in range(SETTLED):
            events = exchange(f"{name}-{os.getpid()}-{i}")
            rows = [usage_row(seq, e) for seq, e in zip(log.append(events), events, strict=True)]
            meter.settle(*(row for row in rows if row is not None))
        log.checkpoint()


OPERATIONS = {"revoke": revoke, "add": add, "activate": activate, "settle": settle}


def main() -> None:
    operation, base = OPERATIONS[sys.argv[1]], Path(sys.argv[2])
    os.write(1, b"begun\n")
    operation(base)
    os.write(1, b"acked\n")


if __name__ == "__main__":
    main()
