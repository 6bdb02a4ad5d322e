"""Query parameters, each refused by name if it is unknown or does not fit.

The SDK writes a list as `models[]=a&models[]=b`; the plain name is taken too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.datastructures import QueryParams
from starlette.types import Scope

from appliance.errors import RequestError

_BOOLEANS = {"true": True, "false": False}


class Query:
    """The parameters of one request: all of them must be among `known`."""

    def __init__(
        self, scope: Scope, known: Sequence[str], unsupported: Mapping[str, str] | None = None
    ) -> None:
        params = QueryParams(scope["query_string"])
        self._values: dict[str, list[str]] = {}
        for name, value in params.multi_items():
            plain = name.removesuffix("[]")
            if unsupported and plain in unsupported:
                raise RequestError(
                    f"`{plain}` is not supported here: {unsupported[plain]}",
                    param=plain,
                    code="unsupported_parameter",
                )
            if plain not in known:
                raise RequestError(
                    f"unknown parameter `{plain}`", param=plain, code="unknown_parameter"
                )
            self._values.setdefault(plain, []).append(value)

    def texts(self, name: str, allowed: Sequence[str] | None = None) -> list[str]:
        """The list `name`, empty if it is absent."""
        values = self._values.get(name, [])
        for value in values:
            if allowed is not None and value not in allowed:
                raise _invalid(name, f"must be of {', '.join(allowed)}")
        return values

    def text(
        self, name: str, default: str | None = None, allowed: Sequence[str] | None = None
    ) -> str | None:
        """The one value of `name`."""
        values = self.texts(name, allowed)
        if len(values) > 1:
            raise _invalid(name, "stands more than once")
        return values[0] if values else default

    def number(self, name: str, default: int | None, low: int, high: int) -> int:
        """The one whole number of `name`, which is required if there is no default."""
        value = self.text(name)
        if value is None:
            if default is None:
                raise RequestError(f"`{name}` is required", param=name, code="missing_parameter")
            return default
        if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
            raise _invalid(name, f"must be a whole number from {low} to {high}")
        return int(value)

    def flag(self, name: str) -> bool | None:
        """True, false, or None if it is absent."""
        value = self.text(name, allowed=tuple(_BOOLEANS))
        return None if value is None else _BOOLEANS[value]


def _invalid(name: str, what: str) -> RequestError:
    return RequestError(f"`{name}` {what}", param=name, code="invalid_value")
