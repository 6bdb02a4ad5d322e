"""The values of JSON Schema's `format` that are enforced, as patterns.

Each pattern admits only values that the format's specification admits (RFC 3339, 4122, 4291,
5321, 1123, 3986); rarer forms, such as a quoted local part in an e-mail address, are left out,
since a model has no need to write them. A date is a day that exists: 29 February in leap years.
"""

from __future__ import annotations

from typing import Final

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_DATE_PARTS = (
    r"(?:[0-9]{1,6}Y(?:[0-9]{1,6}M)?(?:[0-9]{1,6}D)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)"
)
_TIME_PARTS = (
    r"T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S)"
)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_H16 = r"[0-9A-Fa-f]{1,4}"
_URI_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"

PATTERNS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": rf"P(?:{_DATE_PARTS}(?:{_TIME_PARTS})?|{_TIME_PARTS}|[0-9]{{1,6}}W)",
    "email": (
        r"[A-Za-z0-9_+-]{1,32}(?:\.[A-Za-z0-9_+-]{1,15}){0,2}@"
        rf"{_LABEL}(?:\.{_LABEL}){{0,2}}\.[A-Za-z]{{2,16}}"
    ),
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,3}}",
    "ipv4": rf"(?:{_OCTET}\.){{3}}{_OCTET}",
    "ipv6": (
        rf"(?:(?:{_H16}:){{7}}{_H16}|::|::(?:{_H16}:){{0,5}}{_H16}|"
        + "|".join(
            rf"{_H16}(?::{_H16}){{{before}}}::(?:(?:{_H16}:){{0,{5 - before}}}{_H16})?"
            for before in range(6)
        )
        + ")"
    ),
    "uuid": r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri": (
        rf"[A-Za-z][A-Za-z0-9+.-]{{0,15}}://{_LABEL}(?:\.{_LABEL}){{0,3}}(?::[0-9]{{1,4}})?"
        rf"(?:/{_URI_CHAR}*)*(?:\?(?:{_URI_CHAR}|[/?])*)?(?:#(?:{_URI_CHAR}|[/?])*)?"
    ),
}
"""Unanchored; the whole string must match."""


def anchored(name: str) -> str:
    """The pattern of a format that is in PATTERNS, as JSON Schema's `pattern` wants it."""
    return f"^(?:{PATTERNS[name]})$"
