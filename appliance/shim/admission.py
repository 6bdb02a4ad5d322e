"""Who may start what, in one place: every route that computes goes through here.

`generation.admitted` calls it for text, the embeddings endpoint for vectors.
"""

from __future__ import annotations

from appliance.errors import RequestError
from appliance.shim.exchange import Exchange


def check_model(exchange: Exchange) -> None:
    """Raise RequestError with code `model_not_allowed` unless the key may use the model."""
    assert exchange.key is not None, "routes that compute need a key"
    if not exchange.key.may_use(exchange.model):
        raise RequestError(
            f"the API key may not use the model {exchange.model!r}",
            param="model",
            hint="ask the operator to allow it; GET /v1/models lists those that are",
            code="model_not_allowed",
        )
