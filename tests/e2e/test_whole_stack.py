"""From installed media to the OpenAI SDK: what an application, an operator and an auditor see."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionUserMessageParam
from transformers import AutoTokenizer, Qwen3ForCausalLM

from installer.checkpoint import build_bundle
from installer.signing import BundleSigner
from tests.conftest import BuildOnce
from tests.e2e.prefix import CLEAN, Installed, Prefix, new_prefix
from tests.fakes.checkpoints import write_qwen3
from tests.fakes.media import PASSPHRASE
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia

EXACT = "exact-chat"
TOKENS = 64
QUESTION = "Which model is active?"


@dataclass(frozen=True, slots=True)
class Served:
    """A node that serves, an API key of it, and the checkpoint behind the model `EXACT`."""

    prefix: Prefix
    key: str
    checkpoint: Path
    media: NodeMedia

    def client(self) -> openai.OpenAI:
        """The unmodified SDK; only base_url and key are set."""
        return self._with(self.key)

    def newcomer(self, name: str) -> tuple[str, openai.OpenAI]:
        """Id and client of a new key; nothing is cached for it."""
        created = self.prefix.run("keys", "create", name)
        return created["id"], self._with(created["secret"])

    def _with(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.prefix.port}/v1", api_key=key)


@pytest.fixture(scope="module")
def exact_bundle(build_once: BuildOnce, node_media: NodeMedia) -> Path:
    """A random fp32 Qwen3, signed by the key that the media's targets name."""

    def build(directory: Path) -> None:
        write_qwen3(directory / "checkpoint", seed=7)
        signer = BundleSigner.load(node_media.directory / "trust", PASSPHRASE)
        build_bundle(
            directory / "checkpoint",
            directory / "bundle",
            name=EXACT,
            version="1.0",
            precision="fp32",
            signer=signer,
        )

    return build_once("exact-chat", build)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
    node_media: NodeMedia,
    installed: Installed,
    exact_bundle: Path,
) -> Iterator[Served]:
    prefix = installed.lend_programs(new_prefix(tmp_path_factory.mktemp("stack") / "n"))
    key = prefix.install(node_media)["api_key"]
    with prefix.serving():
        prefix.run("models", "add", str(exact_bundle / "bundle"))
        yield Served(prefix, key, exact_bundle / "checkpoint", node_media)


