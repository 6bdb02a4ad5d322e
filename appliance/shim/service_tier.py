"""What `service_tier` asks for, and what comes of it.

    priority, fast   before everybody else, at the ordinary price; for keys that may
    default, auto    in turn
    flex             after everybody else, at the batch price, for callers that can wait

Owns the one place where a request's tier becomes its priority in the engine and its price.
"""

from __future__ import annotations

from typing import Literal

from appliance.errors import RequestError
from appliance.shim.exchange import Exchange, Tier

Asked = Literal["auto", "default", "flex", "priority", "fast"]
_TIERS: dict[Asked | None, Tier] = {
    None: "default",
    "auto": "default",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
}
_PRIORITIES: dict[Tier, int] = {"flex": -1, "default": 0, "priority": 1}


def serve_as(exchange: Exchange, asked: Asked | None) -> None:
    """Give `exchange` the tier that its caller `asked` for.

    Raises RequestError with code `insufficient_permissions` if the key may not have it.
    """
    tier = _TIERS[asked]
    if tier == "default":
        return
    if exchange.line:
        raise RequestError(
            "a line of a batch has no tier: it runs after everybody else",
            param="service_tier",
            hint="leave the parameter out",
            code="unsupported_parameter",
        )
    if tier == "priority" and not (exchange.key is not None and exchange.key.priority):
        raise RequestError(
            "the API key may not ask for priority",
            param="service_tier",
            hint="leave the parameter out, or have a key made with --priority",
            code="insufficient_permissions",
        )
    exchange.tier = tier
    exchange.priority = _PRIORITIES[tier]
    exchange.batch = tier == "flex"
