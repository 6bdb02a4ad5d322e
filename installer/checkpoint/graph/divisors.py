"""What a decoder's numbers are divided by, so that 16-bit floats, which end at 65,504, hold them.

Owns the numbers, all powers of two, which are one in graphs of 32 bits. Nothing is multiplied back:
the norm of what is divided by a number is the norm of itself, if what is added to its square is
divided by the number's. Why these: docs/decisions/0270-what-layers-add-is-divided.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Divisors:
    """Attributes:
    stream: of what is between the layers, and of all that is added to it.
    into_attention: of what queries, keys and values are made of.
    out_of_attention: of what heads have read, once more.
    into_feed_forward: of what goes in; what comes out is divided by its square.
    """

    stream: float
    into_attention: float
    out_of_attention: float
    into_feed_forward: float


def divisors(
    by: float, *, normed: bool, heads: bool = False, wide: bool = False, bare: bool = False
) -> Divisors:
    """Those of a decoder.

    Args:
        by: what a stream is divided by; the square of a power of two.
        normed: whether all is normed that a layer adds to the stream; then all within a layer is
            divided, and the stream for itself.
        heads: whether queries and keys are normed as well, which else stay as they are.
        wide: whether the stream has 32 bits whatever the graph has, and so stays as it is.
        bare: whether layers take the stream as it is, without a norm. Then nothing is in between
            that could make small numbers larger, and all is divided by less.
    """
    if not normed:
        return Divisors(by, 1.0, by, by**0.5)
    assert heads or not bare, "queries and keys would be divided with the stream"
    within = by**0.5 if bare else by
    stream = 1.0 if wide else within
    into, out_of = (within, 1.0) if heads else (1.0, within)
    return Divisors(stream, into, out_of, within)
