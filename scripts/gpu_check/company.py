"""The worker with two models in one process, as on a node: `python -m gpu_check.company ROOT NAME`.

One is loaded and run while the other meets numbers of sequences for the first time, which is when
steps are recorded on a GPU (docs/decisions/0271-recordings-beside-others.md). Both have to say what
they say alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from appliance.compiler import Artifact, open_artifact
from appliance.config import EngineSettings, Layout
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.output import Delta
from appliance.engine.sampling import SamplingParams
from appliance.errors import UnsupportedError
from appliance.model_store import ModelStore, StoredBundle
from appliance.trust.node_key import NodePublicKey
from gpu_check.ours import device_of
from gpu_check.workloads import answer_all

COMPANY = "two models at once"
_MOST = 12
"""Sequences; each number up to it is met once."""
_WANTED = 12
"""Tokens of each: a number's steps are recorded at the third."""
_CACHE = 4 << 30

Said = list[dict[int, list[int]]]
"""For each number of sequences the tokens of each."""


def main(root: Path, name: str) -> None:
    layout = Layout(root)
    bundle = ModelStore(layout.models).get(name)
    artifact = open_artifact(
        layout.artifacts, bundle.digest, NodePublicKey.load(layout.node / "node.pub")
    )

    def answer(_asked: dict[str, Any]) -> Mapping[str, object]:
        return {"loads": loads_beside(bundle, artifact)}

    answer_all(answer, device=device_of(artifact))


def loads_beside(bundle: StoredBundle, artifact: Artifact) -> int:
    """How often the model was loaded and run beside itself. Raises UnsupportedError where something
    else was said in company.
    """
    settings, budget = EngineSettings(max_context=256, cache_bytes=_CACHE), CacheBudget(_CACHE)

    def opened() -> ChatModel:
        return ChatModel(bundle, artifact, settings, budget)

    first, others = opened(), list[Said]()
    with ThreadPoolExecutor(1) as aside:
        met = aside.submit(said_by, first)
        while not others or not met.done():
            second = opened()
            others.append(said_by(second))
            second.close()
    in_company, alone = met.result(), said_by(first)
    first.close()
    if any(said != alone for said in (in_company, *others)):
        raise UnsupportedError("a model said something else beside another than alone")
    return len(others)


def said_by(model: ChatModel) -> Said:
    """What it says to one sequence, to two at once, and so on."""
    return [_together(model, count) for count in range(1, _MOST + 1)]


def _together(model: ChatModel, count: int) -> dict[int, list[int]]:
    params = SamplingParams(max_tokens=_WANTED, min_tokens=_WANTED, temperature=0)
    said: dict[int, list[int]] = {call: [] for call in range(count)}
    for call in said:
        model.engine.add(Generation(call, [2 + call, 3, 5, 7], params))
    while model.engine.has_work:
        for output in model.engine.step():
            if isinstance(output.event, Delta):
                said[output.call] += output.event.token_ids
    return said


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
