"""One connection, frame by frame: what a server may say, and what it may not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.shim.rpc import Call, RpcError, Status, frames, hpack
from appliance.shim.rpc.call import MOST_BYTES, WINDOW
from appliance.shim.rpc.connection import Connection
from appliance.shim.rpc.frames import frame

HEAD = hpack.encode([(":status", "200"), ("content-type", "application/grpc")])
OK = hpack.encode([("grpc-status", "0")])


class Wire(asyncio.Transport):
    """The other end, as far as a connection sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = b""
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.bytes += data

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended


class Talk:
    """A connection and what was said on it."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.retired = 0
        self.connection = Connection(self._retire)
        self.connection.connection_made(self.wire)

    def _retire(self, _: Connection) -> None:
        self.retired += 1

    def start(self, request: bytes = b"") -> Call:
        call = Call("/t/method", request)
        self.connection.start(call)
        return call

    def hear(self, *said: bytes) -> None:
        self.connection.data_received(b"".join(said))

    async def said(self) -> list[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of what was sent since the last time."""
        await asyncio.sleep(0)
        data, self.wire.bytes = self.wire.bytes.removeprefix(frames.PREFACE), b""
        found = []
        while data:
            length = int.from_bytes(data[:3], "big")
            stream = int.from_bytes(data[5:9], "big")
            found.append((data[3], data[4], stream, data[9 : 9 + length]))
            data = data[9 + length :]
        return found


def run(body: Callable[[Talk], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(30):
            await body(Talk())

    asyncio.run(within())


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def answer(stream: int, *messages: bytes, trailers: bytes = OK) -> bytes:
    return b"".join(
        [
            frame(frames.HEADERS, frames.END_HEADERS, stream, HEAD),
            *(frame(frames.DATA, 0, stream, message(data)) for data in messages),
            frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream, trailers),
        ]
    )


async def taken(call: Call) -> list[bytes]:
    messages: list[bytes] = []
    while more := await call.take():
        messages += more
    return messages


async def status(call: Call) -> Status:
    with pytest.raises(RpcError) as caught:
        await taken(call)
    return caught.value.status


def setting(name: int, value: int) -> bytes:
    return frames.settings([(name, value)])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
)
def test_it_does_not_matter_how_the_bytes_come(messages: list[bytes], sizes: list[int]) -> None:
    async def body(talk: Talk) -> None:
        calls = [talk.start(), talk.start()]
        said = answer(1, *messages) + answer(3, *reversed(messages))
        turn = 0
        while said:
            size = sizes[turn % len(sizes)]
            talk.hear(said[:size])
            said, turn = said[size:], turn + 1
        assert await taken(calls[0]) == messages
        assert await taken(calls[1]) == messages[::-1]

    run(body)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=6), st.data())
def test_messages_may_be_cut_into_frames_anywhere(
    messages: list[bytes], data: st.DataObject
) -> None:
    async def body(talk: Talk) -> None:
        call, content = talk.start(), b"".join(map(message, messages))
        while content:
            size = data.draw(st.integers(1, 60))
            talk.hear(frame(frames.DATA, 0, 1, content[:size]))
            content = content[size:]
        talk.hear(frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, OK))
        assert await taken(call) == messages

    run(body)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_whatever_comes_every_call_ends_or_waits(data: bytes) -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        talk.hear(data)
        talk.connection.connection_lost(None)
        assert call.ended

    run(body)


def test_padding_and_priority_and_headers_in_parts_are_read() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        flags = frames.PADDED | frames.HAS_PRIORITY
        talk.hear(
            frame(frames.HEADERS, flags, 1, b"\x02" + bytes(5) + HEAD[:7] + bytes(2)),
            frame(frames.CONTINUATION, 0, 1, HEAD[7:9]),
            frame(frames.CONTINUATION, frames.END_HEADERS, 1, HEAD[9:]),
            frame(frames.DATA, frames.PADDED, 1, b"\x03" + message(b"one") + bytes(3)),
            frame(0x77, 0, 1, b"of another version"),
            answer(1)[len(frame(frames.HEADERS, 0, 1, HEAD)) :],
        )
        assert await taken(call) == [b"one"]

    run(body)


