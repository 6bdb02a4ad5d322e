"""Go's own code for transparency logs accepts what leaves a node as evidence, and no altered one.

Runs where there is a Go toolchain: scripts/fetch-go puts one into .build, as the full run does. It
is no requirement of this project. The packages are those that the go command itself is built from;
the program around them, tests/audit/go, shares no line with the checker in appliance/audit.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.audit.checkpoint import CHECKPOINT_NAME, Checkpoint, parse_checkpoint
from appliance.audit.edge import Edge
from appliance.audit.epochs import epoch_name, read_epoch
from appliance.audit.export import export
from appliance.audit.fsck import verify
from appliance.audit.log import AuditLog
from appliance.audit.note import Ed25519Signer, text_of
from appliance.audit.proof import prove
from appliance.audit.signer import load_signer
from appliance.audit.tiles import TILE_WIDTH, Tile, TileReader, decode_bundle, encode_bundle
from tests.audit.sample import exchange, open_log, pinned_key
from tests.audit.test_golden import GOLDEN, SIGNER
from tests.audit.test_prune import pruned
from tests.conftest import BUILD_CACHE, REPOSITORY

FIRST, KEPT, SECOND, SIZE = 601, 1001, 1204, 1504
"""Records of the log at the end of the first epoch, under the checkpoint that the auditor kept, at
the end of the second epoch, and under the newest checkpoint."""
Checker = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    """Runs the program; its exit status, and what it says."""
    if not (BUILD_CACHE / "go/go/bin/go").exists() and shutil.which("go") is None:
        pytest.skip("there is no Go toolchain: scripts/fetch-go, or scripts/test --full")
    program = tmp_path_factory.mktemp("go") / "checker"
    subprocess.run([REPOSITORY / "scripts/build-log-checker", program], check=True)

    def run(*arguments: str | Path) -> tuple[int, str]:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=600
        )
        return done.returncode, done.stdout + done.stderr

    return run


@dataclass(frozen=True, slots=True)
class Evidence:
    """An export of three epochs' log, and what the auditor has besides."""

    base: Path

    @property
    def log(self) -> Path:
        return self.base / "out"

    @property
    def kept(self) -> Path:
        """The checkpoint of an earlier visit."""
        return self.base / "kept"

    @property
    def pinned(self) -> str:
        return pinned_key(self.base)

    @property
    def signer(self) -> Ed25519Signer:
        """The key in force: who takes over the node has it."""
        return load_signer(self.base / "key").signer


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    made = Evidence(tmp_path_factory.mktemp("evidence"))
    with open_log(made.base) as log:
        _grow(log, 300)
        log.checkpoint()
        shutil.copytree(made.base / "audit", made.base / "first")
        log.roll()
        _grow(log, 200)
        log.checkpoint()
        shutil.copyfile(made.base / "audit/checkpoint", made.kept)
        _grow(log, 101)
        log.roll()
        _grow(log, 150)
        log.checkpoint()
        log.append(exchange("not yet signed"))
        export(made.base / "audit", made.log)
    return made


def _grow(log: AuditLog, count: int) -> None:
    log.append([event for i in range(count) for event in exchange(f"{log.size}-{i}")])


def test_go_accepts_an_export_and_that_it_continues_what_was_kept(
    checker: Checker, evidence: Evidence
) -> None:
    """Three keys from the pinned one on, every record, every epoch's end."""
    expected = (0, f"verified {SIZE} records, 0 of them pruned, under 3 keys\n")
    assert checker("log", evidence.log, evidence.pinned) == expected
    assert checker("log", evidence.log, evidence.pinned, evidence.kept) == expected


def test_go_accepts_the_log_of_release_0_1(checker: Checker) -> None:
    vkey = SIGNER.verifier.vkey
    expected = "verified 262 records, 0 of them pruned, under 1 keys\n"
    assert checker("log", GOLDEN, vkey) == (0, expected)


