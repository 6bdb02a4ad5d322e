"""/health and /metrics: what a supervisor and a monitor read."""

from __future__ import annotations

import http.client
import os

import pytest
from grpc_health.v1 import health_pb2
from prometheus_client.parser import text_string_to_metric_families

from appliance.audit import AuditWriter
from tests.fakes.engine import CHAT, EMBEDDING, RERANK
from tests.shim.node import PATIENCE, Node, ask

CHAT_PATH = "/v1/chat/completions"


def public(node: Node, method: str, path: str) -> tuple[int, bytes]:
    """A request without a key."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", node.config.api.listen_port, timeout=PATIENCE
    )
    connection.request(method, path)
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def test_health_needs_no_key_and_says_what_works(node: Node) -> None:
    assert node.request("GET", "/health").json == {
        "status": "ok",
        "engine": True,
        "audit": True,
        "models": [CHAT, EMBEDDING, RERANK],
    }
    assert public(node, "GET", "/health")[0] == 200
    assert public(node, "HEAD", "/health") == (200, b"")


def test_health_is_degraded_without_an_engine(node: Node) -> None:
    node.engine.stop()
    assert node.request("GET", "/health").json == {
        "status": "degraded",
        "engine": False,
        "audit": True,
        "models": [],
    }
    node.engine.start()


def test_health_believes_what_the_engine_says_of_itself(node: Node) -> None:
    node.engine.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert node.request("GET", "/health").json["status"] == "degraded"


def test_metrics_are_valid_and_count_requests_and_tokens(node: Node) -> None:
    node.request("POST", CHAT_PATH, ask())
    answer = node.stream(ask(stream=True))
    answer.documents()
    node.res(answer.request_id)
    node.request("POST", CHAT_PATH, b"{")
    node.engine.wait_until_idle()  # it counts a call when its last message has left
    status, body = public(node, "GET", "/metrics")
    assert status == 200
    families = {f.name for f in text_string_to_metric_families(body.decode())}
    assert all(name.startswith("appliance_") for name in families)
    model = f'{{model="{CHAT}"}}'
    shared = f'{{capacity="shared",model="{CHAT}"}}'
    expected = {
        f'appliance_http_requests_total{{route="{CHAT_PATH}",status="200"}}': 2,
        f'appliance_http_requests_total{{route="{CHAT_PATH}",status="400"}}': 1,
        f"appliance_prompt_tokens_total{model}": 24,
        f"appliance_generation_tokens_total{model}": 12,
        f"appliance_time_to_first_token_seconds_count{shared}": 2,
        f"appliance_engine_generation_tokens_total{model}": 12,
        f"appliance_kv_cache_usage_perc{model}": 0.25,
        f"appliance_num_requests_running{model}": 0,
        "appliance_engine_up": 1,
    }
    assert {line: node.metric(line) for line in expected} == expected
    # Ten characters in two answers; those that come with the first ones have no time between.
    assert 0 <= node.metric(f"appliance_inter_token_latency_seconds_count{model}") <= 8


def test_metrics_show_the_room_where_the_endpoint_writes_and_where_programs_are(
    node: Node,
) -> None:
    layout = node.config.layout
    layout.releases.mkdir(parents=True)
    for holds in ("audit", "usage", "files", "programs"):
        free = node.metric(f'appliance_disk_free_bytes{{holds="{holds}"}}')
        assert 0 < free <= node.metric(f'appliance_disk_size_bytes{{holds="{holds}"}}')
        if inodes := os.statvfs(layout.releases).f_files:
            assert node.metric(f'appliance_disk_inodes{{holds="{holds}"}}') == inodes
            assert 0 < node.metric(f'appliance_disk_free_inodes{{holds="{holds}"}}') <= inodes


def test_metrics_are_there_without_an_engine(node: Node) -> None:
    node.engine.stop()
    assert node.metric("appliance_engine_up") == 0
    node.engine.start()


def test_a_caller_cannot_make_labels(node: Node) -> None:
    node.request("POST", CHAT_PATH, {**ask(), "model": "made-up"})
    node.request("POST", "/v1/embeddings", {"model": "made-up", "input": "x"})
    node.request("GET", "/v1/made-up")
    node.request("GET", "/v1/models/made-up")
    _, body = public(node, "GET", "/metrics")
    assert b"made-up" not in body


def test_ready_needs_a_model_and_an_engine(node: Node) -> None:
    assert public(node, "GET", "/ready")[0] == 200
    ready = node.request("GET", "/ready").json
    assert ready == {"ready": True, "reasons": [], "models": [CHAT, EMBEDDING, RERANK]}
    models = dict(node.engine.models)
    node.engine.models.clear()
    answer = node.request("GET", "/ready")
    assert (answer.status, answer.json["reasons"]) == (503, ["no model is loaded"])
    node.engine.models.update(models)
    node.engine.stop()
    answer = node.request("GET", "/ready")
    assert (answer.status, answer.json["reasons"]) == (503, ["the engine does not answer"])
    node.engine.start()


def test_ready_needs_an_audit_log_that_can_be_written(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AuditWriter, "available", False)
    answer = node.request("GET", "/ready")
    assert (answer.status, answer.json["reasons"]) == (503, ["the audit log cannot be written"])
    assert node.request("GET", "/health").status == 200
