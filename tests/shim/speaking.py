"""Drawn models that speak a published format, and the call that tests make them write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.checkpoint.drawn import draw_checkpoint
from tests.fakes.chat_formats import TEMPLATES, VOCAB, speak
from tests.shim.node import Node

ASKED: Any = {"role": "user", "content": "Will it snow?"}
UNIT = {"type": "string", "enum": ["C", "F"]}
DAYS = {"type": "integer", "minimum": 0, "maximum": 99}
EXACT = {"type": "boolean"}


def draw_speaking(root: Path, name: str, config: Mapping[str, object], format_name: str) -> Path:
    """The checkpoint of `name` below `root`, a model of the format `format_name`."""
    checkpoint = draw_checkpoint(root / f"checkpoint-{name}", {**config, "vocab_size": VOCAB})
    return speak(checkpoint, TEMPLATES[format_name])  # type: ignore[index]


def tokenizer_of(node: Node, name: str) -> Tokenizer:
    """That model's, as the reference reads it."""
    file = node.config.layout.root / f"checkpoint-{name}/tokenizer.json"
    return Tokenizer.from_file(str(file))


def forecast(**properties: Any) -> list[Any]:
    """A strict tool that needs all `properties`."""
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": "forecast", "strict": True, "parameters": parameters}
    return [{"type": "function", "function": function}]


def sent_back(call: Any) -> list[Any]:
    """The conversation once the call has its result."""
    return [
        ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Yes."},
    ]
