"""/v1/rerank and /v1/score: in whose order, for whom, and what it costs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.audit.event import Tokens
from tests.fakes.engine import CHAT, DIGEST, EMBEDDING, PAIR_TOKENS, RERANK
from tests.shim.node import PATIENCE, Answer, Node, eventually, standing
from tests.shim.test_limits import limit, limits_of
from tests.shim.test_revocation import new_secret, revoke

DOCUMENTS = ["keys", "add a model", "revoke keys", "add"]
ASK: dict[str, Any] = {"model": RERANK, "query": "add keys", "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for the tests that change nothing."""
    with standing(tmp_path_factory.mktemp("node")) as made:
        yield made


def rerank(node: Node, path: str = "/v1/rerank", **more: Any) -> Answer:
    return node.request("POST", path, {**ASK, **more})


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_the_best_document_comes_first_and_equal_ones_in_their_order(
    quiet: Node, path: str
) -> None:
    documents = ["nothing", "add", {"text": "add some keys"}, "keys"]
    answer = rerank(quiet, path, documents=documents)
    assert answer.status == 200
    found = [(result["index"], result["relevance_score"]) for result in answer.json["results"]]
    assert found == [(2, 1.0), (1, 0.5), (3, 0.5), (0, 0.0)]
    assert answer.json["model"] == RERANK
    assert answer.json["id"].startswith("rerank-")
    assert set(answer.json["results"][0]) == {"index", "relevance_score"}


