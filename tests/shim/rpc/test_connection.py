"""One connection, frame by frame: what a server may say, and what it may not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.shim.rpc import Call, RpcError, Status
from appliance.shim.rpc.call import MOST_BYTES, WINDOW
from tests.shim.rpc.wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LAST_STREAM,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Talk,
    answer,
    block,
    frame,
    head,
    message,
    reset,
    setting,
    tail,
    taken,
    window_update,
)

HEAD = block({":status": "200", "content-type": "application/grpc"})
CANCEL = 0x8


def run(body: Callable[[Talk], Coroutine[Any, Any, None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(120):
            await body(Talk())

    asyncio.run(within())


async def taken_by(talk: Talk, call: Call, stream: int) -> list[bytes]:
    talk.hear(answer(stream, b"well"))
    return await taken(call)


async def status(call: Call) -> Status:
    with pytest.raises(RpcError) as caught:
        await taken(call)
    return caught.value.status


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
        talk.hear(head(1))
        while content:
            size = data.draw(st.integers(1, 60))
            talk.hear(frame(DATA, 0, 1, content[:size]))
            content = content[size:]
        talk.hear(tail(1))
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


_FRAMES = st.builds(
    frame, st.integers(0, 11), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=20)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_FRAMES | st.sampled_from([head(1), head(3), tail(1), answer(3, b"x")])))
def test_whatever_frames_come_every_call_ends_or_waits(said: list[bytes]) -> None:
    async def body(talk: Talk) -> None:
        calls = [talk.start(), talk.start()]
        for one in said:
            if not talk.wire.ended:
                talk.hear(one)
            await asyncio.sleep(0)
        assert all(call.ended for call in calls) or not talk.wire.ended
        talk.connection.connection_lost(None)
        assert all(call.ended for call in calls)

    run(body)


def test_padding_and_priority_and_headers_in_parts_are_read() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        flags = PADDED | HAS_PRIORITY
        talk.hear(
            frame(HEADERS, flags, 1, b"\x02" + bytes(5) + HEAD[:7] + bytes(2)),
            frame(CONTINUATION, 0, 1, HEAD[7:9]),
            frame(CONTINUATION, END_HEADERS, 1, HEAD[9:]),
            frame(DATA, PADDED, 1, b"\x03" + message(b"one") + bytes(3)),
            frame(0x77, 0, 1, b"of another version"),
            tail(1),
        )
        assert await taken(call) == [b"one"]

    run(body)


def test_requests_keep_to_the_windows_and_go_on_with_them() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(INITIAL_WINDOW_SIZE, 10), setting(MAX_FRAME_SIZE, 16384))
        await talk.said()
        first, second = talk.start(bytes(15)), talk.start(bytes(15))
        sent = [part for part in await talk.said() if part[0] == DATA]
        assert [(s, f, len(p)) for _, f, s, p in sent] == [(1, 0, 10), (3, 0, 10)]
        talk.hear(window_update(1, 4))
        assert [(s, f, len(p)) for _, f, s, p in await talk.said()] == [(1, 0, 4)]
        talk.hear(setting(INITIAL_WINDOW_SIZE, 100))
        sent = [part for part in await talk.said() if part[0] == DATA]
        assert [(s, f, len(p)) for _, f, s, p in sent] == [(1, 1, 6), (3, 1, 10)]
        talk.hear(answer(1, b"a"), answer(3, b"b"))
        assert (await taken(first), await taken(second)) == ([b"a"], [b"b"])

    run(body)


def test_an_answer_before_the_end_of_the_request_stops_it() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(INITIAL_WINDOW_SIZE, 10))
        call = talk.start(bytes(100))
        await talk.said()
        talk.hear(answer(1, status="8"))
        assert await status(call) is Status.RESOURCE_EXHAUSTED
        assert [kind for kind, *_ in await talk.said()] == [RST_STREAM]
        talk.hear(window_update(1, 1000))
        assert not await talk.said()

    run(body)


def test_the_server_may_send_more_when_messages_were_taken() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        await talk.said()
        talk.hear(head(1))
        part = frame(DATA, 0, 1, message(bytes(16000)))
        talk.hear(part * (WINDOW // 16005))
        assert not [said for said in await talk.said() if said[2] == 1], "nobody has taken any"
        await call.take()
        (kind, _, _, more), *_ = [said for said in await talk.said() if said[2] == 1]
        assert kind == WINDOW_UPDATE
        assert struct.unpack(">I", more)[0] == WINDOW // 16005 * 16005

    run(body)


def test_a_message_larger_than_the_window_gets_through() -> None:
    async def body(talk: Talk) -> None:
        call, content = talk.start(), message(bytes(3 * WINDOW))
        room = WINDOW
        talk.hear(head(1))
        while content:
            size = min(16384, room)
            assert size, "there is room until the message is whole"
            talk.hear(frame(DATA, 0, 1, content[:size]))
            content, room = content[size:], room - size
            for kind, _, stream, payload in await talk.said():
                if (kind, stream) == (WINDOW_UPDATE, 1):
                    room += struct.unpack(">I", payload)[0]
        assert await call.take() == [bytes(3 * WINDOW)]

    run(body)


def test_no_more_calls_at_once_than_the_server_takes() -> None:
    async def body(talk: Talk) -> None:
        talk.hear(setting(MAX_CONCURRENT_STREAMS, 2))
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
        talk.hear(frame(GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
        assert await status(too_late) is Status.UNAVAILABLE
        assert await status(talk.start()) is Status.UNAVAILABLE
        assert (talk.retired, talk.wire.ended) == (1, False)
        talk.hear(answer(1, b"whole"))
        assert await taken(taken_on) == [b"whole"]
        assert talk.wire.ended

    run(body)


def test_closing_ends_what_the_server_would_have_ended_before_it_went() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        talk.hear(frame(GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
        assert not talk.wire.ended
        talk.connection.close()
        assert await status(call) is Status.CANCELLED
        assert talk.wire.ended

    run(body)


@pytest.mark.parametrize("status_of_http", ["404", "502"])
def test_an_answer_that_is_not_of_grpc_fails_its_call_and_is_refused(status_of_http: str) -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        await talk.said()
        talk.hear(frame(HEADERS, END_HEADERS, 1, block({":status": status_of_http})))
        assert await status(call) is Status.UNAVAILABLE
        assert await talk.said() == [(RST_STREAM, 0, 1, struct.pack(">I", CANCEL))]

    run(body)


def test_what_was_asked_for_before_the_server_went_away_is_still_said() -> None:
    async def body(talk: Talk) -> None:
        await talk.said()
        call = talk.start(b"whole")
        talk.hear(setting(MAX_FRAME_SIZE, 16384), frame(GOAWAY, 0, 0, struct.pack(">II", 1, 0)))
        kinds = [kind for kind, *_ in await talk.said()]
        assert kinds == [HEADERS, DATA, SETTINGS]
        talk.hear(answer(1, b"too"))
        assert await taken(call) == [b"too"]

    run(body)


def test_a_call_goes_out_at_once_and_what_others_say_meanwhile_in_one_more_write() -> None:
    async def body(talk: Talk) -> None:
        await talk.said()
        writes = talk.wire.writes
        calls = [talk.start(b"one")]
        assert talk.wire.writes == writes + 1
        calls += [talk.start(b"one") for _ in range(4)]
        talk.hear(frame(PING, 0, 0, bytes(8)))
        calls[0].cancel()
        assert len(await talk.said()) == 12
        assert talk.wire.writes == writes + 2

    run(body)


def test_a_connection_retires_when_it_has_no_more_numbers() -> None:
    async def body(talk: Talk) -> None:
        talk.connection._http.highest_outbound_stream_id = LAST_STREAM - 2
        last = talk.start()
        assert (last.stream, talk.retired) == (LAST_STREAM, 1)
        assert not talk.wire.ended
        talk.hear(answer(LAST_STREAM, b"x"))
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
        talk.hear(head(1), frame(DATA, 0, 1, message(b"before")), reset(1, code))
        assert await call.take() == [b"before"]
        assert await status(call) is meaning

    run(body)


def test_pings_and_settings_are_answered() -> None:
    async def body(talk: Talk) -> None:
        await talk.said()
        talk.hear(frame(PING, 0, 0, b"12345678"), frame(PING, ACK, 0, bytes(8)))
        talk.hear(frame(SETTINGS, 0, 0), frame(SETTINGS, ACK, 0))
        assert await talk.said() == [
            (PING, ACK, 0, b"12345678"),
            (SETTINGS, ACK, 0, b""),
        ]

    run(body)


def test_what_comes_for_a_cancelled_call_is_dropped() -> None:
    async def body(talk: Talk) -> None:
        call = talk.start()
        await talk.said()
        call.cancel()
        assert await talk.said() == [(RST_STREAM, 0, 1, struct.pack(">I", CANCEL))]
        talk.hear(head(1), frame(DATA, 0, 1, message(b"late")))
        assert await taken_by(talk, talk.start(), 3) == [b"well"]
        talk.hear(frame(DATA, 0, 1, message(b"later")), tail(1), reset(1, 0), window_update(1, 5))
        assert await taken_by(talk, talk.start(), 5) == [b"well"]
        assert await status(call) is Status.CANCELLED

    run(body)


@pytest.mark.parametrize(
    "said",
    [
        [frame(DATA, 0, 1, b"\1" + message(b"x")[1:])],
        [frame(DATA, 0, 1, b"\0" + (MOST_BYTES + 1).to_bytes(4, "big"))],
        [frame(DATA, END_STREAM, 1, message(b"x"))],
        [frame(DATA, 0, 1, message(b"cut")[:6]), tail(1)],
        [tail(1, "none")],
    ],
)  # fmt: skip
def test_an_answer_that_is_none_ends_its_call_alone(said: Sequence[bytes]) -> None:
    async def body(talk: Talk) -> None:
        call, other = talk.start(), talk.start()
        talk.hear(head(1), *said)
        assert await status(call) in {Status.INTERNAL, Status.RESOURCE_EXHAUSTED, Status.UNKNOWN}
        talk.hear(answer(3, b"well"))
        assert await taken(other) == [b"well"]

    run(body)


@pytest.mark.parametrize(
    "said",
    [
        frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)),
        frame(HEADERS, 0, 1, HEAD) + frame(DATA, 0, 1),
        frame(CONTINUATION, END_HEADERS, 1, HEAD),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff"),
        frame(DATA, PADDED, 1, b"\x05abc"),
        frame(SETTINGS, 0, 0, bytes(5)),
        frame(RST_STREAM, 0, 1, b"\0"),
        frame(DATA, 0, 1, message(b"before the headers")),
        frame(PING, 0, 0, bytes(16385)),
    ],
)
def test_what_is_no_http2_ends_the_connection_and_every_call(said: bytes) -> None:
    async def body(talk: Talk) -> None:
        calls = [talk.start(), talk.start()]
        talk.hear(said)
        assert (talk.wire.ended, talk.retired) == (True, 1)
        assert [await status(call) for call in calls] == [Status.UNAVAILABLE] * 2

    run(body)
