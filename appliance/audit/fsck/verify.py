"""The verification itself: one pass over the records, everything else is compared on the way.

Owns the order of the checks. Needs the log's directory and a verifier key, nothing of the node
that wrote it; runs in constant memory. Shares with the writer only the formats: hashing, the
parsing of notes, tiles, frames and leaves. It changes nothing and takes no lock, so it may run
on a log in use; then it verifies the checkpoint that it found first.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from appliance.audit.checkpoint import CHECKPOINT_NAME
from appliance.audit.cosignature import CosignerVerifier
from appliance.audit.cosigned import COSIGNED, unexpected_cosigned_files
from appliance.audit.epochs import EPOCHS
from appliance.audit.event import AnyEvent, Keyroll
from appliance.audit.fsck.epochs import EpochCheck
from appliance.audit.fsck.heads import HeadCheck
from appliance.audit.fsck.journal import JournalCheck, unexpected_segment_files
from appliance.audit.fsck.records import RecordCheck
from appliance.audit.fsck.report import Report
from appliance.audit.fsck.retrace import Retrace
from appliance.audit.fsck.tile_files import TEMPORARY_SUFFIX, TileFiles
from appliance.audit.merkle import leaf_hash
from appliance.audit.note import MAX_NOTE_BYTES, Ed25519Verifier
from appliance.audit.regular import read_regular
from appliance.audit.room import BALLAST_NAME
from appliance.audit.segment import SEGMENTS, list_segments, segment_name
from appliance.audit.signer import VKEY_NAME
from appliance.audit.state import STATE_NAME, State, decode_state
from appliance.audit.tiles import (
    TILE_WIDTH,
    Tile,
    decode_bundle,
    decode_tile,
    encode_bundle,
    encode_tile,
)
from appliance.errors import AuditError, NotFoundError, VerificationError

Progress = Callable[[int, int], None]
"""`progress(records done, records in all)`."""

_EXPECTED = frozenset(
    {CHECKPOINT_NAME, STATE_NAME, VKEY_NAME, SEGMENTS, EPOCHS, COSIGNED, BALLAST_NAME, "tile"}
)
_MOST_MISSING = 100
"""So many bundles in a row of which not even the hashes are there, and the rest is given up."""
_PASSING = (".lock", TEMPORARY_SUFFIX)
_LOST = "lost+found"
"""What an ext4 file system has at its top, where the log lies on a disk of its own."""


def verify(
    directory: Path,
    vkey: str | None = None,
    *,
    since: bytes | None = None,
    cosigner: CosignerVerifier | None = None,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Verify the log in `directory`.

    `vkey` is the key of epoch 0, which the auditor pinned; without it the key beside the log is
    used, which proves only that the log is consistent in itself. `since` is a signed checkpoint
    that the auditor kept: the log must be a continuation of it, as of every cosigned head that
    lies with it; the report tells which `cosigner` cosigned. Everything that is wrong is in the
    report. Raises SignatureError if `vkey` is not a key, NotFoundError without a directory.
    """
    if not directory.is_dir():
        raise NotFoundError(f"there is no audit log in {directory}", hint="check the path")
    return _Verification(directory, vkey, since, cosigner, progress).run()


