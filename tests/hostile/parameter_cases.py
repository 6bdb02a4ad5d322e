"""Parameters that would cost more than they may, or mean nothing."""

from __future__ import annotations

from typing import Any

from tests.hostile.oracle import Case

_USER = [{"role": "user", "content": "x"}]
_ASK: dict[str, Any] = {"model": "chat", "messages": _USER, "max_tokens": 1}
_LONG = "how do I add a model? " * 2000
_RECURSIVE = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}


def _chat(name: str, *status: int, **change: Any) -> Case:
    return Case(name, body=_ASK | change, status=status or (400,))


def _to(path: str, name: str, *status: int, **body: Any) -> Case:
    return Case(name, path=path, body=body, status=status or (400,))


def _schema(name: str, schema: object, *status: int) -> Case:
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    return _chat(name, *status, response_format=form)


def _message(name: str, *status: int, **change: Any) -> Case:
    return Case(
        name,
        path="/v1/messages",
        body={"model": "chat", "messages": _USER, "max_tokens": 1} | change,
        headers=[("anthropic-version", "2023-06-01")],
        status=status or (400,),
        dialect="anthropic",
    )


def _tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {
            "type": "object",
            "properties": {"a": schema},
            "additionalProperties": False,
            "required": ["a"],
        }
    return schema


