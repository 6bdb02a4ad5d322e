"""One settled request: the row that usage reports and bills are summed from.

Owns the projection from an audit record to a row, so that the row written while serving and the
row computed later from the log are the same. Refuses to know where rows are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.access import DEFAULT_PROJECT
from appliance.audit.event import Event, Response, unix_seconds


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one request used: `at` in Unix seconds, tokens, `cost` in micro-units.

    `price` is the version of the price in force when it was admitted; 0 if there was none.
    """

    request_id: str
    audit_seq: int
    """Number of the RES record that this row is computed from."""
    at: int
    key_id: str
    model: str
    route: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    outcome: str
    project: str = DEFAULT_PROJECT
    batch: int = 0
    """1 if it ran at the batch price."""
    price: int = 0
    cost: int = 0


def usage_row(seq: int, event: Event) -> UsageRow | None:
    """The row of record `seq`; None unless it is the RES of a request that named a model."""
    if not isinstance(event, Response) or not event.model:
        return None
    tokens = event.tokens
    return UsageRow(
        request_id=event.request_id,
        audit_seq=seq,
        at=unix_seconds(event.t_utc),
        key_id=event.key_id,
        model=event.model,
        route=event.route,
        prompt_tokens=tokens.prompt,
        cached_tokens=tokens.cached,
        completion_tokens=tokens.generated,
        reasoning_tokens=tokens.reasoning,
        outcome=event.outcome,
        # Release 0.1 had no projects; its keys are in the default one now.
        project=event.tenant or DEFAULT_PROJECT,
        batch=int(event.batch),
        price=event.price,
        cost=event.cost,
    )
