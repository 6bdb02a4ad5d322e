"""A form is read the same in whatever pieces it comes, and what is no form is refused."""

from __future__ import annotations

import itertools

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RequestError
from appliance.shim.multipart import FormReader, PartHead, boundary_of

BOUNDARY = b"xyz"


def body(*parts: tuple[str, str | None, bytes]) -> bytes:
    lines = []
    for name, filename, data in parts:
        head = f'Content-Disposition: form-data; name="{name}"'
        if filename is not None:
            head += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
        lines.append(b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(lines) + b"--xyz--\r\n"


def read(form: bytes, cuts: list[int]) -> list[tuple[PartHead, bytes]]:
    reader = FormReader(BOUNDARY)
    places = sorted({0, len(form), *(cut % (len(form) + 1) for cut in cuts)})
    found: list[tuple[PartHead, bytes]] = []
    for start, end in itertools.pairwise(places):
        for item in reader.feed(form[start:end]):
            if isinstance(item, PartHead):
                found.append((item, b""))
            else:
                head, data = found[-1]
                found[-1] = head, data + item
    reader.end()
    return found


PIECES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r\n--x", b"\r\n--xy", b"a", b"\n"]),
        max_size=12,
    ).map(b"".join),
)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "f.jsonl"]), PIECES)),
    st.lists(st.integers(min_value=0, max_value=2000), max_size=20),
)
def test_a_form_reads_the_same_however_it_is_cut(
    parts: list[tuple[str, str | None, bytes]], cuts: list[int]
) -> None:
    parts = [part for part in parts if b"\r\n--xyz" not in b"\r\n" + part[2]][:16]
    expected = [(PartHead(name, filename), data) for name, filename, data in parts]
    if not parts:
        return
    assert read(body(*parts), cuts) == expected


def test_a_form_of_the_sdk_s_own_client_is_read() -> None:
    request = httpx2.Request(
        "POST", "http://x", data={"purpose": "batch"}, files={"file": ('a"ü.jsonl', b"{}\n")}
    )
    reader = FormReader(boundary_of(request.headers["content-type"]))
    found = list(reader.feed(request.read()))
    reader.end()
    assert found[:2] == [PartHead("purpose", None), b"batch"]
    head = found[2]
    assert isinstance(head, PartHead)
    assert head.name == "file"
    assert "ü" in str(head.filename)
    assert found[3:] == [b"{}\n"]


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"no form",
        body(("a", None, b"x"))[:-6],
        b"--xyzz\r\n",
        b"--xyz\r\nContent-Type: text/plain\r\n\r\nx\r\n--xyz--",
        b"--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--",
        b'--xyz\r\nContent-Disposition: attachment; name="a"\r\n\r\nx\r\n--xyz--',
        b'--xyz\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--xyz--',
        b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\nx\r\n--xyz--",
        b"--xyz\r\nX: " + b"y" * 9000,
        body(*[("a", None, b"")] * 17),
    ],
)
def test_what_is_no_form_is_refused(form: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read(form, [])
    assert caught.value.code == "invalid_form"


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 71],
)
def test_a_form_needs_a_boundary(content_type: str) -> None:
    with pytest.raises(RequestError) as caught:
        boundary_of(content_type)
    assert caught.value.code == "unsupported_media_type"
