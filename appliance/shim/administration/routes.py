"""Which operation of the administration API is answered by what."""

from __future__ import annotations

from starlette.types import ASGIApp

from appliance.shim.administration.audit_logs import AuditLogsEndpoint
from appliance.shim.administration.keys import AdminKeysEndpoint
from appliance.shim.administration.projects import ProjectsEndpoint
from appliance.shim.administration.usage import COMPLETIONS, COSTS, EMBEDDINGS, Kind, UsageEndpoint
from appliance.shim.layers.authorise import ADMINISTRATION
from appliance.shim.operation import Method
from appliance.shim.services import Services


def administration_apps(services: Services) -> dict[tuple[Method, str], ASGIApp]:
    """The app of each operation, over `services`."""
    layout, keys, accounting = services.config.layout, services.keys, services.accounting
    currency = services.config.money.currency

    def usage(kind: Kind) -> UsageEndpoint:
        return UsageEndpoint(kind, layout.usage_db, keys, accounting, currency)

    admin_keys = AdminKeysEndpoint(keys, accounting)
    projects = ProjectsEndpoint(keys, accounting)
    below: dict[tuple[Method, str], ASGIApp] = {
        ("GET", "usage/completions"): usage(COMPLETIONS),
        ("GET", "usage/embeddings"): usage(EMBEDDINGS),
        ("GET", "costs"): usage(COSTS),
        ("GET", "admin_api_keys"): admin_keys.list,
        ("POST", "admin_api_keys"): admin_keys.create,
        ("GET", "admin_api_keys/{key_id}"): admin_keys.retrieve,
        ("DELETE", "admin_api_keys/{key_id}"): admin_keys.delete,
        ("GET", "projects"): projects.list,
        ("POST", "projects"): projects.create,
        ("GET", "projects/{project_id}"): projects.retrieve,
        ("POST", "projects/{project_id}/archive"): projects.archive,
        ("GET", "audit_logs"): AuditLogsEndpoint(layout.audit),
    }
    return {(method, ADMINISTRATION + path): app for (method, path), app in below.items()}
