"""What is written down of releases leads back to one that has proved itself, also after kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import Layout
from appliance.errors import StorageError
from installer.kept import Kept, kept_releases, read_kept, write_kept
from installer.staging import InstalledRelease

ONE, TWO, THREE = (InstalledRelease(Path(name)) for name in ("1-a", "2-b", "3-c"))


def updated() -> Kept:
    """Release 1 served the models of generation 4 when 2 took its place."""
    return Kept().with_proved(ONE).with_update(ONE, 4).with_proved(TWO)


def test_after_an_update_the_one_before_is_the_former() -> None:
    assert updated() == Kept(proved="2-b", former="1-a", former_models=4)


def test_the_first_release_has_none_before_it() -> None:
    assert Kept().with_proved(ONE).former == ""


def test_an_update_that_was_killed_and_is_run_again_keeps_what_it_began_from() -> None:
    begun = Kept().with_proved(ONE).with_update(ONE, 4)
    again = begun.with_update(TWO, 9)  # TWO is current already, and not proved
    assert again.with_proved(TWO) == updated()


def test_an_update_that_fails_leaves_the_former_as_it_was() -> None:
    begun = updated().with_update(TWO, 6)
    assert (begun.proved, begun.former, begun.former_models) == ("2-b", "1-a", 4)


def test_installing_the_same_again_changes_nothing() -> None:
    assert updated().with_proved(TWO) == updated()


def test_a_way_back_turns_the_two_round_and_a_second_one_back() -> None:
    there = updated().with_way_back(7).with_proved(ONE)
    assert there == Kept(proved="1-a", former="2-b", former_models=7)
    again = there.with_way_back(8).with_proved(TWO)
    assert again == Kept(proved="2-b", former="1-a", former_models=8)


def test_a_killed_way_back_goes_on_to_where_it_went() -> None:
    begun = updated().with_way_back(7)
    assert begun.with_way_back(2) == begun
    assert begun.without_way_back() == Kept(proved="2-b", models=7, former="1-a", former_models=4)


def test_a_newer_update_forgets_the_oldest() -> None:
    kept = updated().with_update(TWO, 6).with_proved(THREE)
    assert kept == Kept(proved="3-c", former="2-b", former_models=6)


def test_it_is_read_as_written_and_by_a_release_that_knows_fewer_fields(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.install_state.mkdir(parents=True)
    assert read_kept(layout) == Kept()
    write_kept(layout, updated())
    path = layout.install_state / "releases.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(b"{", b'{"of_a_later_release":1,', 1))
    assert read_kept(layout) == updated()
    assert [r.version for r in kept_releases(layout, updated())] == ["2", "1"]


def test_a_damaged_one_is_a_typed_error(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.install_state.mkdir(parents=True)
    (layout.install_state / "releases.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"releases\.json") as caught:
        read_kept(layout)
    assert caught.value.hint
