"""Reading output back: detokenising, stop strings, and the whole chain for one sequence."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as NativeTokenizer

from appliance.bundle.specs import Prompting
from appliance.engine.output import Delta, OutputReader
from appliance.engine.sampler import Sampled
from appliance.engine.sampling import SamplingParams
from appliance.engine.stops import StopMatcher
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import UnsupportedError
from appliance.prompting import Prompt
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_qwen3

PROMPTING = Prompting(
    template="t",
    reasoning_start="<think>",
    reasoning_end="</think>",
    tool_format="hermes",
)
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@pytest.fixture(scope="module")
def tokenizer_json(build_once: BuildOnce) -> bytes:
    def build(directory: Path) -> None:
        write_qwen3(directory)

    return (build_once("reading-checkpoint", build) / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: bytes) -> Tokenizer:
    return Tokenizer(tokenizer_json, visible=TAGS)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_text_comes_back_piece_by_piece(tokenizer: Tokenizer, text: str) -> None:
    import unicodedata

    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.step(i) for i in tokenizer.encode_text(text)]
    assert "".join(pieces) + detokenizer.finish() == unicodedata.normalize("NFC", text)


def test_half_a_character_is_held_back_and_marked_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_text("\U0001d11e")
    assert len(ids) > 1
    detokenizer = tokenizer.detokenizer()
    assert "".join(detokenizer.step(i) for i in ids[:-1]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    text = "Müller — 你好 <think>\n\x00\x7f\u00ad"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode_text(text))) == text.encode()
    assert tokenizer.token_bytes(10**6) == b""


def test_control_tokens_are_hidden_in_output_and_tags_are_not(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_prompt(Prompt("a<|im_end|><think>b"))
    detokenizer = tokenizer.detokenizer()
    assert "".join(map(detokenizer.step, ids)) == "a<think>b"


def test_a_tag_is_visible_even_where_it_is_a_special_token(tokenizer_json: bytes) -> None:
    document = json.loads(tokenizer_json)
    for token in document["added_tokens"]:
        token["special"] = True
    tokenizer = Tokenizer(json.dumps(document).encode(), visible=TAGS)
    ids = tokenizer.encode_prompt(Prompt("<think>x</think>y<|im_end|>"))
    detokenizer = tokenizer.detokenizer()
    assert "".join(map(detokenizer.step, ids)) == "<think>x</think>y"


def test_what_frames_an_answer_is_hidden_even_where_it_is_no_special_token(
    tokenizer_json: bytes,
) -> None:
    assert not Tokenizer(tokenizer_json)._added[Tokenizer(tokenizer_json).id_of(TAGS[0])].special
    tokenizer = Tokenizer(tokenizer_json, hidden=TAGS)
    ids = tokenizer.encode_prompt(Prompt("<think>an answer</think>"))
    detokenizer = tokenizer.detokenizer()
    assert "".join(map(detokenizer.step, ids)) == "an answer"


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>"]) | st.text("<|im_end>x \n", max_size=8)
    )
)
def test_marked_text_is_encoded_as_if_there_were_no_control_tokens(
    tokenizer: Tokenizer, tokenizer_json: bytes, parts: list[str]
) -> None:
    typed = "".join(parts)
    mark = "\U000f0000"
    broken = tokenizer.control.break_up(typed, mark)
    prompt = Prompt(f"<|im_start|>user\n{broken}<|im_end|>\n", mark)
    plain = NativeTokenizer.from_buffer(tokenizer_json)
    start, end = plain.token_to_id("<|im_start|>"), plain.token_to_id("<|im_end|>")
    plain.encode_special_tokens = True
    expected = [start, *plain.encode(f"user\n{typed}").ids, end, *plain.encode("\n").ids]
    assert tokenizer.encode_prompt(prompt) == expected


def test_a_control_token_eats_the_space_that_it_is_declared_to_eat(tokenizer_json: bytes) -> None:
    document = json.loads(tokenizer_json)
    for token in document["added_tokens"]:
        if token["content"] == "<|im_end|>":
            token["lstrip"] = token["rstrip"] = True
    data = json.dumps(document).encode()
    tokenizer = Tokenizer(data)
    text = "a  <|im_end|>  b"
    whole = NativeTokenizer.from_buffer(data).encode(text).ids
    assert tokenizer.encode_prompt(Prompt(text)) == whole
    assert tokenizer.encode_prompt(Prompt(text, "\U000f0000")) == whole


def test_a_broken_tokenizer_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="tokenizer"):
        Tokenizer(b'{"model": 3}')


def stopped(stops: tuple[str, ...], parts: list[str]) -> tuple[str, str]:
    matcher, text = StopMatcher(stops), ""
    for part in parts:
        text += matcher.feed(part)
        if matcher.matched:
            return text, matcher.matched
    return text + matcher.finish(), ""


@pytest.mark.parametrize(
    ("stops", "text", "kept", "matched"),
    [
        (("END",), "a b END c", "a b ", "END"),
        (("END",), "a b EN", "a b EN", ""),
        (("abcd", "bc"), "xabcd", "xa", "bc"),
        (("bcd", "abcd"), "xabcd", "x", "abcd"),
        (("aab",), "aaab", "a", "aab"),
        (("\n\n",), "a\n\nb", "a", "\n\n"),
        ((), "anything", "anything", ""),
        (("x",), "", "", ""),
    ],
)
def test_stop_strings_are_found_however_the_text_is_cut(
    stops: tuple[str, ...], text: str, kept: str, matched: str
) -> None:
    for one, two in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert stopped(stops, [text[:one], text[one:two], text[two:]]) == (kept, matched)
    assert stopped(stops, list(text)) == (kept, matched)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    st.text("abc", max_size=12),
)
def test_the_cut_never_matters_to_stop_strings(stops: tuple[str, ...], text: str) -> None:
    whole = stopped(stops, [text])
    assert stopped(stops, list(text)) == whole
    assert whole[1] == "" or text.startswith("".join(whole))


def read(
    tokenizer: Tokenizer, text: str, params: SamplingParams, *, tools: bool = False
) -> tuple[OutputReader, list[Delta]]:
    reader = OutputReader(tokenizer, params, 0, prompting=PROMPTING, tools=tools)
    deltas: list[Delta] = []
    for token_id in tokenizer.encode_prompt(Prompt(text)):
        deltas.append(reader.read(Sampled(token_id)))
        if reader.stop:
            break
    rest = reader.finish()
    return reader, [*deltas, *([rest] if rest else [])]


def test_one_output_is_read_into_reasoning_calls_and_text(tokenizer: Tokenizer) -> None:
    text = (
        "<think>\nthey ask\n</think>\n\nLet me see."
        '\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    )
    reader, deltas = read(tokenizer, text, SamplingParams(), tools=True)
    assert "".join(d.text for d in deltas) == "Let me see."
    assert "".join(d.reasoning for d in deltas) == "they ask"
    calls = [call for d in deltas for call in d.tool_calls]
    assert "".join(call.arguments_json for call in calls) == '{"a": 1}'
    assert [call.name for call in calls if call.id] == ["f"]
    assert reader.called
    thought = tokenizer.encode_prompt(Prompt("<think>\nthey ask\n</think>"))
    assert reader.reasoning_tokens == len(thought), "the tags are counted with it"


def test_without_tools_a_call_is_text(tokenizer: Tokenizer) -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    reader, deltas = read(tokenizer, text, SamplingParams())
    assert "".join(d.text for d in deltas) == text
    assert not reader.called


def test_every_token_has_its_delta(tokenizer: Tokenizer) -> None:
    text = "so 好 it STO is STOP no"
    reader, deltas = read(tokenizer, text, SamplingParams(stop=("STOP",)))
    assert [d.tokens for d in deltas] == [1] * reader.tokens
    assert [len(d.token_ids) for d in deltas] == [1] * reader.tokens
    assert "".join(d.text for d in deltas) == "so 好 it STO is "


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    text = "a STOP b STOP c"
    place = len(tokenizer.encode_text("a STOP"))
    _, deltas = read(tokenizer, text, SamplingParams(stop=("STOP",), min_tokens=place))
    assert "".join(d.text for d in deltas) == "a STOP b "


def test_held_back_text_comes_with_no_tokens_at_the_end(tokenizer: Tokenizer) -> None:
    _, deltas = read(tokenizer, "maybe STO", SamplingParams(stop=("STOP",)))
    assert deltas[-1].tokens == 0
    assert "".join(d.text for d in deltas) == "maybe STO"
