"""Every parameter of every API, and what becomes of it.

Owns the one table that the code obeys and docs/api.md shows; a test renders it and compares. A
parameter that is not here is refused as unknown. Nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.errors import RequestError

Treatment = Literal["honoured", "no effect", "limited", "refused"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    honoured: does what the API says. no effect: taken, and by its own definition changes nothing
    in the answer of this appliance. limited: only the values in `accepts` (or null) are taken.
    refused: known, and a 400 unless it is null, which asks for nothing.
    """

    name: str
    treatment: Treatment
    note: str = ""
    accepts: tuple[object, ...] = ()

    def check(self, request: object) -> None:
        """Raise RequestError if `request` asks for what this limited parameter cannot do."""
        value = getattr(request, self.name)
        if value is not None and not any(_same(value, known) for known in self.accepts):
            raise self.refusal()

    def refusal(self) -> RequestError:
        """The error that says what is possible."""
        return RequestError(
            f"`{self.name}` is not supported here" + (f": {self.note}" if self.note else ""),
            param=self.name,
            hint="leave the parameter out",
            code="unsupported_parameter",
        )


def _same(value: object, known: object) -> bool:
    return type(value) is type(known) and value == known


def _honoured(name: str, note: str = "") -> Parameter:
    return Parameter(name, "honoured", note)


def _no_effect(name: str, note: str) -> Parameter:
    return Parameter(name, "no effect", note)


def _limited(name: str, note: str, *accepts: object) -> Parameter:
    return Parameter(name, "limited", note, accepts)


def _refused(name: str, note: str) -> Parameter:
    return Parameter(name, "refused", note)


_SAMPLING = (
    _honoured("temperature", "0 to 2; 0 is greedy; the bundle's default if absent"),
    _honoured("top_p", "above 0 and up to 1; the bundle's default if absent"),
    _honoured("top_k", "extension; 0 is off"),
    _honoured("min_p", "extension; 0 to 1"),
    _honoured("presence_penalty", "-2 to 2"),
    _honoured("frequency_penalty", "-2 to 2"),
    _honoured("repetition_penalty", "extension; above 0, 1 is off"),
    _honoured("logit_bias", "token id to -100 to 100, up to 1,024 of them"),
    _honoured("seed", "the same seed, model and prompt give the same tokens"),
    _honoured("stop", "one string or up to 16"),
    _honoured("stop_token_ids", "extension"),
    _honoured("ignore_eos", "extension"),
    _honoured("min_tokens", "extension"),
    _honoured("n", "1 to 128 answers; the prompt is billed once"),
)
_STREAMING = (
    _honoured("stream"),
    _honoured("stream_options", "`include_usage`; `include_obfuscation` only false"),
)
_IDENTIFIERS = (_no_effect("user", "names your end user; the audit log names your key"),)
_TIERS = (
    "`auto`, `default`; `flex`: after everybody else, at the batch price; `priority`, `fast`: "
    "before everybody else, for keys that may"
)
_EFFORT = (
    "`none` and `minimal` switch thinking off, the rest on; `low`, `medium` and `high` where the "
    "model knows degrees, else the next higher one that it knows; off is refused where the model "
    "always reasons"
)

CHAT = (
    _honoured("model"),
    _honoured(
        "messages",
        "roles system, developer, user, assistant, tool, not the older function; "
        "content as a string or text parts, "
        "a user's also as `image_url` parts with a data URI; "
        "`reasoning_content` of earlier assistant turns",
    ),
    _honoured("max_completion_tokens", "up to the context if absent"),
    _honoured("max_tokens", "the older name of `max_completion_tokens`"),
    *_SAMPLING,
    *_STREAMING,
    _honoured("logprobs"),
    _honoured("top_logprobs", "0 to 20; needs `logprobs`"),
    _honoured("tools", "functions; with `strict` their arguments always satisfy the schema"),
    _honoured("tool_choice", "`auto`, `none`, `required`, one function, or `allowed_tools`"),
    _honoured("parallel_tool_calls", "false: at most one call"),
    _honoured(
        "response_format",
        "`text`, `json_object`, `json_schema`; strict or not, the schema always holds",
    ),
    _honoured("reasoning_effort", _EFFORT),
    _honoured("chat_template_kwargs", "extension; `enable_thinking` only"),
    _honoured(
        "prediction", "of type `content`, a string or text parts; changes the speed, not the answer"
    ),
    _honoured("continue_final_message", "extension; go on from the last assistant message"),
    _honoured("add_generation_prompt", "extension; the opposite of `continue_final_message`"),
    _limited("modalities", 'only `["text"]`', ["text"]),
    _honoured("service_tier", _TIERS),
    _limited("store", "only false: no content is kept", False),
    _limited("verbosity", "only `medium`", "medium"),
    _limited("prompt_cache_retention", "only `in_memory`", "in_memory"),
    *_IDENTIFIERS,
    _no_effect("safety_identifier", "names your end user; the audit log names your key"),
    _no_effect(
        "prompt_cache_key",
        "a hint; the prefix cache is separate for each API key, or shared within its project",
    ),
    _no_effect("metadata", "belongs to stored completions, of which there are none"),
    _refused("audio", "there is no audio output"),
    _refused("function_call", "use `tool_choice`"),
    _refused("functions", "use `tools`"),
    _refused("moderation", "there is no moderation model"),
    _refused("prompt_cache_options", "the prefix cache has no options"),
    _refused("web_search_options", "the appliance has no network"),
)

