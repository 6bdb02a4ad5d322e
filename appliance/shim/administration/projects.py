"""/v1/organization/projects: list, create, retrieve and archive."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.types import Receive, Scope, Send

from appliance.access import KeyStore, Project, new_project
from appliance.errors import NotFoundError, RequestError, UsageError
from appliance.shim.accounting import Accounting
from appliance.shim.administration.names import Name
from appliance.shim.administration.pages import LIMIT, Limit, behind, page
from appliance.shim.answer import send_document
from appliance.shim.body import read_body
from appliance.shim.exchange import exchange_of
from appliance.shim.wire.decode import decode, decode_query
from appliance.shim.wire.parameters import Parameter


class ProjectOut(msgspec.Struct, frozen=True):
    id: str
    name: str
    created_at: int
    archived_at: int | None
    status: Literal["active", "archived"]
    object: Literal["organization.project"] = "organization.project"


class NewProjectRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name


class ProjectsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: str | None = None
    limit: Limit = LIMIT
    include_archived: bool = False


_REFUSED = (
    Parameter("external_key_id", "refused", "the disk of this node holds what is kept"),
    Parameter("geography", "refused", "it is computed on this machine"),
    Parameter("residency", "refused", "it is computed on this machine"),
)
_DECODER = msgspec.json.Decoder(NewProjectRequest)


class ProjectsEndpoint:
    """The methods of the collection, and of one project."""

    def __init__(self, keys: KeyStore, accounting: Accounting) -> None:
        self._projects = keys.projects
        self._accounting = accounting

    async def list(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = decode_query(scope, ProjectsQuery)
        every = query.include_archived
        projects = [p for p in self._projects.list() if every or p.archived is None]
        shown, more = behind(projects, query.after, query.limit)
        ids = [project.id for project in shown]
        await send_document(send, page([_shown(project) for project in shown], ids, more=more))

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(scope, await read_body(receive), _DECODER, _REFUSED)
        try:
            project = new_project(request.name)
        except UsageError as error:
            raise RequestError(
                error.message, hint=error.hint, param="name", code="invalid_value"
            ) from None
        self._projects.check_free(project.name)
        await self._accounting.administer(exchange_of(scope), "projects.create", project.id)
        self._projects.add(project)
        await send_document(send, _shown(project))

    async def retrieve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_document(send, _shown(self._find(scope)))

    async def archive(self, scope: Scope, receive: Receive, send: Send) -> None:
        project = self._projects.archive(self._find(scope).id)
        await self._accounting.administer(exchange_of(scope), "projects.archive", project.id)
        await send_document(send, _shown(project))

    def _find(self, scope: Scope) -> Project:
        """By its id alone: a name is for people."""
        project_id = scope["path_params"]["project_id"]
        project = self._projects.get(project_id)
        if project.id != project_id:
            raise NotFoundError(f"there is no project {project_id!r}", hint="list them")
        return project


def _shown(project: Project) -> ProjectOut:
    return ProjectOut(
        project.id,
        project.name,
        project.created,
        project.archived,
        "active" if project.archived is None else "archived",
    )
