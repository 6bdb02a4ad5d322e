"""Checks on signed heads: the log's own, the one that the auditor kept, those that were cosigned.

Owns reading them and comparing each with the tree when that has its size. Whose signature it must
have is known only then (epochs.py).
"""

from __future__ import annotations

import base64
from pathlib import Path

from appliance.audit.checkpoint import CHECKPOINT_NAME, Checkpoint, parse_checkpoint
from appliance.audit.cosignature import CosignerVerifier
from appliance.audit.cosigned import COSIGNED, MAX_COSIGNED_BYTES, cosigned_name, cosigned_sizes
from appliance.audit.fsck.epochs import EpochCheck
from appliance.audit.fsck.report import Report
from appliance.audit.fsck.retrace import Retrace
from appliance.audit.note import text_of
from appliance.audit.regular import read_regular
from appliance.errors import AuditError, VerificationError

KEPT = "the kept checkpoint"


class HeadCheck:
    """`read` once; then `check` after every record."""

    def __init__(self, directory: Path, report: Report, cosigner: CosignerVerifier | None) -> None:
        self._directory = directory
        self._report = report
        self._cosigner = cosigner
        self._heads: list[tuple[str, bytes, Checkpoint]] = []
        self._own = False

    def read(self, own: bytes | None, since: bytes | None) -> None:
        """The log's own head first, None if it cannot be read: the others must not be beyond it."""
        self._own = own is not None
        if own is not None:
            self._add(CHECKPOINT_NAME, own)
        if since is not None:
            self._add(KEPT, since)
        for size in cosigned_sizes(self._directory):
            name = cosigned_name(size)
            try:
                self._add(name, read_regular(self._directory / name, MAX_COSIGNED_BYTES))
            except OSError as error:
                self._report.add("file_unreadable", str(error.strerror), path=name)
        self._expect_cosigned()

    def check(self, tree: Retrace, epochs: EpochCheck) -> None:
        """Compare the heads of the tree's size with it."""
        for name, note, head in self._heads:
            if head.size == tree.size:
                genuine = epochs.check_head(note, head, tree.root(), name)
                if name == CHECKPOINT_NAME and genuine and epochs.verifier is not None:
                    self._report.head_key = epochs.verifier.vkey

    def check_end(self, size: int) -> None:
        """The log ends with `size` records: without a head of its own, that must be enough."""
        for name, _, head in () if self._own else self._heads:
            if head.size > size:
                self._rolled_back(name, head)

    def _expect_cosigned(self) -> None:
        """Somebody who removed every cosigned head must not go unseen by who asks for them."""
        known = self._cosigner
        if known is not None and not self._report.cosigned:
            message = f"no head that {known.name} cosigned lies with the log"
            self._report.add("cosignature_missing", message, path=COSIGNED)

    def _rolled_back(self, name: str, head: Checkpoint) -> None:
        message = f"the log had {head.size} records and has fewer now"
        self._report.add("rolled_back", message, path=name)

    def _add(self, name: str, note: bytes) -> None:
        try:
            head = parse_checkpoint(text_of(note))
        except AuditError as error:
            self._report.add("checkpoint_invalid", error.message, path=name)
            return
        self._heads.append((name, note, head))
        if name == CHECKPOINT_NAME:
            self._report.origin, self._report.size = head.origin, head.size
            self._report.root = base64.b64encode(head.root).decode()
        elif self._own and head.size > self._report.size:
            self._rolled_back(name, head)
        if name.startswith(COSIGNED):
            self._check_cosigned(name, note, head)

    def _check_cosigned(self, name: str, note: bytes, head: Checkpoint) -> None:
        if cosigned_name(head.size) != name:
            self._report.add("checkpoint_invalid", "it has the name of another head", path=name)
        try:
            at = self._cosigner.time_of(note) if self._cosigner is not None else None
        except VerificationError as error:
            self._report.add("cosignature_invalid", error.message, path=name)
        else:
            if at is not None:  # in the order of their sizes: the last one is the newest
                self._report.cosigned, self._report.cosigned_at = head.size, at
