"""A change of a trust directory holds as a whole or not at all, wherever the power fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from appliance.errors import ConflictError
from installer.keyring import Keyring
from installer.rotation.rotate import rotate, sign
from installer.rotation.show import show
from tests.fakes.media import PASSPHRASE
from tests.rotation.conftest import LATER, Directory


class PowerCut(BaseException):
    """Not an Exception: nothing tidies up after it."""


@contextmanager
def power_fails_before(step: int) -> Iterator[None]:
    """The `step`-th rename from here on does not happen, nor anything after it."""
    left = [step]
    real: Callable[..., None] = os.rename, os.replace  # type: ignore[assignment]

    def counted(which: int) -> Callable[..., None]:
        def rename(*arguments: object, **named: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise PowerCut
            real[which](*arguments, **named)  # type: ignore[index]

        return rename

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", counted(0))
        patch.setattr(os, "replace", counted(1))
        yield


def cut_everywhere(directory: Directory, change: Callable[[Directory], object]) -> None:
    """Cut the power before each rename of `change` in turn, each time in a fresh copy.

    The copy is then either as before or completely changed.
    """
    before = show(directory.path)
    changed = []
    for step in range(100):
        copy = replace(directory, path=directory.path.with_name(f"cut-{step}"))
        shutil.copytree(directory.path, copy.path)
        try:
            with power_fails_before(step):
                change(copy)
        except PowerCut:
            after = show(copy.path)  # completes what was interrupted
            assert_consistent(copy)
            changed.append((after.keys, after.signers) != (before.keys, before.signers))
            if not changed[-1]:
                change(copy)  # and can be done again
                assert_consistent(copy)
        else:
            break
    assert changed == sorted(changed), "what held once stays"
    assert set(changed) == {False, True}


def assert_consistent(directory: Directory) -> None:
    """The files agree with each other: keys with metadata, lists with targets."""
    keyring = Keyring(directory.path)
    root, targets = directory.chain().root, keyring.load("targets")
    assert targets is not None
    root.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    for name, data in keyring.listed().items():
        targets.signed.targets[name].verify_length_and_hashes(data)
    for role in ("targets", "snapshot", "timestamp"):
        keyid = keyring.signer(role, PASSPHRASE).public_key.keyid
        assert root.roles[role].keyids == [keyid]
    for role in ("appliance", "models"):
        keyid = keyring.signer(role, PASSPHRASE).public_key.keyid
        assert targets.signed.get_delegated_role(role).keyids == [keyid]


def test_keys_below_targets(directory: Directory) -> None:
    names = ["models", "model-signer"]
    cut_everywhere(directory, lambda copy: rotate(copy.path, names, PASSPHRASE, LATER))


def test_keys_below_the_root(directory: Directory) -> None:
    names = ["targets", "snapshot", "officer-3"]
    officers = [directory.officer(1), directory.officer(2)]

    def change(copy: Directory) -> None:
        try:
            rotate(copy.path, names, PASSPHRASE, LATER, officer_keys=officers)
        except ConflictError:  # it was written down before the power failed
            sign(copy.path, PASSPHRASE, LATER, officer_keys=officers)

    cut_everywhere(directory, change)


def test_a_change_under_way_is_not_mistaken_for_a_finished_one(directory: Directory) -> None:
    (directory.path / "publishing").mkdir()
    with pytest.raises(ConflictError) as caught:
        Keyring(directory.path)
    assert "trust show" in caught.value.hint
    show(directory.path)
    Keyring(directory.path)
