"""The application: its layers in their order, outermost first.

identify            request id, exchange; the head shows them, and what is left of limits
observe             counts and durations
answer errors       typed errors become answers
record rejections   a refused request gets its REJECT
check origin        meant for this host, and not sent by a page of another site
drain               turned away while stopping
authenticate        a key that is valid now
authorise           a key that is for this
limit body          size and time
router              the endpoints
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.types import ASGIApp

from appliance.shim.drain import DrainLayer
from appliance.shim.layers.answer_errors import AnswerErrorsLayer
from appliance.shim.layers.authenticate import AuthenticateLayer
from appliance.shim.layers.authorise import AuthoriseLayer
from appliance.shim.layers.check_origin import CheckOriginLayer
from appliance.shim.layers.identify import IdentifyLayer
from appliance.shim.layers.limit_body import LimitBodyLayer
from appliance.shim.layers.observe import ObserveLayer
from appliance.shim.layers.record_rejections import RecordRejectionsLayer
from appliance.shim.operations import ANTHROPIC, PUBLIC, SHARED, UPLOADS, route_of
from appliance.shim.routes import router
from appliance.shim.services import Services

_BODY_SECONDS = 60.0
"""Longest time for a body to arrive."""


def build(
    services: Services,
    audit_available: Callable[[], bool],
    certified: Callable[[], Collection[str]] = frozenset,
) -> ASGIApp:
    """The ASGI application over `services`; `certified` are the names in its certificate."""
    app = router(services, audit_available)
    app = LimitBodyLayer(
        app,
        services.settings.max_body_bytes,
        _BODY_SECONDS,
        services.drain,
        uploads=UPLOADS,
        file_limit=services.settings.max_file_bytes,
    )
    app = AuthoriseLayer(app)
    app = AuthenticateLayer(app, services.keys, PUBLIC)
    app = DrainLayer(app, services.drain)
    app = CheckOriginLayer(app, services.settings.all_hosts, certified)
    app = RecordRejectionsLayer(app, services.accounting, PUBLIC)
    app = AnswerErrorsLayer(app)
    app = ObserveLayer(app, services.metrics)
    return IdentifyLayer(app, route_of, ANTHROPIC, SHARED)
