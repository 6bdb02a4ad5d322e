"""langchain-openai against a node: prints what came back as one JSON document."""

from __future__ import annotations

import json
import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Word(BaseModel):
    word: str


def main() -> None:
    model = ChatOpenAI(model="echo", temperature=0, max_retries=0)
    found: dict[str, object] = {}
    whole = model.invoke("hello")
    found["chat"] = whole.content
    found["usage"] = whole.usage_metadata["output_tokens"]
    found["stream"] = "".join(chunk.text for chunk in model.stream("hello"))
    tool = {
        "name": "look",
        "description": "looks",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    }
    called = model.bind_tools([tool]).invoke('call look {"at": "b"}')
    found["call"] = [(call["name"], call["args"]) for call in called.tool_calls]
    found["form"] = model.with_structured_output(Word).invoke('{"word": "a"}').model_dump()
    vectors = OpenAIEmbeddings(model="letters", check_embedding_ctx_length=False)
    found["embeddings"] = [len(vector) for vector in vectors.embed_documents(["a", "b"])]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
