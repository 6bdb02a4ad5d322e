"""The items of a response while they are said: what is known of each at first, and at last.

Owns the shapes of the two moments. Refuses to know of events: those are the response's.
"""

from __future__ import annotations

from msgspec import UNSET

from appliance.shim.api.custom_input import CustomInput
from appliance.shim.wire import response_items as items
from appliance.shim.wire import response_object as wire
from appliance.shim.wire.response_tools import Callable


class OpenItem:
    """The item that is being said."""

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.texts: list[str] = []
        self.logprobs: list[items.Logprob] = []

    def begun(self) -> items.OutputItem:
        """The item before its first word."""
        raise NotImplementedError

    def item(self, status: items.Status) -> items.OutputItem:
        """The item with all that was said."""
        raise NotImplementedError


class OpenText(OpenItem):
    """One with a content part."""

    def part(self, text: str, logprobs: list[items.Logprob]) -> wire.TextPart:
        raise NotImplementedError


class OpenMessage(OpenText):
    def begun(self) -> items.OutputItem:
        return items.OutputMessage(self.id, "in_progress", [])

    def item(self, status: items.Status) -> items.OutputItem:
        return items.OutputMessage(self.id, status, [self.part("".join(self.texts), self.logprobs)])

    def part(self, text: str, logprobs: list[items.Logprob]) -> items.OutputText:
        return items.OutputText(text, logprobs)


class OpenReasoning(OpenText):
    def begun(self) -> items.OutputItem:
        return items.OutputReasoning(self.id, "in_progress", [])

    def item(self, status: items.Status) -> items.OutputItem:
        return items.OutputReasoning(self.id, status, [self.part("".join(self.texts), [])])

    def part(self, text: str, logprobs: list[items.Logprob]) -> items.ReasoningText:
        return items.ReasoningText(text=text)


class OpenCall(OpenItem):
    """A call of a function; `tool` is None where the model made its name up."""

    def __init__(self, item_id: str, call_id: str, name: str, tool: Callable | None) -> None:
        super().__init__(item_id)
        self.call_id = call_id
        self.name = name if tool is None else tool.tool.name
        self.namespace = UNSET if tool is None else tool.namespace

    def begun(self) -> items.OutputItem:
        return self.item("in_progress")

    def item(self, status: items.Status) -> items.OutputItem:
        arguments = "".join(self.texts)
        return items.OutputCall(self.id, self.call_id, self.name, arguments, status, self.namespace)


class OpenCustomCall(OpenItem):
    """A call with a text, which comes as the one argument of a function."""

    def __init__(self, item_id: str, call_id: str, tool: Callable) -> None:
        super().__init__(item_id)
        self.call_id = call_id
        self._tool = tool
        self._reader = CustomInput()

    def read(self, arguments: str) -> str:
        """What a further piece of the arguments adds to the text."""
        return self._reader.add(arguments)

    def begun(self) -> items.OutputItem:
        return self.item("in_progress")

    def item(self, status: items.Status) -> items.OutputItem:
        name, text = self._tool.tool.name, "".join(self.texts)
        return items.OutputCustomCall(
            self.id, self.call_id, name, text, status, self._tool.namespace
        )
