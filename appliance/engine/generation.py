"""What the engine is asked for, and what it answers with."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass

from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.guessing.drafting import Prediction
from appliance.engine.output import Delta, Finished
from appliance.engine.sampling import SamplingParams
from appliance.engine.vision.sight import Sight
from appliance.prompting import Tool
from appliance.scheduler import Share


@dataclass(frozen=True, slots=True)
class Generation:
    """One request: `n` sequences for one prompt.

    Attributes:
        call: identity of the request, unique while it runs.
        chat: the output is read as a chat turn, with reasoning; else it is plain text.
        tools: tool calls are looked for in the output.
        functions: the tools that were offered.
        continued: the prompt ends with the beginning of the answer.
        calls_first: an answer that does not begin with a call has none.
        reasoning: the model may reason before it answers.
        reasoning_opened: the prompt ends with the opening reasoning tag.
        cache_namespace: keys and values are shared with calls of the same one only; "": with none.
        grammar: what the output is held to.
        caller: whom the tokens count for when callers take turns.
        priority: the higher is served first, and takes slots from the lower.
        share: what of the model is kept for its owner; None: it shares the rest.
        deadline: when the call ends, whatever it has, on the engine's clock; None: never.
        prediction: what the caller expects of the output.
        adapter: digest of the adapter that the model computes it with; "": the model alone.
        opening: how many first tokens of the prompt stand before all that is said in it; 0: nobody
            counted, since nothing of the model's depends on it.
        sight: the images of the prompt, which has tokens for them.
    """

    call: int
    prompt: Listing[int]
    params: SamplingParams
    n: int = 1
    chat: bool = False
    tools: bool = False
    functions: Listing[Tool] = ()
    continued: bool = False
    calls_first: bool = False
    reasoning: bool = True
    reasoning_opened: bool = False
    cache_namespace: str = ""
    grammar: CompiledGrammar | None = None
    caller: str = ""
    priority: int = 0
    share: Share | None = None
    deadline: float | None = None
    prediction: Prediction | None = None
    adapter: str = ""
    opening: int = 0
    sight: Sight | None = None
    prompt_param: str = "prompt"
    """The caller's word for the prompt, for errors."""


@dataclass(frozen=True, slots=True)
class Output:
    """Something that a step produced for a request."""

    call: int
    event: Delta | Finished
