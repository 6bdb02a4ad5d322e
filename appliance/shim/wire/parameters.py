"""Every parameter of every API, and what becomes of it.

Owns the one table that the code obeys and docs/api.md shows; a test renders it and compares. A
parameter that is not here is refused as unknown. Nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from appliance.errors import RequestError

Treatment = Literal["honoured", "no effect", "limited", "refused"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    honoured: does what the API says. no effect: taken, and by its own definition changes nothing
    in the answer of this appliance. limited: only the values in `accepts` (or null) are taken.
    refused: known, and a 400.
    """

    name: str
    treatment: Treatment
    note: str = ""
    accepts: tuple[object, ...] = ()

    def check(self, request: object) -> None:
        """Raise RequestError if `request` asks for what a limited parameter cannot do."""
        if self.treatment == "limited":
            value = getattr(request, self.name)
            if value is not None and not any(_same(value, known) for known in self.accepts):
                self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the RequestError that says what is possible."""
        raise RequestError(
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
    _honoured("top_p", "0 to 1; the bundle's default if absent"),
    _honoured("top_k", "extension; 0 is off"),
    _honoured("min_p", "extension; 0 to 1"),
    _honoured("presence_penalty", "-2 to 2"),
    _honoured("frequency_penalty", "-2 to 2"),
    _honoured("repetition_penalty", "extension; above 0, 1 is off"),
    _honoured("logit_bias", "token id to -100 to 100"),
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

CHAT = (
    _honoured("model"),
    _honoured(
        "messages",
        "roles system, developer, user, assistant, tool; content as a string or text parts; "
        "`reasoning_content` of earlier assistant turns",
    ),
    _honoured("max_completion_tokens", "up to the context if absent"),
    _honoured("max_tokens", "the older name of `max_completion_tokens`"),
    *_SAMPLING,
    *_STREAMING,
    _honoured("logprobs"),
    _honoured("top_logprobs", "0 to 20; needs `logprobs`"),
    _honoured("tools", "functions; `strict` only false"),
    _limited("tool_choice", "only `auto` and `none`", "auto", "none"),
    _limited("parallel_tool_calls", "only true", True),
    _limited("response_format", 'only `{"type": "text"}`', {"type": "text"}),
    _honoured("reasoning_effort", "`none` and `minimal` switch thinking off, the rest on"),
    _honoured("chat_template_kwargs", "extension; `enable_thinking` only"),
    _honoured(
        "prediction", "of type `content`, a string or text parts; changes the speed, not the answer"
    ),
    _honoured("continue_final_message", "extension; go on from the last assistant message"),
    _honoured("add_generation_prompt", "extension; the opposite of `continue_final_message`"),
    _limited("modalities", 'only `["text"]`', ["text"]),
    _limited("service_tier", "only `auto` and `default`", "auto", "default"),
    _limited("store", "only false: no content is kept", False),
    _limited("verbosity", "only `medium`", "medium"),
    _limited("prompt_cache_retention", "only `in_memory`", "in_memory"),
    *_IDENTIFIERS,
    _no_effect("safety_identifier", "names your end user; the audit log names your key"),
    _no_effect("prompt_cache_key", "a hint; the prefix cache is separate for each API key"),
    _no_effect("metadata", "belongs to stored completions, of which there are none"),
    _refused("audio", "there is no audio output"),
    _refused("function_call", "use `tool_choice`"),
    _refused("functions", "use `tools`"),
    _refused("moderation", "there is no moderation model"),
    _refused("prompt_cache_options", "the prefix cache has no options"),
    _refused("web_search_options", "the appliance has no network"),
)

COMPLETIONS = (
    _honoured("model"),
    _honoured("prompt", "a string, token ids, or up to 128 of either"),
    _honoured("max_tokens", "16 if absent"),
    *_SAMPLING,
    *_STREAMING,
    _honoured("logprobs", "0 to 20"),
    _limited("best_of", "only 1: use `n`", 1),
    _limited("echo", "only false", False),
    *_IDENTIFIERS,
    _refused("suffix", "fill-in-the-middle is not available"),
)

EMBEDDINGS = (
    _honoured("model"),
    _honoured("input", "a string, token ids, or up to 2048 of either"),
    _honoured("encoding_format", "`float` or `base64` (little-endian float32)"),
    _honoured("dimensions", "where the model can"),
    *_IDENTIFIERS,
)

APIS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
}


def table(parameters: Sequence[Parameter]) -> str:
    """The Markdown table of `parameters`."""
    rows = [f"| `{p.name}` | {p.treatment} | {p.note} |" for p in parameters]
    return "\n".join(["| parameter | treatment | |", "| --- | --- | --- |", *rows])