def test_go_accepts_what_is_left_after_pruning_and_no_gap(checker: Checker, tmp_path: Path) -> None:
    size = pruned(tmp_path).size
    status, said = checker("log", tmp_path / "audit", pinned_key(tmp_path))
    assert (status, said) == (0, f"verified {size} records, 768 of them pruned, under 1 keys\n")
    (tmp_path / "audit" / Tile(-1, 4).path).unlink()
    status, said = checker("log", tmp_path / "audit", pinned_key(tmp_path))
    assert status == 1, said


@pytest.mark.parametrize("index", [0, FIRST - 1, KEPT, SIZE - 1])
def test_go_accepts_a_proof_and_no_other_record(
    checker: Checker, evidence: Evidence, tmp_path: Path, index: int
) -> None:
    proof, leaf = prove(evidence.log, index)
    assert leaf is not None
    files = tmp_path / "proof", tmp_path / "leaf"
    files[0].write_bytes(proof.encoded())
    files[1].write_bytes(leaf)
    newest = evidence.signer.verifier.vkey
    assert checker("proof", *files, newest) == (0, f"verified record {index} of {SIZE}\n")
    assert checker("proof", *files, evidence.pinned)[0] == 1, "another key's"
    files[1].write_bytes(leaf.replace(b"2", b"3", 1))
    assert checker("proof", *files, newest)[0] == 1
    files[1].write_bytes(leaf)
    files[0].write_bytes(dataclasses.replace(proof, index=index ^ 1).encoded())
    assert checker("proof", *files, newest)[0] == 1
    hashes = (*proof.hashes[:-1], bytes(32))
    files[0].write_bytes(dataclasses.replace(proof, hashes=hashes).encoded())
    assert checker("proof", *files, newest)[0] == 1


Alteration = Callable[[Evidence, Path], None]


def _alter_a_record(evidence: Evidence, log: Path) -> None:
    _edit(log / Tile(-1, 1).path, lambda data: data.replace(b'"req-0-2', b'"req-0-3', 1))


def _swap_two_records(evidence: Evidence, log: Path) -> None:
    _edit_bundle(log, lambda leaves: [leaves[1], leaves[0], *leaves[2:]])


def _drop_a_record(evidence: Evidence, log: Path) -> None:
    _edit_bundle(log, lambda leaves: leaves[1:])


