"""What must hold of the node when all is over, judged from its disk and the ledger.

Owns the comparison of what callers were told with what was recorded. The node was stopped and
started once more, so that what faults left open is closed.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from appliance.access import KeyStore
from appliance.audit import read_events
from appliance.audit.event import AnyEvent, Keyroll, Reject, Request, Response
from appliance.audit.fsck import verify
from appliance.config import Config
from appliance.metering import Meter, rebuild
from tests.soak.ask import LOST
from tests.soak.errands import BUDGET_TOKENS
from tests.soak.ledger import Entry, Ledger


@dataclass(frozen=True)
class Told:
    """What was acknowledged besides answers."""

    revoked: list[str]
    budgets: list[str]
    line_requests: set[str]


@dataclass(frozen=True)
class Counted:
    """What the log holds."""

    records: int
    requests: int
    rejected: int
    epochs: int
    compared: int
    """Complete answers of which each token was found in the log."""


def faults_of_bill(config: Config) -> list[str]:
    """What of the bill is not what the log says, as the node was left."""
    with closing(Meter(config.layout.usage_db)) as meter:
        settled = list(meter.rows())
        rebuild(meter, config.layout.audit)
        rebuilt = list(meter.rows())
    missing = len({row.request_id for row in rebuilt} - {row.request_id for row in settled})
    if missing:
        return [f"{missing} requests of the log are not on the bill"]
    return [] if settled == rebuilt else ["the bill is not what the log says"]


def faults_of_log(config: Config, ledger: Ledger, told: Told) -> tuple[list[str], Counted]:
    """What of the log does not hold, and what there is."""
    vkey = (config.layout.audit_key / "audit.vkey").read_text().strip()
    found = [f"audit verify: {finding}" for finding in verify(config.layout.audit, vkey).findings]
    events = [event for _, event in read_events(config.layout.audit)]
    requests = Counter(e.request_id for e in events if isinstance(e, Request))
    results = Counter(e.request_id for e in events if isinstance(e, Response))
    if requests != results:
        found.append(f"{sum(requests.values())} requests, {sum(results.values())} results")
    twice = [request_id for request_id, count in requests.items() if count > 1]
    if twice:
        found.append(f"recorded twice: {twice[:5]}")
    compared, lost = _faults_of_answers(events, ledger.entries)
    known = {entry.answer.request_id for entry in ledger.entries} | told.line_requests
    # A line that was cut off runs again under another number; its result names the last one.
    strangers = [
        event
        for event in events
        if isinstance(event, Request) and event.request_id not in known and not _is_line(event)
    ]
    silent = sum(not entry.answer.request_id for entry in ledger.entries)
    if len(strangers) > silent:
        found.append(f"{len(strangers)} requests are recorded that nobody sent")
    rejected = sum(isinstance(event, Reject) for event in events)
    epochs = sum(isinstance(event, Keyroll) for event in events)
    counted = Counted(len(events), len(requests), rejected, epochs, compared)
    return [*found, *lost, *_faults_of_keys(config, told, events)], counted


def _is_line(event: Request) -> bool:
    """Whether it may be a line of a batch: those have no peer."""
    return not event.peer


def _faults_of_answers(events: list[AnyEvent], entries: list[Entry]) -> tuple[int, list[str]]:
    requests = {e.request_id for e in events if isinstance(e, Request)}
    results = {e.request_id: e for e in events if isinstance(e, Response)}
    rejected = {e.request_id for e in events if isinstance(e, Reject)}
    compared, lost = 0, []
    for entry in entries:
        request_id = entry.answer.request_id
        if entry.counts is not None:
            compared += 1
            result = results.get(request_id)
            if result is None or result.outcome != "ok":
                lost.append(f"LOST: {entry.kind} was answered, and there is {result}")
            elif (result.tokens.prompt, result.tokens.generated) != entry.counts:
                lost.append(f"{entry.kind}: {entry.counts} was told, recorded is {result.tokens}")
        elif _must_be_known(entry) and request_id not in requests | rejected:
            lost.append(f"LOST: {entry.kind}, {entry.answer.status} {entry.answer.code}")
    return compared, lost


def _must_be_known(entry: Entry) -> bool:
    """Whether its caller was told something that is never said without a record."""
    answer = entry.answer
    if answer.hung_up and isinstance(answer.content, list):
        return bool(answer.content)
    return 400 <= answer.status < 500 and answer.code not in {LOST, "invalid_http"}


def _faults_of_keys(config: Config, told: Told, events: list[AnyEvent]) -> list[str]:
    found = []
    with KeyStore(config.layout.keys_db) as keys:
        closed = {key.id for key in keys.list() if key.revoked is not None}
    open_again = set(told.revoked) - closed
    if open_again:
        found.append(f"{len(open_again)} revoked keys open again")
    used: Counter[str] = Counter()
    for event in events:
        if isinstance(event, Response):
            used[event.key_id] += event.tokens.prompt + event.tokens.generated
    over = {key: used[key] for key in told.budgets if used[key] > BUDGET_TOKENS}
    if over:
        found.append(f"over their budget of {BUDGET_TOKENS} tokens: {over}")
    return found
