"""Audit events: what may be written down, and the canonical bytes of a leaf.

Owns the allow-list of fields: a field that is not declared here cannot enter the log, and no
field holds a prompt, an answer or a key. Refuses values that are too long or not printable, so
that a caller's input can neither break a line nor fill the log.

A leaf is JSON with sorted keys, no spaces, UTF-8, empty fields left out: one event has exactly
one byte form, and `decode_leaf` accepts no other. A record is of the lowest version that can say
it: what release 0.1 could write has the bytes that it wrote, and what it could not is version 2,
which it refuses. Version 2 has the money of a RES, the certificate of a caller in REQ and REJECT,
and the records KEYROLL and PRUNE.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic_ns
from typing import Final, Literal

import msgspec

from appliance.errors import AuditError, UsageError

VERSION: Final = 2
"""The newest version of a record; `version_of` has that of each."""
MAX_LEAF_BYTES: Final = 16 * 1024
MAX_TEXT: Final = 200
"""Characters of one field."""

Outcome = Literal["ok", "cancelled", "error", "aborted"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(at: datetime | None = None) -> str:
    """The time `at`, or now, in UTC, RFC 3339 with microseconds."""
    naive = (at or datetime.now(UTC)).replace(tzinfo=None)
    return naive.isoformat(timespec="microseconds") + "Z"


def unix_seconds(t_utc: str) -> int:
    """Whole Unix seconds of a `t_utc`. Raises AuditError if it is not a timestamp."""
    try:
        return (datetime.fromisoformat(t_utc) - _EPOCH) // timedelta(seconds=1)
    except (ValueError, TypeError) as error:
        raise AuditError(f"{t_utc!r} is not a UTC timestamp") from error


def clip(text: str) -> str:
    """`text` from an untrusted source, made fit for a field: printable and short."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:MAX_TEXT])
    return shown if len(text) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


class Tokens(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Token counts of one request, summed over its sequences."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt, taken from the prefix cache."""
    generated: int = 0
    """Sampled by the engine; what is billed as completion."""
    reasoning: int = 0
    """Of the generated."""
    delivered: int = 0
    """Of the generated, handed to the caller before the connection ended."""


class Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="type",
):
    """What every record has. The log fills in `v`, `seq`, `boot_id` and `epoch`.

    Times are those of the event, not of the write: `t_mono_ns` is CLOCK_MONOTONIC and can be
    compared within one `boot_id`.
    """

    v: int = 0
    seq: int = -1
    boot_id: str = ""
    epoch: int = -1
    """Number of the signing key in force."""
    t_utc: str = msgspec.field(default_factory=timestamp)
    t_mono_ns: int = msgspec.field(default_factory=monotonic_ns)

    def __post_init__(self) -> None:
        # Each record comes through here several times, so a loop over values alone.
        for index, value in enumerate(msgspec.structs.astuple(self)):
            if type(value) is str and (len(value) > MAX_TEXT or not value.isprintable()):
                raise UsageError(
                    f"the audit field `{self.__struct_fields__[index]}` is longer than "
                    f"{MAX_TEXT} characters or not printable",
                    hint="shorten the name",
                )


class Request(Event, frozen=True, tag="REQ"):
    """A request was admitted: durable before any byte of its output leaves the node."""

    request_id: str
    key_id: str
    route: str
    """Path of the API, for example /v1/chat/completions."""
    model: str
    tenant: str = ""
    peer: str = ""
    """Address of the caller."""
    caller: str = ""
    """Subject of the caller's certificate, if it had to show one. Version 2."""
    caller_sha256: str = ""
    """Fingerprint of that certificate. Version 2."""
    bundle_digest: str = ""
    params_digest: str = ""
    content_commit: str = ""
    content_ref: str = ""


class Response(Event, frozen=True, tag="RES"):
    """A request ended, however it ended: exactly one for each REQ. Usage is computed from it."""

    request_id: str
    key_id: str
    route: str
    model: str
    outcome: Outcome
    tenant: str = ""
    bundle_digest: str = ""
    finish_reason: str = ""
    status: int = 0
    """HTTP status; 0 if the connection ended before one was sent."""
    code: str = ""
    """Error code, if the outcome is `error`."""
    tokens: Tokens = Tokens()
    price: int = 0
    """Version of the price in force at admission; 0 if the model had none. Version 2."""
    cost: int = 0
    """Micro-units. Version 2."""
    batch: bool = False
    """Run in idle capacity, at the batch price. Version 2."""
    aborted_boot: str = ""
    """Boot in which a request was left open that this record closes."""
    content_commit: str = ""
    content_ref: str = ""