class _Verification:
    def __init__(
        self,
        directory: Path,
        vkey: str | None,
        since: bytes | None,
        cosigner: CosignerVerifier | None,
        progress: Progress,
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._report = Report()
        self._at_start = self._snapshot()
        verifier = self._find_key(vkey)
        # The checkpoint first: a log in use only grows, so the state read after covers it.
        self._heads = HeadCheck(directory, self._report, cosigner)
        self._heads.read(self._read(CHECKPOINT_NAME), since)
        self._state = self._read_state()
        self._size = self._state.size if self._state else self._report.size
        self._tiles = TileFiles(directory, self._size, self._report)
        self._tree = Retrace(self._tiles.compare)
        self._records = RecordCheck(self._report)
        self._epochs = EpochCheck(directory, verifier, self._report)
        self._journal = JournalCheck(directory, self._report)
        self._bundle: list[bytes] = []
        self._skipped = False

    def run(self) -> Report:
        self._heads.check(self._tree, self._epochs)
        for path, leaves in self._bundles():
            for leaf in leaves:
                self._take(leaf, path)
            self._bundle = leaves if len(leaves) < TILE_WIDTH else []
            self._progress(self._tree.size, self._size)
        self._check_edge()
        self._check_state()
        self._check_tail()
        self._heads.check_end(self._tree.size)
        self._records.check_pruned()
        self._check_files()
        return self._report

    # What there is to verify against

    def _find_key(self, vkey: str | None) -> Ed25519Verifier | None:
        data = self._read(VKEY_NAME)
        stored = (data or b"").decode("utf-8", "replace")
        if vkey is not None:
            verifier = Ed25519Verifier.parse(vkey)
            self._report.key_pinned = True
            if data is not None and stored != f"{verifier.vkey}\n":
                self._report.add("key_differs", "this is not the given key", path=VKEY_NAME)
        elif data is None:
            return None
        else:
            try:
                verifier = Ed25519Verifier.parse(stored)
            except VerificationError as error:
                self._report.add("key_invalid", error.message, path=VKEY_NAME)
                return None
            if stored != f"{verifier.vkey}\n":
                self._report.add("key_invalid", "it is not in canonical form", path=VKEY_NAME)
        self._report.key = verifier.vkey
        return verifier

    def _read_state(self) -> State | None:
        data = self._read(STATE_NAME)
        try:
            state = decode_state(data) if data is not None else None
        except AuditError as error:
            self._report.add("state_invalid", error.message, path=STATE_NAME)
            return None
        if state is not None and state.size < self._report.size:
            self._report.add("state_behind", "it is older than the checkpoint", path=STATE_NAME)
            return None
        return state

    def _read(self, name: str) -> bytes | None:
        """A file that must be there; None, and a finding, if it is not."""
        try:
            return read_regular(self._directory / name, MAX_NOTE_BYTES)
        except OSError as error:
            self._report.add("file_unreadable", str(error.strerror), path=name)
            return None

    # The pass over the records

    def _bundles(self) -> Iterator[tuple[str, list[bytes]]]:
        """(path, leaves) of each entry bundle. A bundle that cannot be read is skipped by its
        hashes, so that the rest can still be checked."""
        missing = 0
        for index in range(-(-self._size // TILE_WIDTH)):
            width = min(TILE_WIDTH, self._size - index * TILE_WIDTH)
            bundle = Tile(-1, index, width)
            if self._is_pruned(bundle):
                self._report.pruned += width
                missing = 0 if self._skip(Tile(0, index, width)) else missing + 1
            else:
                leaves = self._leaves(bundle)
                if leaves is not None:
                    missing = 0
                    self._check_hashes(Tile(0, index, width), leaves, bundle.path)
                    yield bundle.path, leaves
                else:
                    self._skipped = True
                    missing = 0 if self._skip(Tile(0, index, width)) else missing + 1
            if missing == _MOST_MISSING:
                self._report.add("log_missing", "nothing is there from here on", path=bundle.path)
                return

    def _is_pruned(self, bundle: Tile) -> bool:
        """Whether nothing is there so far, as after pruning; if that was one, a PRUNE says."""
        first = self._report.pruned == self._tree.size and not self._skipped
        return first and bundle.width == TILE_WIDTH and not self._tiles.exists(bundle)

    def _leaves(self, bundle: Tile) -> list[bytes] | None:
        data = self._tiles.read(bundle)
        try:
            return decode_bundle(data, bundle.width) if data is not None else None
        except AuditError as error:
            self._report.add("bundle_malformed", error.message, path=bundle.path)
            return None

    def _skip(self, tile: Tile) -> bool:
        """Go past records by their hashes; whether those are there."""
        data = self._tiles.read(tile)
        try:
            hashes = decode_tile(data, tile.width) if data is not None else []
        except AuditError:
            hashes = []
        for value in hashes or [bytes(32)] * tile.width:
            self._tree.push_hash(value)
            self._told(value, None)
        return bool(hashes)

    def _check_hashes(self, tile: Tile, leaves: list[bytes], path: str) -> None:
        """Say which record it is that does not belong; which file is at fault, the roots say."""
        data = self._tiles.read(tile)
        for i, leaf in enumerate(leaves):
            if data is not None and data[i * 32 : i * 32 + 32] != leaf_hash(leaf):
                seq = tile.index * TILE_WIDTH + i
                self._report.add(
                    "record_differs",
                    f"it is not the record that {tile.path} names",
                    path=path,
                    seq=seq,
                )

    def _take(self, leaf: bytes, path: str) -> None:
        seq = self._tree.size
        published = seq < self._report.size
        record = self._records.check(seq, leaf, path, published=published)
        self._journal.compare(seq, leaf)
        self._push(leaf, record, path)

    def _push(self, leaf: bytes, record: AnyEvent | None, path: str) -> None:
        if record is not None:
            self._epochs.check_epoch(record.epoch, self._tree.size, path)
        self._tree.push(leaf)
        self._told(leaf_hash(leaf), record if isinstance(record, Keyroll) else None)

    def _told(self, value: bytes, keyroll: Keyroll | None) -> None:
        """A record was pushed: check what was signed at this size."""
        self._epochs.check(self._tree.size, self._tree.root, value, keyroll)
        self._heads.check(self._tree, self._epochs)

    # What follows from it

    def _check_edge(self) -> None:
        for level, hashes in self._tree.partial_tiles().items():
            index = (self._size >> 8 * level) // TILE_WIDTH
            self._tiles.compare(Tile(level, index, len(hashes)), hashes)

    def _check_state(self) -> None:
        self._report.open_requests = self._records.open_count
        state = self._state
        if state is None:
            return
        if state.root != base64.b64encode(self._tree.root()).decode():
            self._report.add("root_differs", "the records do not lead to its root", path=STATE_NAME)
        if not self._skipped and state.open_from != self._records.oldest_open(state.size):
            self._report.add("state_wrong", "`open_from` is wrong", path=STATE_NAME)

    def _check_tail(self) -> None:
        """The journal beyond the tree on disk: acknowledged, not yet published."""
        for seq, leaf, path in self._journal.rest():
            if seq != self._tree.size:
                continue  # before the tree's end: compared; behind a gap: reported
            record = self._records.check(seq, leaf, path, published=False)
            self._push(leaf, record, path)
            self._keep_for_bundle(leaf)
        self._report.unpublished = self._tree.size - self._report.size
        self._expect_unpublished()
        if self._journal.end < self._size and not self._journal.moved:
            self._report.add(
                "journal_short",
                f"it ends at record {self._journal.end}, the tree has {self._size}",
                path=SEGMENTS,
            )

    def _keep_for_bundle(self, leaf: bytes) -> None:
        self._bundle.append(leaf)
        if len(self._bundle) == TILE_WIDTH:
            tile = Tile(-1, self._tree.size // TILE_WIDTH - 1)
            self._tiles.expect_beyond(tile, encode_bundle(self._bundle))
            self._bundle = []

    def _expect_unpublished(self) -> None:
        """A publication that was cut short may have left tiles for the journal's records."""
        size = self._tree.size
        for level, hashes in self._tree.partial_tiles().items():
            tile = Tile(level, (size >> 8 * level) // TILE_WIDTH)
            self._tiles.expect_beyond(tile, encode_tile(hashes))
        if len(self._bundle) == size % TILE_WIDTH:
            self._tiles.expect_beyond(Tile(-1, size // TILE_WIDTH), encode_bundle(self._bundle))

    def _check_files(self) -> None:
        """Nothing else may be there."""
        growing = self._snapshot() != self._at_start
        self._tiles.check_names(still_growing=growing)
        self._epochs.check_files(still_growing=growing)
        for stray in unexpected_cosigned_files(self._directory):
            self._report.add("file_unexpected", "this is not a cosigned head", path=stray)
        for path in unexpected_segment_files(self._directory):
            if not path.endswith(TEMPORARY_SUFFIX):
                self._report.add("file_unexpected", "this is not a segment", path=path)
        for entry in self._directory.iterdir():
            expected = entry.name in _EXPECTED or entry.name.endswith(_PASSING)
            if (not expected or entry.is_symlink()) and not _is_the_disks_own(entry):
                self._report.add("file_unexpected", "this is not part of a log", path=entry.name)
        if self._state and not growing and self._state.journal not in self._at_start[1]:
            self._report.add(
                "journal_gap", f"segment {self._state.journal} is missing", path=SEGMENTS
            )

    def _snapshot(self) -> tuple[bytes, dict[int, int]]:
        """What changes when somebody appends or publishes: the state, and the segments' sizes."""
        sizes: dict[int, int] = {}
        for first in list_segments(self._directory):
            with suppress(FileNotFoundError):
                sizes[first] = (self._directory / segment_name(first)).stat().st_size
        try:
            return read_regular(self._directory / STATE_NAME, MAX_NOTE_BYTES), sizes
        except OSError:
            return b"", sizes


def _is_the_disks_own(entry: Path) -> bool:
    """Whether this is `lost+found` with nothing in it, as far as this user may know."""
    if entry.name != _LOST or entry.is_symlink() or not entry.is_dir():
        return False
    try:
        return not any(entry.iterdir())
    except PermissionError:
        return True
