"""The keys in their database.

Owns storing, finding, rotating, revoking and authenticating them. A key that was read is good for
as long as nobody has committed a change to the file, which each check looks for: no copy in memory
is older than a revocation.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.access import secret
from appliance.access.database import AccessDatabase
from appliance.access.keys import KeyInfo, NewKey, new_key
from appliance.access.limits import LIMIT_NAMES
from appliance.access.projects import ProjectStore, limits_of, store_limits
from appliance.access.reserves import check_reserve, reserves_of, store_reserve, summary
from appliance.errors import ConflictError, NotFoundError, UsageError

_NO_DIGEST = bytes(32)
_COLUMNS = (
    "id, name, created, expires, revoked, kind, project, owner, tags, models, apis, lineage,"
    " successor, priority"
)
_LIMITS = len(LIMIT_NAMES)
_SELECT = (
    "SELECT "  # noqa: S608
    + ", ".join(f"keys.{name.strip()}" for name in _COLUMNS.split(","))
    + ", projects.archived IS NOT NULL, projects.shares_cache"
    + "".join(f", mine.{name}" for name in LIMIT_NAMES)
    + "".join(f", ours.{name}" for name in LIMIT_NAMES)
    + f", {summary('keys.lineage')}, {summary('keys.project')}"
    + ", digest FROM keys JOIN projects ON projects.id = keys.project"
    " LEFT JOIN limits AS mine ON mine.subject = keys.lineage"
    " LEFT JOIN limits AS ours ON ours.subject = keys.project"
)


class KeyStore:
    """API keys in the SQLite file `path`, which is created if it is not there.

    One object belongs to one thread; any number of processes may hold one on the same file.
    Every method raises StorageError if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._db = AccessDatabase(path)
        self._read: dict[str, tuple[bytes, KeyInfo]] = {}
        """Digest and key by id, of those that were asked for in the `_state` of the file."""
        self._state = b""
        self.projects = ProjectStore(self._db)

    def __enter__(self) -> KeyStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def create(
        self, name: str, *, expires: int | None = None, tags: Sequence[str] = ()
    ) -> tuple[KeyInfo, str]:
        """Make and store a key; returns it with its secret, which is never shown again."""
        key = new_key(name, expires=expires, tags=tags)
        self.add(key)
        return self.get(key.info.id), key.secret

    def add(self, key: NewKey) -> None:
        """Store `key`; it is valid from now on.

        Raises NotFoundError if its project does not exist, ConflictError if that is archived.
        """
        self.projects.active(key.info.project)
        self._db.insert("keys", _row(key))

    def rotate(self, key_id: str, new: NewKey, *, overlap: int) -> KeyInfo:
        """Store `new` as the successor of `key_id`, which expires `overlap` seconds from now.

        Returns the old key. Raises NotFoundError, or ConflictError if the old key is not active
        or has a successor.
        """
        now = int(time.time())
        with self._db.transaction():
            old = self.get(key_id)
            refuse_rotation(old, now)
            assert new.info.lineage == old.lineage, "a successor belongs to the lineage"
            self._db.insert("keys", _row(new))
            self._db.rows(
                "UPDATE keys SET successor = ?, expires = min(coalesce(expires, ?), ?)"
                " WHERE id = ?",
                new.info.id,
                now + overlap,
                now + overlap,
                key_id,
            )
        return self.get(key_id)

    def list(self) -> tuple[KeyInfo, ...]:
        """Every key there ever was, oldest first."""
        return self._keys("ORDER BY keys.rowid")

    def get(self, key_id: str) -> KeyInfo:
        """The key `key_id`. Raises NotFoundError."""
        found = self._keys("WHERE keys.id = ?", key_id)
        if not found:
            raise self._unknown(key_id)
        return found[0]

    def _unknown(self, key_id: str) -> NotFoundError:
        """Names the ID that was meant, if a whole key or a key's name was given in its place."""
        inside = secret.id_of(key_id)
        if inside is not None:
            return NotFoundError(
                "this is a whole key, not its ID", hint=f"its ID is the part after `sk-`: {inside}"
            )
        named = [key.id for key in self._keys("WHERE keys.name = ? ORDER BY keys.rowid", key_id)]
        return NotFoundError(
            f"there is no key with the ID {key_id!r}",
            hint=f"of that name there is {', '.join(named)}"
            if named
            else "`appliance keys list` shows the IDs",
        )

    def revoke(self, key_id: str) -> KeyInfo:
        """Make `key_id` invalid, for good and before this returns.

        Raises NotFoundError, or ConflictError if it is revoked already.
        """
        with self._db.failures():
            changed = self._db.connection.execute(
                "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL",
                (int(time.time()), key_id),
            ).rowcount
        info = self.get(key_id)
        if not changed:
            raise ConflictError(f"the key {key_id} was revoked before")
        return info

    def limit(self, key_id: str, changes: dict[str, int | None]) -> KeyInfo:
        """Change limits of a key by their names in Limits; holds for the next request.

        Raises NotFoundError, UsageError.
        """
        store_limits(self._db, self.get(key_id).lineage, changes)
        return self.get(key_id)

    def check_reserve(self, key_id: str, model: str, percent: int | None) -> None:
        """Raise what `reserve` would."""
        key = self.get(key_id)
        if key.kind == "admin":
            raise UsageError(
                "an admin key opens no model", hint="reserve for an API key or a project"
            )
        check_reserve(self._db, key.lineage, model, percent)

    def reserve(self, key_id: str, model: str, percent: int | None) -> KeyInfo:
        """Reserve percent of a model ("": of each) for a key; None: nothing any more.

        Holds for the next request. Raises NotFoundError, UsageError, ConflictError.
        """
        self.check_reserve(key_id, model, percent)
        store_reserve(self._db, self.get(key_id).lineage, model, percent)
        return self.get(key_id)

    def authenticate(self, key: str) -> KeyInfo | None:
        """Who presents `key`; None if it is unknown, expired, revoked or of an archived project.

        A wrong secret takes as long as a wrong id, and the comparison's time does not depend on
        where the first difference is.
        """
        key_id = secret.id_of(key)
        if key_id is None:
            return None
        stored, info = self._found(key_id) or (_NO_DIGEST, None)
        if not hmac.compare_digest(secret.digest(key), stored) or info is None:
            return None
        return info if info.state(time.time()) == "active" else None

    def holds(self, key_id: str) -> bool:
        """Whether `key_id` is not revoked, nor its project archived.

        So what happened before this call happened before any revocation that returns later. An
        expired key holds: expiry is for requests that begin.
        """
        found = self._found(key_id)
        return found is not None and found[1].revoked is None and not found[1].project_archived

    def _found(self, key_id: str) -> tuple[bytes, KeyInfo] | None:
        """Digest and key, as they are in the file now."""
        if self._db.state == self._state and key_id in self._read:
            return self._read[key_id]
        # The state is read while nobody can write: it is the one that the rows are of.
        with self._db.standing_still():
            rows = self._db.rows(f"{_SELECT} WHERE keys.id = ?", key_id)
            state = self._db.state
        if state != self._state:
            self._read.clear()
            self._state = state
        if not rows:
            return None
        self._read[key_id] = rows[0][-1], _key(rows[0])
        return self._read[key_id]

    def revoked(self, key_ids: Sequence[str]) -> set[str]:
        """Those of `key_ids` that were revoked, are of an archived project, or unknown."""
        marks = ", ".join("?" * len(key_ids))
        rows = self._db.rows(
            "SELECT keys.id FROM keys JOIN projects ON projects.id = keys.project"  # noqa: S608
            f" WHERE keys.id IN ({marks}) AND revoked IS NULL AND archived IS NULL",
            *key_ids,
        )
        return set(key_ids) - {row[0] for row in rows}

    def _keys(self, tail: str, *parameters: object) -> tuple[KeyInfo, ...]:
        return tuple(map(_key, self._db.rows(f"{_SELECT} {tail}", *parameters)))


