"""One JSON object of a checkpoint, read key by key.

Owns the rule that nothing in a checkpoint is ignored by accident: every key must be read by the
code that knows its meaning, or be declared harmless. Refuses the rest by name, because a key
nobody read is a model nobody built. A null value is an absent key, as publishers mean it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn, TypeVar

from appliance.errors import CheckpointError

T = TypeVar("T")


class Settings:
    """The keys of one JSON object; `file` names it in errors."""

    def __init__(self, document: Mapping[str, object], file: str) -> None:
        self._values = {key: value for key, value in document.items() if value is not None}
        self._file = file
        self._read: set[str] = set()

    def with_defaults(self, defaults: Mapping[str, object]) -> Settings:
        """These keys, and those of `defaults` that are absent."""
        return Settings({**defaults, **self._values}, self._file)

    def assume(self, key: str, value: object) -> None:
        """Say what `key` means where it is absent."""
        self._values.setdefault(key, value)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number. Raises CheckpointError, also if absent without default."""
        value = self._take(key, default)
        if type(value) is not int or value <= 0:
            self._refuse(key, value)
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number that may be zero."""
        value = self._take(key, default)
        if type(value) is not int or value < 0:
            self._refuse(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, value)
        if not math.isfinite(value):
            self._refuse(key, value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            self._refuse(key, value)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._take(key, default)
        if not isinstance(value, str):
            self._refuse(key, value)
        return value

    def one_of(self, key: str, default: T, *others: T) -> T:
        """The default, or one of the other values this builder can express."""
        self.expect(key, default, *others)
        value = self._values.get(key, default)
        return next(one for one in (default, *others) if one == value)

    def ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty if absent."""
        value = self._take(key, [])
        values = value if isinstance(value, list) else [value]
        if not all(type(item) is int and item >= 0 for item in values):
            self._refuse(key, value)
        return tuple(values)

    def numbers(self, key: str, count: int, *, zeros: bool = False) -> tuple[float, ...]:
        """A list of `count` numbers, all of them above zero, or zero where there may be `zeros`."""
        values = self._take(key, None)
        if not isinstance(values, list) or len(values) != count:
            self._refuse(key, values)
        if not all(type(v) in (int, float) and 0 <= v < math.inf for v in values):
            self._refuse(key, values)
        if 0 in values and not zeros:
            self._refuse(key, values)
        return tuple(float(value) for value in values)

    def texts(self, key: str, default: Sequence[str]) -> tuple[str, ...]:
        """A list of strings."""
        values = self._take(key, list(default))
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self._refuse(key, values)
        return tuple(values)

    def section(self, key: str) -> Settings | None:
        """A nested object, or None if absent; the caller finishes it."""
        if key not in self._values:
            return None
        value = self._take(key, None)
        if not isinstance(value, dict):
            self._refuse(key, value)
        return Settings(value, f"{self._file}: {key}")

    def needed(self, key: str) -> Settings:
        """A nested object that must be there; the caller finishes it."""
        section = self.section(key)
        if section is None:
            self._take(key, None)
        assert section is not None
        return section

    def expect(self, key: str, *allowed: object) -> None:
        """Refuse `key` unless it is absent or one of the values this builder can express."""
        if key in self._values:
            value = self._take(key, None)
            if value not in allowed:
                self._refuse(key, value)

    def ignore(self, *keys: str) -> None:
        """Mark keys that say nothing once those already read are known."""
        self._read.update(keys)

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Refuse the first key that was neither read nor named in `harmless`."""
        unread = sorted(self._values.keys() - self._read - set(harmless))
        if unread:
            self._refuse(unread[0], self._values[unread[0]])

    def _take(self, key: str, default: T) -> object | T:
        self._read.add(key)
        value = self._values.get(key, default)
        if value is None:
            raise CheckpointError(
                f"{self._file} has no {key!r}", hint="the checkpoint is incomplete"
            )
        return value

    def _refuse(self, key: str, value: object) -> NoReturn:
        shown = repr(value)
        raise CheckpointError(
            f"{self._file}: {key} = {shown if len(shown) <= 80 else shown[:77] + '...'} "
            "is not supported",
            hint="this release cannot build that model; see docs/bundle-format.md for what it can",
        )
