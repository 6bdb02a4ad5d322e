"""openai-agents against a node, by chat and by responses: prints what came back as one JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel


class Word(BaseModel):
    word: str


@function_tool
def look(at: str) -> str:
    """Look at a place."""
    return f"the note at {at}"


async def streamed(agent: Agent[None], text: str) -> list[str]:
    """The kinds of events, and the answer as the last."""
    run = Runner.run_streamed(agent, text)
    kinds = [event.type async for event in run.stream_events()]
    return [*dict.fromkeys(kinds), str(run.final_output)]


async def main() -> None:
    set_tracing_disabled(disabled=True)
    client = AsyncOpenAI(max_retries=0)
    settings = ModelSettings(reasoning=Reasoning(effort="high"), include_usage=True)
    found: dict[str, object] = {}
    for name, kind in (("chat", OpenAIChatCompletionsModel), ("responses", OpenAIResponsesModel)):
        model = kind("echo", client)
        caller = Agent(
            "caller",
            instructions="Be brief.",
            tools=[look],
            model=model,
            model_settings=settings,
        )
        done = await Runner.run(caller, "look at b")
        former = Agent("former", model=model, output_type=Word)
        found[name] = {
            "task": done.final_output,
            "items": [item.type for item in done.new_items],
            "tokens": done.context_wrapper.usage.output_tokens,
            "stream": await streamed(caller, "look at b"),
            "form": (await Runner.run(former, '{"word": "a"}')).final_output.word,
        }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
