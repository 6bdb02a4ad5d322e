"""Fill-in-the-middle: the bundle's control tokens go around both texts, and nothing typed does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer

from appliance.bundle.specs import FillIn
from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.errors import RequestError
from tests.conftest import BuildOnce
from tests.engine.conftest import OpenChat, open_model_of
from tests.fakes.checkpoints import write_qwen2
from tests.fakes.engine_node import EngineNode

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
DEEPSEEK = tuple(f"<\uff5cfim\u2581{part}\uff5c>" for part in ("begin", "hole", "end"))


def write_coder(directory: Path, tokens: tuple[str, ...]) -> Path:
    """A checkpoint whose tokenizer has control tokens for filling in."""
    small = write_qwen2(directory / "small")
    checkpoint = write_qwen2(directory / "coder", vocab=528)
    shutil.copy(small / "tokenizer.json", checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    return checkpoint


@pytest.fixture(scope="module", params=[QWEN, DEEPSEEK], ids=["qwen", "deepseek"])
def coder(build_once: BuildOnce, request: pytest.FixtureRequest) -> Iterator[ChatModel]:
    def build(root: Path) -> None:
        EngineNode(root).add(write_coder(root, request.param), name="coder")

    root = build_once(f"coder-{request.param[0][2:5]}-{len(request.param[0])}", build)
    model = open_model_of(root, "coder", EngineSettings(threads=1, cache_bytes=16 << 20))
    assert isinstance(model, ChatModel)
    yield model
    model.close()


def test_the_manifest_names_the_models_own_control_tokens(coder: ChatModel) -> None:
    tokens = coder.prompting.fill_in
    assert isinstance(tokens, FillIn)
    assert (tokens.prefix, tokens.suffix, tokens.middle) in {QWEN, DEEPSEEK}


def test_both_texts_stand_between_the_control_tokens_as_text(coder: ChatModel) -> None:
    before, between, behind = coder.fill_in_ids
    typed = f"{coder.prompting.fill_in.middle}x"  # type: ignore[union-attr]  # see above
    ids = coder.encode_fill_in("def f():\n    return ", typed)
    assert [ids.index(i) for i in (before, between, behind)] == [
        0,
        ids.index(between),
        len(ids) - 1,
    ]
    assert [ids.count(i) for i in (before, between, behind)] == [1, 1, 1], "typed ones stay text"
    first, second = ids[1 : ids.index(between)], ids[ids.index(between) + 1 : -1]
    assert coder.tokenizer.decode(first) == "def f():\n    return "
    assert coder.tokenizer.decode(second) == typed


def test_an_empty_side_is_an_empty_side(coder: ChatModel) -> None:
    assert coder.encode_fill_in("", "") == list(coder.fill_in_ids)


def test_a_model_without_control_tokens_refuses_by_the_parameters_name(open_chat: OpenChat) -> None:
    model = open_chat()
    assert model.prompting.fill_in is msgspec.UNSET
    assert model.fill_in_ids == ()
    with pytest.raises(RequestError, match="fill in") as refusal:
        model.encode_fill_in("a", "b")
    assert (refusal.value.param, refusal.value.code) == ("suffix", "unsupported_parameter")
