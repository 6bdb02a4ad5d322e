"""Events are read as the standard says, in whatever pieces the bytes come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from installer.bench.event_stream import EventReader


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": ping\n\n: ping\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 9\ndata: a\n\n", [b"a"]),
        (b"event: x\n\n", []),
        (b"data\n\n", [b""]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: cut off", []),
        (b"data: cut off\n", []),
        (b"\n\n\n", []),
    ],
)
def test_a_stream_has_these_events(stream: bytes, events: list[bytes]) -> None:
    assert EventReader().feed(stream) == events


LINES = st.sampled_from([b"data: a", b"data:b", b": c", b"event: d", b"", b"", b"data", b"x"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@settings(deadline=None)
@given(
    st.lists(st.tuples(LINES, ENDS)).map(lambda lines: b"".join(map(b"".join, lines))),
    st.lists(st.integers(0, 200)),
)
def test_how_the_bytes_are_cut_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    whole = EventReader().feed(stream)
    reader, pieces, begin = EventReader(), list[bytes](), 0
    for cut in [*sorted(min(cut, len(stream)) for cut in cuts), len(stream)]:
        pieces += reader.feed(stream[begin:cut])
        begin = cut
    assert pieces == whole
