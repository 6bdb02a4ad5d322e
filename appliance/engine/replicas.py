"""Which of a model's engines computes a request, where it is loaded on several GPUs.

Owns the choice alone. Every engine has the same weights and the same context, so each would do; the
choice decides how long the caller waits, and how much of the prompt is there already.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.engine.embedding_engine import EmbeddingEngine, Text
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.running import sequence_of

_SLACK = 4
"""So many sequences more than the least busy one may have whoever holds a prompt's beginning."""


def place(engines: Sequence[LLMEngine], generation: Generation) -> LLMEngine:
    """The engine that is to compute `generation`.

    Of those that are about as busy as the least busy one it is the one that has computed, or is
    about to compute, most of the prompt: prefixes are cached on each GPU apart.
    """
    if len(engines) == 1:
        return engines[0]
    least = min(map(busyness, engines))
    near = [engine for engine in engines if busyness(engine) <= least + _SLACK]
    sequence = sequence_of(generation)
    return max(near, key=lambda engine: (engine.known_tokens(sequence), -busyness(engine)))


def busyness(engine: LLMEngine) -> int:
    """Sequences that run or wait there."""
    return engine.running + engine.waiting


def least_waiting(engines: Sequence[EmbeddingEngine[Text]]) -> EmbeddingEngine[Text]:
    """The engine that is to read the next texts."""
    return min(engines, key=lambda engine: engine.waiting)
