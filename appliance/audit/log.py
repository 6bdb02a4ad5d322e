"""The audit log: records in, durable; checkpoints out.

Owns how the journal and the tree work together, and the numbering of records. Several processes
may have the same log open. `append` and `checkpoint` may run in two threads, each in one at a
time. Refuses to acknowledge anything that is not durable.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.audit.checkpoint import CHECKPOINT_NAME, Checkpoint
from appliance.audit.epochs import read_epoch
from appliance.audit.event import (
    Event,
    Keyroll,
    Prune,
    Recovery,
    Request,
    Response,
    encode_leaf,
    place,
    response_to,
)
from appliance.audit.journal import Journal
from appliance.audit.prune import boundary, delete, first_kept
from appliance.audit.roll import roll, settle
from appliance.audit.segment import HEADER_BYTES, list_segments, segment_name
from appliance.audit.signer import VKEY_NAME, EpochSigner, SigningKeys
from appliance.audit.state import read_state
from appliance.audit.tree import Tree
from appliance.config import AuditSettings
from appliance.errors import AuditError, AuditUnavailableError, NotFoundError, VerificationError
from appliance.fsops import create_durable, exclusive_lock, make_dirs

CREATE_LOCK_NAME = "create.lock"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _RollingError(Exception):
    """The signing key is about to change; ask again when it has."""


class AuditLog:
    """An open log; see docs/audit.md for the life of a record in it."""

    def __init__(self, directory: Path, keys: SigningKeys, settings: AuditSettings) -> None:
        self._directory = directory
        self._keys = keys
        self._settings = settings
        self._boot_id = _BOOT_ID.read_text("ascii").strip().replace("-", "")
        self._appending = threading.Lock()
        self._publishing = threading.Lock()
        """Taken before `_appending`, if both are."""
        self._tree = Tree(directory, keys.in_force)
        self._journal = Journal(
            directory,
            segment_bytes=settings.segment_bytes,
            floor=lambda: read_state(directory).size,
        )
        self._epoch_start = self._published_epoch_start()

    @classmethod
    def open(cls, directory: Path, key_dir: Path, settings: AuditSettings) -> AuditLog:
        """Open the log in `directory`, creating it if it is empty, with the key in `key_dir`.

        Raises AuditError or SignatureError if it does not verify, AuditUnavailableError if the
        disk fails, NotFoundError without a key.
        """
        keys = _keys_of(directory, key_dir)
        with _unavailable_on_failure():
            make_dirs(directory)
            _create_once(directory, keys.in_force())
            log = cls(directory, keys, settings)
            try:
                log.reopen()
                log._settle_roll()
            except BaseException:
                log.close()
                raise
        return log

    def append(self, events: Sequence[Event]) -> list[int]:
        """Append `events` in order; returns their numbers once all are durable.

        Raises AuditUnavailableError if the disk fails: then none is acknowledged, and none
        will be until the journal was verified from the disk. Raises UsageError for an event
        that is too long, AuditError if the log was damaged.
        """
        with _unavailable_on_failure():
            while True:
                try:
                    with self._appending:
                        return self._append(events)
                except _RollingError:
                    self._settle_roll()

    def _append(self, events: Sequence[Event]) -> list[int]:
        placed = 0

        def leaves_from(first: int) -> list[bytes]:
            nonlocal placed
            if self._keys.rolling:
                raise _RollingError
            epoch = self._keys.in_force().epoch
            torn = self._journal.take_torn_bytes()
            prefix = [Recovery(reason="torn_tail", truncated_bytes=torn)] if torn else []
            placed = len(prefix)
            return [
                encode_leaf(place(event, seq=seq, boot_id=self._boot_id, epoch=epoch))
                for seq, event in enumerate([*prefix, *events], first)
            ]

        first = self._journal.append(leaves_from) + placed
        return list(range(first, first + len(events)))

    def checkpoint(self) -> Checkpoint:
        """Publish every durable record; returns the checkpoint that covers them.

        Raises AuditUnavailableError if the disk fails, AuditError if the log was damaged.
        """
        self._settle_roll()
        with _unavailable_on_failure(), self._publishing:
            return self._tree.publish(self._journal.next_seq)

    def roll(self) -> None:
        """End the epoch: another key signs from now on, the one in force is destroyed.

        Raises as `checkpoint`; then the key in force stays, or the next `append` or
        `checkpoint` finishes it.
        """

        def leaf_of(seq: int, keyroll: Keyroll) -> bytes:
            epoch = self._keys.in_force().epoch
            return encode_leaf(place(keyroll, seq=seq, boot_id=self._boot_id, epoch=epoch))

        with _unavailable_on_failure(), self._publishing, self._appending:
            roll(self._keys, self._tree, self._journal, leaf_of)
            self._epoch_start = self._journal.next_seq

    def roll_is_due(self) -> bool:
        """Whether the epoch has lasted as long, or has as many records, as the settings allow.

        A clock that went back makes it due.
        """
        with _unavailable_on_failure():
            age = time.time() - self._keys.since
        records = self._journal.next_seq - self._epoch_start
        lasting = 0 <= age < self._settings.epoch_seconds
        return not lasting or records >= self._settings.epoch_records

    def _settle_roll(self) -> None:
        """Finish or undo a roll that this process or another one began and did not end."""
        if self._keys.rolling:
            with _unavailable_on_failure(), self._publishing, self._appending:
                settle(self._keys, self._tree, self._journal)

    def _published_epoch_start(self) -> int:
        epoch = self._keys.in_force().epoch
        end = read_epoch(self._directory, epoch - 1) if epoch else None
        return end.checkpoint.size if end is not None else 0

    def prune(self, before: str, *, floor: int, actor: str = "") -> int:
        """Delete the oldest records, all from before the time `before` (a `t_utc`) and with
        numbers below `floor`; returns how many. Their hashes stay.

        Raises as `checkpoint`; then a part may be deleted, and the next call goes on.
        """
        size = self.checkpoint().size
        with _unavailable_on_failure():
            end = boundary(self._directory, size, before, min(floor, self._tree.open_from))
            start = first_kept(self._directory, size)
            if end == start:
                return 0
            with self._appending:
                self._journal.begin_segment()  # the old ones hold the records too
            self.append([Prune(first_kept=end, before=before, actor=actor)])
            self.checkpoint()
            with self._publishing, self._tree.held():
                delete(self._directory, start, end)
        return end - start

    def recover(self) -> int:
        """Close requests that an earlier process left open; returns how many.

        Call it once at start, before the first request: whatever is open then has no process
        any more that could end it.
        """
        self.checkpoint()
        orphans = self._tree.open_requests()
        if orphans:
            closing = [_aborted(request) for request in orphans]
            note = Recovery(reason="open_requests", closed_requests=len(closing))
            self.append([*closing, note])
            self.checkpoint()
        return len(orphans)

    def open_requests(self) -> list[Request]:
        """Those without a RES among the published records."""
        with self._publishing:
            return self._tree.open_requests()

    def reopen(self) -> None:
        """Verify the journal from the disk and go on from there.

        Raises AuditUnavailableError while the disk fails, AuditError if the log was damaged.
        """
        with _unavailable_on_failure(), self._appending:
            self._journal.refresh()

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self._directory

    @property
    def size(self) -> int:
        """Records that are durable, as far as this process knows."""
        return self._journal.next_seq

    @property
    def published(self) -> Checkpoint:
        """The newest checkpoint, as far as this process knows."""
        return self._tree.checkpoint

    @property
    def vkey(self) -> str:
        """The key in force; an auditor pins the first one."""
        return self._keys.in_force().verifier.vkey

    def close(self) -> None:
        """Close the files; what was not published will be, after the next opening."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _keys_of(directory: Path, key_dir: Path) -> SigningKeys:
    try:
        return SigningKeys(key_dir)
    except NotFoundError as error:
        if (directory / CHECKPOINT_NAME).exists():  # a new key would not fit: none must be made
            error.hint = "restore audit-key from the backup that the audit log belongs to"
        raise


