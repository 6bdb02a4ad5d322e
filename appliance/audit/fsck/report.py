"""What a verification found.

Owns the report's form. Keeps a bounded number of findings; counts all of them. What holds for many
records in a row is one finding, so that it does not hide the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

MAX_SHOWN = 100
_INTERLEAVED = 8
"""How many kinds of findings one record may have, that go on in the next."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `path` is relative to the log's directory."""

    code: str
    message: str
    path: str = ""
    seq: int | None = None
    """Number of the record concerned, if it is about records."""
    last: int | None = None
    """Number of the last one, if the same holds for several in a row."""

    @property
    def records(self) -> str:
        """The record, or the first and the last; for people."""
        if self.seq is None:
            return ""
        return str(self.seq) if self.last is None else f"{self.seq}-{self.last}"

    def goes_on_with(self, code: str, message: str, path: str, seq: int) -> bool:
        """Whether the same was found of the record before `seq`."""
        end = self.seq if self.last is None else self.last
        same = (self.code, self.message, self.path) == (code, message, path)
        return same and end is not None and end + 1 == seq


@dataclass(slots=True)
class Report:
    """The result; `ok` means that nothing was found."""

    origin: str = ""
    size: int = 0
    """Records that the checkpoint covers."""
    root: str = ""
    """Root hash at `size`, base64."""
    key: str = ""
    """The vkey of epoch 0, which every signature is traced back to."""
    epoch: int = 0
    """The newest epoch."""
    newest_key: str = ""
    """The vkey of the newest epoch, which signs what is recorded from now on."""
    head_key: str = ""
    """The vkey that signed the checkpoint: right after a KEYROLL still that of the epoch before."""
    key_pinned: bool = False
    """Whether the caller gave that key; else it was taken from the log itself."""
    pruned: int = 0
    """Records from the first on that are deleted; their hashes are there and were checked."""
    records: dict[str, int] = field(default_factory=dict)
    """Published records by type."""
    first_time: str = ""
    last_time: str = ""
    open_requests: int = 0
    """REQ without RES: in flight, or left by a crash that no start has closed yet."""
    unpublished: int = 0
    """Whole records in the journal that no checkpoint covers yet."""
    torn_bytes: int = 0
    """Unfinished, unacknowledged bytes at the end of the journal."""
    findings: list[Finding] = field(default_factory=list)
    cosigned: int = 0
    """Records under the newest head that the given cosigner cosigned, 0 if none."""
    cosigned_at: int = 0
    """Unix time of that, by the cosigner's clock."""
    clock_set: int = 0
    """How often the clock was set by more than a minute, or the machine slept; no finding."""
    clock_step: int = 0
    """By how many seconds the time that it was most, and before which record."""
    clock_record: int = 0
    finding_count: int = 0

    @property
    def ok(self) -> bool:
        return self.finding_count == 0

    def add(self, code: str, message: str, *, path: str = "", seq: int | None = None) -> None:
        """Note that something is wrong."""
        if seq is not None and self._goes_on(code, message, path, seq):
            return
        self.finding_count += 1
        if len(self.findings) < MAX_SHOWN:
            self.findings.append(Finding(code, message, path, seq))

    def _goes_on(self, code: str, message: str, path: str, seq: int) -> bool:
        """Whether a finding was about the record before; then it is about this one, too."""
        for i in range(len(self.findings) - 1, max(-1, len(self.findings) - 1 - _INTERLEAVED), -1):
            if self.findings[i].goes_on_with(code, message, path, seq):
                self.findings[i] = replace(self.findings[i], last=seq)
                return True
        return False

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"ok": self.ok, **asdict(self)}
