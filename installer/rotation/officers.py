"""What a root says, and the next one: who the officers are, and which key has which role.

Owns the names of officers in a root: `officers`, our field of it (name -> key id). A root from
before there was this field names them by the order of its keys. Pure: signs and writes nothing.
Refuses a threshold that the officers could not meet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from tuf.api.metadata import Key, Root

from appliance.errors import ConflictError, NotFoundError, UsageError

ROOT_LIFETIME = timedelta(days=5 * 365)
MAX_OFFICERS = 16
TOP_ROLES = ("targets", "snapshot", "timestamp")
"""The roles whose keys the root names, besides its own."""
_FIELD = "officers"
_OFFICER = re.compile(r"officer-([1-9][0-9]{0,3})")


def is_officer(name: str) -> bool:
    """Whether `name` has the form of an officer's."""
    return _OFFICER.fullmatch(name) is not None


def name_officers(root: Root, officers: Mapping[str, str]) -> None:
    """Write the names into `root`; `officers`: name -> key id."""
    root.unrecognized_fields[_FIELD] = dict(officers)


def officers_of(root: Root) -> dict[str, str]:
    """Name -> key id of each officer of `root`, in order of their numbers."""
    keyids = root.roles["root"].keyids
    named: Any = root.unrecognized_fields.get(_FIELD)
    if isinstance(named, dict) and sorted(named.values()) == sorted(keyids):
        return {name: named[name] for name in sorted(named, key=_number)}
    return {f"officer-{number}": keyid for number, keyid in enumerate(keyids, start=1)}


class NextRoot:
    """The root after `newest`, with the same keys until they are changed here."""

    def __init__(self, newest: Root, now: datetime) -> None:
        self.root = deepcopy(newest)
        self.root.version = newest.version + 1
        self.root.expires = now.replace(microsecond=0) + ROOT_LIFETIME
        self._officers = officers_of(newest)
        name_officers(self.root, self._officers)

    def replace(self, name: str, key: Key) -> None:
        """Let `key` take the place of an officer's or a role's. Raises NotFoundError."""
        if name in TOP_ROLES:
            for keyid in list(self.root.roles[name].keyids):
                self.root.revoke_key(keyid, name)
            self.root.add_key(key, name)
            return
        self._check_officer(name)
        self.root.revoke_key(self._officers[name], "root")
        self._put(name, key)

    def add_officer(self, key: Key) -> str:
        """One officer more, with the number after the highest; the name."""
        numbers = [_number(name) for name in self._officers]
        name = f"officer-{max(numbers, default=0) + 1}"
        self._put(name, key)
        return name

    def remove_officer(self, name: str) -> None:
        """One officer less. Raises NotFoundError."""
        self._check_officer(name)
        self.root.revoke_key(self._officers.pop(name), "root")
        name_officers(self.root, self._officers)

    def set_threshold(self, threshold: int) -> None:
        """How many officers must agree from now on."""
        self.root.roles["root"].threshold = threshold

    def check(self) -> None:
        """Refuse what could never sign again. Raises UsageError."""
        threshold, officers = self.root.roles["root"].threshold, len(self._officers)
        if not 1 <= threshold <= officers <= MAX_OFFICERS:
            raise UsageError(
                f"{threshold} of {officers} officers cannot sign",
                hint=f"1 to {MAX_OFFICERS} officers, and a threshold that they can meet",
            )

    def _put(self, name: str, key: Key) -> None:
        if key.keyid in self.root.roles["root"].keyids:
            raise ConflictError(f"the key of {name} is another officer's already")
        self.root.add_key(key, "root")
        self._officers[name] = key.keyid
        name_officers(self.root, self._officers)

    def _check_officer(self, name: str) -> None:
        if name not in self._officers:
            raise NotFoundError(
                f"the root has no key {name}",
                hint=f"its officers are {', '.join(self._officers)}",
            )


def _number(name: str) -> int:
    match = _OFFICER.fullmatch(name)
    return int(match[1]) if match else 0
