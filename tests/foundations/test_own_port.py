"""A port that a test was given stays its own until it listens there."""

from __future__ import annotations

import socket

import pytest

from tests.fakes.ports import own_port


def test_a_port_is_nobody_elses_and_may_be_listened_on_again_and_again() -> None:
    address = ("127.0.0.1", own_port())
    assert own_port() != address[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with socket.socket() as another, pytest.raises(OSError, match="in use"):
        another.bind(address)
    for _ in range(2):
        with socket.create_server(address), socket.create_connection(address):
            pass