def _drop_the_last_bundle(evidence: Evidence, log: Path) -> None:
    (log / Tile(-1, SIZE // TILE_WIDTH, SIZE % TILE_WIDTH).path).unlink()


def _put_a_record_behind_the_last(evidence: Evidence, log: Path) -> None:
    path = log / Tile(-1, SIZE // TILE_WIDTH, SIZE % TILE_WIDTH).path
    _edit(path, lambda data: data + encode_bundle([b"{}"]))


def _alter_a_hash(evidence: Evidence, log: Path) -> None:
    _edit(log / Tile(0, 2).path, lambda data: data[:-1] + bytes([data[-1] ^ 1]))


def _alter_a_hash_of_hashes(evidence: Evidence, log: Path) -> None:
    path = log / Tile(1, 0, SIZE // TILE_WIDTH).path
    _edit(path, lambda data: bytes([data[0] ^ 1]) + data[1:])


def _alter_the_head(evidence: Evidence, log: Path) -> None:
    _edit(log / CHECKPOINT_NAME, lambda data: data.replace(b"1504", b"1503", 1))


def _sign_with_a_key_of_ones_own(evidence: Evidence, log: Path) -> None:
    _sign(log, Ed25519Signer.generate(evidence.signer.name))


def _sign_a_head_of_an_earlier_epoch(evidence: Evidence, log: Path) -> None:
    """With the key in force, which did not exist then."""
    head = parse_checkpoint(text_of(evidence.kept.read_bytes()))
    (log / CHECKPOINT_NAME).write_bytes(head.signed([evidence.signer]))


def _rewrite_the_past_with_the_newest_key(evidence: Evidence, log: Path) -> None:
    """Another record in the first epoch, every hash and the head made to fit."""
    reader = TileReader(log, SIZE)
    leaves = [leaf for n in range(0, SIZE, TILE_WIDTH) for leaf in reader.leaves(n // TILE_WIDTH)]
    true, leaves[7] = leaves[7], leaves[7].replace(b'"req-0-3"', b'"req-0-4"')
    assert leaves[7] != true
    shutil.rmtree(log / "tile")
    edge = Edge()
    for leaf in leaves:
        _write(log, edge.add(leaf))
    _write(log, edge.partials())
    head = Checkpoint(evidence.signer.name, edge.size, edge.root())
    (log / CHECKPOINT_NAME).write_bytes(head.signed([evidence.signer]))


def _leave_out_an_epochs_end(evidence: Evidence, log: Path) -> None:
    (log / epoch_name(1)).unlink()


def _name_a_key_of_ones_own(evidence: Evidence, log: Path) -> None:
    """In the record that ends the second epoch; the head is signed with it."""
    own = Ed25519Signer.generate(evidence.signer.name)
    newest = evidence.signer.verifier.vkey
    _edit(log / epoch_name(1), lambda d: d.replace(newest.encode(), own.verifier.vkey.encode()))
    _sign(log, own)


def _end_an_epoch_with_the_newest_key(evidence: Evidence, log: Path) -> None:
    end = read_epoch(log, 0)
    assert end is not None
    note = end.checkpoint.signed([evidence.signer])
    (log / epoch_name(0)).write_bytes(dataclasses.replace(end, note=note).encoded)


def _roll_everything_back(evidence: Evidence, log: Path) -> None:
    """To a genuine log that ends before the checkpoint that the auditor kept."""
    shutil.rmtree(log)
    shutil.copytree(evidence.base / "first", log)


@pytest.mark.parametrize(
    "alter",
    [
        _alter_a_record,
        _swap_two_records,
        _drop_a_record,
        _drop_the_last_bundle,
        _put_a_record_behind_the_last,
        _alter_a_hash,
        _alter_a_hash_of_hashes,
        _alter_the_head,
        _sign_with_a_key_of_ones_own,
        _sign_a_head_of_an_earlier_epoch,
        _rewrite_the_past_with_the_newest_key,
        _leave_out_an_epochs_end,
        _name_a_key_of_ones_own,
        _end_an_epoch_with_the_newest_key,
        _roll_everything_back,
    ],
)
def test_go_refuses_an_altered_export(
    checker: Checker, evidence: Evidence, tmp_path: Path, alter: Alteration
) -> None:
    log = tmp_path / "log"
    shutil.copytree(evidence.log, log)
    alter(evidence, log)
    status, said = checker("log", log, evidence.pinned, evidence.kept)
    assert (status, said.split(":")[0]) == (1, "refused")
    assert verify(log, evidence.pinned, since=evidence.kept.read_bytes()).findings


def test_without_a_kept_checkpoint_an_older_copy_is_a_log_like_any(
    checker: Checker, evidence: Evidence
) -> None:
    """What a signature alone cannot show: why the auditor keeps one."""
    status, said = checker("log", evidence.base / "first", evidence.pinned)
    assert status == 0, said


def _sign(log: Path, signer: Ed25519Signer) -> None:
    head = parse_checkpoint(text_of((log / CHECKPOINT_NAME).read_bytes()))
    (log / CHECKPOINT_NAME).write_bytes(head.signed([signer]))


def _write(log: Path, tiles: Iterable[tuple[Tile, bytes]]) -> None:
    for tile, data in tiles:
        path = log / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.write_bytes(after)


def _edit_bundle(log: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = log / Tile(-1, 3).path
    _edit(path, lambda data: encode_bundle(change(decode_bundle(data, TILE_WIDTH))))
