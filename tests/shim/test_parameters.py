"""The table of parameters: what docs/api.md shows is what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import msgspec
import pytest

from appliance.shim.wire.anthropic import CountRequest, MessagesRequest
from appliance.shim.wire.batches import BatchRequest
from appliance.shim.wire.chat import ChatRequest
from appliance.shim.wire.completions import CompletionRequest
from appliance.shim.wire.embeddings import EmbeddingRequest
from appliance.shim.wire.files import FileForm
from appliance.shim.wire.parameters import APIS, FORMS, Parameter, table
from appliance.shim.wire.rerank import RerankRequest, ScoreRequest
from appliance.shim.wire.responses import ResponsesRequest
from appliance.shim.wire.tokens import DetokenizeRequest, TokenizeRequest
from tests.conftest import REPOSITORY
from tests.fakes.engine import CHAT, EMBEDDING, RERANK
from tests.shim.batch_input import line, upload
from tests.shim.node import Answer, Node, ask, standing

REQUESTS: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/rerank": RerankRequest,
    "/v2/rerank": RerankRequest,
    "/v1/score": ScoreRequest,
    "/v1/files": FileForm,
    "/v1/batches": BatchRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": ask(),
    "/v1/responses": {"model": CHAT, "input": "a"},
    "/v1/messages": ask(max_tokens=9),
    "/v1/messages/count_tokens": ask(),
    "/v1/completions": {"model": CHAT, "prompt": "a"},
    "/v1/embeddings": {"model": EMBEDDING, "input": "a"},
    "/v1/rerank": {"model": RERANK, "query": "a", "documents": ["a", {"text": "b"}]},
    "/v2/rerank": {"model": RERANK, "query": "a", "documents": ["a", {"text": "b"}]},
    "/v1/score": {"model": RERANK, "text_1": "a", "text_2": ["a", "b"]},
    "/v1/batches": {
        "input_file_id": "",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "/tokenize": ask(),
    "/detokenize": {"model": CHAT, "tokens": [97]},
}
SDK = {
    "/v1/chat/completions": "openai/types/chat/completion_create_params",
    "/v1/responses": "openai/types/responses/response_create_params",
    "/v1/messages": "anthropic/types/message_create_params",
    "/v1/messages/count_tokens": "anthropic/types/message_count_tokens_params",
    "/v1/completions": "openai/types/completion_create_params",
    "/v1/embeddings": "openai/types/embedding_create_params",
    "/v1/batches": "openai/types/batch_create_params",
}
GOOD: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1},
    "seed": 3,
    "stop": "x",
    "stop_token_ids": [3],
    "ignore_eos": False,
    "min_tokens": 1,
    "n": 2,
    "stream": False,
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "tools": [],
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "chat_template_kwargs": {},
    "continue_final_message": False,
    "add_generation_prompt": True,
    "encoding_format": "float",
    "dimensions": 3,
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "metadata": {"a": "b"},
    "instructions": "be brief",
    "max_output_tokens": 3,
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "store": False,
    "background": False,
    "max_tool_calls": 3,
    "system": "be brief",
    "stop_sequences": ["x"],
    "thinking": {"type": "adaptive"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "array"}}},
    "cache_control": {"type": "ephemeral"},
    "echo": True,
    "suffix": "behind",
    "service_tier": "flex",
    "top_n": 1,
    "return_documents": True,
    "max_tokens_per_doc": 3,
    "instruction": "find it",
    "output_expires_after": {"anchor": "created_at", "seconds": 3600},
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for the whole file: nothing here changes it."""
    with standing(tmp_path_factory.mktemp("node"), store_files=True) as made:
        BASE["/v1/batches"]["input_file_id"] = upload(made, [line("a")])["id"]
        yield made


def parameters(*treatments: str) -> list[Any]:
    return [
        pytest.param(path, parameter, id=f"{path}:{parameter.name}")
        for path, all_of_them in APIS.items()
        for parameter in all_of_them
        if parameter.treatment in treatments
    ]


def assert_names(answer: Answer, name: str) -> None:
    """The error is about the parameter `name`, in the shape of whichever API it is."""
    error = answer.json["error"]
    if "param" in error:
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    else:
        assert f"`{name}` is not supported here" in error["message"]


@pytest.mark.parametrize("path", [*APIS, *FORMS])
def test_the_documented_table_is_the_code_s(path: str) -> None:
    page = (REPOSITORY / "docs/api.md").read_text()
    section = page.partition(f"### `{path}`\n\n")[2].partition("\n\n")[0]
    assert section == table({**APIS, **FORMS}[path])


@pytest.mark.parametrize("path", [*APIS, *FORMS])
def test_the_request_has_exactly_the_fields_that_are_not_refused(path: str) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(REQUESTS[path])}
    known = {**APIS, **FORMS}[path]
    assert fields == {p.name for p in known if p.treatment != "refused"}


@pytest.mark.parametrize("path", SDK)
def test_every_parameter_of_the_official_sdk_is_in_the_table(path: str) -> None:
    package, _, module = SDK[path].partition("/")
    text = resources.files(package).joinpath(f"{module}.py").read_text()
    base = re.split(r"^class \w+\(", text, flags=re.MULTILINE)[1]
    names = set(re.findall(r"^    (\w+): ", base, flags=re.MULTILINE))
    if path not in ("/v1/embeddings", "/v1/messages/count_tokens", "/v1/batches"):
        names.add("stream")
    assert names <= {p.name for p in APIS[path]}


@pytest.mark.parametrize(("path", "parameter"), parameters("refused"))
def test_a_refused_parameter_is_refused_by_name(
    node: Node, path: str, parameter: Parameter
) -> None:
    answer = node.request("POST", path, {**BASE[path], parameter.name: "x"})
    assert answer.status == 400
    assert_names(answer, parameter.name)


@pytest.mark.parametrize(("path", "parameter"), parameters("limited"))
def test_a_limited_parameter_takes_its_values_and_no_other(
    node: Node, path: str, parameter: Parameter
) -> None:
    for value in (None, *parameter.accepts):
        assert node.request("POST", path, {**BASE[path], parameter.name: value}).status == 200
    for value in ("other", 17, 0, 1.0, ["x"], {"type": "x"}):
        answer = node.request("POST", path, {**BASE[path], parameter.name: value})
        assert answer.status == 400
        assert_names(answer, parameter.name)


@pytest.mark.parametrize(("path", "parameter"), parameters("honoured", "no effect"))
def test_an_honoured_parameter_is_taken(node: Node, path: str, parameter: Parameter) -> None:
    more: dict[str, Any] = {parameter.name: GOOD.get(parameter.name)}
    if parameter.name == "metadata" and path == "/v1/messages":
        more = {"metadata": {"user_id": "u"}}
    if parameter.name == "stream_options":
        option = "include_obfuscation" if path == "/v1/responses" else "include_usage"
        more = {"stream": True, "stream_options": {option: path != "/v1/responses"}}
    if parameter.name in {"logprobs", "top_logprobs"}:
        more = {
            "/v1/chat/completions": {"logprobs": True, "top_logprobs": 1},
            "/v1/responses": {"top_logprobs": 1},
            "/v1/completions": {"logprobs": 1},
        }[path]
    if parameter.name in BASE[path]:
        more = {}
    assert node.request("POST", path, {**BASE[path], **more}).status == 200
