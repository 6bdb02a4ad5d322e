"""Compiles the grammars of one model, and keeps those that were asked for last.

Owns the tokenizer in llguidance's form, the limits, the cache and the one thread that compiles:
never the steps' thread, never the event loop. A grammar is tried in a process of its own first;
how it ended is kept, also when it was refused. A grammar that was compiled before never waits
behind one that was not.

Making the tokenizer holds the interpreter's lock for most of a second where the vocabulary is
large, so it is made while the model is loaded, before anybody waits for its steps
(docs/decisions/0236-tables-at-load.md).
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

import llguidance

from appliance.engine.grammar.constraint import CompiledGrammar
from appliance.engine.grammar.trial import Trial, Verdict
from appliance.engine.grammar.trial_worker import give_way
from appliance.engine.grammar.turn import Grammar, Part, Tags, Turn, grammar, schema_grammar
from appliance.errors import ApplianceError, CapacityError, RequestError, first_line

_log = logging.getLogger(__name__)

LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 30_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
"""llguidance's, below its defaults: work for a grammar, and for each mask; states are memory."""
CACHED: Final = 64
MAX_WAITING: Final = 64
_MAX_CACHED_CHARS: Final = 8 * 1024 * 1024
_MAX_SEARCHES: Final = 50
"""Trials to find out which part of a schema is at fault."""
_CHEAP_SECONDS: Final = 0.2
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")


