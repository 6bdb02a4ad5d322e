"""LlamaIndex against a node: prints what came back as one JSON document."""

from __future__ import annotations

import json
import os
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Word(BaseModel):
    word: str


def look(at: str) -> str:
    """Look at a place."""
    return f"the note at {at}"


def main() -> None:
    base, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
    model = OpenAILike(
        model="echo",
        api_base=base,
        api_key=key,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        context_window=4096,
        temperature=0,
        max_retries=0,
    )
    vectors = OpenAILikeEmbedding(model_name="letters", api_base=base, api_key=key, max_retries=0)
    hello = [ChatMessage(role="user", content="hello")]
    tool = FunctionTool.from_defaults(look)
    called = model.predict_and_call([tool], 'call look {"at": "b"}')
    formed = model.as_structured_llm(Word).chat([ChatMessage(role="user", content='{"word": "a"}')])
    found = {
        "chat": model.chat(hello).message.content,
        "stream": "".join(part.delta or "" for part in model.stream_chat(hello)),
        "complete": model.complete("hello").text,
        "call": called.response,
        "form": formed.raw.word,
        "embeddings": [len(v) for v in vectors.get_text_embedding_batch(["a", "b"])],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
