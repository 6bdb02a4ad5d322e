"""A compiled grammar at work: which tokens a sequence may have next.

Owns one sequence's place in its grammar. The next mask is computed in the background as soon as
a token is known, so that it is ready when the model's step is; it depends on the sequence's own
tokens only, never on company or timing.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future

import llguidance
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


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
        self._first = self.mask(matcher)

    def begin(self, *, ignore_end: bool = False) -> Constraint:
        """A sequence's own. `ignore_end`: its caller wants no end while there is another way."""
        return Constraint(self, self._matcher.deep_copy(), self._first, ignore_end=ignore_end)

    def mask(self, matcher: llguidance.LLMatcher) -> Mask | None:
        """Tokens that `matcher` admits; None if it cannot tell any more."""
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return None
        return np.unpackbits(
            np.frombuffer(bits, np.uint8), count=self.vocab_size, bitorder="little"
        ).view(np.bool_)

    def without_end(self, mask: Mask) -> Mask:
        """`mask` without the end tokens, unless nothing else is left."""
        others = mask.copy()
        others[self._ends] = False
        return others if others.any() else mask


class Constraint:
    """One sequence's. Attributes are settled when `advance` returns, but for `broken`.

    Attributes:
        complete: nothing can follow; the grammar is satisfied.
        broken: a limit of work was exceeded, so nothing more is known.
    """

    def __init__(
        self,
        grammar: CompiledGrammar,
        matcher: llguidance.LLMatcher,
        first: Mask | None,
        *,
        ignore_end: bool,
    ) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._ignore_end = ignore_end
        self._mask: Mask | None = first
        self._pending: Future[Mask | None] | None = None
        self.complete = False
        self.broken = first is None

    def allowed(self) -> Mask | None:
        """Tokens that may be next; None if `broken`. Waits for what is being computed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._take(pending.result())
        elif self._mask is None and not self.broken:
            self._take(self._grammar.mask(self._matcher))
        mask = self._mask
        return self._grammar.without_end(mask) if mask is not None and self._ignore_end else mask

    def ends_with(self, token_id: int) -> bool:
        """Whether the token is an end token, which the grammar has admitted."""
        return token_id in self._grammar.end_ids

    def advance(self, token_id: int) -> None:
        """Book a token that `allowed` admitted."""
        assert self._pending is None
        self._mask = None
        if not self._matcher.consume_token(token_id):
            self.broken = True
        elif self._matcher.is_stopped():
            self.complete = self._matcher.is_accepting()
            self.broken = not self.complete

    def prepare(self, executor: Executor) -> None:
        """Begin to compute the next mask."""
        if self._mask is None and self._pending is None and not (self.complete or self.broken):
            self._pending = executor.submit(self._grammar.mask, self._matcher)

    def _take(self, mask: Mask | None) -> None:
        self._mask = mask
        self.broken = mask is None
