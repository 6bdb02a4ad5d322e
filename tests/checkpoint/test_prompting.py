"""What the manifest says of prompting and generation is what the checkpoint's files do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.bundle.manifest import Manifest, encode
from appliance.bundle.specs import Generation, Prompting, ToolFormat
from appliance.errors import CheckpointError
from appliance.prompting.formats import FORMATS
from installer.checkpoint.generation import read_generation
from installer.checkpoint.prompting import ChatSource, read_prompting
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.tokenizer import CheckpointTokenizer
from tests.checkpoint.conftest import build_unsigned
from tests.fakes.chat_formats import TEMPLATES, VOCAB, speak
from tests.fakes.checkpoints import CHAT_TEMPLATE, write_qwen3

PLAIN = """\
{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
SWITCH = "{%- if enable_thinking is defined and enable_thinking is false -%}"
THINKING: tuple[ToolFormat, ...] = ("deepseek", "deepseek_v31", "dsml", "dsml_v4", "minimax")
THINKING += ("glm", "glm_v47")
"""Formats whose templates here have reasoning in the usual tags."""
OFF_BY_DEFAULT = CHAT_TEMPLATE.replace(SWITCH, "{%- if not enable_thinking -%}")


def test_a_template_that_thinks_unless_told_otherwise(tmp_path: Path) -> None:
    assert generation(with_template(tmp_path, CHAT_TEMPLATE)).thinking


def test_a_template_that_thinks_only_when_asked(tmp_path: Path) -> None:
    assert OFF_BY_DEFAULT != CHAT_TEMPLATE
    manifest = with_template(tmp_path, OFF_BY_DEFAULT)
    assert not generation(manifest).thinking
    assert prompting(manifest).reasoning_start == "<think>"


def effort_template(words: tuple[str, ...], usual: str, *, strict: bool) -> str:
    """Told by `reasoning_effort` alone; of another word it refuses, or makes nothing."""
    refuse = "{{ raise_exception('no such effort: ' ~ effort) }}" if strict else ""
    return (
        f"{{%- set effort = reasoning_effort if reasoning_effort is defined else '{usual}' -%}}"
        f"{{%- if effort not in {list(words)} -%}}{refuse}{{%- set effort = '{usual}' -%}}"
        f"{{%- endif -%}}[{{{{ effort }}}}]{PLAIN}"
        f"{{%- if effort == '{words[0]}' -%}}<think></think>{{%- endif -%}}"
    )


@pytest.mark.parametrize(
    ("words", "usual", "strict", "thinks"),
    [
        (("none", "high"), "none", True, False),
        (("no_think", "low", "high"), "no_think", True, False),
        (("none", "high"), "high", False, True),
    ],
)
def test_a_template_that_is_told_by_a_word_alone(
    tmp_path: Path, words: tuple[str, ...], usual: str, strict: bool, thinks: bool
) -> None:
    manifest = with_template(tmp_path, effort_template(words, usual, strict=strict))
    assert prompting(manifest).efforts == words
    assert prompting(manifest).reasoning is msgspec.UNSET
    assert generation(manifest).thinking == thinks


def test_a_template_that_shows_any_word_knows_degrees_and_no_switch(tmp_path: Path) -> None:
    shows = "[{{ reasoning_effort or 'medium' }}]" + PLAIN + "{#- </think> -#}"
    manifest = with_template(tmp_path, shows)
    assert prompting(manifest).efforts is msgspec.UNSET
    assert prompting(manifest).reasoning == "levels"


def test_a_plain_template_has_neither_reasoning_nor_tools(tmp_path: Path) -> None:
    manifest = with_template(tmp_path, PLAIN)
    assert not generation(manifest).thinking
    assert prompting(manifest).reasoning_start == prompting(manifest).reasoning_end == ""
    assert prompting(manifest).tool_format == ""


def test_a_template_file_counts_before_the_tokenizer_config(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").write_text(PLAIN)
    manifest = build_unsigned(checkpoint, tmp_path / "out", precision="fp32")
    assert (tmp_path / "out" / prompting(manifest).template).read_text() == PLAIN


def test_the_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": PLAIN}]
    assert prompting(with_template(tmp_path, named)).tool_format == ""


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        ("", "no chat template"),
        (None, "no chat template"),
        ("{% if %}", "cannot be rendered"),
        ("{{ messages[0].nothing.at_all }}", "cannot be rendered"),
        ("{{ raise_exception('only system') }}", "only system"),
        ("always the same", "does not show the user's message"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "cannot be rendered"),
        ("{% for i in range(10**6) %}{{ 'x' * 100 }}{% endfor %}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_serve_is_refused(
    tmp_path: Path, template: object, pattern: str
) -> None:
    with pytest.raises(CheckpointError, match=pattern):
        with_template(tmp_path, template)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"temperature": 0.2, "min_p": 0.1}, {"temperature": 0.2, "min_p": 0.1}),
        ({"repetition_penalty": 1.1}, {"temperature": 1.0, "repetition_penalty": 1.1}),
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0}),
    ],
)
def test_generation_defaults_are_the_publishers(
    tmp_path: Path, document: dict[str, Any], expected: dict[str, Any]
) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").write_text(json.dumps(document))
    found = generation(build_unsigned(checkpoint, tmp_path / "out", precision="fp32"))
    assert {key: getattr(found, key) for key in expected} == expected
    assert found.eos_token_ids, "config.json and the tokenizer name end tokens too"


