"""The operations of the administration API: a part of the one table (operations.py)."""

from __future__ import annotations

from appliance.shim.administration.audit_logs import AuditLogEntry, AuditLogsQuery
from appliance.shim.administration.keys import (
    AdminKey,
    AdminKeysQuery,
    DeletedAdminKey,
    NewAdminKey,
    NewAdminKeyRequest,
)
from appliance.shim.administration.pages import Page
from appliance.shim.administration.projects import NewProjectRequest, ProjectOut, ProjectsQuery
from appliance.shim.administration.usage import (
    CompletionsQuery,
    CompletionsResult,
    CostsQuery,
    CostsResult,
    EmbeddingsQuery,
    EmbeddingsResult,
    UsagePage,
)
from appliance.shim.layers.authorise import ADMINISTRATION
from appliance.shim.operation import Operation

ADMINISTRATION_OPERATIONS = (
    Operation(
        "GET",
        f"{ADMINISTRATION}usage/completions",
        "Tokens and requests in buckets of time",
        UsagePage[CompletionsResult],
        query=CompletionsQuery,
    ),
    Operation(
        "GET",
        f"{ADMINISTRATION}usage/embeddings",
        "The same of embeddings",
        UsagePage[EmbeddingsResult],
        query=EmbeddingsQuery,
    ),
    Operation(
        "GET",
        f"{ADMINISTRATION}costs",
        "What it cost, in days",
        UsagePage[CostsResult],
        query=CostsQuery,
    ),
    Operation(
        "GET",
        f"{ADMINISTRATION}admin_api_keys",
        "The keys of the administration",
        Page[AdminKey],
        query=AdminKeysQuery,
    ),
    Operation(
        "POST",
        f"{ADMINISTRATION}admin_api_keys",
        "Makes one; its value is in this answer and nowhere else",
        NewAdminKey,
        body=NewAdminKeyRequest,
    ),
    Operation("GET", f"{ADMINISTRATION}admin_api_keys/{{key_id}}", "One of them", AdminKey),
    Operation(
        "DELETE",
        f"{ADMINISTRATION}admin_api_keys/{{key_id}}",
        "Revokes one, before it answers",
        DeletedAdminKey,
    ),
    Operation(
        "GET",
        f"{ADMINISTRATION}projects",
        "The projects of this node",
        Page[ProjectOut],
        query=ProjectsQuery,
    ),
    Operation(
        "POST",
        f"{ADMINISTRATION}projects",
        "Makes a project",
        ProjectOut,
        body=NewProjectRequest,
        statuses=(409,),
    ),
    Operation("GET", f"{ADMINISTRATION}projects/{{project_id}}", "One of them", ProjectOut),
    Operation(
        "POST",
        f"{ADMINISTRATION}projects/{{project_id}}/archive",
        "Ends its keys, for good",
        ProjectOut,
        statuses=(409,),
    ),
    Operation(
        "GET",
        f"{ADMINISTRATION}audit_logs",
        "What was done to keys, limits and projects, newest first",
        Page[AuditLogEntry],
        query=AuditLogsQuery,
    ),
)
