"""Prompts have the length asked for, differ early, and share only what they should."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import NotFoundError, UsageError
from installer.bench.prompts import Count, Recipe, calibrate, read_prompts

TEMPLATE = 7


def words(text: str) -> int:
    """A tokenizer with a token a word."""
    return TEMPLATE + len(text.replace(".", " .").split())


def characters(text: str) -> int:
    """A tokenizer with a token a character."""
    return TEMPLATE + len(text)


def uneven(text: str) -> int:
    """A tokenizer that knows half of the words, and has two tokens for the others."""
    costs = (1 if word[0] in "iabo" else 2 for word in text.replace(".", " .").split())
    return TEMPLATE + sum(costs)


TOKENIZERS: list[Callable[[str], int]] = [words, characters, uneven]


def recipe_for(tokenizer: Callable[[str], int | None]) -> Recipe:
    async def count(text: str) -> int | None:
        return tokenizer(text)

    return asyncio.run(calibrate(count))


RECIPES = {tokenizer: recipe_for(tokenizer) for tokenizer in TOKENIZERS}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(deadline=None)
@given(tokens=st.integers(40, 400), seed=st.integers(0, 99), index=st.integers(0, 99))
def test_a_prompt_has_exactly_the_tokens_asked_for(
    tokenizer: Callable[[str], int], tokens: int, seed: int, index: int
) -> None:
    recipe = RECIPES[tokenizer]
    assert recipe.exact
    text = recipe.text(tokens, shared=0, seed=seed, index=index)
    assert tokenizer(text) == tokens


@settings(deadline=None)
@given(shared=st.integers(40, 120), seed=st.integers(0, 99))
def test_a_shared_prefix_is_shared_and_the_rest_is_not(shared: int, seed: int) -> None:
    one, other = (
        RECIPES[words].text(200, shared=shared, seed=seed, index=i).split() for i in range(2)
    )
    same = shared - TEMPLATE
    assert one[:same] == other[:same]
    assert one[same : same + 16] != other[same : same + 16]


@settings(deadline=None)
@given(seed=st.integers(0, 1000))
def test_prompts_differ_within_their_first_words(seed: int) -> None:
    texts = [RECIPES[words].text(200, shared=0, seed=seed, index=i) for i in range(20)]
    assert len({tuple(text.split()[:12]) for text in texts}) == 20


def test_the_same_seed_makes_the_same_prompts() -> None:
    one, other = (RECIPES[words].text(64, shared=0, seed=5, index=3) for _ in range(2))
    assert one == other


def test_without_counts_the_recipe_says_that_it_is_not_exact() -> None:
    recipe = recipe_for(lambda _: None)
    assert not recipe.exact
    assert len(recipe.text(50, shared=0, seed=1, index=1).split()) == 50


def test_a_count_that_never_grows_is_not_believed() -> None:
    assert not recipe_for(lambda _: 9).exact


def test_a_rehearsal_corrects_what_the_short_texts_did_not_show() -> None:
    recipe = Recipe(base=7, exact=True).corrected(100, 103)
    assert len(recipe.text(100, shared=0, seed=1, index=1).split()) == 90
    assert Recipe(base=7, exact=True).corrected(100, None).base == 7


def test_calibration_takes_few_requests() -> None:
    asked = []

    async def count(text: str) -> int | None:
        asked.append(text)
        return characters(text)

    counting: Count = count
    asyncio.run(calibrate(counting))
    assert len(asked) <= 30


def test_a_file_has_a_prompt_a_line_as_text_or_as_messages(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text(
        'What is a key?\n\n{"messages": [{"role": "system", "content": "Be brief."},'
        ' {"role": "user", "content": "Hello"}]}\n'
    )
    first, second = read_prompts(path)
    assert first == ({"role": "user", "content": "What is a key?"},)
    assert [message["role"] for message in second] == ["system", "user"]


@pytest.mark.parametrize("line", ["{}", '{"messages": []}', '{"messages": [1]}', "{nonsense"])
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts"
    path.write_text(f"good\n{line}\n")
    with pytest.raises(UsageError, match="line 2 of"):
        read_prompts(path)


def test_a_file_that_is_empty_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_prompts(tmp_path / "absent")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(UsageError, match="no prompt"):
        read_prompts(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UsageError, match="UTF-8"):
        read_prompts(tmp_path / "binary")
