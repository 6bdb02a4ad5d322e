"""Projects: what groups keys, for limits, reports and a shared prefix cache."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from appliance.access import secret
from appliance.access.database import AccessDatabase
from appliance.access.limits import LIMIT_NAMES, NO_LIMITS, Limits
from appliance.access.reserves import check_reserve, reserves_of, store_reserve, summary
from appliance.access.words import DEFAULT_PROJECT, check_words
from appliance.errors import ConflictError, NotFoundError

_LIMITS = ", ".join(f"limits.{name}" for name in LIMIT_NAMES)
_SELECT = (
    f"SELECT id, name, created, archived, shares_cache, {summary('projects.id')}, {_LIMITS}"  # noqa: S608
    " FROM projects LEFT JOIN limits ON limits.subject = projects.id"
)


@dataclass(frozen=True, slots=True)
class Project:
    """Times are Unix seconds; `archived` is None while its keys may be used."""

    id: str
    name: str
    created: int
    archived: int | None = None
    shares_cache: bool = False
    """Its keys find each other's prefixes in the cache."""
    limits: Limits = NO_LIMITS
    reserves: Mapping[str, int] = field(default_factory=dict)
    """Percent reserved for it, by model; see Reserves."""


def new_project(name: str, *, shares_cache: bool = False) -> Project:
    """A project that nobody has stored yet. Raises UsageError."""
    check_words([name], "the name of a project")
    return Project(f"proj_{secret.fresh_id()}", name, int(time.time()), shares_cache=shares_cache)


class ProjectStore:
    """The projects of one keys' database."""

    def __init__(self, database: AccessDatabase) -> None:
        self._db = database

    def add(self, project: Project) -> None:
        """Store `project`. Raises ConflictError if its name is taken."""
        with self._db.transaction():
            self.check_free(project.name)
            self._db.insert(
                "projects",
                {
                    "id": project.id,
                    "name": project.name,
                    "created": project.created,
                    "archived": project.archived,
                    "shares_cache": int(project.shares_cache),
                },
            )

    def list(self) -> tuple[Project, ...]:
        """Every project there ever was, oldest first."""
        return tuple(map(_project, self._db.rows(f"{_SELECT} ORDER BY projects.rowid")))

    def get(self, name: str) -> Project:
        """The project with the id or name `name`. Raises NotFoundError."""
        found = self._find(name)
        if found is None:
            raise NotFoundError(
                f"there is no project {name!r}", hint="`appliance projects list` shows them"
            )
        return found

    def active(self, name: str) -> Project:
        """The same, or ConflictError if it is archived."""
        project = self.get(name)
        if project.archived is not None:
            raise ConflictError(f"the project {project.name} is archived", hint="take another")
        return project

    def check_free(self, name: str) -> None:
        """Raise ConflictError if there is a project called `name`."""
        if self._find(name) is not None:
            raise ConflictError(f"there is a project called {name!r}", hint="take another name")

    def archive(self, name: str) -> Project:
        """Make all keys of a project invalid, for good and before this returns.

        Raises NotFoundError, or ConflictError if it is archived already or the default project.
        """
        project = self.get(name)
        if project.id == DEFAULT_PROJECT:
            raise ConflictError(
                "the default project cannot be archived", hint="revoke its keys one by one"
            )
        with self._db.failures():
            changed = self._db.connection.execute(
                "UPDATE projects SET archived = ? WHERE id = ? AND archived IS NULL",
                (int(time.time()), project.id),
            ).rowcount
        if not changed:
            raise ConflictError(f"the project {project.name} was archived before")
        return self.get(project.id)

    def share_cache(self, name: str, shared: bool) -> Project:
        """Let the keys of a project find each other's prefixes, or stop it, from now on."""
        project = self.get(name)
        self._db.rows("UPDATE projects SET shares_cache = ? WHERE id = ?", int(shared), project.id)
        return self.get(project.id)

    def limit(self, name: str, changes: dict[str, int | None]) -> Project:
        """Change limits of a project by their names in Limits; holds for the next request."""
        project = self.get(name)
        store_limits(self._db, project.id, changes)
        return self.get(project.id)

    def check_reserve(self, name: str, model: str, percent: int | None) -> None:
        """Raise what `reserve` would."""
        check_reserve(self._db, self.active(name).id, model, percent)

    def reserve(self, name: str, model: str, percent: int | None) -> Project:
        """Reserve percent of a model ("": of each) for a project; None: nothing any more.

        Its keys have it together. Holds for the next request. Raises NotFoundError, UsageError,
        ConflictError.
        """
        project = self.active(name)
        store_reserve(self._db, project.id, model, percent)
        return self.get(project.id)

    def _find(self, name: str) -> Project | None:
        found = self._db.rows(f"{_SELECT} WHERE id = ? OR name = ?", name, name)
        # An id, which nobody chooses, goes before another project's name that looks like it.
        exact = [row for row in found if row[0] == name] or found
        return _project(exact[0]) if exact else None


def store_limits(db: AccessDatabase, subject: str, changes: dict[str, int | None]) -> None:
    """Change the limits of `subject`, a project or a lineage of keys. Raises UsageError."""
    with db.transaction():
        rows = db.rows(f"SELECT {_LIMITS} FROM limits WHERE subject = ?", subject)  # noqa: S608
        limits = limits_of(rows[0] if rows else ()).changed(changes)
        values = dict(zip(LIMIT_NAMES, astuple(limits), strict=True))
        marks = ", ".join("?" * (len(values) + 1))
        db.rows(f"INSERT OR REPLACE INTO limits VALUES ({marks})", subject, *values.values())  # noqa: S608


def limits_of(values: tuple[int | None, ...]) -> Limits:
    """Limits from their columns, in the order of LIMIT_NAMES."""
    if all(value is None for value in values):
        return NO_LIMITS
    return Limits(**dict(zip(LIMIT_NAMES, values, strict=True)))


def _project(row: tuple[Any, ...]) -> Project:
    project_id, name, created, archived, shares_cache, reserves = row[:6]
    return Project(
        project_id,
        name,
        created,
        archived,
        bool(shares_cache),
        limits_of(row[6:]),
        reserves_of(reserves),
    )


__all__ = ["DEFAULT_PROJECT", "Project", "ProjectStore", "new_project"]
