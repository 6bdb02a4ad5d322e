"""What is written down about a request: its audit records and its bill.

Owns the order: REQ is durable before a handler may send anything, RES before it may send its
last byte, the usage row follows from RES. A request that is not admitted gets a REJECT. Refuses
to go on when the log cannot be written (AuditUnavailableError): fail closed. The RES of a request
that ends then is owed, and written when the log works again (owed_records.py).
"""

from __future__ import annotations

import asyncio

import msgspec

from appliance.access import KeyStore
from appliance.audit import AuditWriter
from appliance.audit.content import ContentKeeper, Kept, Part
from appliance.audit.event import (
    Admin,
    Outcome,
    Reject,
    Request,
    Response,
    Tokens,
    clip,
    unix_seconds,
)
from appliance.errors import AuditUnavailableError
from appliance.metering import no_price, usage_row
from appliance.shim.exchange import Exchange
from appliance.shim.metrics import Metrics
from appliance.shim.owed_records import OwedRecords
from appliance.shim.revocation import key_revoked
from appliance.shim.settler import Settler

KEY_ACTOR = "key:"
"""Before the id of the admin key that did it, where a login name stands otherwise."""


class Accounting:
    """The records of all requests."""

    def __init__(
        self,
        writer: AuditWriter,
        keys: KeyStore,
        settler: Settler,
        metrics: Metrics,
        content: ContentKeeper,
    ) -> None:
        self._writer = writer
        self._content = content
        self._keys = keys
        self._settler = settler
        self._metrics = metrics
        self._owed = OwedRecords(writer, self._book)

    async def admit(self, exchange: Exchange, *, bundle_digest: str = "") -> Bill:
        """Write the REQ of `exchange`; returns the bill that must be closed.

        The time in REQ lies before any revocation that returns later: a key that was revoked
        since it authenticated is refused here (RequestError, `key_revoked`).
        """
        asked = await self._keep(exchange, "asked", exchange.body)
        exchange.body = b""
        request = Request(
            request_id=exchange.request_id,
            key_id=exchange.key_id,
            route=exchange.route,
            model=exchange.model,
            tenant=exchange.project,
            peer=exchange.peer,
            caller=exchange.caller.subject,
            caller_sha256=exchange.caller.sha256,
            bundle_digest=bundle_digest,
            content_commit=asked.commit,
            content_ref=asked.ref,
        )
        # Behind the record's time, which a revocation that is not seen here comes after.
        if not self._keys.holds(exchange.key_id):
            raise key_revoked()
        await self._writer.record(request)
        exchange.admitted = True
        return Bill(self, exchange, bundle_digest)

    async def reject(self, exchange: Exchange, *, status: int, code: str) -> None:
        """Write that `exchange` was refused before it was admitted."""
        await self._writer.record(
            Reject(
                request_id=exchange.request_id,
                route=exchange.route,
                status=status,
                code=clip(code),
                key_id=exchange.key_id,
                tenant=exchange.project,
                peer=exchange.peer,
                caller=exchange.caller.subject,
                caller_sha256=exchange.caller.sha256,
                model=clip(exchange.model),
            )
        )

    async def administer(self, exchange: Exchange, action: str, target: str) -> None:
        """Write that the caller, who has an admin key, did `action` (`noun.verb`) to `target`."""
        actor = f"{KEY_ACTOR}{exchange.key_id}"
        await self._writer.record(Admin(action=action, actor=actor, target=target))

    async def settled(self) -> None:
        """Return when every request that has ended is in the usage database."""
        await self._settler.flush()

    async def close(self) -> None:
        """Nothing more is written late: the next start closes what is open then."""
        await self._owed.close()

    async def _keep(self, exchange: Exchange, part: Part, content: bytes) -> Kept:
        if not self._content.writes:
            return self._content.keep(exchange.request_id, part, content)
        return await asyncio.to_thread(self._content.keep, exchange.request_id, part, content)

    async def _close(
        self, exchange: Exchange, response: Response, answer: bytes, failed: Response
    ) -> None:
        """Record `response`, whose answer's content is `answer`; `failed` if that cannot be now."""
        self._charge(exchange, response)
        try:
            kept = await self._keep(exchange, "answered", answer)
            response, failed = (
                msgspec.structs.replace(one, content_commit=kept.commit, content_ref=kept.ref)
                for one in (response, failed)
            )
            seq = await self._writer.record(response)
        except AuditUnavailableError:
            self._owed.write(failed)
            raise
        exchange.outcome = response.outcome
        self._book(seq, response)

    def _charge(self, exchange: Exchange, response: Response) -> None:
        if exchange.reservation is not None:
            used = response.tokens.prompt + response.tokens.generated
            exchange.reservation.settle(used, response.cost, unix_seconds(response.t_utc))

    def _book(self, seq: int, response: Response) -> None:
        """The RES number `seq` is durable."""
        row = usage_row(seq, response)
        if row is not None:
            self._settler.settle(row)
            self._metrics.settled(response)


class Bill:
    """An admitted request, until its RES is written. Exactly one `close` belongs to it."""

    def __init__(self, accounting: Accounting, exchange: Exchange, bundle_digest: str) -> None:
        self._accounting = accounting
        self._exchange = exchange
        self._bundle_digest = bundle_digest
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called, even if the log then failed."""
        return self._closed

    @property
    def wants_answer(self) -> bool:
        """Whether `close` has a use for the content of the answer."""
        return self._accounting._content.keeps

    async def close(
        self,
        outcome: Outcome,
        tokens: Tokens,
        *,
        status: int,
        finish_reason: str = "",
        code: str = "",
        answer: bytes = b"",
        failed_status: int = 503,
    ) -> None:
        """Write the RES; durable when this returns. `status` is 0 if none reached the caller.

        `answer` is the content of the answer; it is kept as the settings say, or not at all.
        `failed_status` is what the caller of a whole answer got if this fails. Raises
        AuditUnavailableError; then a RES that says so is written as soon as the log works again.
        """
        assert not self._closed, "one RES for each REQ"
        self._closed = True
        exchange = self._exchange
        price = exchange.price or no_price(exchange.model)
        response = Response(
            request_id=exchange.request_id,
            key_id=exchange.key_id,
            route=exchange.route,
            model=exchange.model,
            tenant=exchange.project,
            outcome=outcome,
            bundle_digest=self._bundle_digest,
            finish_reason=finish_reason,
            status=status,
            code=clip(code),
            tokens=tokens,
            price=price.version,
            cost=price.tariff(batch=exchange.batch).cost(tokens),
            batch=exchange.batch,
        )
        failed = response if outcome != "ok" else _unfinished(response, failed_status)
        await self._accounting._close(exchange, response, answer, failed)


def _unfinished(response: Response, status: int) -> Response:
    """What to write of an answer that was not completed because its RES was not written."""
    code = AuditUnavailableError.code
    return msgspec.structs.replace(
        response, outcome="error", finish_reason="", status=status, code=code
    )
