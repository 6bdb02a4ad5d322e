"""`x-ratelimit-…` on the answers of callers that have limits per minute, refusals included.

Owns the form of the headers, which is OpenAI's: how much is allowed, how much of it is left after
this request, and how long until all of it is there again.
"""

from __future__ import annotations

from appliance.metering import Standing
from appliance.shim.exchange import Exchange


def rate_limit_headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """What admission found of the caller's limits, for the head of the answer."""
    requests, tokens = exchange.standing
    return [*_headers("requests", requests), *_headers("tokens", tokens)]


def _headers(unit: str, standing: Standing | None) -> list[tuple[bytes, bytes]]:
    if standing is None:
        return []
    values = {
        "limit": str(standing.limit),
        "remaining": str(standing.remaining),
        "reset": span(standing.reset_ms),
    }
    return [
        (f"x-ratelimit-{name}-{unit}".encode("ascii"), value.encode("ascii"))
        for name, value in values.items()
    ]


def span(milliseconds: int) -> str:
    """A span as OpenAI writes it: 20ms, 8.64s, 1m0s."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    whole, part = divmod(rest, 1000)
    seconds = f"{whole}.{part:03d}".rstrip("0").rstrip(".") if part else str(whole)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
