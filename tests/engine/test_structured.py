"""Output of a random model under a grammar: always valid, in any company, at any temperature."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import pytest

from appliance.engine.grammar.turn import Structured, Turn
from appliance.engine.llm_engine import Generation
from appliance.engine.loaded import ChatModel
from appliance.engine.output import FinishReason
from appliance.engine.sampling import SamplingParams
from tests.engine.conftest import OpenChat
from tests.engine.results import Results
from tests.engine.schemas import corpus

SIMPLE = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 999},
        "ok": {"type": "boolean"},
    },
    "required": ["n", "ok"],
    "additionalProperties": False,
}
FORMAT_CHECKS: dict[str, Callable[[str], object]] = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "duration": lambda text: re.fullmatch(r"P(?=.)(\d+[YMWD])*(T(?=.)(\d+[HMS])+)?", text)[0],  # type: ignore[index]
    "email": lambda text: re.fullmatch(r"[^@\s]+@[^@\s]+\.[A-Za-z]+", text)[0],  # type: ignore[index]
    "hostname": lambda text: [
        re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", label)[0]  # type: ignore[index]
        for label in text.split(".")
    ],
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}
CHECKER = jsonschema.FormatChecker(())
for _name, _check in FORMAT_CHECKS.items():
    CHECKER.checks(_name, (ValueError, TypeError))(lambda v, c=_check: c(v) is not None)


def schema_turn(schema: object, **more: Any) -> Turn:
    return Turn(Structured("json_schema", json.dumps(schema)), **more)


def held(
    model: ChatModel, number: int, turn: Turn, prompt: str = "Write.", **params: Any
) -> Generation:
    """A request under a grammar, as the daemon makes it."""
    given = {"max_tokens": 400, "end_ids": frozenset(model.generation.eos_token_ids), **params}
    return Generation(
        number,
        model.tokenizer.encode_text(prompt),
        SamplingParams(**given),
        chat=True,
        tools=turn.calls != "none",
        calls_first=turn.calls == "required" or turn.structured is not None,
        reasoning=turn.reasoning != "none",
        reasoning_opened=turn.reasoning == "opened",
        grammar=model.grammars.compiled(turn).result(),
    )


def valid(text: str, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(json.loads(text))


def test_every_schema_of_the_corpus_is_satisfied_by_a_random_model(
    open_chat: OpenChat, record_property: Callable[[str, object], None]
) -> None:
    model = open_chat(max_sequences=8)
    schemas = corpus()
    assert len(schemas) >= 300
    unfinished = list(range(len(schemas)))
    temperature = {number: (1.0, 0.0)[number % 4 == 3] for number in unfinished}
    tries = 0
    for seed in range(12):
        # What a random model does not bring to an end within the context is tried once more.
        requests = [
            held(
                model, n, schema_turn(schemas[n][1]), schemas[n][0], seed=seed,
                temperature=temperature[n] if seed == 0 else 1.0, max_tokens=None,
            )
            for n in unfinished
        ]  # fmt: skip
        results = run_few_at_a_time(model, requests)
        tries += len(requests)
        left = []
        for n in unfinished:
            if results.ends[n, 0].reason is FinishReason.LENGTH:
                left.append(n)
                continue
            assert results.ends[n, 0].reason is FinishReason.STOP, schemas[n][0]
            try:
                valid(results.text(n), schemas[n][1])
            except (ValueError, jsonschema.ValidationError) as error:
                pytest.fail(f"{schemas[n]}: {results.text(n)!r}: {error}")
        unfinished = left
        if not left:
            break
    assert not unfinished, [schemas[n][0] for n in unfinished]
    record_property("measured", f"{len(schemas)} schemas, {tries} tries, all output valid")


def run_few_at_a_time(model: ChatModel, requests: Sequence[Generation]) -> Results:
    results, waiting = Results(), list(reversed(requests))
    while waiting or model.engine.has_work:
        while waiting and model.engine.waiting + model.engine.running < 8:
            model.engine.add(waiting.pop())
        results.step(model.engine)
    return results
