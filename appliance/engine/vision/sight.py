"""The images of one prompt: where they are, what the decoder reads there, how positions go on.

Owns the difference between the tokens of a prompt and what stands for them. For the scheduler
and the prefix cache a token of an image is a number of that image's own, far above every
vocabulary, so that prompts share what they have in common and never an image with another. The
decoder gets the image's token there, with the features beside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from appliance import scheduler
from appliance.compiler.grid import Floats, Grid, Ids
from appliance.engine.vision.decoder import Pixels

_ABOVE = 1 << 128
"""Above every token id, and so is every number of an image's token."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """An image in a prompt, its first token at `start`."""

    start: int
    grid: Grid
    key: int
    features: Floats
    """[levels, tokens, width]."""

    @property
    def stop(self) -> int:
        return self.start + self.grid.tokens


def key_of(pixels: Pixels) -> int:
    """What tells an image from all others: 128 bits of its digest, above every token id."""
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()
    return _ABOVE + int.from_bytes(digest[:16], "big")


def expanded(
    prompt: Sequence[int], token: int, grids: Sequence[Grid], around: Sequence[int] = ()
) -> tuple[list[int], list[int]]:
    """`prompt` with as many of `token` as each image has tokens, and where each image starts.

    It has `token` once for each of `grids`, in their order. The tokens `around` an image are put in
    front of it and behind it.
    """
    ids: list[int] = []
    starts: list[int] = []
    left = iter(grids)
    for given in prompt:
        if given != token:
            ids.append(given)
            continue
        ids += around[:1]
        starts.append(len(ids))
        ids += [token] * next(left).tokens
        ids += around[1:]
    return ids, starts


class Sight:
    """What the decoder takes beside the tokens of one prompt of `length` tokens.

    Args:
        token: the image's token.
    """

    def __init__(self, length: int, token: int, images: Sequence[Placed]) -> None:
        assert images
        self._token = token
        self._images = images
        self._positions = _positions(length, images)
        self._ahead = int(self._positions.max()) + 1 - length

    def keyed(self, prompt: Sequence[int]) -> list[int]:
        """`prompt` with a number of its own for each token of each image."""
        ids = list(prompt)
        for image in self._images:
            ids[image.start : image.stop] = range(image.key, image.key + image.grid.tokens)
        return ids

    def plain(self, start: int, tokens: Sequence[int]) -> list[int]:
        """What `keyed` made of the tokens from `start` on, as the decoder takes them."""
        ids = list(tokens)
        for first, stop, _ in self._within(start, len(ids)):
            ids[first:stop] = [self._token] * (stop - first)
        return ids

    def positions(self, start: int, count: int) -> Ids:
        """Time, row and column of `count` tokens from `start` on, [count, 3]."""
        known = self._positions[start : start + count]
        behind = np.arange(start + len(known), start + count) + self._ahead
        return np.concatenate([known, np.repeat(behind[:, None], 3, axis=1)])

    def features(self, start: int, count: int) -> tuple[Floats, Ids]:
        """Features [levels, 1 + n, width], the first all zeros, and for each of `count` tokens
        from `start` on which of them is its own; 0 for words."""
        index = np.zeros(count, np.int64)
        first = self._images[0].features
        parts = [np.zeros_like(first[:, :1])]
        rows = 1
        for begin, stop, image in self._within(start, count):
            offset = start + begin - image.start
            index[begin:stop] = np.arange(rows, rows + stop - begin)
            parts.append(image.features[:, offset : offset + stop - begin])
            rows += stop - begin
        return np.concatenate(parts, axis=1), index

    def _within(self, start: int, count: int) -> Iterator[tuple[int, int, Placed]]:
        """Which of `count` tokens from `start` on belong to an image, as ranges of them."""
        for image in self._images:
            first, stop = max(image.start - start, 0), min(image.stop - start, count)
            if first < stop:
                yield first, stop, image


def sight_of(sequence: scheduler.Sequence) -> Sight | None:
    """What a sequence brings beside its tokens."""
    assert sequence.beside is None or isinstance(sequence.beside, Sight)
    return sequence.beside


def words(start: int, count: int) -> Ids:
    """Positions of `count` tokens from `start` on in a prompt without images, [count, 3]."""
    return np.repeat(np.arange(start, start + count)[:, None], 3, axis=1)


def _positions(length: int, images: Sequence[Placed]) -> Ids:
    """Time, row and column of each token, [length, 3]; an image takes its longer side of them."""
    parts: list[Ids] = []
    token = position = 0
    for image in images:
        parts.append(words(position, image.start - token))
        position += image.start - token
        parts.append(image.grid.positions(position))
        position += image.grid.span
        token = image.stop
    parts.append(words(position, length - token))
    return np.concatenate(parts)
