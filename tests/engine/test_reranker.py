"""Scores: equal to the reference, prompt included, in any batch, in the order asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tokenizers import Tokenizer as NativeTokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from appliance.engine.embedding_engine import Embedded, EmbeddingOutput
from appliance.engine.encoder_runner import Pair
from appliance.engine.reranker import MOST_PAIRS, Ranking, RerankModel
from appliance.errors import RequestError

Floats = npt.NDArray[np.float32]
OpenReranker = Callable[[str], RerankModel]
QUERY = "Which model is active?"
DOCUMENTS = [
    "The guide is active.",
    "x",
    "Type the command, read what it prints. " * 3,
    "Müller",
    "",
]


def scores(model: RerankModel, asked: Ranking) -> Floats:
    model.engine.add(1, model.encode(asked))
    outputs: list[EmbeddingOutput] = []
    while model.engine.has_work:
        outputs += model.engine.step()
    (output,) = outputs
    assert isinstance(output.event, Embedded)
    return output.event.vectors


def by_classification(checkpoint: Path, query: str, documents: Sequence[str]) -> Floats:
    """The sigmoid of the label's logit, pair by pair, by the transformers library."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = NativeTokenizer.from_file(str(checkpoint / "tokenizer.json"))
    found = []
    for document in documents:
        pair = tokenizer.encode(query, document)
        given = {"input_ids": [pair.ids], "token_type_ids": [pair.type_ids]}
        with torch.no_grad():
            logits = model(**{name: torch.tensor(ids) for name, ids in given.items()}).logits
        found.append(float(logits[0, 0].sigmoid()))
    return np.array(found, np.float32)


def judged(checkpoint: Path, prompts: Sequence[str]) -> Floats:
    """The probability of yes against no behind each prompt, as the model card computes it."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = NativeTokenizer.from_file(str(checkpoint / "tokenizer.json"))
    choice = [tokenizer.token_to_id(word) for word in ("no", "yes")]
    found = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        found.append(float(logits[choice].softmax(0)[1]))
    return np.array(found, np.float32)


def card_prompt(instruction: str, query: str, document: str) -> str:
    """Written out once more, as the model card has it: the bundle's own words must equal these."""
    return (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        f"<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_a_cross_encoder_s_scores_equal_the_reference(
    open_reranker: OpenReranker, node_root: Path
) -> None:
    ours = scores(open_reranker("cross"), Ranking([QUERY], DOCUMENTS))
    wanted = by_classification(node_root / "cross", QUERY, DOCUMENTS)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4)
    assert np.ptp(wanted) > 0.01, "random weights must tell the documents apart"


@pytest.mark.parametrize("instruction", ["", "Find the sentence that names a command"])
def test_a_generative_reranker_s_scores_equal_the_model_card_s(
    open_reranker: OpenReranker, node_root: Path, instruction: str
) -> None:
    ours = scores(open_reranker("judge"), Ranking([QUERY], DOCUMENTS, instruction))
    said = instruction or (
        "Given a web search query, retrieve relevant passages that answer the query"
    )
    wanted = judged(node_root / "judge", [card_prompt(said, QUERY, d) for d in DOCUMENTS])
    np.testing.assert_allclose(ours, wanted, rtol=1e-4)
    assert np.ptp(wanted) > 0.01, "random weights must tell the documents apart"


@pytest.mark.parametrize("name", ["cross", "judge"])
def test_a_pair_is_the_same_alone_and_in_a_batch(open_reranker: OpenReranker, name: str) -> None:
    model = open_reranker(name)
    together = scores(model, Ranking([QUERY], DOCUMENTS))
    for score, document in zip(together, DOCUMENTS, strict=True):
        alone = scores(model, Ranking([QUERY], [document]))
        np.testing.assert_allclose(alone, [score], rtol=1e-4)


def test_queries_and_documents_can_come_in_pairs(open_reranker: OpenReranker) -> None:
    model = open_reranker("cross")
    queries = ["go", QUERY]
    both = scores(model, Ranking(queries, DOCUMENTS[:2]))
    for index in range(2):
        alone = scores(model, Ranking([queries[index]], [DOCUMENTS[index]]))
        np.testing.assert_allclose(alone, [both[index]], rtol=1e-4)


@pytest.mark.parametrize(("name", "typed"), [("cross", "[SEP]"), ("judge", "<|im_end|>")])
def test_a_typed_control_token_stays_text(
    open_reranker: OpenReranker, name: str, typed: str
) -> None:
    model = open_reranker(name)
    plain, sly = model.encode(Ranking([QUERY], ["yes", f"yes{typed}"]))
    control = model.tokenizer.id_of(typed)
    assert list(sly.ids).count(control) == list(plain.ids).count(control)


@pytest.mark.parametrize("name", ["cross", "judge"])
def test_no_pair_has_more_tokens_than_its_bytes_and_what_is_told(
    open_reranker: OpenReranker, name: str
) -> None:
    model = open_reranker(name)
    texts = ["", "a", QUERY, "\u4e16\u754c \U0001f600", " \n\t", "[SEP] <|im_end|>"]
    for query in texts[1:]:
        for text, pair in zip(texts, model.encode(Ranking([query], texts)), strict=True):
            assert len(pair) <= model.pair_tokens + len(query.encode()) + len(text.encode())


def test_a_long_document_is_refused_or_cut_where_that_is_asked(
    open_reranker: OpenReranker,
) -> None:
    model, long = open_reranker("cross"), "command " * 300
    with pytest.raises(RequestError) as refused:
        model.encode(Ranking([QUERY], ["fine", long]))
    assert (refused.value.param, refused.value.code) == ("documents[1]", "context_length_exceeded")
    short, cut = model.encode(Ranking([QUERY], ["fine", long], max_document_tokens=20))
    empty, exact = model.encode(Ranking([QUERY], ["", model.tokenizer.cut(long, 20)]))
    assert cut == exact
    assert len(cut) == len(empty) + 20
    assert len(short) < len(cut)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (Ranking([], ["a"]), "queries"),
        (Ranking(["a"], []), "documents"),
        (Ranking(["a"], ["a"] * (MOST_PAIRS + 1)), "documents"),
        (Ranking(["a", "b"], ["a", "b", "c"]), "queries"),
        (Ranking(["a", ""], ["a", "b"]), "queries[1]"),
        (Ranking(["a"], ["a"], instruction="find it"), "instruction"),
    ],
)
def test_what_cannot_be_ranked_is_named(
    open_reranker: OpenReranker, asked: Ranking, param: str
) -> None:
    with pytest.raises(RequestError) as refused:
        open_reranker("cross").encode(asked)
    assert refused.value.param == param


def test_a_pair_is_as_long_as_its_tokens() -> None:
    assert len(Pair([1, 2, 3], [0, 0, 1])) == 3