def test_so_many_as_are_wanted_come_with_their_texts(quiet: Node) -> None:
    documents = ["nothing", {"text": "add some keys"}, "keys"]
    answer = rerank(quiet, documents=documents, top_n=2, return_documents=True)
    assert [result["document"] for result in answer.json["results"]] == [
        {"text": "add some keys"},
        {"text": "keys"},
    ]
    assert len(rerank(quiet, top_n=100).json["results"]) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("first", "second", "scores"),
    [
        ("add keys", "add", [0.5]),
        ("add keys", ["add keys", "", "keys"], None),
        ("add keys", ["add keys", "none", "keys"], [1.0, 0.0, 0.5]),
        (["add", "keys"], ["add", "add"], [1.0, 0.0]),
        (["add", "keys"], ["add", "add", "add"], None),
        (["add", "keys"], "add", None),
    ],
)
def test_scores_are_for_one_text_or_each_with_each(
    quiet: Node, first: object, second: object, scores: list[float] | None
) -> None:
    answer = quiet.request(
        "POST", "/v1/score", {"model": RERANK, "text_1": first, "text_2": second}
    )
    assert answer.status == (400 if scores is None else 200)
    if scores is None:
        assert answer.error["param"].partition("[")[0] in {"text_1", "text_2"}
        return
    document = answer.json
    assert (document["object"], document["model"]) == ("list", RERANK)
    assert [(row["object"], row["index"]) for row in document["data"]] == [
        ("score", index) for index in range(len(scores))
    ]
    assert [row["score"] for row in document["data"]] == scores


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 1001}, "documents"),
        ({"documents": ["a", {"text": "b", "title": "c"}]}, "documents[1].title"),
        ({"documents": ["a", {}]}, "documents[1].text"),
        ({"documents": ["a" * 5000]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_what_does_not_fit_is_named(quiet: Node, more: dict[str, Any], param: str) -> None:
    answer = rerank(quiet, **more)
    assert answer.status == 400
    assert answer.error["param"] == param


def test_a_long_text_of_a_score_is_named_in_the_caller_s_words(quiet: Node) -> None:
    body = {"model": RERANK, "text_1": "a", "text_2": ["b", "c" * 5000]}
    answer = quiet.request("POST", "/v1/score", body)
    assert (answer.status, answer.error["param"]) == (400, "text_2[1]")
    assert answer.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("model", [CHAT, EMBEDDING])
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/v1/score"])
def test_a_model_that_does_not_rank_is_refused(quiet: Node, path: str, model: str) -> None:
    asked: dict[str, object] = {"model": model}
    asked |= {"text_1": "a", "text_2": "b"} if "score" in path else ASK | {"model": model}
    answer = quiet.request("POST", path, asked)
    assert (answer.status, answer.error["param"]) == (400, "model")


def test_a_rerank_model_makes_no_vectors_and_is_listed_as_what_it_is(quiet: Node) -> None:
    answer = quiet.request("POST", "/v1/embeddings", {"model": RERANK, "input": "a"})
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert quiet.request("GET", f"/v1/models/{RERANK}").json["kind"] == "rerank"


def test_every_pair_is_counted_recorded_and_billed(node: Node) -> None:
    answer = rerank(node, documents=["abc", "d"], instruction="find")
    expected = 2 * (len("add keys") + PAIR_TOKENS + len("find")) + 4
    assert answer.json["usage"] == {"prompt_tokens": expected, "total_tokens": expected}
    req, res = node.req(answer.request_id), node.res(answer.request_id)
    assert (req.route, req.bundle_digest) == ("/v1/rerank", DIGEST[RERANK])
    assert (res.outcome, res.tokens) == ("ok", Tokens(prompt=expected))
    assert node.row(answer.request_id).prompt_tokens == expected


def test_a_cut_document_costs_what_is_read_of_it(quiet: Node) -> None:
    answer = rerank(quiet, documents=["abcdef"], max_tokens_per_doc=2)
    assert answer.json["usage"]["prompt_tokens"] == len("add keys") + PAIR_TOKENS + 2


def test_hanging_up_bills_what_was_computed(node: Node) -> None:
    node.engine.behaviour.pause_before_accept = True
    connection = node.connect()
    headers = {"Authorization": f"Bearer {node.secret}", "Content-Type": "application/json"}
    body = {**ASK, "documents": ["abc"]}
    connection.request("POST", "/v1/rerank", json.dumps(body), headers)
    call = eventually(lambda: next(iter(node.engine.calls.values()), None))
    connection.close()
    res = node.res(call.request_id)
    computed = len("add keys") + PAIR_TOKENS + 3
    assert (res.outcome, res.status, res.tokens.prompt) == ("cancelled", 0, computed)


def test_what_a_request_can_use_is_reserved_and_the_rest_given_back(node: Node) -> None:
    limit(node, tokens_per_day=100, requests_per_minute=5)
    answer = rerank(node, documents=["abc", "de"])
    assert (answer.status, limits_of(answer)["remaining-requests"]) == (200, "4")
    assert rerank(node, documents=["a" * 80]).error["code"] == "insufficient_quota"
    used = 2 * (len("add keys") + PAIR_TOKENS) + 5
    left = 100 - used
    last = "x" * (left - len("add keys") - PAIR_TOKENS)
    assert rerank(node, documents=[last + "x"]).error["code"] == "insufficient_quota"
    assert rerank(node, documents=[last]).status == 200


def test_a_key_s_list_names_the_apis_one_by_one(node: Node) -> None:
    score = {"model": RERANK, "text_1": "a", "text_2": "b"}
    for apis, allowed in ((["rerank"], [200, 200, 403]), (["score"], [403, 403, 200])):
        _, secret = new_secret(node, apis=apis)
        headers = {"Authorization": f"Bearer {secret}"}
        answers = [
            node.request("POST", "/v1/rerank", ASK, headers=headers),
            node.request("POST", "/v2/rerank", ASK, headers=headers),
            node.request("POST", "/v1/score", score, headers=headers),
        ]
        assert [answer.status for answer in answers] == allowed
    _, secret = new_secret(node, models=[CHAT])
    refused = node.request("POST", "/v1/rerank", ASK, headers={"Authorization": f"Bearer {secret}"})
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")


def test_scores_for_a_revoked_key_are_not_given(node: Node) -> None:
    node.engine.behaviour.pause_before_accept = True
    answers: list[Answer] = []
    caller = threading.Thread(target=lambda: answers.append(rerank(node)))
    caller.start()
    eventually(lambda: node.engine.calls)
    revoke(node, node.key.id)
    caller.join(PATIENCE)
    assert (answers[0].status, answers[0].error["code"]) == (401, "key_revoked")
