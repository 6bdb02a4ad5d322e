"""Which prompts of a step one run can compute together."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Listing

from appliance.scheduler import PrefillChunk

MOST_TOGETHER = 16
"""Prompts in one run."""
_MOST_PADDING = 1.5
"""Times their tokens that they may take with padding."""


def groups(chunks: Listing[PrefillChunk], most_tokens: int) -> Iterator[list[PrefillChunk]]:
    """The chunks in their order; those together that begin and end their prompts, lie in slots
    side by side and are about as long as each other. Those that show images stay alone.

    `most_tokens` bounds what a run computes, padding included; one chunk always fits.
    """
    group: list[PrefillChunk] = []
    for chunk in chunks:
        if group and not _fits([*group, chunk], most_tokens):
            yield group
            group = []
        group.append(chunk)
    if group:
        yield group


def _fits(chunks: Listing[PrefillChunk], most_tokens: int) -> bool:
    tokens = sum(chunk.count for chunk in chunks)
    padded = len(chunks) * max(chunk.count for chunk in chunks)
    first = chunks[0].slot
    return (
        len(chunks) <= MOST_TOGETHER
        and all(chunk.start == 0 and chunk.completes for chunk in chunks)
        and all(chunk.sequence.beside is None for chunk in chunks)
        and [chunk.slot for chunk in chunks] == list(range(first, first + len(chunks)))
        and padded <= min(most_tokens, _MOST_PADDING * tokens)
    )