def refuse_rotation(old: KeyInfo, now: float) -> None:
    """Raise ConflictError unless `old` can be rotated at `now`."""
    state = old.state(now)
    if state != "active":
        raise ConflictError(f"the key {old.id} is {state}", hint="create a new key")
    if old.successor:
        raise ConflictError(
            f"the key {old.id} was rotated before", hint=f"rotate its successor {old.successor}"
        )


def _row(key: NewKey) -> dict[str, object]:
    info = key.info
    return {
        "id": info.id,
        "name": info.name,
        "created": info.created,
        "expires": info.expires,
        "revoked": info.revoked,
        "kind": info.kind,
        "project": info.project,
        "owner": info.owner,
        "tags": _lines(info.tags),
        "models": _lines(info.models),
        "apis": _lines(info.apis),
        "lineage": info.lineage or info.id,
        "successor": info.successor,
        "priority": int(info.priority),
        "digest": secret.digest(key.secret),
    }


def _key(row: tuple[Any, ...]) -> KeyInfo:
    tags, models, apis = map(_words, row[8:11])
    lineage, successor, priority, archived, shares_cache = row[11:16]
    key_id, name, created, expires, revoked, kind, project, owner = row[:8]
    return KeyInfo(
        key_id,
        name,
        created,
        expires,
        revoked,
        kind,
        project,
        owner,
        tags=tags or (),
        models=models,
        apis=apis,
        priority=bool(priority),
        lineage=lineage,
        successor=successor,
        limits=limits_of(row[16 : 16 + _LIMITS]),
        project_limits=limits_of(row[16 + _LIMITS : 16 + 2 * _LIMITS]),
        project_archived=bool(archived),
        project_shares_cache=bool(shares_cache),
        reserves=reserves_of(row[-3]),
        project_reserves=reserves_of(row[-2]),
    )


def _lines(words: tuple[str, ...] | None) -> str | None:
    return None if words is None else "\n".join(words)


def _words(lines: str | None) -> tuple[str, ...] | None:
    return None if lines is None else tuple(filter(None, lines.split("\n")))