def test_requests_keep_to_the_windows_and_go_on_with_them() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(frames.INITIAL_WINDOW_SIZE, 10), setting(frames.MAX_FRAME_SIZE, 16384))
        await talk.said()
        first, second = talk.start(bytes(15)), talk.start(bytes(15))
        sent = [part for part in await talk.said() if part[0] == frames.DATA]
        assert [(s, f, len(p)) for _, f, s, p in sent] == [(1, 0, 10), (3, 0, 10)]
        talk.hear(frames.window_update(1, 4))
        assert [(s, f, len(p)) for _, f, s, p in await talk.said()] == [(1, 0, 4)]
        talk.hear(setting(frames.INITIAL_WINDOW_SIZE, 100))
        sent = [part for part in await talk.said() if part[0] == frames.DATA]
        assert [(s, f, len(p)) for _, f, s, p in sent] == [(1, 1, 6), (3, 1, 10)]
        talk.hear(answer(1, b"a"), answer(3, b"b"))
        assert (await taken(first), await taken(second)) == ([b"a"], [b"b"])

    run(body)


def test_an_answer_before_the_end_of_the_request_stops_it() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(frames.INITIAL_WINDOW_SIZE, 10))
        call = talk.start(bytes(100))
        await talk.said()
        talk.hear(answer(1, trailers=hpack.encode([("grpc-status", "8")])))
        assert await status(call) is Status.RESOURCE_EXHAUSTED
        assert [kind for kind, *_ in await talk.said()] == [frames.RST_STREAM]
        talk.hear(frames.window_update(1, 1000))
        assert not await talk.said()

    run(body)


