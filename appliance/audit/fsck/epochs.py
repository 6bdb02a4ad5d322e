"""Checks on the signing keys: each epoch's key signed its own part of the log, and no other did.

Owns the chain from the pinned key, record by record: a KEYROLL ends an epoch, the head kept in
`epochs/N` shows that the epoch's own key saw the tree end there, and a head is genuine only if it
is signed by the key in whose epoch its last record lies. So a key that was stolen later cannot sign
another history of what lies before it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.audit.checkpoint import Checkpoint, open_checkpoint
from appliance.audit.epochs import EPOCHS, EpochEnd, epoch_name, next_key_of, read_epoch
from appliance.audit.event import Keyroll
from appliance.audit.fsck.report import Report
from appliance.audit.merkle import leaf_hash
from appliance.audit.note import Ed25519Verifier
from appliance.errors import AuditError, VerificationError


class EpochCheck:
    """Tell it every record, in order; `verifier` is the key for heads that end there."""

    def __init__(self, directory: Path, first: Ed25519Verifier | None, report: Report) -> None:
        self._directory = directory
        self._report = report
        self._epoch = 0
        self._next_key = first
        self.verifier = first
        """The key that signs a head whose last record is the one that was told last."""
        self._end = self._read_end()
        self._size = 0
        self._unsigned = -1
        """The epoch that was said to have no signed end last."""

    def check(
        self, size: int, root: Callable[[], bytes], value: bytes, keyroll: Keyroll | None
    ) -> None:
        """The record with the hash `value` was pushed: `size` records have this `root`.

        `keyroll` is the record if it is one and was read.
        """
        self.verifier, self._size = self._next_key, size
        end, name = self._end, epoch_name(self._epoch)
        if end is not None and end.checkpoint.size == size:
            self._check_end(end, root(), value, name)
            self._begin(end.next_key)
        elif keyroll is not None:
            if size < self._report.size:
                self._miss_end()
            self._begin(self._named_by(keyroll))

    def check_epoch(self, epoch: int, seq: int, path: str) -> None:
        """The record `seq`, not yet told, says that it belongs to `epoch`."""
        if epoch != self._epoch:
            if epoch > self._epoch and self._end is None:
                self._miss_end()  # its KEYROLL is gone, too: pruned, or not to be read
            self._report.add(
                "epoch_wrong",
                f"it says epoch {epoch} and lies in epoch {self._epoch}",
                path=path,
                seq=seq,
            )

    def check_head(self, note: bytes, head: Checkpoint, root: bytes, name: str) -> bool:
        """Check a head of the size that was just told; whether its signature is genuine."""
        if head.root != root:
            self._report.add(
                "root_differs", f"the first {head.size} records do not lead to its root", path=name
            )
        try:
            open_checkpoint(note, [self.verifier] if self.verifier else [])
        except VerificationError as error:
            self._report.add("checkpoint_invalid", error.message, path=name)
            return False
        return True

    def check_files(self, *, still_growing: bool) -> None:
        """Every file in `epochs` must be the end of an epoch that ended."""
        beyond = self._end is not None and self._end.checkpoint.size > self._size
        if self._end is not None and beyond and not still_growing:
            self._report.add(
                "rolled_back",
                f"it covers {self._end.checkpoint.size} records, and there are fewer now",
                path=epoch_name(self._epoch),
            )
        directory = self._directory / EPOCHS
        for path in directory.iterdir() if directory.is_dir() else ():
            name = f"{EPOCHS}/{path.name}"
            number = int(path.name) if path.name.isdecimal() and path.name.isascii() else -1
            known = number >= 0 and name == epoch_name(number)
            known = known and (number < self._epoch or still_growing)
            usual = path.is_file() and not path.is_symlink()
            if path.suffix != ".tmp" and not (usual and known):
                self._report.add("file_unexpected", "no epoch ended with this", path=name)

    def _check_end(self, end: EpochEnd, root: bytes, value: bytes, name: str) -> None:
        self.check_head(end.note, end.checkpoint, root, name)
        if leaf_hash(end.leaf) != value:
            self._report.add("record_differs", "its KEYROLL is not the one in the tree", path=name)

    def _miss_end(self) -> None:
        if self._unsigned != self._epoch:
            self._unsigned = self._epoch
            name = epoch_name(self._epoch)
            self._report.add(
                "epoch_unsigned", "the head that ends this epoch is missing", path=name
            )

    def _begin(self, key: Ed25519Verifier | None) -> None:
        self._epoch += 1
        self._next_key = key
        self._report.epoch = self._epoch
        self._report.newest_key = key.vkey if key is not None else ""
        self._end = self._read_end()

    def _named_by(self, keyroll: Keyroll) -> Ed25519Verifier | None:
        try:
            return next_key_of(keyroll)
        except AuditError as error:
            self._report.add("record_invalid", error.message, seq=keyroll.seq)
            return None

    def _read_end(self) -> EpochEnd | None:
        """The end of the current epoch, if it has one that can be read at all."""
        name = epoch_name(self._epoch)
        try:
            end = read_epoch(self._directory, self._epoch)
            if end is not None and end.checkpoint.size:
                end.next_key  # noqa: B018 - raises unless it can be read to the end
        except AuditError as error:
            self._report.add("epoch_invalid", error.message, path=name)
        except OSError as error:
            self._report.add("file_unreadable", str(error.strerror), path=name)
        else:
            return end
        return None
