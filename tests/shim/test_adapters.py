"""Adapters as callers see them: models of their own, beside their base, billed by their names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import torch
from transformers import AutoModelForCausalLM

from appliance.access import KeyStore, new_key
from tests.fakes.adapter_node import BASE, NAME, build_adapter_node
from tests.shim.node import Node
from tests.shim.real_node import served

PROMPT = [5, 77, 301, 12, 450, 9]
NAMES = {BASE: "checkpoint", "all": "merged-all", "half": "merged-half"}
"""What callers ask for, and the checkpoint that it must compute."""


node = served(NAME, build_adapter_node)


def test_each_name_is_its_merged_model_whoever_else_is_asked_meanwhile(
    node: Node, client: openai.OpenAI
) -> None:
    def ask(name: str) -> str:
        answer = client.completions.create(
            model=name, prompt=[PROMPT], max_tokens=12, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        assert answer.model == name
        return answer.choices[0].text

    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(ask, [*NAMES] * 3))
    assert answers[:3] == answers[3:6] == answers[6:]
    for name, answer in zip(NAMES, answers, strict=False):
        body = {"model": name, "tokens": _greedy(node, NAMES[name])}
        assert node.request("POST", "/detokenize", body).json["prompt"] == answer
    assert len(set(answers)) == len(NAMES)


def test_it_is_listed_with_its_base(client: openai.OpenAI) -> None:
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert listed.keys() == NAMES.keys()
    assert listed["all"]["base"] == BASE
    assert not listed[BASE].get("base")


def test_a_key_for_an_adapter_is_none_for_its_base(node: Node) -> None:
    with KeyStore(node.config.layout.keys_db) as keys:
        narrow = new_key("support", models=["all"])
        keys.add(narrow)
    headers = {"Authorization": f"Bearer {narrow.secret}"}
    for name, status in (("all", 200), (BASE, 403), ("half", 403)):
        body = {"model": name, "prompt": PROMPT, "max_tokens": 2}
        answer = node.request("POST", "/v1/completions", body, headers=headers)
        assert answer.status == status, answer.body
        if status == 200:
            row = node.row(answer.request_id)
            assert (row.model, row.prompt_tokens) == ("all", len(PROMPT))
            assert node.req(answer.request_id).model == "all"


def _greedy(node: Node, checkpoint: str) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(
        node.config.layout.root / checkpoint, dtype=torch.float32
    )
    made = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None,
        pad_token_id=0, temperature=None, top_p=None, top_k=None,
    )  # fmt: skip
    found: list[int] = made[0, len(PROMPT) :].tolist()
    return found
