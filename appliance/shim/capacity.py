"""Which class of capacity a request runs in: shared, or dedicated to its key or project.

Owns the one place where what the operator reserved becomes a share in the engine. What is cheap
because it waits (batches, the tier `flex`) runs in what others leave, never in a reserve. The
class changes when a request is computed and nothing else: no word of any answer depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.access import ALL_MODELS, KeyInfo
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.engine_client import EngineClient
from appliance.shim.exchange import Exchange


async def give_share(
    exchange: Exchange, requests: Sequence[pb.GenerateRequest], engine: EngineClient
) -> None:
    """Let `requests` have what is reserved for their key. Raises what the engine does."""
    key = exchange.key
    if key is None or exchange.batch or not (key.reserves or key.project_reserves):
        return
    found = key.share(await _computed_by(exchange.model, key, engine))
    if found is None:
        return
    exchange.dedicated = True
    for request in requests:
        request.share.owner, request.share.percent = found


async def _computed_by(model: str, key: KeyInfo, engine: EngineClient) -> str:
    """The model whose capacity a request for `model` takes: an adapter takes its base's."""
    if not any(name != ALL_MODELS for name in (*key.reserves, *key.project_reserves)):
        return model
    bases = {m.name: m.base_model for m in await engine.models()}
    return bases.get(model) or model
