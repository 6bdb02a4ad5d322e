"""The published tree: tiles, then the state, then the checkpoint.

Owns everything in the log's directory but the journal. Publishing takes durable records from
the journal and makes each step durable before the next names it, so a reader of any checkpoint
finds every tile that it covers. Refuses to go on from a tree that does not match its own
checkpoint. One publisher at a time, by an flock(2) on `publish.lock`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.audit.checkpoint import CHECKPOINT_NAME, Checkpoint, open_checkpoint
from appliance.audit.edge import Edge
from appliance.audit.epochs import EpochEnd, epoch_name
from appliance.audit.event import Request, decode_leaf
from appliance.audit.journal import JournalReader
from appliance.audit.merkle import EMPTY_ROOT, root_at
from appliance.audit.note import NoteSigner
from appliance.audit.open_requests import OpenRequests
from appliance.audit.segment import list_segments, segment_name
from appliance.audit.signer import EpochSigner
from appliance.audit.state import STATE_NAME, State, read_state
from appliance.audit.storage import replace_files
from appliance.audit.tiles import TILE_WIDTH, Tile, TileReader
from appliance.errors import AuditError, SignatureError
from appliance.fsops import exclusive_lock, fsync_dir

LOCK_NAME = "publish.lock"
MAX_STEP = 4096
"""Records that one checkpoint adds at most; bounds the memory of catching up."""


class Tree:
    """The tree in `directory`. One thread at a time; `checkpoint` may be read from any.

    `key()` is asked for the key in force while publishers are kept out.
    """

    _published: Checkpoint
    _state: State
    _edge: Edge
    _open: OpenRequests
    _journal: JournalReader

    def __init__(self, directory: Path, key: Callable[[], EpochSigner]) -> None:
        """Load the tree. Raises AuditError or SignatureError if it does not verify, OSError."""
        self._directory = directory
        self._key = key
        self._stale = False
        with self._locked():
            self._load()

    @staticmethod
    def create(directory: Path, signers: Sequence[NoteSigner], origin: str) -> None:
        """Publish the empty tree of a new log. Raises OSError."""
        empty = Checkpoint(origin, 0, EMPTY_ROOT)
        state = State.of(0, EMPTY_ROOT, journal=0, open_from=0)
        replace_files(directory, {STATE_NAME: state.encoded()})
        replace_files(directory, {CHECKPOINT_NAME: empty.signed(signers)})

    @property
    def checkpoint(self) -> Checkpoint:
        """The newest checkpoint, as far as this process knows."""
        return self._published

    @property
    def open_from(self) -> int:
        """Number of the oldest request without its RES; the published size if there is none."""
        return self._state.open_from

    def open_requests(self) -> list[Request]:
        """Requests that have no RES in the published tree."""
        return list(self._open)

    def publish(self, upto: int) -> Checkpoint:
        """Publish the records below `upto`, which are durable in the journal.

        Raises AuditError, SignatureError or OSError; the old checkpoint then stands.
        """
        with self.held():
            return self.publish_held(upto)

    def publish_held(self, upto: int) -> Checkpoint:
        """`publish` for a caller inside `held`."""
        try:
            while self._published.size < max(upto, self._edge.size):
                self._step(upto)
        except BaseException:
            self._stale = True  # memory may be ahead of the disk
            raise
        return self._published

    def end_epoch(self, keyroll: bytes) -> None:
        """Keep the published head, whose last record is the leaf `keyroll`, as its epoch's end.

        Inside `held`, with the epoch's key still in force. Raises OSError.
        """
        key = self._key()
        end = EpochEnd(key.epoch, self._published.signed([key.signer]), keyroll)
        replace_files(self._directory, {epoch_name(end.number): end.encoded})

    def last_leaf(self, upto: int) -> bytes | None:
        """The record before `upto`, which is durable; None if there is none. Inside `held`."""
        size = self._edge.size
        if upto > size:
            return deque(JournalReader(self._directory, size).read(upto), maxlen=1)[0][1]
        if not size:
            return None
        return TileReader(self._directory, size).leaves((size - 1) // TILE_WIDTH)[-1]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other publishers out, and know all they published.

        Raises AuditError, SignatureError or OSError.
        """
        with self._locked():
            self._refresh()
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with exclusive_lock(self._directory / LOCK_NAME, wait=True):
            yield

    def _refresh(self) -> None:
        """Load again if another process published, or if our last attempt failed."""
        if self._stale or read_state(self._directory) != self._state:
            self._load()

    def _load(self) -> None:
        data = (self._directory / CHECKPOINT_NAME).read_bytes()
        published = _open_published(data, self._key())
        state = read_state(self._directory)
        edge = Edge.load(self._directory, state.size)
        reader = TileReader(self._directory, state.size)
        if state.size < published.size or root_at(published.size, reader) != published.root:
            raise AuditError(
                "the tiles do not lead to the checkpoint's root",
                path=CHECKPOINT_NAME,
                hint="keep the log as it is and run `appliance audit verify`",
            )
        if state != State.of(
            state.size, edge.root(), journal=state.journal, open_from=state.open_from
        ):
            raise AuditError("the tiles do not lead to the state's root", path=STATE_NAME)
        self._published, self._state, self._edge = published, state, edge
        self._open = _open_requests(reader, state)
        self._journal = JournalReader(self._directory, state.size)
        self._stale = False

    def _step(self, upto: int) -> None:
        """Publish up to MAX_STEP records: tiles, state, checkpoint, then what they replace."""
        full: list[Tile] = []
        files: dict[str, bytes] = {}
        end = min(upto, self._edge.size + MAX_STEP)
        for seq, leaf in self._journal.read(end):
            self._open.observe(seq, decode_leaf(leaf))
            for tile, data in self._edge.add(leaf):
                full.append(tile)
                files[tile.path] = data
        files.update((tile.path, data) for tile, data in self._edge.partials())
        replace_files(self._directory, files)
        self._publish_state()
        self._remove_partials(full)
        self._remove_segments()

    def _publish_state(self) -> None:
        size, root = self._edge.size, self._edge.root()
        state = State.of(
            size, root, journal=self._first_needed_segment(), open_from=self._open.oldest(size)
        )
        replace_files(self._directory, {STATE_NAME: state.encoded()})
        self._state = state
        checkpoint = Checkpoint(self._published.origin, size, root)
        replace_files(self._directory, {CHECKPOINT_NAME: checkpoint.signed([self._key().signer])})
        self._published = checkpoint

    def _first_needed_segment(self) -> int:
        """The newest segment that begins within the tree published before this step."""
        starts = [s for s in list_segments(self._directory) if s <= self._published.size]
        return max(starts, default=self._state.journal)

    def _remove_segments(self) -> None:
        """Delete segments whose records are all in the tree."""
        for first in list_segments(self._directory):
            if first < self._state.journal:
                (self._directory / segment_name(first)).unlink(missing_ok=True)

    def _remove_partials(self, full: Sequence[Tile]) -> None:
        """Delete the partial versions of tiles that are full now, as the layout allows."""
        for tile in full:
            partials = self._directory / tile.partial_directory
            with suppress(FileNotFoundError):
                for path in partials.iterdir():
                    path.unlink()
                partials.rmdir()
                fsync_dir(partials.parent)


def _open_published(data: bytes, key: EpochSigner) -> Checkpoint:
    try:
        return open_checkpoint(data, key.verifiers)
    except SignatureError as error:
        raise SignatureError(
            f"the audit log's checkpoint is not signed by the key in force: {error.message}",
            hint="keep the log as it is and run `appliance audit verify`; after a restore: "
            "audit and audit-key must be of the same backup",
        ) from error


def _open_requests(reader: TileReader, state: State) -> OpenRequests:
    requests = OpenRequests()
    for index in range(state.open_from // TILE_WIDTH, -(-state.size // TILE_WIDTH)):
        for seq, leaf in enumerate(reader.leaves(index), index * TILE_WIDTH):
            if seq >= state.open_from:
                requests.observe(seq, decode_leaf(leaf))
    return requests
