"""What is taken back is named once, with a reason, and can be given free again."""

from __future__ import annotations

import pytest

from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.trust.withdrawn import BUNDLE, RELEASE
from installer.rotation.show import show
from installer.rotation.withdraw import (
    give_free,
    on_last_media,
    refuse_withdrawn,
    refuse_withdrawn_release,
    withdraw,
)
from tests.fakes.media import PASSPHRASE
from tests.rotation.conftest import LATER, Directory


def test_a_bundle_is_taken_back_and_given_free(directory: Directory) -> None:
    refuse_withdrawn(directory.keyring, "guide", "1.0")
    entry = withdraw(directory.path, BUNDLE, "guide-1.0", "It is wrong.", PASSPHRASE, LATER)
    assert str(entry) == "withdrawn by the packager on 2027-02-14: It is wrong"
    assert show(directory.path).withdrawn == (entry,)
    with pytest.raises(ConflictError) as caught:
        refuse_withdrawn(directory.keyring, "guide", "1.0")
    assert caught.value.code == "bundle_withdrawn"
    refuse_withdrawn(directory.keyring, "guide", "1.1")
    with pytest.raises(ConflictError, match="already"):
        withdraw(directory.path, BUNDLE, "guide-1.0", "Again", PASSPHRASE, LATER)
    give_free(directory.path, BUNDLE, "guide-1.0", PASSPHRASE, LATER)
    refuse_withdrawn(directory.keyring, "guide", "1.0")
    with pytest.raises(NotFoundError):
        give_free(directory.path, BUNDLE, "guide-1.0", PASSPHRASE, LATER)


def test_before_the_first_media_no_bundle_is_known(directory: Directory) -> None:
    assert on_last_media(directory.path) == []


def test_a_release_is_not_a_bundle_of_that_name(directory: Directory) -> None:
    withdraw(directory.path, RELEASE, "1.0", "It leaks", PASSPHRASE, LATER)
    refuse_withdrawn(directory.keyring, "1", "0")
    with pytest.raises(ConflictError) as caught:
        refuse_withdrawn_release(directory.keyring, "1.0")
    assert caught.value.code == "release_withdrawn"
    with pytest.raises(NotFoundError):
        give_free(directory.path, BUNDLE, "1.0", PASSPHRASE, LATER)


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "x" * 200])
def test_names_that_media_cannot_have_are_refused(directory: Directory, name: str) -> None:
    with pytest.raises(UsageError, match="not the name"):
        withdraw(directory.path, BUNDLE, name, "r", PASSPHRASE, LATER)


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 201])
def test_a_reason_is_one_line(directory: Directory, reason: str) -> None:
    with pytest.raises(UsageError, match="reason"):
        withdraw(directory.path, BUNDLE, "guide-1.0", reason, PASSPHRASE, LATER)
