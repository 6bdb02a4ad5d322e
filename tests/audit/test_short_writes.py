"""A write that takes a part of what it was given is gone on with, or undone if it cannot be."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.audit.event import Request
from appliance.audit.log import AuditLog
from appliance.audit.reader import read_events
from appliance.config import AuditSettings
from appliance.errors import AuditUnavailableError
from tests.audit.sample import assert_verifies, open_log, request
from tests.conftest import FULL_VARIABLE

SETTINGS = AuditSettings(segment_bytes=4096)
RECORDS = 30
EACH_FAST = 7


class Cut:
    """In place of pwrite(2): the `nth` call writes half; with `full` the next one finds no room."""

    def __init__(self, nth: int, *, full: bool) -> None:
        self._nth = nth
        self._full = full
        self._write = os.pwrite
        self.calls = 0

    @property
    def met(self) -> bool:
        return self.calls >= self._nth

    def __call__(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.calls += 1
        if self.calls == self._nth:
            return self._write(fd, data[: (len(data) + 1) // 2], offset)
        if self._full and self.calls == self._nth + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(fd, data, offset)


@contextmanager
def cut(monkeypatch: pytest.MonkeyPatch, nth: int, *, full: bool) -> Iterator[Cut]:
    with monkeypatch.context() as patch:
        made = Cut(nth, full=full)
        patch.setattr(os, "pwrite", made)
        yield made


def recorded(log: AuditLog) -> dict[str, int]:
    """Record and publish; what was acknowledged. After a failure it goes on by itself."""
    acknowledged = {}
    for number in range(RECORDS):
        event = request(number)
        try:
            (acknowledged[event.request_id],) = log.append([event])
            if number % 8 == 7:
                log.checkpoint()
        except AuditUnavailableError:
            log.reopen()
    try:
        log.checkpoint()
    except AuditUnavailableError:
        log.checkpoint()
    return acknowledged


def first_that_works(attempt: Callable[[], dict[str, int]]) -> dict[str, int]:
    """An opening may fail and say so."""
    try:
        return attempt()
    except AuditUnavailableError:
        return attempt()


@pytest.mark.parametrize("full", [False, True], ids=["goes on", "no room for the rest"])
def test_every_write_cut_short_once_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """Every seventh here, all of them with scripts/test --full."""

    def attempt() -> dict[str, int]:
        with open_log(base, SETTINGS) as log:
            return recorded(log)

    step = 1 if os.environ.get(FULL_VARIABLE) else EACH_FAST
    nth, met = 1, True
    while met:
        base = tmp_path / str(nth)
        base.mkdir()
        with cut(monkeypatch, nth, full=full) as made:
            acknowledged = first_that_works(attempt)
        met = made.met
        assert full or len(acknowledged) == RECORDS, f"write number {nth}"
        assert len(acknowledged) >= RECORDS - 1, f"write number {nth}"
        logged = {
            event.request_id: seq
            for seq, event in read_events(base / "audit")
            if isinstance(event, Request)
        }
        assert acknowledged.items() <= logged.items(), f"write number {nth}"
        assert_verifies(base)
        shutil.rmtree(base)
        nth += step
    assert nth > 4 * EACH_FAST
