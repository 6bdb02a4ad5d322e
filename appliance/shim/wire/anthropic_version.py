"""The version of Anthropic's API that a caller names."""

from __future__ import annotations

from starlette.types import Scope

from appliance.errors import RequestError

VERSIONS = (b"2023-06-01", b"2026-10-21")
"""What is served here is the same in both."""


def check_version(scope: Scope) -> None:
    """Raise RequestError for a version of the API that this is not; none at all means this."""
    for name, value in scope["headers"]:
        if name == b"anthropic-version" and value.strip() not in VERSIONS:
            raise RequestError(
                f"`anthropic-version` must be {b' or '.join(VERSIONS).decode()}",
                param="anthropic-version",
                code="invalid_value",
            )
