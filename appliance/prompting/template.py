"""A bundle's chat template: a conversation goes in, the prompt's text comes out.

Owns the worker process that renders it, one per template, and kills it when a rendering takes too
much processor time, or gets too little; the next rendering starts a new one. Blocking: call it from
a thread.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.bundle.specs import ToolFormat
from appliance.errors import ObjectionError, RequestError, UnavailableError, UnsupportedError
from appliance.prompting.child import LATE_SECONDS, Child, ChildLostError
from appliance.prompting.conversation import Conversation, effort, switches
from appliance.prompting.efforts import told
from appliance.prompting.first_system import ASKED, CALLED, Place, place, placed
from appliance.prompting.later_systems import MARK, TRIALS, folded, has_later
from appliance.prompting.marks import ControlTokens, unused_characters
from appliance.prompting.spelled_calls import TRIAL, Retelling, retelling
from appliance.prompting.worker import HEADER

DEFAULT_SECONDS = 5.0
DEFAULT_MAX_CHARS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: what the template wrote.
        mark: if not empty, the character that breaks control tokens which a user typed.
    """

    text: str
    mark: str = ""


class ChatTemplate:
    """One template, compiled once in its worker.

    Args:
        source: the Jinja text.
        bos_token, eos_token: given to the template, which may write them.
        control: the tokenizer's control tokens, which users cannot write.
        tool_format: how the model writes its calls, should the template not write them.
        efforts: words of `reasoning_effort` by which it is told whether to reason (efforts.py);
            empty: by switches.
        seconds: of processor time for a rendering.
        late_seconds: more by the clock before a rendering counts as held up.

    Raises UnsupportedError if the template cannot be compiled, UnavailableError if the machine is
    too busy to say.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control: ControlTokens | None = None,
        tool_format: ToolFormat = "",
        efforts: Sequence[str] = (),
        seconds: float = DEFAULT_SECONDS,
        late_seconds: float = LATE_SECONDS,
        max_chars: int = DEFAULT_MAX_CHARS,
    ) -> None:
        self._source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._control = control or ControlTokens(())
        self._tool_format = tool_format
        self._efforts = efforts
        self._seconds = seconds
        self._late_seconds = late_seconds
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._closed = False
        self._shows_later: bool | None = None
        self._place: Place | None = None
        self._retell: tuple[Retelling | None] | None = None
        with self._lock:
            self._start()

    def render(self, conversation: Conversation) -> Prompt:
        """The prompt for the next assistant turn.

        System messages are shown where they stand; else those behind the first as `folded` has
        them, and the first as `placed` has it. Many templates want roles that alternate, and many
        programs send several messages of a role in a row. What a template refuses it is shown once
        more with these as one.

        Raises RequestError with code `template_stopped` if the template ran for too long, or died;
        UnavailableError with code `machine_busy` if it was not let run, or if it was closed;
        ObjectionError if the template refuses the conversation.
        """
        conversation.check()
        if has_later(conversation.messages) and not self.shows_later():
            conversation = replace(conversation, messages=folded(conversation.messages))
        if conversation.messages[0].role == "system":
            moved = placed(conversation.messages, self._place_of_system())
            conversation = replace(conversation, messages=moved)
        called = any(message.tool_calls for message in conversation.messages)
        retell = self._retelling() if called else None
        try:
            return self._prompt(conversation, retell)
        except ObjectionError:
            joined = conversation.joined()
            if len(joined.messages) == len(conversation.messages):
                raise
            return self._prompt(joined, retell)

    def shows_later(self) -> bool:
        """Whether it shows system messages wherever they stand; it is tried out once.

        Raises as `render` does, but not ObjectionError.
        """
        if self._shows_later is None:
            self._shows_later = all(map(self._shows_mark, TRIALS))
        return self._shows_later

    def _shows_mark(self, trial: Conversation) -> bool:
        return MARK in (self._tried(trial) or "")

    def _place_of_system(self) -> Place:
        """Where the first system message must go; it is tried out once."""
        if self._place is None:
            self._place = place(self._tried(ASKED), self._tried(CALLED))
        return self._place

    def _retelling(self) -> Retelling | None:
        """How calls must be told to be shown; it is tried out once."""
        if self._retell is None:
            self._retell = (retelling(self._tool_format, lambda: self._tried(TRIAL)),)
        return self._retell[0]

    def _tried(self, trial: Conversation) -> str | None:
        try:
            return self._prompt(trial).text
        except ObjectionError:
            return None

    def _prompt(self, conversation: Conversation, retell: Retelling | None = None) -> Prompt:
        messages, tools = conversation.template_messages(), conversation.template_tools()
        unused = unused_characters(messages, tools, self._source)
        mark, cut = next(unused), next(unused)
        if conversation.continue_final:
            # The trailing space shows whether the template trims the message, as people's
            # templates do; then the prompt is trimmed in the same way (as transformers does).
            messages[-1]["content"] = f"{messages[-1]['content']}{cut} "
        typed = self._control.occur_in(messages, tools)
        shown = self._control.break_up(messages, mark) if typed else messages
        if retell is not None:  # after that, so that the tags of calls stay whole
            shown = retell(shown)
        variables: dict[str, object] = {
            **self._tokens,
            "messages": shown,
            "tools": self._control.break_up(tools, mark) if typed else tools,
            "documents": None,
            "add_generation_prompt": not conversation.continue_final,
            **switches(thinking=conversation.thinking),
        }
        degree: str = conversation.effort
        if self._efforts:
            degree = told(self._efforts, thinking=conversation.thinking, effort=degree)
        if degree:
            variables |= effort(degree)
        text = self._render(variables)
        if conversation.continue_final:
            text = _cut(text, cut)
        return Prompt(text, mark if typed else "")

    def close(self) -> None:
        """End the worker, for good."""
        with self._lock:
            self._closed = True
            self._end()

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _render(self, variables: dict[str, object]) -> str:
        with self._lock:
            if self._closed:
                raise UnavailableError("the model is being unloaded", hint="try again in a moment")
            worker = self._worker or self._start()
            try:
                answer = worker.ask(variables, self._seconds, self._late_seconds)
            except UnavailableError:
                self._end()
                raise
            except ChildLostError as lost:
                self._end()
                raise RequestError(
                    f"the chat template was stopped: {lost}",
                    param="messages",
                    hint="shorten the conversation; if it is short, the bundle is at fault",
                    code="template_stopped",
                ) from None
        if "error" in answer:
            raise ObjectionError(
                f"the chat template refuses this conversation: {answer['error']}", param="messages"
            )
        return answer["text"]

    def _start(self) -> _Worker:
        worker = _Worker()
        try:
            answer = worker.ask(
                {"template": self._source, "max_chars": self._max_chars},
                self._seconds * 4,
                LATE_SECONDS,
            )
        except UnavailableError:
            worker.kill()
            raise
        except ChildLostError as lost:
            worker.kill()
            raise UnsupportedError(f"the chat template cannot be compiled: {lost}") from None
        if "error" in answer:
            worker.kill()
            raise UnsupportedError(
                f"the chat template cannot be compiled: {answer['error']}",
                hint="the bundle is at fault: build it again with a corrected template",
            )
        self._worker = worker
        return worker


class _Worker:
    """The process, and how one speaks with it."""

    def __init__(self) -> None:
        self._child = Child("appliance.prompting.worker")
        self.kill = self._child.kill

    def ask(
        self, message: dict[str, object], seconds: float, late_seconds: float
    ) -> dict[str, str]:
        """Send one message, wait for its answer. Raises as `Child` does."""
        data = json.dumps(message).encode("ascii")
        self._child.begin(seconds, late_seconds)
        self._child.send(HEADER.pack(len(data)) + data)
        size = HEADER.unpack(self._child.receive(HEADER.size))[0]
        answer: dict[str, str] = json.loads(self._child.receive(size))
        return answer


def _cut(text: str, cut: str) -> str:
    place = text.rfind(cut)
    if place < 0:
        raise RequestError(
            "the chat template does not show the message that is to be continued",
            param="messages",
            hint="this model cannot continue a message: leave it out",
        )
    before = text[:place]
    return before if text.startswith(" ", place + len(cut)) else before.rstrip()
