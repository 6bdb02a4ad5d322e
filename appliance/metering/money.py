"""Money: whole micro-units of the node's currency, in and out as decimals.

Refuses floats. One micro-unit is a millionth of the currency's unit.
"""

from __future__ import annotations

import re

from appliance.errors import UsageError

MICRO = 1_000_000
_DECIMAL = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,6}))?")


def parse_money(text: str) -> int:
    """Micro-units of a decimal such as 0.28. Raises UsageError."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not an amount of money",
            hint="write a decimal with at most six places, for example 0.28",
        )
    return int(match[1]) * MICRO + int((match[2] or "").ljust(6, "0"))


def format_money(micro: int, *, places: int = 2) -> str:
    """`micro` as a decimal, exact, with at least `places` places."""
    whole, part = divmod(abs(micro), MICRO)
    digits = f"{part:06d}".rstrip("0").ljust(places, "0")
    return f"{'-' if micro < 0 else ''}{whole}.{digits}" if digits else str(whole)