_PROMPT_OF_MESSAGES = (
    _honoured("model"),
    _honoured(
        "messages",
        "roles user, assistant, system; content as a string or blocks: `text`, `image` in "
        "base64, `thinking`, `tool_use`, `tool_result`; a last assistant text is gone on from",
    ),
    _honoured("system", "a string or text blocks"),
    _honoured(
        "tools",
        "custom tools; with `strict` their input always satisfies the schema; `cache_control` and "
        "`eager_input_streaming` change nothing, `defer_loading` only false, `allowed_callers` "
        "only `direct`",
    ),
    _honoured(
        "tool_choice",
        "`auto`, `none`, `any`, or one `tool`; `disable_parallel_tool_use`: at most one call",
    ),
    _honoured(
        "thinking",
        "`enabled`, `disabled`, or `adaptive`: as the bundle does, or as `effort` says; "
        "`max_tokens` bounds it, not `budget_tokens`; `display` is `summarized`, and the reasoning "
        "itself is what there is, or `omitted`: the block's `signature` has what it does not show",
    ),
    _no_effect("cache_control", "the prefix cache needs no marks and is separate for each key"),
    _honoured(
        "context_management",
        "no `edits`, or `clear_thinking_20251015` that keeps `all`: nothing is cleared here",
    ),
    _honoured(
        "output_config",
        "`format` of type `json_schema`, and the schema always holds; `effort` where `thinking` is "
        "`enabled` or `adaptive`: on, to that degree where the model knows degrees (`xhigh`, "
        "`max`: as `high`); else a hint that changes nothing",
    ),
    _limited("speed", "only `standard`", "standard"),
    _refused("user_profile_id", "there are no profiles"),
    _refused("workspace_id", "there are no workspaces"),
)

MESSAGES = (
    *_PROMPT_OF_MESSAGES[:2],
    _honoured("max_tokens", "required; reasoning included"),
    *_PROMPT_OF_MESSAGES[2:],
    _honoured("stop_sequences", "up to 16"),
    _honoured("stream"),
    _honoured("temperature", "0 to 1; 0 is greedy; the bundle's default if absent"),
    _honoured("top_p", "above 0 and up to 1; the bundle's default if absent"),
    _honoured("top_k", "0 is off"),
    _limited("service_tier", "only `auto` and `standard_only`", "auto", "standard_only"),
    _no_effect("metadata", "`user_id` names your end user; the audit log names your key"),
    _refused("container", "there are no containers"),
    _refused("diagnostics", "the prefix cache tells nothing but its counts"),
    _refused("inference_geo", "it is computed on this machine"),
    _refused("safeguards", "there is no classifier: nobody here judges the model's calls"),
)

COUNT_TOKENS = _PROMPT_OF_MESSAGES

COMPLETIONS = (
    _honoured("model"),
    _honoured("prompt", "a string, token ids, or up to 128 of either"),
    _honoured("max_tokens", "16 if absent"),
    *_SAMPLING,
    *_STREAMING,
    _honoured("logprobs", "0 to 20"),
    _limited("best_of", "only 1: use `n`", 1),
    _honoured("echo", "the prompt before each answer; not together with `logprobs`"),
    *_IDENTIFIERS,
    _honoured(
        "suffix", "what follows the answer, for models that can fill in; with texts as `prompt`"
    ),
)

