"""Header blocks: the examples of RFC 7541, and whatever comes over a wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.shim.rpc import hpack, huffman
from appliance.shim.rpc.frames import BrokenFrameError

_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)


@pytest.mark.parametrize(
    ("coded", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
        ("a8eb10649cbf", "no-cache"),
        ("25a849e95ba97d7f", "custom-key"),
        ("25a849e95bb8e8b4bf", "custom-value"),
        ("aec3771a4b", "private"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        (
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ),
    ],
)
def test_strings_of_appendix_c_are_read(coded: str, text: str) -> None:
    assert huffman.decode(bytes.fromhex(coded)) == text


@pytest.mark.parametrize(
    ("block", "headers"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [("custom-key", "custom-header")]),
        ("040c2f73616d706c652f70617468", [(":path", "/sample/path")]),
        ("100870617373776f726406736563726574", [("password", "secret")]),
        ("82", [(":method", "GET")]),
        ("2088", [(":status", "200")]),
    ],
)
def test_each_form_of_a_header_is_read(block: str, headers: list[tuple[str, str]]) -> None:
    assert list(hpack.decode(bytes.fromhex(block))) == headers


@given(st.lists(st.tuples(_TEXT, _TEXT), max_size=5))
def test_what_is_written_is_read(headers: list[tuple[str, str]]) -> None:
    assert list(hpack.decode(hpack.encode(headers))) == headers


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_or_refused(block: bytes) -> None:
    try:
        headers = hpack.decode(block)
    except BrokenFrameError:
        return
    assert all(isinstance(text, str) for pair in headers for text in pair)


@pytest.mark.parametrize("block", ["be", "21", "3fe11f", "80", "00", "0085", "ffffffffffff7f"])
def test_a_table_numbers_beyond_it_and_cut_off_blocks_are_refused(block: str) -> None:
    with pytest.raises(BrokenFrameError):
        hpack.decode(bytes.fromhex(block))


@pytest.mark.parametrize("coded", ["00", "fffffffc", "f1e3c2e5f23a6ba0ab90f4ffff"])
def test_padding_that_is_none_and_the_end_of_a_string_are_refused(coded: str) -> None:
    with pytest.raises(BrokenFrameError):
        huffman.decode(bytes.fromhex(coded))