def user(text: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": text}]


def greedy_through_the_stack(served: Served, question: str) -> list[bytes]:
    """The first TOKENS tokens of the answer to `question`, as bytes."""
    answer = served.client().chat.completions.create(
        model=EXACT, messages=user(question), temperature=0, max_tokens=TOKENS, logprobs=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(logprobs.content)
    return [bytes(token.bytes or []) for token in logprobs.content]


def greedy_by_the_reference(served: Served, question: str) -> list[bytes]:
    """The same by transformers in fp32."""
    tokenizer: Any = AutoTokenizer.from_pretrained(served.checkpoint)
    model: Any = Qwen3ForCausalLM.from_pretrained(served.checkpoint, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        user(question), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
    ids: list[int] = out[0, prompt["input_ids"].shape[1] :].tolist()
    assert len(ids) == TOKENS, "choose a question whose answer does not end early"
    return [token_bytes(tokenizer.convert_ids_to_tokens(i)) for i in ids]


def token_bytes(token: str) -> bytes:
    """A byte-level BPE token's bytes: the alphabet of GPT-2 maps each byte to a character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + number): byte for number, byte in enumerate(others)}
    return bytes(alphabet[character] for character in token)


def test_greedy_output_equals_the_reference_token_for_token_when_alone(served: Served) -> None:
    assert greedy_through_the_stack(served, QUESTION) == greedy_by_the_reference(served, QUESTION)


def test_greedy_output_equals_the_reference_while_seven_others_run(served: Served) -> None:
    expected = greedy_by_the_reference(served, QUESTION)
    running = threading.Barrier(8)
    stop = threading.Event()

    def other(number: int) -> int:
        stream = served.client().chat.completions.create(
            model=EXACT,
            messages=user(f"{number} " * (number + 1)),
            max_tokens=400,
            temperature=1,
            seed=number,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        chunks = 0
        with stream:
            for chunk in stream:
                chunks += bool(chunk.choices)
                if chunks == 2:
                    running.wait(120)
                if chunks > 2 and stop.is_set():  # one chunk more: it was still running
                    break
        return chunks

    with ThreadPoolExecutor(7) as pool:
        others = [pool.submit(other, number) for number in range(7)]
        running.wait(120)
        got = greedy_through_the_stack(served, QUESTION)
        stop.set()
        assert all(other.result(120) > 2 for other in others)
    assert got == expected


def test_the_sdk_streams_a_chat_with_its_usage(served: Served) -> None:
    stream = served.client().chat.completions.create(
        model=CHAT,
        messages=user("hello"),
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, finish, usage = "", [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish += [choice.finish_reason] if choice.finish_reason else []
    assert finish in (["length"], ["stop"])
    assert usage is not None
    assert 0 < usage.completion_tokens <= 12
    whole = served.client().chat.completions.create(
        model=CHAT, messages=user("hello"), max_tokens=12, temperature=0
    )
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == usage.completion_tokens


def test_the_sdk_gets_embeddings_of_unit_length(served: Served) -> None:
    answer = served.client().embeddings.create(model=EMBEDDING, input=["one", "two words"])
    assert [item.index for item in answer.data] == [0, 1]
    for item in answer.data:
        assert sum(x * x for x in item.embedding) == pytest.approx(1, abs=1e-4)


def test_the_sdk_lists_what_the_node_serves(served: Served) -> None:
    assert {CHAT, EMBEDDING, EXACT} <= {model.id for model in served.client().models.list()}


def test_a_new_version_never_interrupts_a_running_answer(served: Served) -> None:
    expected = greedy_long(served)
    first = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(greedy_long, served, first)
        assert first.wait(120)
        served.prefix.run("models", "add", str(served.media.newer_chat))
        served.prefix.run("models", "activate", CHAT, "2.0")
        assert answer.result(120) == expected
    assert greedy_long(served) != expected
    versions = {
        model["version"]: model["active"]
        for model in served.prefix.run("models", "list")["models"]
        if model["name"] == CHAT
    }
    assert versions == {"1.0": False, "2.0": True}
    served.prefix.run("models", "rollback")
    assert greedy_long(served) == expected


def greedy_long(served: Served, first: threading.Event | None = None) -> str:
    """A long greedy answer; sets `first` when its first piece is there.

    Each has a key of its own, so that no cached prefix cuts the prompt in other pieces: sums in
    another order could turn a near tie of a random model (docs/decisions/0081-two-graphs.md).
    """
    _, client = served.newcomer("counting")
    stream = client.chat.completions.create(
        model=CHAT,
        messages=user("count"),
        max_tokens=450,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text = ""
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
        if first is not None:
            first.set()
    return text


def test_a_revoked_key_is_refused_by_the_next_request(served: Served) -> None:
    key, client = served.newcomer("short-lived")
    assert client.models.list().data
    served.prefix.run("keys", "revoke", key)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_usage_and_audit_agree_with_what_the_application_was_told(served: Served) -> None:
    key, client = served.newcomer("counted")
    told = []
    for number in range(3):
        answer = client.chat.completions.create(
            model=EXACT, messages=user("count" * (number + 1)), max_tokens=10 + number
        )
        assert answer.usage is not None
        told.append(answer.usage)
    rows = [
        row
        for row in served.prefix.run("usage", "report", "--by", "key")["rows"]
        if row["group"] == key
    ]
    assert len(rows) == 1
    assert rows[0]["requests"] == 3
    assert rows[0]["prompt_tokens"] == sum(usage.prompt_tokens for usage in told)
    assert rows[0]["completion_tokens"] == sum(usage.completion_tokens for usage in told)
    assert served.prefix.run("audit", "verify")["ok"] is True


def test_no_prompt_answer_or_key_stands_in_clear_on_the_disk(served: Served) -> None:
    canary = "canary-7f3a-prompt"
    served.client().chat.completions.create(model=CHAT, messages=user(canary), max_tokens=4)
    state = [served.prefix.root / "var", served.prefix.root / "serve.log"]
    assert found([canary, served.key.rsplit("-", 1)[-1]], state) == []
    assert found(["REQ"], [served.prefix.root / "var/lib/appliance/audit"]), "the search works"


def found(words: Sequence[str], places: Sequence[Path]) -> list[str]:
    """Files below `places` that hold one of `words`."""
    arguments = [flag for word in words for flag in ("-e", word)]
    done = subprocess.run(
        ["grep", "-rlaF", *arguments, *map(str, places)], capture_output=True, text=True, env=CLEAN
    )
    return done.stdout.splitlines()


def test_status_says_what_serves_and_where(served: Served) -> None:
    status = served.prefix.run("status")
    assert status["serving"] is True
    assert status["base_url"] == f"http://127.0.0.1:{served.prefix.port}/v1"
    assert json.dumps(status).count(CHAT)


def test_the_installed_command_measures_the_node_by_the_nodes_own_counts(served: Served) -> None:
    shape = ["--input-tokens", "60", "--output-tokens", "12", "--requests", "4"]
    report = served.prefix.run("bench", "--model", EXACT, "--concurrency", "2", *shape)
    (level,) = report["levels"]
    assert (level["requests"], level["failed"], level["peak"]) == (4, 0, 2)
    assert level["prompt_tokens"] == {"low": 60, "high": 60, "total": 240}
    assert level["completion_tokens"] == {"low": 12, "high": 12, "total": 48}
    assert report["target"]["bundle_digest"]
    (kept,) = (served.prefix.root / "var/lib/appliance/bench").iterdir()
    assert json.loads(kept.read_text())["levels"] == report["levels"]
