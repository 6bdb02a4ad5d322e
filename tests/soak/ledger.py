"""What callers were told, and when which fault could be to blame.

Owns the judgement of a single answer: right, or an error that its caller asked for, or one that a
fault which held meanwhile explains; and documented in any case. Everything else is a fault of the
node's, and noted in words.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.conftest import REPOSITORY
from tests.soak.ask import LOST, Answer

GRACE_SECONDS = 3.0
"""After a fault was seen to be over: others may have begun before that."""
IN_RESPONSES = frozenset({"server_error", "rate_limit_exceeded"})
"""What an error is called inside a response, where that API knows no more."""
_log = logging.getLogger(__name__)
_ROW = re.compile(r"^\| (\d{3}) \| `(\w+)` \|", re.MULTILINE)


def documented() -> dict[str, int]:
    """Error code -> status, as docs/api.md has it."""
    rows = _ROW.findall((REPOSITORY / "docs/api.md").read_text())
    return {code: int(status) for status, code in rows}


@dataclass
class Window:
    """A time in which a fault may show itself. Monotonic seconds."""

    fault: str
    codes: frozenset[str]
    """Errors that it explains; LOST among them if connections break."""
    began: float
    lifted: float = 0.0
    """When the fault itself was over; 0: not yet."""
    ended: float = float("inf")
    """When nothing was seen of it any more."""

    def explains(self, answer: Answer) -> bool:
        overlaps = answer.began <= self.ended + GRACE_SECONDS and answer.ended >= self.began
        return overlaps and answer.code in self.codes


@dataclass(frozen=True)
class Entry:
    """One answer and what it was for."""

    answer: Answer
    kind: str
    work: str = ""
    """The same for the same work: two of them are the same request to the engine."""
    wanted: frozenset[str] = frozenset()
    """Codes that its caller asked for; an empty one means that it may be served."""
    counts: tuple[int, int] | None = None
    """Tokens that a complete answer was said to have cost."""
    key_id: str = ""


@dataclass
class Ledger:
    """Everything that was told. Any thread."""

    entries: list[Entry] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What does not hold, in words."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, entry: Entry) -> None:
        with self._lock:
            self.entries.append(entry)

    def blame(self, words: str) -> None:
        """Something does not hold."""
        words = f"{time.strftime('%H:%M:%S')} {words}"
        _log.error("%s", words)
        with self._lock:
            self.faults.append(words)

    def open(self, fault: str, codes: frozenset[str]) -> Window:
        """A fault begins."""
        window = Window(fault, codes, time.monotonic())
        with self._lock:
            self.windows.append(window)
        return window

    def may_be(self, code: str, *, since: float) -> bool:
        """Whether a fault that explains `code` was there after `since`, in monotonic seconds."""
        return any(code in window.codes and window.ended >= since for window in self.windows)

    def unexplained(self) -> list[str]:
        """Errors that nothing explains, or that are not documented, in words."""
        known = documented()
        found: Counter[str] = Counter()
        for entry in self.entries:
            fault = self._fault(entry, known)
            if fault:
                found[fault] += 1
        return [f"{count} times: {fault}" for fault, count in found.items()]

    def _fault(self, entry: Entry, known: dict[str, int]) -> str:
        answer = entry.answer
        if answer.hung_up or (answer.complete and (not entry.wanted or "" in entry.wanted)):
            return ""
        if answer.form:
            return f"{entry.kind}: {answer.form}"
        name = f"{entry.kind}: {answer.status} {answer.code or 'served'}"
        if answer.code in entry.wanted or any(w.explains(answer) for w in self.windows):
            in_time = answer.status == 200 or answer.code == LOST
            if in_time or known.get(answer.code) == answer.status:
                return ""
            return f"{name}, which is not documented"
        if answer.code == "request_ends_engine" and self._deaths_of(entry) >= 2:
            return ""
        during = [w.fault for w in self.windows if w.began <= answer.ended <= w.ended + 10]
        return f"{name}, with nothing to explain it (faults near: {', '.join(during) or 'none'})"

    def _deaths_of(self, entry: Entry) -> int:
        """How many different ends of the engine its request was running at, before."""
        hit = [
            earlier.answer
            for earlier in self.entries
            if earlier.work == entry.work
            and earlier.answer.code in {"engine_unavailable", *IN_RESPONSES}
            and earlier.answer.ended <= entry.answer.ended
        ]
        return sum(any(w.explains(answer) for answer in hit) for w in self.windows)