CASES = [
    _chat("no such model", 404, model="nobody"),
    _chat("a model of 100 kB", 400, 404, model="a" * 100_000),
    _chat("a path for a model", 404, model="../../secret/key"),
    _chat("a model for embeddings", 400, 404, model="letters"),
    _chat("no messages", messages=[]),
    _chat("a million messages' worth of nothing", messages=[{}] * 50_000),
    _chat("messages of 5,000 turns", messages=_USER * 5000),
    _chat("a prompt beyond the context", messages=[{"role": "user", "content": _LONG}]),
    _chat("a role that is none", messages=[{"role": "root", "content": "x"}]),
    _chat("content of a number", messages=[{"role": "user", "content": 7}]),
    _chat(
        "an image by address",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "http://evil.example/a.png"}}
                ],
            }
        ],
    ),
    _chat(
        "an image of a file",
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
            }
        ],
    ),
    _chat("a tool's answer to nothing", messages=[{"role": "tool", "content": "x"}]),
    _chat("n of zero", n=0),
    _chat("n of a billion", n=10**9),
    _chat("n of minus one", n=-1),
    _chat("a temperature below zero", temperature=-0.1),
    _chat("a temperature of 10^300", temperature=1e300),
    _chat("a temperature in words", temperature="hot"),
    _chat("top_p of two", top_p=2),
    _chat("no tokens at all", max_tokens=0),
    _chat("minus one tokens", max_tokens=-1),
    _chat("2^70 tokens", max_tokens=1 << 70),
    _chat("half a token", max_tokens=0.5),
    _chat("two limits", max_completion_tokens=2),
    _chat("an empty stop", stop=[""]),
    _chat("a hundred stops", stop=[str(i) for i in range(100)]),
    _chat("a stop of a megabyte", stop="a" * 1_000_000),
    _chat("stops of numbers", stop=[1, 2]),
    _chat("a bias for no token", logit_bias={"x": 1}),
    _chat("a bias beyond the vocabulary", logit_bias={"99999999": 1}),
    _chat("a bias of a million", logit_bias={"1": 1e6}),
    _chat("100,000 biases", logit_bias={str(i): 1 for i in range(100_000)}),
    _chat("1,000 likeliest tokens", logprobs=True, top_logprobs=1000),
    _chat("likeliest tokens of none", top_logprobs=3),
    _chat("a seed of 2^80", seed=1 << 80),
    _chat("a penalty of 50", presence_penalty=50),
    _chat("a parameter that nobody knows", frobnicate=1),
    _chat("stream in words", stream="yes"),
    _chat("stream options of no stream", stream_options={"include_usage": True}),
    _chat("a tier that is none", service_tier="gold"),
    _chat("a tool without a name", tools=[{"type": "function", "function": {}}]),
    _chat("a tool with a path for a name", tools=[_tool(name="../f")]),
    _chat("a tool of another kind", tools=[{"type": "shell"}]),
    _chat("5,000 tools", tools=[_tool(name=f"f{i}") for i in range(5000)]),
    _chat("a tool's schema in words", tools=[_tool(parameters="any")]),
    _chat(
        "a choice of no tool",
        tools=[_tool()],
        tool_choice={"type": "function", "function": {"name": "g"}},
    ),
    _chat("a choice without tools", tool_choice="required"),
    _schema("a schema in words", "any"),
    _schema("a schema of an unknown type", {"type": "evil"}),
    _schema("a schema from elsewhere", {"$ref": "http://evil.example/schema.json"}),
    _schema("a schema of a file", {"$ref": "file:///etc/passwd"}),
    _schema("a schema that is only itself", {"$ref": "#"}),
    _schema("a schema that never ends", _RECURSIVE | {"not": {}}),
    _schema("a schema of 300 levels", _nested(300)),
    _schema(
        "a pattern that explodes",
        {"type": "string", "pattern": "((((a{1,99}){1,99}){1,99}){1,99})"},
    ),
    _schema("a pattern that is none", {"type": "string", "pattern": "(["}),
    _schema("a pattern that looks back", {"type": "string", "pattern": r"(a)\1"}),
    _schema("a string of a billion", {"type": "string", "minLength": 10**9}),
    _schema("a choice among 200,000", {"enum": [f"value {i}" for i in range(200_000)]}),
    _schema("what cannot be", {"type": "string", "minLength": 3, "maxLength": 2}),
    _chat("a regex that explodes", structured_outputs={"regex": "(.*a){30}" * 50}),
    _chat("a grammar that is none", structured_outputs={"grammar": "start: ((("}),
    _chat("a template's variable", chat_template_kwargs={"messages": "x"}),
    _chat("a template of one's own", chat_template="{{ ''.__class__.__mro__ }}"),
    _to("/v1/completions", "a prompt of nothing", model="chat", prompt=[]),
    _to("/v1/completions", "tokens beyond the vocabulary", model="chat", prompt=[1 << 31]),
    _to("/v1/completions", "tokens below zero", model="chat", prompt=[-1]),
    _to("/v1/completions", "5,000 prompts", model="chat", prompt=["x"] * 5000),
    _to("/v1/completions", "best of a million", model="chat", prompt="x", best_of=10**6),
    _to("/v1/completions", "a text and its tokens", model="chat", prompt=["x", [1]]),
    _to(
        "/v1/completions",
        "a middle without the tokens for it",
        model="chat",
        prompt="x",
        suffix="y",
    ),
    _to("/v1/embeddings", "nothing to embed", model="letters", input=[]),
    _to("/v1/embeddings", "100,000 texts", model="letters", input=["x"] * 100_000),
    _to("/v1/embeddings", "a dimension of zero", model="letters", input="x", dimensions=0),
    _to(
        "/v1/embeddings",
        "more dimensions than there are",
        model="letters",
        input="x",
        dimensions=10**6,
    ),
    _to("/v1/embeddings", "an unknown encoding", model="letters", input="x", encoding_format="hex"),
    _to("/v1/embeddings", "a model for chat", 400, 404, model="chat", input="x"),
    _to("/v1/responses", "no input", model="chat"),
    _to(
        "/v1/responses",
        "a turn before that is none",
        400,
        404,
        model="chat",
        input="x",
        previous_response_id="resp_" + "a" * 24,
    ),
    _to("/v1/responses", "an item of another kind", model="chat", input=[{"type": "evil"}]),
    _to(
        "/v1/responses", "a built-in tool", model="chat", input="x", tools=[{"type": "web_search"}]
    ),
    _to(
        "/v1/batches",
        "a batch of no file",
        400,
        404,
        input_file_id="file-" + "a" * 24,
        endpoint="/v1/chat/completions",
        completion_window="24h",
    ),
    _to(
        "/v1/batches",
        "a batch of another route",
        input_file_id="file-" + "a" * 24,
        endpoint="/v1/files",
        completion_window="24h",
    ),
    _to("/tokenize", "tokens of a number", model="chat", prompt=7),
    _to("/detokenize", "tokens that are none", model="chat", tokens=[1 << 40]),
    _to("/detokenize", "a token in words", model="chat", tokens=["x"]),
    _message("Anthropic: no such model", 404, model="nobody"),
    _message("Anthropic: no limit", max_tokens=None),
    _message("Anthropic: a limit of zero", max_tokens=0),
    _message("Anthropic: no messages", messages=[]),
    _message("Anthropic: a system turn among them", messages=[{"role": "root", "content": "x"}]),
    _message(
        "Anthropic: an image by address",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "url", "url": "http://evil.example"}}
                ],
            }
        ],
    ),
    _message(
        "Anthropic: a prompt beyond the context", messages=[{"role": "user", "content": _LONG}]
    ),
    _message("Anthropic: a temperature of two", temperature=2),
    _message("Anthropic: an unknown parameter", frobnicate=1),
    _message("Anthropic: a tool without a schema", tools=[{"name": "f"}]),
]
