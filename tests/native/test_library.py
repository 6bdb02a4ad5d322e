"""Which instructions the native operators use."""

from __future__ import annotations

from appliance.native import library


def test_what_is_chosen_is_used() -> None:
    chosen = library.instructions()
    assert chosen in ("AVX-512 VNNI", "AVX2")
    assert library.choose(chosen)
    assert library.instructions() == chosen


def test_instructions_that_nobody_knows_change_nothing() -> None:
    before = library.instructions()
    assert not library.choose("AVX-1024")
    assert library.instructions() == before