def response_to(
    request: Request,
    outcome: Outcome,
    *,
    status: int = 0,
    code: str = "",
    aborted_boot: str = "",
) -> Response:
    """The end of a request for which nothing is billed."""
    return Response(
        request_id=request.request_id,
        key_id=request.key_id,
        tenant=request.tenant,
        route=request.route,
        model=request.model,
        bundle_digest=request.bundle_digest,
        outcome=outcome,
        status=status,
        code=code,
        aborted_boot=aborted_boot,
    )


class Reject(Event, frozen=True, tag="REJECT"):
    """A request was refused before it was admitted; there is no REQ for it."""

    request_id: str
    route: str
    status: int
    code: str
    key_id: str = ""
    tenant: str = ""
    peer: str = ""
    model: str = ""
    caller: str = ""
    """Subject of the caller's certificate, if it had to show one. Version 2."""
    caller_sha256: str = ""
    """Fingerprint of that certificate. Version 2."""


class Admin(Event, frozen=True, tag="ADMIN"):
    """Somebody changed the node: a key, a model, a setting."""

    action: str
    """What was done, as `noun.verb`, for example `keys.revoke`."""
    outcome: Outcome = "ok"
    actor: str = ""
    """Login name of who ran the command."""
    target: str = ""
    """Name of what was changed."""
    version: str = ""
    previous: str = ""
    """Version or generation that was in force before."""
    digest: str = ""
    reason: str = ""


class Install(Event, frozen=True, tag="INSTALL"):
    """A release was installed on this node."""

    version: str
    outcome: Outcome = "ok"
    actor: str = ""
    previous: str = ""
    digest: str = ""
    """SHA-256 of the media's release manifest."""
    reason: str = ""


class Recovery(Event, frozen=True, tag="RECOVERY"):
    """The log was opened after an unclean end; says what was done about it."""

    reason: Literal["torn_tail", "open_requests"]
    truncated_bytes: int = 0
    closed_requests: int = 0


class Heartbeat(Event, frozen=True, tag="HEARTBEAT"):
    """Nothing happened for a while, and the log was there to say so."""


class Keyroll(Event, frozen=True, tag="KEYROLL"):
    """The last record of its epoch: what follows is signed with another key. Version 2."""

    next_key: str
    """The verifier key of the next epoch."""


class Prune(Event, frozen=True, tag="PRUNE"):
    """Old records are deleted, their hashes kept. Version 2."""

    first_kept: int
    """Every record with a lower number may be gone."""
    before: str
    """They are older than this time."""
    actor: str = ""
    """Login name of who ran the command; empty if the endpoint did it."""


AnyEvent = Request | Response | Reject | Admin | Install | Recovery | Heartbeat | Keyroll | Prune

Opening = Request | Reject | Heartbeat
"""What can be refused when the disk is nearly full; everything else closes or explains."""

_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def place(event: Event, *, seq: int, boot_id: str, epoch: int) -> Event:
    """`event` as the record with number `seq`."""
    return msgspec.structs.replace(
        event, v=version_of(event), seq=seq, boot_id=boot_id, epoch=epoch
    )


def version_of(event: Event) -> int:
    """The version of a record that says what `event` says."""
    money = isinstance(event, Response) and (event.price or event.cost or event.batch)
    shown = isinstance(event, Request | Reject) and (event.caller or event.caller_sha256)
    return 2 if money or shown or isinstance(event, Keyroll | Prune) else 1


def encode_leaf(record: Event) -> bytes:
    """The canonical bytes of a placed record. Raises UsageError if they are too many."""
    assert record.seq >= 0, "an event is placed before it is encoded"
    leaf = _encoder.encode(record)
    if len(leaf) > MAX_LEAF_BYTES:
        raise UsageError(f"an audit record of {len(leaf)} bytes is too long", hint="shorten it")
    return leaf


def decode_leaf(leaf: bytes) -> AnyEvent:
    """The record that `leaf` holds. Raises AuditError unless it is exactly canonical."""
    try:
        record = _decoder.decode(leaf)
    except (ValueError, UsageError) as error:  # msgspec's own errors, and UnicodeDecodeError
        raise AuditError(f"the leaf is not an audit record: {error}") from error
    if record.v > VERSION:
        raise AuditError(
            f"the leaf is an audit record of version {record.v}",
            hint="a newer release wrote it: use its program",
        )
    if record.v != version_of(record) or _encoder.encode(record) != leaf:
        raise AuditError("the leaf is not in canonical form")
    return record
