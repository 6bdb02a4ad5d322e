"""Which path of the administration API is answered by what."""

from __future__ import annotations

from starlette.types import ASGIApp

from appliance.shim.administration.audit_logs import AuditLogsEndpoint
from appliance.shim.administration.keys import AdminKeysEndpoint
from appliance.shim.administration.paths import TEMPLATES
from appliance.shim.administration.projects import ProjectsEndpoint
from appliance.shim.administration.usage import COMPLETIONS, COSTS, EMBEDDINGS, UsageEndpoint
from appliance.shim.services import Services


def administration_apps(services: Services) -> dict[str, dict[str, ASGIApp]]:
    """For each template the apps of its methods, over `services`."""
    layout, keys, accounting = services.config.layout, services.keys, services.accounting
    currency = services.config.money.currency
    admin_keys = AdminKeysEndpoint(keys, accounting)
    projects = ProjectsEndpoint(keys, accounting)
    methods: list[dict[str, ASGIApp]] = [
        {"GET": UsageEndpoint(COMPLETIONS, layout.usage_db, accounting, currency)},
        {"GET": UsageEndpoint(EMBEDDINGS, layout.usage_db, accounting, currency)},
        {"GET": UsageEndpoint(COSTS, layout.usage_db, accounting, currency)},
        {"GET": admin_keys.list, "POST": admin_keys.create},
        {"GET": admin_keys.retrieve, "DELETE": admin_keys.delete},
        {"GET": projects.list, "POST": projects.create},
        {"GET": projects.retrieve},
        {"POST": projects.archive},
        {"GET": AuditLogsEndpoint(layout.audit)},
    ]
    return dict(zip(TEMPLATES, methods, strict=True))