@pytest.mark.parametrize("key", ["no_repeat_ngram_size", "suppress_tokens", "num_beams"])
def test_a_generation_setting_that_the_engine_lacks_is_refused(tmp_path: Path, key: str) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit(checkpoint / "generation_config.json", lambda c: c.update({key: 4}))
    with pytest.raises(CheckpointError, match=key):
        build_unsigned(checkpoint, tmp_path / "out", precision="fp32")


def test_answers_that_would_never_end_are_refused(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").unlink()
    edit(checkpoint / "config.json", lambda c: c.pop("eos_token_id"))
    edit(checkpoint / "tokenizer_config.json", lambda c: c.pop("eos_token"))
    with pytest.raises(CheckpointError, match="eos_token"):
        build_unsigned(checkpoint, tmp_path / "out", precision="fp32")


@pytest.mark.parametrize(
    ("card", "text", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n", "any", "Apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "any", "MIT"),
        ("---\nlicense: other\nlicense_name: acme-1.0\n---\n", "any", "LicenseRef-acme-1.0"),
        ("---\nlicense: llama3.1\n---\n", "any", "LicenseRef-llama3.1"),
        ("", "                Apache License\n        Version 2.0, January 2004", "Apache-2.0"),
        ("", "MIT License\n\nCopyright", "MIT"),
        ("", "You may look.", "LicenseRef-see-text"),
    ],
)
def test_the_licence_is_named(tmp_path: Path, card: str, text: str, expected: str) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    (checkpoint / "README.md").write_text(card)
    (checkpoint / "LICENSE").write_text(text)
    assert build_unsigned(checkpoint, tmp_path / "out", precision="fp32").license == expected
    assert (tmp_path / "out/LICENSE").read_text() == text


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_of_calls_is_what_the_template_writes(tmp_path: Path, name: ToolFormat) -> None:
    directory = speak(write_qwen3(tmp_path / "checkpoint", vocab=VOCAB), TEMPLATES[name])
    checkpoint = Checkpoint(directory)
    tokenizer = CheckpointTokenizer(checkpoint, VOCAB)
    chat = read_prompting(checkpoint, tokenizer)
    assert chat.prompting.tool_format == name
    ends = {tokenizer.id_of(token) for token in FORMATS[name].ends}
    generation = read_generation(checkpoint, tokenizer, thinking=False, end_ids=chat.end_ids)
    assert ends <= set(generation.eos_token_ids), "a call ends a turn as well"
    tags = (chat.prompting.reasoning_start, chat.prompting.reasoning_end)
    assert tags == {
        "harmony": ("<|channel|>analysis<|message|>", "<|end|>"),
        "muse": (" to=self<|message|>", "<|eom|>"),
        "mistral_v13": ("[THINK]", "[/THINK]"),
        **dict.fromkeys(THINKING, ("<think>", "</think>")),
        "apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
        "cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
        "minimax_m3": ("<mm:think>", "</mm:think>"),
        "hy3": ("<think:opensource>", "</think:opensource>"),
        "seed_oss": ("<seed:think>", "</seed:think>"),
        "gemma4": ("<|channel>thought\n", "<channel|>"),
    }.get(name, ("", ""))
    assert chat.prompting.reasoning == {
        "harmony": "levels",
        "muse": "levels",
        **dict.fromkeys(("deepseek", "minimax", "mistral_v13", "seed_oss"), "always"),
    }.get(name, msgspec.UNSET)


def test_a_format_whose_tags_are_no_tokens_is_not_taken(tmp_path: Path) -> None:
    manifest = with_template(tmp_path, TEMPLATES["minimax"])
    assert prompting(manifest).tool_format == ""


def test_a_manifest_without_the_newer_fields_has_the_bytes_that_it_had(tmp_path: Path) -> None:
    data = encode(with_template(tmp_path, CHAT_TEMPLATE))
    fields = json.loads(data)["prompting"]
    assert sorted(fields) == [
        *("bos_token", "eos_token", "reasoning_end", "reasoning_start", "template", "tool_format"),
    ]


def with_template(tmp_path: Path, template: object) -> Manifest:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    edit(checkpoint / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    return build_unsigned(checkpoint, tmp_path / "out", precision="fp32")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def generation(manifest: Manifest) -> Generation:
    assert manifest.generation is not None
    return manifest.generation


def prompting(manifest: Manifest) -> Prompting:
    assert manifest.prompting is not None
    return manifest.prompting


def test_a_calibration_prompt_does_not_depend_on_the_day() -> None:
    source = ChatSource(PLAIN + "{{ strftime_now('%d %b %Y') }}", Prompting(template="t"), False)
    text = source.prompt("What day is it?")
    assert text.startswith("<|im_start|>user\nWhat day is it?<|im_end|>")
    assert text.endswith("01 Jan 2025")
