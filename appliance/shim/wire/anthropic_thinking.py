"""How much is reasoned, and what becomes of reasoning: `thinking`, `effort`, `context_management`.

Owns how reasoning that a caller does not want to see comes back to us all the same: as the
`signature` of a block without words. It is no secret and no proof, only out of sight.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import RequestError
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.wire.prompt import effort_mode, thinking_mode

Effort = Literal["low", "medium", "high", "xhigh", "max"]
_UNSEEN = "unseen."
"""Begins a signature that holds what its block does not show."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Thinking(_Strict, frozen=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1, le=(1 << 31) - 1)] | None = None
    """`max_tokens` bounds reasoning and answer together; there is no budget apart."""
    display: Literal["summarized", "omitted"] | None = None

    @property
    def unseen(self) -> bool:
        """Whether blocks of reasoning are to be without words."""
        return self.display == "omitted"


class AllTurns(_Strict, frozen=True, tag_field="type", tag="all"):
    """The turns whose reasoning is kept: every one."""


class ClearThinking(_Strict, frozen=True, tag_field="type", tag="clear_thinking_20251015"):
    """An edit that clears nothing: the only one there is here."""

    keep: Literal["all"] | AllTurns


class ContextManagement(_Strict, frozen=True):
    """What is to be cleared of a conversation before it is read: nothing."""

    edits: list[ClearThinking] | None = None


def mode(thinking: Thinking | None, effort: Effort | None) -> pb.ThinkingMode:
    """What both ask for, in the engine's words. Raises RequestError.

    `effort` is a hint and counts as the degree of thinking that was asked for.
    """
    if thinking is None:
        return thinking_mode(None)
    if thinking.type == "disabled":
        return pb.THINKING_MODE_OFF
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise RequestError(
            "`thinking.budget_tokens` is required",
            param="thinking.budget_tokens",
            code="missing_parameter",
        )
    if effort is not None:
        return effort_mode(effort)
    return thinking_mode(True if thinking.type == "enabled" else None)


def signature_of(reasoning: str) -> str:
    """The signature of a block that does not show `reasoning`."""
    return _UNSEEN + urlsafe_b64encode(reasoning.encode()).decode()


def reasoning_of(thinking: str, signature: str, at: str) -> str:
    """What a block said, shown or not. Raises RequestError for our signature, altered."""
    if thinking or not signature.startswith(_UNSEEN):
        return thinking
    try:
        return b64decode(signature.removeprefix(_UNSEEN), b"-_", validate=True).decode()
    except ValueError:
        raise RequestError(
            f"`{at}.signature` was altered",
            param=f"{at}.signature",
            hint="send the block back as it came",
            code="invalid_value",
        ) from None
