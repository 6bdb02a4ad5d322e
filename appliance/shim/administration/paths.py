"""The paths of the administration API."""

from __future__ import annotations

import re

from appliance.shim.layers.authorise import ADMINISTRATION

TEMPLATES = tuple(
    ADMINISTRATION + rest
    for rest in (
        "usage/completions",
        "usage/embeddings",
        "costs",
        "admin_api_keys",
        "admin_api_keys/{key_id}",
        "projects",
        "projects/{project_id}",
        "projects/{project_id}/archive",
        "audit_logs",
    )
)
_PATTERNS = tuple(
    (re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), template) for template in TEMPLATES
)


def administration_route_of(path: str) -> str | None:
    """The template of `path`; what is unknown below the prefix is still the administration's."""
    if not path.startswith(ADMINISTRATION):
        return None
    for pattern, template in _PATTERNS:
        if pattern.fullmatch(path):
            return template
    return f"{ADMINISTRATION}unknown"