def _create_once(directory: Path, key: EpochSigner) -> None:
    """Begin a new log: journal, state, checkpoint. Harmless when it exists or was begun."""
    if (directory / CHECKPOINT_NAME).exists():
        return
    with exclusive_lock(directory / CREATE_LOCK_NAME, wait=True):
        if (directory / CHECKPOINT_NAME).exists():
            return
        if _holds_records(directory):
            raise AuditError(
                "the log has records but no checkpoint",
                path=CHECKPOINT_NAME,
                hint="keep the log as it is and call the auditor",
            )
        if key.epoch:
            raise AuditError(
                f"the log is gone, and its signing key is that of epoch {key.epoch}",
                path=CHECKPOINT_NAME,
                hint="restore the log; only a new key may begin a new one",
            )
        Journal.create(directory)
        create_durable(directory / VKEY_NAME, f"{key.verifier.vkey}\n".encode(), mode=0o644)
        Tree.create(directory, [key.signer], key.signer.name)


def _holds_records(directory: Path) -> bool:
    begun = [directory / segment_name(first) for first in list_segments(directory)]
    tiles = (directory / "tile").exists()
    return tiles or any(segment.stat().st_size > HEADER_BYTES for segment in begun)


def _aborted(request: Request) -> Response:
    return response_to(request, "aborted", aborted_boot=request.boot_id)


@contextmanager
def _unavailable_on_failure() -> Iterator[None]:
    try:
        yield
    except VerificationError as error:
        error.hint = error.hint or "keep the log as it is and run `appliance audit verify`"
        raise
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise AuditError(
            f"{name} is missing from the audit log",
            path=name,
            hint="restore it from a backup and run `appliance audit verify`",
        ) from error
    except OSError as error:
        raise AuditUnavailableError(
            f"the audit log cannot be written: {os.strerror(error.errno or 0)}",
            hint="check free space and health of the disk; it resumes by itself",
        ) from error
