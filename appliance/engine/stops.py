"""Finds stop strings in text that comes in parts, and holds back what may become one."""

from __future__ import annotations

from appliance.prompting.pieces import unsafe_suffix


class StopMatcher:
    """One sequence's matcher. The first stop string to be complete wins, however the text is cut.

    Attributes:
        matched: the stop string that was found, or "".
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched = ""

    def feed(self, text: str) -> str:
        """The text that is certain not to be part of a stop string."""
        assert not self.matched
        if not self._stops:
            return text
        text = self._held + text
        found = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if found:
            # The earliest end; of two that end together the longer.
            end, self.matched = min(found, key=lambda item: (item[0], -len(item[1])))
            self._held = ""
            return text[: end - len(self.matched)]
        safe = len(text) - max(unsafe_suffix(text, stop) for stop in self._stops)
        self._held = text[safe:]
        return text[:safe]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held
