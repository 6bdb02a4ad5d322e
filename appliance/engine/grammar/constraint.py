"""A compiled grammar at work: which tokens a sequence may have next.

Owns one sequence's place in its grammar. What comes next is computed in the background as soon as
a token is known, so that it is ready when the model's step is; it depends on the sequence's own
tokens only, never on company or timing.

Where the grammar leaves no choice for a while, it says so once, for the whole run: the tokens that
a text is encoded to, but for the last ones, which what follows could change. Nothing more is
computed until the run is over, and the model may be given all of it at once
(docs/decisions/0235-forced-tokens.md).
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass

import llguidance
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Next:
    """What may come next.

    Attributes:
        mask: the tokens to choose from.
        forced: if there is only one: that, and those that must follow it.
    """

    mask: Mask
    forced: tuple[int, ...] = ()


class CompiledGrammar:
    """A grammar for one tokenizer, not begun; shared by any number of sequences.

    Args:
        matcher: never advanced.
        vocab_size: width of the masks.
        end_ids: the model's own end tokens.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, vocab_size: int, end_ids: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self.vocab_size = vocab_size
        self.end_ids = end_ids
        self._ends = np.array(sorted(end_ids), np.int64)
        self._first = self.next(matcher)

    def begin(self, *, ignore_end: bool = False) -> Constraint:
        """A sequence's own. `ignore_end`: its caller wants no end while there is another way."""
        return Constraint(self, self._matcher.deep_copy(), self._first, ignore_end=ignore_end)

    def next(self, matcher: llguidance.LLMatcher) -> Next | None:
        """What `matcher` admits; None if it cannot tell any more."""
        # The mask is computed without the interpreter's lock; what it found to be forced is then
        # only read, with the lock, so the order matters.
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return None
        mask = np.unpackbits(
            np.frombuffer(bits, np.uint8), count=self.vocab_size, bitorder="little"
        ).view(np.bool_)
        if np.count_nonzero(mask) != 1:
            return Next(mask)
        only = int(mask.argmax())
        forced = tuple(matcher.compute_ff_tokens()) or (only,)
        assert forced[0] == only
        return Next(mask, forced)

    def only(self, token_id: int) -> Mask:
        """The mask of one token."""
        mask = np.zeros(self.vocab_size, np.bool_)
        mask[token_id] = True
        return mask

    def without_end(self, mask: Mask) -> Mask:
        """`mask` without the end tokens, unless nothing else is left."""
        others = mask.copy()
        others[self._ends] = False
        return others if others.any() else mask


class Constraint:
    """One sequence's. Attributes are settled when `advance` returns, but for `broken`.

    Attributes:
        pending: what is being computed, if anything.
        free: how many tokens in a row, lately, there was a choice for.
        complete: nothing can follow; the grammar is satisfied.
        broken: a limit of work was exceeded, so nothing more is known.
    """

    def __init__(
        self,
        grammar: CompiledGrammar,
        matcher: llguidance.LLMatcher,
        first: Next | None,
        *,
        ignore_end: bool,
    ) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._ignore_end = ignore_end
        self._next: Next | None = first
        self._passed = 0
        """Tokens of the forced run that are booked already."""
        self.pending: Future[Next | None] | None = None
        self.free = 0
        self.complete = False
        self.broken = first is None

    def forced(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that must come next, as far as that is known by now."""
        if self.pending is not None and self.pending.done():
            self._settle()
        return () if self._next is None else self._next.forced[self._passed : self._passed + most]

    def only(self) -> int | None:
        """The only token that may be next, if there is just one. Waits as `allowed` does."""
        self._settle()
        forced = self.forced(1)
        return forced[0] if forced else None

    def allowed(self) -> Mask | None:
        """Tokens that may be next; None if `broken`. Waits for what is being computed."""
        self._settle()
        if self._next is None:
            return None
        if self._passed:
            return self._grammar.only(self._next.forced[self._passed])
        mask = self._next.mask
        return self._grammar.without_end(mask) if self._ignore_end else mask

    def ends_with(self, token_id: int) -> bool:
        """Whether the token is an end token, which the grammar has admitted."""
        return token_id in self._grammar.end_ids

    def advance(self, token_id: int) -> None:
        """Book a token that `allowed` admitted."""
        assert self.pending is None
        self._passed += 1
        if self._next is None or self._passed >= len(self._next.forced):
            self._next, self._passed = None, 0
        if not self._matcher.consume_token(token_id):
            self.broken = True
        elif self._matcher.is_stopped():
            self.complete = self._matcher.is_accepting()
            self.broken = not self.complete

    def prepare(self, executor: Executor) -> None:
        """Begin to compute what comes next."""
        if self._next is None and self.pending is None and not (self.complete or self.broken):
            self.pending = executor.submit(self._grammar.next, self._matcher)

    def _settle(self) -> None:
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self._take(pending.result())
        elif self._next is None and not self.broken:
            self._take(self._grammar.next(self._matcher))

    def _take(self, found: Next | None) -> None:
        self._next = found
        self.broken = found is None
        self.free = 0 if found is not None and found.forced else self.free + 1
