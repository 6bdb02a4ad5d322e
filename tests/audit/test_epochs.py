"""Epoch keys: each signs its own part and is destroyed; a stolen one rewrites no past."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from appliance.audit import signer
from appliance.audit.checkpoint import CHECKPOINT_NAME, parse_checkpoint
from appliance.audit.epochs import epoch_name, read_epoch
from appliance.audit.event import Keyroll, encode_leaf, place
from appliance.audit.fsck import verify
from appliance.audit.log import AuditLog
from appliance.audit.note import text_of
from appliance.audit.reader import read_events
from appliance.audit.signer import (
    NEXT_NAME,
    SECRET_NAME,
    EpochSigner,
    SigningKeys,
    create_signer,
    load_signer,
)
from appliance.config import AuditSettings
from appliance.errors import AuditError, SignatureError
from tests.audit.sample import assert_verifies, check, exchange, open_log, pinned_key


def rolled(base: Path, epochs: int = 3) -> None:
    """A log of so many epochs, each with an exchange, the last one published."""
    with open_log(base) as log:
        for epoch in range(epochs):
            if epoch:
                log.roll()
            log.append(exchange(f"in-{epoch}"))
            log.checkpoint()


def codes(base: Path, *, since: bytes | None = None) -> set[str]:
    return {finding.code for finding in check(base, since=since).findings}


def test_records_and_heads_belong_to_their_epochs(tmp_path: Path) -> None:
    rolled(tmp_path)
    report = assert_verifies(tmp_path)
    assert (report.epoch, report.records["KEYROLL"]) == (2, 2)
    assert report.key == pinned_key(tmp_path)
    assert report.newest_key == load_signer(tmp_path / "key").verifier.vkey
    events = [event for _, event in read_events(tmp_path / "audit")]
    assert [event.epoch for event in events] == [0, 0, 0, 1, 1, 1, 2, 2]
    rolls = [event for event in events if isinstance(event, Keyroll)]
    assert [event.v for event in rolls] == [2, 2]
    assert rolls[-1].next_key == report.newest_key


def test_a_key_is_destroyed_when_the_next_one_signs(tmp_path: Path) -> None:
    secrets = []
    with open_log(tmp_path) as log:
        for _ in range(3):
            secrets.append(load_signer(tmp_path / "key").signer.encoded)
            log.roll()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert all(secret.encode() not in kept for secret in secrets)
    assert sorted(p.name for p in (tmp_path / "key").iterdir()) == ["audit.key", "audit.vkey"]


def test_a_kept_checkpoint_of_any_epoch_is_continued(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        kept = []
        for i in range(4):
            log.append(exchange(i))
            log.checkpoint()
            kept.append((tmp_path / "audit" / CHECKPOINT_NAME).read_bytes())
            log.roll()
            kept.append((tmp_path / "audit" / CHECKPOINT_NAME).read_bytes())
    for note in kept:
        assert check(tmp_path, since=note).findings == []


def test_the_newest_key_cannot_sign_what_lies_before_its_epoch(tmp_path: Path) -> None:
    rolled(tmp_path)
    stolen = load_signer(tmp_path / "key").signer
    end = read_epoch(tmp_path / "audit", 1)
    assert end is not None
    (tmp_path / "audit" / epoch_name(1)).write_bytes(
        type(end)(1, end.checkpoint.signed([stolen]), end.leaf).encoded
    )
    assert codes(tmp_path) == {"checkpoint_invalid"}


def test_the_newest_key_cannot_shorten_the_log_into_an_earlier_epoch(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
        shutil.copytree(tmp_path / "audit", tmp_path / "earlier")
        log.append(exchange("b"))
        log.roll()
    stolen = load_signer(tmp_path / "key").signer
    head = parse_checkpoint(text_of((tmp_path / "earlier/checkpoint").read_bytes()))
    shutil.rmtree(tmp_path / "audit")
    shutil.copytree(tmp_path / "earlier", tmp_path / "audit")
    assert check(tmp_path).ok, "an old copy is consistent in itself"
    (tmp_path / "audit/checkpoint").write_bytes(head.signed([stolen]))
    assert codes(tmp_path) == {"checkpoint_invalid"}


def test_a_log_of_other_records_under_the_newest_key_is_found(tmp_path: Path) -> None:
    """The thief makes a log of his own, with the stolen key in epoch 1 and a first key of his."""
    rolled(tmp_path / "true", 2)
    stolen = load_signer(tmp_path / "true/key")
    with open_log(tmp_path / "false") as log:
        log.append(exchange("other"))
        log.roll()
        log.append(exchange("in-1"))
        log.checkpoint()
    forged = tmp_path / "false/audit"
    for name in (CHECKPOINT_NAME, epoch_name(0)):
        data = (forged / name).read_bytes()
        head, _, rest = data.partition(b"\n\n")
        text = head.decode() + "\n"
        leaf = rest.partition(b"\n\n")[2] if name == epoch_name(0) else b""
        note = parse_checkpoint(text).signed([stolen.signer])
        (forged / name).write_bytes(note + (b"\n" + leaf if leaf else b""))
    report = verify(forged, pinned_key(tmp_path / "true"))
    assert "checkpoint_invalid" in {finding.code for finding in report.findings}


@pytest.mark.parametrize("name", [epoch_name(0), epoch_name(1)])
def test_an_epoch_s_end_cannot_be_left_out(tmp_path: Path, name: str) -> None:
    rolled(tmp_path)
    (tmp_path / "audit" / name).unlink()
    assert "epoch_unsigned" in codes(tmp_path)


def test_ends_of_epochs_cannot_be_swapped_or_added(tmp_path: Path) -> None:
    rolled(tmp_path)
    one, two = (tmp_path / "audit" / epoch_name(i) for i in range(2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert not check(tmp_path).ok
    one.write_bytes(first)
    two.write_bytes(second)
    assert_verifies(tmp_path)
    (tmp_path / "audit" / epoch_name(7)).write_bytes(first)
    assert codes(tmp_path) == {"file_unexpected"}


def test_an_end_beyond_the_log_tells_of_a_rollback(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(exchange("a"))
        log.checkpoint()
        shutil.copytree(tmp_path / "audit", tmp_path / "earlier")
        log.roll()
    shutil.copytree(tmp_path / "audit/epochs", tmp_path / "earlier/epochs")
    report = verify(tmp_path / "earlier", pinned_key(tmp_path))
    assert report.findings[0].code == "rolled_back"


def test_another_process_takes_the_next_key_up(tmp_path: Path) -> None:
    with open_log(tmp_path) as one, open_log(tmp_path) as two:
        one.append(exchange("a"))
        two.append(exchange("b"))
        one.roll()
        two.append(exchange("c"))
        two.checkpoint()
        two.roll()
        one.append(exchange("d"))
        one.checkpoint()
    assert assert_verifies(tmp_path).epoch == 2


def test_a_roll_that_was_never_recorded_is_undone(tmp_path: Path) -> None:
    rolled(tmp_path)
    SigningKeys(tmp_path / "key").prepare()
    with open_log(tmp_path) as log:
        log.append(exchange("after"))
        log.checkpoint()
    assert not (tmp_path / "key" / NEXT_NAME).exists()
    assert assert_verifies(tmp_path).epoch == 2


def test_a_roll_that_was_recorded_is_finished_by_whoever_appends_next(tmp_path: Path) -> None:
    rolled(tmp_path)
    with open_log(tmp_path) as log:
        following = SigningKeys(tmp_path / "key").prepare()
        log._journal.append(lambda seq: [_leaf(seq, following.verifier.vkey)])
        log.append(exchange("after"))
        log.checkpoint()
    assert load_signer(tmp_path / "key").signer == following.signer
    assert assert_verifies(tmp_path).epoch == 3


def _leaf(seq: int, next_key: str) -> bytes:
    return encode_leaf(place(Keyroll(next_key=next_key), seq=seq, boot_id="b" * 32, epoch=2))


def test_a_key_destroyed_and_not_yet_replaced_is_replaced(tmp_path: Path) -> None:
    rolled(tmp_path)
    key = tmp_path / "key" / SECRET_NAME
    (tmp_path / "key" / NEXT_NAME).write_bytes(key.read_bytes())
    key.write_bytes(bytes(len(key.read_bytes())))
    with open_log(tmp_path) as log:
        log.append(exchange("after"))
        log.checkpoint()
    assert_verifies(tmp_path)


def test_the_first_key_stays_the_one_to_pin(tmp_path: Path) -> None:
    rolled(tmp_path)
    pinned = pinned_key(tmp_path)
    assert create_signer(tmp_path / "key", "another") == pinned
    (tmp_path / "key/audit.vkey").unlink()
    with pytest.raises(SignatureError, match="not the first one"):
        create_signer(tmp_path / "key", "another")


def test_a_later_key_begins_no_log(tmp_path: Path) -> None:
    rolled(tmp_path)
    shutil.rmtree(tmp_path / "audit")
    with pytest.raises(AuditError, match="epoch 2"), open_log(tmp_path):
        pass


@pytest.mark.parametrize(
    "settings", [AuditSettings(epoch_records=2), AuditSettings(epoch_seconds=0.0)]
)
def test_an_epoch_ends_by_records_or_by_time(tmp_path: Path, settings: AuditSettings) -> None:
    with open_log(tmp_path):
        pass
    with AuditLog.open(tmp_path / "audit", tmp_path / "key", settings) as log:
        log.append(exchange("a"))
        assert log.roll_is_due()
        log.roll()
        assert log.roll_is_due() == (settings.epoch_seconds == 0.0)
    with open_log(tmp_path) as log:
        assert not log.roll_is_due()


def test_a_key_that_is_being_destroyed_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """Another process reads the key at every moment of a roll."""
    with open_log(tmp_path):
        pass
    keys, rolled = SigningKeys(tmp_path / "key"), threading.Event()

    def roll() -> None:
        for _ in range(50):
            keys.prepare()
            keys.promote()
        rolled.set()

    thread = threading.Thread(target=roll)
    thread.start()
    epochs = [0]
    while not rolled.is_set():
        epochs.append(load_signer(tmp_path / "key").epoch)
    thread.join()
    assert epochs == sorted(epochs)
    assert load_signer(tmp_path / "key").epoch == 50


def test_whoever_opens_the_keys_in_the_middle_of_a_roll_signs_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_log(tmp_path):
        pass
    other, rolls = SigningKeys(tmp_path / "key"), iter([True])

    def read_before_a_roll(key_dir: Path) -> EpochSigner:
        key = load_signer(key_dir)
        if next(rolls, False):
            other.prepare()
            other.promote()
        return key

    monkeypatch.setattr(signer, "load_signer", read_before_a_roll)
    assert SigningKeys(tmp_path / "key").in_force().epoch == 1
