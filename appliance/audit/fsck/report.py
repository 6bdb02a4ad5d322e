"""What a verification found.

Owns the report's form. Keeps a bounded number of findings; counts all of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

MAX_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `path` is relative to the log's directory."""

    code: str
    message: str
    path: str = ""
    seq: int | None = None
    """Number of the record concerned, if it is one record."""


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
    """The newest epoch, and its vkey."""
    newest_key: str = ""
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
    finding_count: int = 0

    @property
    def ok(self) -> bool:
        return self.finding_count == 0

    def add(self, code: str, message: str, *, path: str = "", seq: int | None = None) -> None:
        """Note that something is wrong."""
        self.finding_count += 1
        if len(self.findings) < MAX_SHOWN:
            self.findings.append(Finding(code, message, path, seq))

    def document(self) -> dict[str, object]:
        """The JSON form."""
        return {"ok": self.ok, **asdict(self)}
