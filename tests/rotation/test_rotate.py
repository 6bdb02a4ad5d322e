"""Keys are replaced with the signatures that this takes, and with none that do not count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.errors import (
    ConflictError,
    LockedError,
    NotFoundError,
    SignatureError,
    UsageError,
)
from appliance.fsops import exclusive_lock
from installer.keyring import MODEL_SIGNER, encrypted, signer_in
from installer.media.sign import MediaSigner
from installer.rotation.officers import officers_of
from installer.rotation.rotate import change_officers, discard, retire, rotate, sign
from installer.rotation.show import show
from installer.signing import BundleSigner
from tests.fakes.media import PASSPHRASE
from tests.rotation.conftest import LATER, NOW, Directory


def keyids(directory: Directory) -> dict[str, str]:
    return {key.name: key.keyid for key in show(directory.path).keys}


def test_the_release_manager_alone_replaces_the_keys_below_targets(directory: Directory) -> None:
    before = keyids(directory)
    changed = rotate(directory.path, ["appliance", "models"], PASSPHRASE, LATER)
    assert changed.done == ("appliance", "models")
    assert changed.root is None
    after = keyids(directory)
    assert {name for name in after if after[name] != before[name]} == {"appliance", "models"}
    MediaSigner(directory.keyring, PASSPHRASE, LATER)


def test_nothing_below_targets_changes_without_the_release_manager(directory: Directory) -> None:
    directory.keyring.key_file("targets").unlink()
    before = directory.contents()
    with pytest.raises(NotFoundError, match="role targets"):
        rotate(directory.path, ["models"], PASSPHRASE, LATER)
    assert directory.contents() == before


def test_officers_on_their_own_media_sign_one_after_the_other(directory: Directory) -> None:
    before = keyids(directory)
    begun = rotate(directory.path, ["officer-1", "snapshot"], PASSPHRASE, LATER).root
    assert begun is not None
    assert (begun.signed, begun.missing, begun.missing_new) == (("officer-1 (new key)",), 2, 1)
    MediaSigner(directory.keyring, PASSPHRASE, LATER)  # with the old keys, as before
    assert keyids(directory) == before

    half = sign(directory.path, PASSPHRASE, LATER, officer_keys=[directory.officer(2)]).root
    assert half is not None
    assert (half.missing, half.missing_new, half.complete) == (1, 0, False)
    assert show(directory.path).pending == half
    done = sign(directory.path, PASSPHRASE, LATER, officer_keys=[directory.officer(3)]).root
    assert done is not None
    assert done.complete
    assert directory.chain().root.version == 2
    after = keyids(directory)
    assert {name for name in after if after[name] != before[name]} == {"officer-1", "snapshot"}
    assert show(directory.path).pending is None
    with pytest.raises(NotFoundError):
        sign(directory.path, PASSPHRASE, LATER)


def test_a_lost_officers_key_is_replaced_by_the_others(directory: Directory) -> None:
    directory.officer(1).unlink()
    others = [directory.officer(2), directory.officer(3)]
    rotate(directory.path, ["officer-1"], PASSPHRASE, LATER, officer_keys=others)
    directory.take_away(1)
    new = signer_in(directory.officer(1), PASSPHRASE).public_key.keyid
    assert officers_of(directory.chain().root)["officer-1"] == new


def test_the_replaced_officer_counts_no_more(directory: Directory) -> None:
    former = directory.officer(1).rename(directory.officers / "former.pem")
    both = [directory.officer(2), directory.officer(3)]
    rotate(directory.path, ["officer-1"], PASSPHRASE, LATER, officer_keys=both)
    directory.take_away(1)
    rotate(directory.path, ["timestamp"], PASSPHRASE, LATER)
    before = directory.contents()
    with pytest.raises(SignatureError, match="no officer's"):
        sign(directory.path, PASSPHRASE, LATER, officer_keys=[former, directory.officer(2)])
    assert directory.contents() == before
    sign(directory.path, PASSPHRASE, LATER, officer_keys=[directory.officer(1), *both])
    assert directory.chain().root.version == 3


def test_one_officer_who_signs_twice_counts_once(directory: Directory) -> None:
    twice = [directory.officer(1), directory.officer(1)]
    standing = rotate(directory.path, ["snapshot"], PASSPHRASE, LATER, officer_keys=twice).root
    assert standing is not None
    assert standing.missing == 1


def test_a_new_targets_key_signs_the_targets_at_once(directory: Directory) -> None:
    both = [directory.officer(1), directory.officer(2)]
    rotate(directory.path, ["targets"], PASSPHRASE, LATER, officer_keys=both)
    targets = directory.keyring.load("targets")
    assert targets is not None
    root = directory.chain().root
    root.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    assert targets.signed.version == 2
    rotate(directory.path, ["models"], PASSPHRASE, LATER)


def test_a_key_that_was_replaced_is_recognized_before_the_long_work(directory: Directory) -> None:
    former = {name: directory.keyring.key_file(name).read_bytes() for name in ("targets", "models")}
    both = [directory.officer(1), directory.officer(2)]
    rotate(directory.path, ["targets", "models"], PASSPHRASE, LATER, officer_keys=both)
    use: dict[str, Callable[[], object]] = {
        "targets": lambda: rotate(directory.path, ["appliance"], PASSPHRASE, LATER),
        "models": lambda: MediaSigner(directory.keyring, PASSPHRASE, LATER),
    }
    for name, data in former.items():
        present = directory.keyring.key_file(name).read_bytes()
        directory.keyring.key_file(name).write_bytes(data)
        with pytest.raises(SignatureError, match="not the key that the metadata name"):
            use[name]()
        directory.keyring.key_file(name).write_bytes(present)


def test_a_second_change_waits_for_the_first_or_drops_it(directory: Directory) -> None:
    before = directory.contents()
    rotate(directory.path, ["snapshot"], PASSPHRASE, LATER)
    with pytest.raises(ConflictError) as caught:
        rotate(directory.path, ["models", "timestamp"], PASSPHRASE, LATER)
    assert caught.value.code == "root_pending"
    assert discard(directory.path).version == 2
    assert directory.contents() == before
    with pytest.raises(NotFoundError):
        discard(directory.path)


def test_officers_join_and_leave_and_the_threshold_follows(directory: Directory) -> None:
    both = [directory.officer(1), directory.officer(2)]
    standing = change_officers(
        directory.path, PASSPHRASE, LATER,
        add=2, remove=["officer-3"], threshold=3, officer_keys=both,
    ).root  # fmt: skip
    assert standing is not None
    assert standing.complete
    assert standing.changes[:4] == (
        "officer-3 leaves", "officer-4 joins", "officer-5 joins", "3 officers must agree, not 2",
    )  # fmt: skip
    root = directory.chain().root
    assert list(officers_of(root)) == ["officer-1", "officer-2", "officer-4", "officer-5"]
    assert root.roles["root"].threshold == 3
    with pytest.raises(UsageError, match="3 of 2 officers"):
        change_officers(directory.path, PASSPHRASE, LATER, remove=["officer-4", "officer-5"])


def test_without_a_change_the_root_is_renewed(directory: Directory) -> None:
    before = keyids(directory)
    both = [directory.officer(1), directory.officer(2)]
    change_officers(directory.path, PASSPHRASE, LATER, officer_keys=both)
    root = directory.chain().root
    assert root.version == 2
    assert (root.expires - NOW).days > 5 * 365
    assert keyids(directory) == before


def test_a_mistyped_passphrase_makes_no_key(directory: Directory) -> None:
    before = directory.contents()
    for change in (["snapshot"], ["models"]):
        with pytest.raises(SignatureError, match="passphrase"):
            rotate(directory.path, change, b"another passphrase", LATER)
    with pytest.raises(SignatureError, match="passphrase"):
        change_officers(directory.path, b"another passphrase", LATER, add=1)
    assert directory.contents() == before


def test_an_officer_may_have_a_passphrase_of_their_own(directory: Directory) -> None:
    private = load_pem_private_key(directory.officer(2).read_bytes(), PASSPHRASE)
    directory.officer(2).write_bytes(encrypted(private, b"known to officer 2 alone"))
    rotate(directory.path, ["targets"], PASSPHRASE, LATER, officer_keys=[directory.officer(1)])
    with pytest.raises(SignatureError, match=r"targets\.pem"):
        # Enough have signed, but the new targets key has the common passphrase.
        sign(
            directory.path, b"known to officer 2 alone", LATER, officer_keys=[directory.officer(2)]
        )
    done = sign(directory.path, PASSPHRASE, LATER).root
    assert done is not None
    assert done.complete
    assert directory.chain().root.version == 2


def test_names_of_keys_that_do_not_exist_are_refused_with_those_that_do(
    directory: Directory,
) -> None:
    with pytest.raises(NotFoundError, match="officer-9") as caught:
        rotate(directory.path, ["models", "officer-9"], PASSPHRASE, LATER)
    assert "officer-3, targets, snapshot" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be read"):
        rotate(directory.path, ["snapshot"], PASSPHRASE, LATER,
               officer_keys=[directory.officers / "nobody.pem"])  # fmt: skip


def test_a_new_model_signer_takes_the_place_of_the_former(directory: Directory) -> None:
    rotate(directory.path, [MODEL_SIGNER], PASSPHRASE, LATER)
    assert [signer.name for signer in directory.keyring.model_signers()] == ["model-signer-2"]
    assert BundleSigner.load(directory.path, PASSPHRASE).signer.name == "model-signer-2"


def test_with_an_overlap_both_signers_are_accepted_until_one_is_retired(
    directory: Directory,
) -> None:
    rotate(directory.path, [MODEL_SIGNER], PASSPHRASE, LATER, overlap=True)
    assert [signer.name for signer in show(directory.path).signers] == [
        "model-signer", "model-signer-2",
    ]  # fmt: skip
    assert retire(directory.path, "model-signer", PASSPHRASE, LATER) == ("model-signer-2",)
    with pytest.raises(NotFoundError):
        retire(directory.path, "model-signer", PASSPHRASE, LATER)
    with pytest.raises(ConflictError) as caught:
        retire(directory.path, "model-signer-2", PASSPHRASE, LATER)
    assert "trust rotate" in caught.value.hint


def test_a_change_waits_for_no_other_one(directory: Directory) -> None:
    with exclusive_lock(directory.path / ".lock"), pytest.raises(LockedError):
        rotate(directory.path, ["models"], PASSPHRASE, LATER)
    with pytest.raises(NotFoundError, match="not a trust directory"):
        show(directory.officers)
