"""pydantic-ai against a node: prints what came back as one JSON document."""

from __future__ import annotations

import json
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel


class Word(BaseModel):
    word: str


def main() -> None:
    found: dict[str, object] = {}
    for name, kind in (("chat", OpenAIChatModel), ("responses", OpenAIResponsesModel)):
        model = kind("echo")
        plain = Agent(model, model_settings={"temperature": 0}).run_sync("hello")
        found[name] = plain.output
        formed = Agent(model, output_type=NativeOutput(Word)).run_sync('{"word": "a"}')
        found[f"{name} form"] = formed.output.model_dump()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
