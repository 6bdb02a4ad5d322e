"""The engine in a process of its own, called directly: what the whole stack is compared with.

Reads a line of JSON for each measurement, `{"texts": [...], "tokens": n}`, computes all of the
texts at once as chat prompts, and answers with `{"seconds": ..., "firsts": [...]}`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.compiler import open_artifact
from appliance.config import load_config
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.chat_model import ChatModel
from appliance.engine.generation import Generation
from appliance.engine.sampling import SamplingParams
from appliance.model_store import ModelStore
from appliance.prompting import Conversation, Message
from appliance.service import notify_ready
from appliance.trust.node_key import NodePublicKey


def opened(root: Path, name: str) -> ChatModel:
    """The compiled model `name` of the node at `root`, with the settings that the daemon has."""
    config = load_config(root)
    bundle = ModelStore(config.layout.models).get(name)
    key = NodePublicKey.load(config.layout.node / "node.pub")
    artifact = open_artifact(config.layout.artifacts, bundle.digest, key)
    settings = config.engine.sized(gpu=False)
    return ChatModel(bundle, artifact, settings, CacheBudget.from_settings(settings))


def measured(model: ChatModel, texts: Sequence[str], tokens: int) -> tuple[float, list[float]]:
    """Seconds from the prompts as text to the last token, and to the first one of each."""
    engine = model.engine
    params = SamplingParams(max_tokens=tokens, temperature=0)
    firsts: dict[int, float] = {}
    start = time.perf_counter()
    for call, text in enumerate(texts):
        ids, _ = model.encode_chat(Conversation((Message("user", text),)))
        engine.add(Generation(call, ids, params, chat=True))
    while engine.has_work:
        for output in engine.step():
            firsts.setdefault(output.call, time.perf_counter() - start)
    return time.perf_counter() - start, list(firsts.values())


def main() -> None:
    model = opened(Path(sys.argv[1]), sys.argv[2])
    notify_ready()
    for line in sys.stdin:
        asked = json.loads(line)
        seconds, firsts = measured(model, asked["texts"], asked["tokens"])
        print(json.dumps({"seconds": seconds, "firsts": firsts}), flush=True)


if __name__ == "__main__":
    main()
