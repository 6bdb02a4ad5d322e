"""instructor against a node: prints what came back as one JSON document."""

from __future__ import annotations

import json
import sys

import instructor
import openai
from pydantic import BaseModel


class Word(BaseModel):
    word: str


def main() -> None:
    found: dict[str, object] = {}
    for mode, asked in (
        (instructor.Mode.JSON_SCHEMA, '{"word": "a"}'),
        (instructor.Mode.TOOLS, 'call Word {"word": "a"}'),
    ):
        client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=mode)
        word = client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": asked}], response_model=Word
        )
        found[mode.name] = word.model_dump()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