RESPONSES = (
    _honoured("model"),
    _honoured(
        "input",
        "a string or items: messages of text and `input_image` parts, `function_call`, "
        "`custom_tool_call`, their outputs, `reasoning`; `item_reference` only where responses are "
        "stored",
    ),
    _honoured("instructions", "a system message before the input; not carried over to later turns"),
    _honoured("max_output_tokens", "reasoning included; up to the context if absent"),
    _honoured("temperature", "0 to 2; 0 is greedy; the bundle's default if absent"),
    _honoured("top_p", "above 0 and up to 1; the bundle's default if absent"),
    _honoured("presence_penalty", "-2 to 2"),
    _honoured("frequency_penalty", "-2 to 2"),
    _honoured("top_logprobs", "0 to 20"),
    _honoured(
        "include",
        "`message.output_text.logprobs`; `reasoning.encrypted_content` is taken, but reasoning is "
        "never encrypted",
    ),
    _honoured(
        "tools",
        "`function`; with `strict`, false if absent, its arguments always satisfy the schema; "
        "`custom`, with a text that satisfies its `format`; `namespace` of both",
    ),
    _honoured("tool_choice", "`auto`, `none`, `required`, one tool, or `allowed_tools`"),
    _honoured("parallel_tool_calls", "false: at most one call"),
    _honoured(
        "reasoning",
        f"`effort`: {_EFFORT}; `summary` only `auto`, and the reasoning itself is what there is",
    ),
    _honoured(
        "text",
        "`format`: `text`, `json_object`, `json_schema`; strict or not, the schema always holds; "
        "`verbosity` only `medium`",
    ),
    _honoured("stream", "not together with `background`"),
    _honoured("stream_options", "`include_obfuscation` only false"),
    _honoured("store", "true only if the operator allows it; then also the default"),
    _honoured("previous_response_id", "only if the operator allows storing"),
    _honoured("background", "only if the operator allows storing"),
    _limited("truncation", "only `disabled`", "disabled"),
    _honoured("service_tier", _TIERS),
    _limited("prompt_cache_retention", "only `in_memory`", "in_memory"),
    _honoured("metadata", "up to 16 pairs, echoed"),
    _no_effect("max_tool_calls", "bounds built-in tools, of which there are none"),
    *_IDENTIFIERS,
    _no_effect("safety_identifier", "names your end user; the audit log names your key"),
    _no_effect("prompt_cache_key", "a hint; the prefix cache is separate for each API key"),
    _no_effect("client_metadata", "what a program says about itself; not kept"),
    _refused("access_programs", "there are none"),
    _refused("background_options", "a background response starts at once"),
    _refused("context_management", "send the items that you want to be read"),
    _refused("conversation", "use `previous_response_id`"),
    _refused("image", "images are parts of `input`"),
    _refused("moderation", "there is no moderation model"),
    _refused("prompt", "there are no stored prompts"),
    _refused("prompt_cache_options", "the prefix cache has no options"),
)

EMBEDDINGS = (
    _honoured("model"),
    _honoured("input", "a string, token ids, or up to 2048 of either"),
    _honoured("encoding_format", "`float` or `base64` (little-endian float32)"),
    _honoured("dimensions", "where the model can"),
    *_IDENTIFIERS,
    _refused("input_type", "write what the model wants before a query or a passage into the text"),
)

_PAIRS = (
    _honoured("max_tokens_per_doc", "longer documents are cut; if absent, too long ones are a 400"),
    _honoured(
        "instruction",
        "extension; what is searched for, in words, where the model reads that; else a 400",
    ),
    _limited("use_activation", "only true: scores are what the model's publisher makes them", True),
    *_IDENTIFIERS,
    _refused("mm_processor_kwargs", "there is no image input"),
    _refused("priority", "callers take turns"),
    _refused("truncate_prompt_tokens", "use `max_tokens_per_doc`"),
)

RERANK = (
    _honoured("model", "a rerank model"),
    _honoured("query", "a text"),
    _honoured("documents", "1 to 1000 texts, or objects with `text` alone"),
    _honoured("top_n", "so many of the best; all if absent"),
    _honoured("return_documents", "false if absent"),
    *_PAIRS,
    _refused("max_chunks_per_doc", "a document is read whole"),
    _refused("rank_fields", "give each document's text"),
)

SCORE = (
    _honoured("model", "a rerank model"),
    _honoured("text_1", "a query, or one for each text of `text_2`"),
    _honoured("text_2", "a document, or up to 1000"),
    *_PAIRS,
)

FILES = (
    _honoured("file", "a part with a file name; JSONL, checked when a batch is made of it"),
    _honoured("purpose", "only `batch`: results have `batch_output`, other purposes are refused"),
    _honoured("expires_after[anchor]", "`created_at`; together with `seconds`"),
    _honoured("expires_after[seconds]", "3600 to 2592000, and no more than the operator allows"),
)

BATCHES = (
    _honoured("input_file_id", "a file of purpose `batch`"),
    _honoured(
        "endpoint",
        "chat completions, completions, embeddings or responses; extension: rerank or score",
    ),
    _honoured("completion_window", "only `24h`"),
    _honoured("metadata", "up to 16 pairs, echoed"),
    _honoured("output_expires_after", "`created_at` and 3600 to 2592000 seconds"),
)

TOKENIZE = (
    _honoured("model"),
    _honoured("prompt", "a text, tokenized as /v1/completions does"),
    _honoured("messages", "instead of `prompt`: rendered as /v1/chat/completions does"),
    _honoured("tools", "with `messages`"),
    _honoured("chat_template_kwargs", "with `messages`; `enable_thinking` only"),
    _honoured("continue_final_message", "with `messages`"),
    _honoured("add_generation_prompt", "the opposite of `continue_final_message`"),
    _refused("add_special_tokens", "they are added as the model was trained"),
    _refused("return_token_strs", "use /detokenize"),
    _refused("chat_template", "the bundle's own is used"),
)

DETOKENIZE = (
    _honoured("model"),
    _honoured("tokens", "token ids"),
)

APIS = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
    "/v1/score": SCORE,
    "/v1/batches": BATCHES,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}

FORMS = {"/v1/files": FILES}


def table(parameters: Sequence[Parameter]) -> str:
    """The Markdown table of `parameters`."""
    rows = [f"| `{p.name}` | {p.treatment} | {p.note} |" for p in parameters]
    return "\n".join(["| parameter | treatment | |", "| --- | --- | --- |", *rows])
