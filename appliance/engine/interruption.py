"""Giving up a run of a graph that is under way."""

from __future__ import annotations

import onnxruntime as ort


class Interrupted(Exception):  # noqa: N818  # not an error: nobody is told
    """A run was given up: it computed nothing, or of a plan the first `done` pieces of prompts."""

    def __init__(self, done: int = 0) -> None:
        super().__init__()
        self.done = done


class Interruption:
    """Options for runs that another thread may end between two operators."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()

    def begin(self) -> None:
        """A run starts: an interruption that came too late for the one before is forgotten."""
        self.options.terminate = False

    def interrupt(self) -> None:
        """End the run that is under way."""
        self.options.terminate = True

    @property
    def asked(self) -> bool:
        return bool(self.options.terminate)