def test_the_server_may_send_more_when_messages_were_taken() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        await talk.said()
        part = frame(frames.DATA, 0, 1, message(bytes(16000)))
        talk.hear(part * (WINDOW // 16005))
        assert not [said for said in await talk.said() if said[2] == 1], "nobody has taken any"
        await call.take()
        (kind, _, _, more), *_ = [said for said in await talk.said() if said[2] == 1]
        assert kind == frames.WINDOW_UPDATE
        assert struct.unpack(">I", more)[0] == WINDOW // 16005 * 16005

    run(body)


def test_a_message_larger_than_the_window_gets_through() -> None:
    async def body(talk: Talk) -> None:
        call, content = talk.start(), message(bytes(3 * WINDOW))
        room = WINDOW
        while content:
            size = min(16384, room)
            assert size, "there is room until the message is whole"
            talk.hear(frame(frames.DATA, 0, 1, content[:size]))
            content, room = content[size:], room - size
            for kind, _, stream, payload in await talk.said():
                if (kind, stream) == (frames.WINDOW_UPDATE, 1):
                    room += struct.unpack(">I", payload)[0]
        assert await call.take() == [bytes(3 * WINDOW)]

    run(body)


def test_no_more_calls_at_once_than_the_server_takes() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(frames.MAX_CONCURRENT_STREAMS, 2))
        calls = [talk.start() for _ in range(4)]
        assert {stream for kind, _, stream, _ in await talk.said() if kind == 1} == {1, 3}
        calls[2].cancel()
        talk.hear(answer(1))
        assert {stream for kind, _, stream, _ in await talk.said() if kind == 1} == {5}
        talk.hear(answer(3), answer(5))
        assert [await taken(calls[n]) for n in (0, 1, 3)] == [[], [], []]

    run(body)


def test_going_away_lets_end_what_was_taken_and_nothing_else() -> None:
    async def body(talk: Talk) -> None:
        taken_on, too_late = talk.start(), talk.start()
        talk.hear(frame(frames.GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
        assert await status(too_late) is Status.UNAVAILABLE
        assert await status(talk.start()) is Status.UNAVAILABLE
        assert (talk.retired, talk.wire.ended) == (1, False)
        talk.hear(answer(1, b"whole"))
        assert await taken(taken_on) == [b"whole"]
        assert talk.wire.ended

    run(body)


def test_a_connection_retires_when_it_has_no_more_numbers() -> None:
    async def body(talk: Talk) -> None:
        talk.connection._next_stream = frames.LAST_STREAM
        last = talk.start()
        assert (last.stream, talk.retired) == (frames.LAST_STREAM, 1)
        assert not talk.wire.ended
        talk.hear(answer(frames.LAST_STREAM, b"x"))
        assert await taken(last) == [b"x"]
        assert talk.wire.ended

    run(body)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(7, Status.UNAVAILABLE), (8, Status.CANCELLED), (0xB, Status.RESOURCE_EXHAUSTED),
     (2, Status.INTERNAL)],
)  # fmt: skip
def test_a_reset_has_the_meaning_that_grpc_gives_it(code: int, meaning: Status) -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        talk.hear(answer(1, b"before")[: -len(frame(1, 0, 1, OK))], frames.reset(1, code))
        assert await call.take() == [b"before"]
        assert await status(call) is meaning

    run(body)


def test_pings_and_settings_are_answered() -> None:
    async def body(talk: Talk) -> None:
        await talk.said()
        talk.hear(
            frame(frames.PING, 0, 0, b"12345678"), frame(frames.PING, frames.ACK, 0, bytes(8))
        )
        talk.hear(frame(frames.SETTINGS, 0, 0), frame(frames.SETTINGS, frames.ACK, 0))
        assert await talk.said() == [
            (frames.PING, frames.ACK, 0, b"12345678"),
            (frames.SETTINGS, frames.ACK, 0, b""),
        ]

    run(body)


def test_what_comes_for_a_cancelled_call_is_dropped() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        await talk.said()
        call.cancel()
        assert await talk.said() == [(frames.RST_STREAM, 0, 1, struct.pack(">I", frames.CANCEL))]
        talk.hear(answer(1, b"late"), frames.reset(1, 0), frames.window_update(1, 5))
        assert await status(call) is Status.CANCELLED
        assert not talk.wire.ended

    run(body)


@pytest.mark.parametrize(
    "said",
    [
        [frame(frames.DATA, 0, 1, b"\1" + message(b"x")[1:])],
        [frame(frames.DATA, 0, 1, b"\0" + (MOST_BYTES + 1).to_bytes(4, "big"))],
        [frame(frames.DATA, frames.END_STREAM, 1, message(b"x"))],
        [frame(frames.DATA, 0, 1, message(b"cut")[:6]), answer(1)],
        [frame(frames.HEADERS, 5, 1, hpack.encode([("grpc-status", "none")]))],
    ],
)  # fmt: skip
def test_an_answer_that_is_none_ends_its_call_alone(said: Sequence[bytes]) -> None:
    async def body(talk: Talk) -> None:
        call, other = talk.start(), talk.start()
        talk.hear(*said)
        assert await status(call) in {Status.INTERNAL, Status.RESOURCE_EXHAUSTED, Status.UNKNOWN}
        talk.hear(answer(3, b"well"))
        assert await taken(other) == [b"well"]

    run(body)


@pytest.mark.parametrize(
    "said",
    [
        frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1, bytes(4)),
        frame(frames.HEADERS, 0, 1, HEAD) + frame(frames.DATA, 0, 1),
        frame(frames.CONTINUATION, frames.END_HEADERS, 1, HEAD),
        frame(frames.HEADERS, frames.END_HEADERS, 1, b"\xff\xff\xff"),
        frame(frames.DATA, frames.PADDED, 1, b"\x05abc"),
        frame(frames.SETTINGS, 0, 0, bytes(5)),
        frame(frames.RST_STREAM, 0, 1, b"\0"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_what_is_no_http2_ends_the_connection_and_every_call(said: bytes) -> None:
    async def body(talk: Talk) -> None:
        calls = [talk.start(), talk.start()]
        talk.hear(said)
        assert (talk.wire.ended, talk.retired) == (True, 1)
        assert [await status(call) for call in calls] == [Status.UNAVAILABLE] * 2

    run(body)