class GrammarCompiler:
    """Grammars of one model. Thread-safe.

    Args:
        tokenizer_json: the bundle's tokenizer.json.
        vocab_size: width of the model's logits.
        end_ids: the model's end tokens.
        tags: how the model marks reasoning and calls.
    """

    def __init__(
        self, tokenizer_json: bytes, *, vocab_size: int, end_ids: Collection[int], tags: Tags
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._end_ids = frozenset(end_ids)
        self._tags = tags
        self._trial = Trial()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="grammars", initializer=_give_way_to_steps
        )
        self._lock = threading.Lock()
        self._waiting = 0
        self._cache: OrderedDict[Turn, CompiledGrammar | ApplianceError] = OrderedDict()
        self._specials: list[str] = []
        self._added: dict[str, int] = {}
        self._tokenizer = self._thread.submit(self._make_tokenizer)

    def await_tables(self) -> None:
        """Wait until a grammar can be compiled without holding up anybody else."""
        wait([self._tokenizer])

    def compiled(self, turn: Turn) -> Future[CompiledGrammar]:
        """The grammar of `turn`, which constrains; at once if it is known.

        Raises CapacityError if too many wait; the future raises RequestError.
        """
        with self._lock:
            known = self._known(turn)
            if known is not None:
                return _settled(known)
            if self._waiting >= MAX_WAITING:
                raise CapacityError(
                    f"{self._waiting} grammars wait to be compiled",
                    hint="try again when others have finished",
                    code="queue_full",
                )
            self._waiting += 1
        future = self._thread.submit(self._compiled, turn)
        future.add_done_callback(self._left)
        return future

    def token(self, text: str) -> int | None:
        """Implements turn.Vocabulary."""
        tokenizer = self._tokens()
        # Not asked of the library, which does not find one that begins like "]<".
        number = self._added.get(text)
        return number if number is not None and tokenizer.is_special_token(number) else None

    def named_in(self, text: str) -> bool:
        """Implements turn.Vocabulary."""
        self._tokens()
        return any(special in text for special in self._specials)

    def close(self) -> None:
        """End the thread and the process."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._trial.close()

    def _left(self, _future: Future[CompiledGrammar]) -> None:
        with self._lock:
            self._waiting -= 1

    def _known(self, turn: Turn) -> CompiledGrammar | ApplianceError | None:
        known = self._cache.get(turn)
        if known is not None:
            self._cache.move_to_end(turn)
        return known

    def _compiled(self, turn: Turn) -> CompiledGrammar:
        with self._lock:
            outcome = self._known(turn)
        if outcome is None:
            try:
                outcome = self._compile(grammar(turn, self._tags, self))
            except RequestError as refused:
                outcome = refused
            with self._lock:
                self._keep(turn, outcome)
        if isinstance(outcome, ApplianceError):
            raise copy.copy(outcome)  # each caller's own, without the tracebacks of others
        return outcome

    def _keep(self, turn: Turn, outcome: CompiledGrammar | ApplianceError) -> None:
        self._cache[turn] = outcome
        while len(self._cache) > 1 and (
            len(self._cache) > CACHED or sum(map(_chars, self._cache)) > _MAX_CACHED_CHARS
        ):
            self._cache.popitem(last=False)

    def _compile(self, wanted: Grammar) -> CompiledGrammar:
        verdict = self._trial.compile(wanted.text, LIMITS)
        if verdict.error:
            raise self._refusal(wanted, verdict)
        matcher = llguidance.LLMatcher(
            self._tokens(), wanted.text, log_level=0, limits=llguidance.LLParserLimits(**LIMITS)
        )
        compiled = CompiledGrammar(matcher, self._vocab_size, self._end_ids)
        if matcher.is_error():
            raise self._refusal(wanted, Verdict(matcher.get_error(), _CHEAP_SECONDS))
        return compiled

    def _refusal(self, wanted: Grammar, verdict: Verdict) -> RequestError:
        """The error that names the smallest schema for which the compiler says the same."""
        # What was costly is not tried again and again.
        searches = iter(range(_MAX_SEARCHES if verdict.seconds < _CHEAP_SECONDS else 0))

        def fails(part: Part) -> bool:
            if next(searches, None) is None:
                return False
            found = self._trial.compile(schema_grammar(part.schema), LIMITS)
            return found.error == verdict.error

        param, candidates = wanted.param, iter(wanted.parts)
        while (culprit := next(filter(fails, candidates), None)) is not None:
            param, candidates = culprit.param, _subschemas(culprit)
        return RequestError(
            f"the grammar cannot be compiled: {_plain(verdict.error)}",
            param=param,
            hint="simplify the schema or the pattern",
            code="unsupported_parameter",
        )

    def _tokens(self) -> llguidance.LLTokenizer:
        """Raises RequestError."""
        made = self._tokenizer.result()
        if made is None:
            raise RequestError(
                "this model's tokenizer cannot be held to a grammar",
                hint="ask without a response format, and without a forced tool",
                code="unsupported_parameter",
            )
        return made

    def _make_tokenizer(self) -> llguidance.LLTokenizer | None:
        """The tokenizer, or None: it is of a kind that llguidance does not know."""
        data, self._tokenizer_json = self._tokenizer_json, b""  # megabytes needed only once
        try:
            tokenizer = llguidance.LLTokenizer(
                data.decode(), n_vocab=self._vocab_size, eos_token=sorted(self._end_ids)
            )
        except Exception as error:  # the native library raises bare Exception
            # It speaks of the bundle's own file, never of what callers sent.
            _log.warning("answers cannot be held to a form: %s", first_line(error))
            return None
        added = json.loads(data).get("added_tokens") or ()
        self._added = {token["content"]: token["id"] for token in added}
        self._specials = [json.dumps(content)[1:-1] for content in self._added]
        return tokenizer


def _give_way_to_steps() -> None:
    """Let this thread have what the others leave: steps that run beside it are waited for."""
    give_way(threading.get_native_id())


def _settled(outcome: CompiledGrammar | ApplianceError) -> Future[CompiledGrammar]:
    future: Future[CompiledGrammar] = Future()
    if isinstance(outcome, ApplianceError):
        future.set_exception(copy.copy(outcome))
    else:
        future.set_result(outcome)
    return future


def _chars(turn: Turn) -> int:
    body = len(turn.structured.text) if turn.structured is not None else 0
    return body + sum(len(tool.parameters_json) for tool in turn.tools)


def _subschemas(part: Part) -> Iterator[Part]:
    """The schemas right inside a part, each with the definitions, so that it stands alone."""
    schema = part.schema
    if not isinstance(schema, dict):
        return
    definitions: dict[str, object] = {
        name: schema[name] for name in ("$defs", "definitions") if name in schema
    }

    def alone(inner: object, place: str) -> Iterator[Part]:
        if isinstance(inner, dict):
            yield Part(f"{part.param}.{place}", {**definitions, **inner})

    for keyword, value in schema.items():
        if keyword in ("items", "additionalProperties"):
            yield from alone(value, keyword)
        elif keyword in _LISTS and isinstance(value, list):
            for index, inner in enumerate(value):
                yield from alone(inner, f"{keyword}[{index}]")
        elif keyword in _MAPS and isinstance(value, dict):
            for name, inner in value.items():
                yield from alone(inner, f"{keyword}.{name}")


def _plain(error: str) -> str:
    """The first line that says something, without the compiler's names for its options."""
    if error.startswith("oneOf constraints are not supported"):
        return "`oneOf` can be enforced only where its options exclude each other"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given")[:200]
