"""Frames over a real socket pair: messages arrive however the stream is split; invalid streams are refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synod import frames
from synod.errors import PayloadTooLarge

LIMIT = 1000
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def packed(*messages: object) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in messages:
            frames.send(ours, message, LIMIT)
        ours.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: theirs.recv(4096), b""))


@given(messages=st.lists(plain, max_size=4), data=st.data())
def test_messages_arrive_however_the_stream_is_split(messages: list[object], data: st.DataObject) -> None:
    stream = packed(*messages)
    cuts = sorted({0, len(stream), *data.draw(st.lists(st.integers(0, len(stream)), max_size=6))})
    ours, theirs = socket.socketpair()

    def pieces() -> None:
        for begin, end in pairwise(cuts):
            ours.sendall(stream[begin:end])
        ours.shutdown(socket.SHUT_WR)

    with ours, theirs:
        sender = threading.Thread(target=pieces)
        sender.start()
        assert [frames.receive(theirs, LIMIT, 10.0) for _ in messages] == messages
        with pytest.raises(frames.Closed):
            frames.receive(theirs, LIMIT, 10.0)
        sender.join()


@given(message=plain, data=st.data())
def test_a_stream_that_ends_early_is_closed(message: object, data: st.DataObject) -> None:
    stream = packed(message)
    count = data.draw(st.integers(1, len(stream) - 1))
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(stream[:count])
        with pytest.raises(frames.Closed, match="the stream ended after"):
            frames.receive(theirs, LIMIT, 10.0)


@given(garbage=st.binary(min_size=8, max_size=64).filter(lambda data: not data.startswith(frames.MAGIC)))
def test_bytes_without_the_magic_are_refused(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(garbage)
        with pytest.raises(frames.BadFrame, match="a frame must start with b'SYN1'"):
            frames.receive(theirs, LIMIT, 10.0)


def test_a_frame_above_the_limit_is_refused_unread(pair: Pair) -> None:
    pair[0].sendall(frames.HEADER.pack(frames.MAGIC, LIMIT + 1))
    with pytest.raises(frames.BadFrame, match="1001 bytes exceeds the limit of 1000"):
        frames.receive(pair[1], LIMIT, 10.0)


def test_a_message_above_the_limit_is_not_sent(pair: Pair) -> None:
    with pytest.raises(PayloadTooLarge, match="the limit of 1000"):
        frames.send(pair[0], b"x" * LIMIT, LIMIT)
    frames.send(pair[0], "next", LIMIT)
    assert frames.receive(pair[1], LIMIT, 10.0) == "next"


@pytest.mark.parametrize("payload", [b"\xc1", b"\x92\x01", b"\x81\xa1a\x01\x02", b"\xd4\x05x", b"\x01\x02"])
def test_a_payload_that_is_not_msgpack_is_refused(pair: Pair, payload: bytes) -> None:
    pair[0].sendall(frames.HEADER.pack(frames.MAGIC, len(payload)) + payload)
    with pytest.raises(frames.BadFrame, match="not valid msgpack"):
        frames.receive(pair[1], LIMIT, 10.0)


def test_receive_times_out(pair: Pair) -> None:
    pair[0].sendall(frames.MAGIC)
    with pytest.raises(TimeoutError):
        frames.receive(pair[1], LIMIT, 0.02)
