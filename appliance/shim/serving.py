"""Which of the engine's models take requests."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.pb import engine_v1_pb2 as pb


def serving(models: Sequence[pb.Model]) -> list[pb.Model]:
    """One for each name that takes requests, by name; while a version drains, the new one."""
    taking = [model for model in models if model.state == pb.MODEL_STATE_SERVING]
    newest = {model.name: model for model in sorted(taking, key=lambda model: model.created)}
    return [newest[name] for name in sorted(newest)]
