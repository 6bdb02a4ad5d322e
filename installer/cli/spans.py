"""Times as an operator types them: a span such as 24h, or a day."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from appliance.errors import UsageError

_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def span(text: str) -> int:
    """Seconds of `text`, for example 90m, 24h or 30d; 0 is `0`. Raises UsageError."""
    match = _SPAN.fullmatch(text)
    if text != "0" and match is None:
        raise UsageError(
            f"{text!r} is not a span of time", hint="write a number and s, m, h, d or w: 24h"
        )
    return int(match[1]) * _SECONDS[match[2]] if match is not None else 0


def moment(text: str) -> int:
    """Unix seconds of `text`: a span from now, or the beginning of a day (UTC).

    Raises UsageError.
    """
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        pass
    try:
        return int(time.time()) + span(text)
    except UsageError:
        raise UsageError(
            f"{text!r} is neither a span of time nor a day", hint="write 30d or 2027-01-31"
        ) from None


def day(text: str) -> int:
    """Unix seconds of the beginning of the day `text`, YYYY-MM-DD, UTC. Raises UsageError."""
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise UsageError(f"{text!r} is not a day", hint="write it as 2027-01-31") from None


def shown(seconds: int | None) -> str:
    """A moment for people; None is never."""
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"
