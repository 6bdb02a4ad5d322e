"""Each test of the kernels runs with each set of instructions that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.native import library


@pytest.fixture(autouse=True, params=["AVX-512 VNNI", "AVX2"])
def _instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    if not library.supported():
        pytest.skip(str(library.missing()))
    before = library.instructions()
    if not library.choose(request.param):
        pytest.skip(f"this processor lacks {request.param}")
    yield
    library.choose(before)
