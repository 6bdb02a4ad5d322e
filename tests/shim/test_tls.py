"""TLS at the endpoint: real sockets, real certificates, the official SDK."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.audit.event import Reject, Request
from appliance.config import ApiSettings, Config, Layout
from appliance.errors import ApplianceError, ConfigError, NotFoundError
from appliance.tls.authority import Issued, make_authority, names_of
from appliance.tls.files import TlsFiles
from installer import tls
from installer.local_endpoint import is_as_set
from installer.node import PrefixNode
from installer.status import status_of
from tests.fakes.engine import CHAT, FakeEngine
from tests.fakes.ports import own_port
from tests.hostile import http_cases
from tests.hostile.oracle import faults_of, send
from tests.hostile.stack import Keys
from tests.shim import node as shim_node
from tests.shim.node import PATIENCE, Node, ask, eventually, prepare, running_shim, standing
from tests.tls.clients import client_certificate


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One endpoint for the module; nobody stops it."""
    with standing(tmp_path_factory.mktemp("tls"), tls=True, store_files=True) as made:
        yield made


def trusting(node: Node) -> ssl.SSLContext:
    """What an application does that was given the node's ca.crt, as strictly as Python can."""
    context = ssl.create_default_context(cafile=TlsFiles.of(node.config.layout).ca_crt)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def dial(node: Node, context: ssl.SSLContext, name: str = "127.0.0.1") -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", node.config.api.listen_port), timeout=PATIENCE)
    return context.wrap_socket(plain, server_hostname=name)


def test_the_official_sdk_chats_and_streams_with_the_nodes_authority(node: Node) -> None:
    http_client = openai.DefaultHttpxClient(verify=trusting(node))
    with openai.OpenAI(
        base_url=node.base_url, api_key=node.secret, max_retries=0, http_client=http_client
    ) as client:
        answer = client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "hello"}]
        )
        streamed = client.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": "hello"}], stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
    assert answer.choices[0].message.content == text != ""


def test_a_client_that_does_not_know_the_authority_refuses_the_node(node: Node) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        dial(node, ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        dial(node, trusting(node), "other.example")


def test_who_asks_by_a_name_is_shown_a_certificate_without_addresses(node: Node) -> None:
    """Some clients cannot check limits on addresses, which the node's authority has."""
    shown = {}
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        with dial(node, trusting(node), name) as caller:
            found: Any = caller.getpeercert()
            shown[name] = {kind for kind, _ in found["subjectAltName"]}
            assert caller.selected_alpn_protocol() in (None, "http/1.1")
            assert caller.version() == "TLSv1.3"
    assert shown == {
        "127.0.0.1": {"DNS", "IP Address"},
        "localhost": {"DNS"},
        "LOCALHOST": {"DNS"},
    }


def test_only_the_newest_version_is_spoken(node: Node) -> None:
    with dial(node, trusting(node), "localhost") as caller:
        assert caller.version() == "TLSv1.3"
    old = trusting(node)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|handshake"):
        dial(node, old)
    assert node.metric('appliance_tls_handshakes_failed_total{reason="tls_version"}') >= 1


def test_a_request_in_clear_is_told_so(node: Node) -> None:
    plain = http.client.HTTPConnection("127.0.0.1", node.config.api.listen_port, timeout=PATIENCE)
    plain.request("GET", "/health")
    response = plain.getresponse()
    assert response.status == 400
    assert b"https://" in response.read()
    plain.close()


@pytest.mark.parametrize("data", [b"\x16\x03\x01\xff\xffgarbage", b"\x00" * 64, b"\x16" * 4096])
def test_garbage_ends_the_connection(node: Node, data: bytes) -> None:
    with socket.create_connection(
        ("127.0.0.1", node.config.api.listen_port), timeout=PATIENCE
    ) as caller:
        caller.sendall(data)
        caller.shutdown(socket.SHUT_WR)
        while caller.recv(4096):
            pass
    assert node.request("GET", "/health").status == 200


def test_a_slow_handshake_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.shim.tls_connection.HANDSHAKE_SECONDS", 0.2)
    with socket.create_connection(
        ("127.0.0.1", node.config.api.listen_port), timeout=PATIENCE
    ) as caller:
        caller.sendall(b"\x16\x03")
        assert is_ended(caller)


def is_ended(caller: socket.socket) -> bool:
    """Whether the endpoint closes the connection, politely or not."""
    try:
        return caller.recv(1) == b""
    except ConnectionResetError:
        return True


def test_handshakes_count_as_connections(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.shim.tls_front.CONNECTIONS", 2)
    monkeypatch.setattr("appliance.shim.tls_front.SPARE", 0)
    address = ("127.0.0.1", node.config.api.listen_port)
    with (
        socket.create_connection(address, timeout=PATIENCE),
        socket.create_connection(address) as _,
    ):
        reason = 'appliance_tls_handshakes_failed_total{reason="too_many_connections"}'
        with socket.create_connection(address, timeout=PATIENCE) as third:
            assert is_ended(third)
    monkeypatch.undo()
    assert eventually(lambda: node.metric(reason)) >= 1


def test_a_connection_serves_several_requests_and_names_of_the_certificate(node: Node) -> None:
    connection = node.connect()
    for _ in range(3):
        assert node.request("GET", "/v1/models", connection=connection).status == 200
    connection.close()
    hosts = {"Host": "evil.example"}
    assert node.request("GET", "/v1/models", headers=hosts).status == 421


def test_a_caller_that_hangs_up_ends_its_request(node: Node) -> None:
    node.engine.behaviour.release.clear()
    stream = node.stream(ask("hello " * 40, stream=True))
    next(iter(stream))
    stream.hang_up()
    node.engine.behaviour.release.set()
    assert node.res(stream.request_id).outcome in {"cancelled", "ok"}


def test_hostile_http_is_refused_as_it_is_in_clear(node: Node) -> None:
    secret = node.secret
    target = _Target(node.config.api.listen_port, Keys(secret, secret, "", "", ""))
    context = trusting(node)
    context.check_hostname = False
    served = [case for case in http_cases.CASES if min(case.status) >= 400 or 0 in case.status]
    assert len(served) >= 30
    faults = [
        f"{case.name}: {fault}"
        for case in served
        for fault in faults_of(case, send(target, case, context))
    ]
    assert not faults, "\n".join(faults)
    assert node.request("GET", "/health").status == 200


class _Target:
    def __init__(self, port: int, keys: Keys) -> None:
        self.port = port
        self.keys = keys


def test_a_renewed_certificate_serves_new_connections_and_cuts_no_stream(tmp_path: Path) -> None:
    with standing(tmp_path, tls=True) as node:
        stream = node.stream(ask("a b c d e f g h", stream=True))
        frames = iter(stream)
        first = next(frames)
        old = tls.shown(node.config).certificate.sha256
        renewed = tls.renew(node.config).certificate.sha256
        with dial(node, trusting(node)) as caller:
            assert fingerprint(caller) == renewed != old
        assert first
        assert [*frames][-1] == b"data: [DONE]\n"
        TlsFiles.of(node.config.layout).node_pem.write_bytes(b"damaged")
        with dial(node, trusting(node)) as caller:
            assert fingerprint(caller) == renewed, "what cannot be used does not take over"


def fingerprint(caller: ssl.SSLSocket) -> str:
    import hashlib

    return hashlib.sha256(caller.getpeercert(binary_form=True) or b"").hexdigest()


def test_callers_have_to_show_a_certificate_where_that_is_asked(tmp_path: Path) -> None:
    authority = make_authority(names_of(["callers.example"], []))
    other = make_authority(names_of(["others.example"], []))
    given = tmp_path / "callers.pem"
    given.write_bytes(authority.pem)
    config = prepare(tmp_path / "node", tls=True, client_certificates=True)
    tls.trust(config, given)
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        assert node.request("GET", "/v1/models").status == 200, "the node's own commands have one"
        assert status_of(config, PrefixNode(config.layout)).health.status == "ok"
        good = showing(node, client_certificate(authority, "billing"), tmp_path)
        body = _chat_by(node, good)
        req = next(e for e in reversed(node.events()) if isinstance(e, Request))
        assert body.status == 200
        assert req.caller == "CN=billing"
        assert len(req.caller_sha256) == 64
        with dial(node, good, "localhost") as caller:
            caller.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert caller.recv(12) == b"HTTP/1.1 200"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_for_health(node, trusting(node), "localhost")
        assert more_rejects(node, 0)[-1].code == "client_certificate_missing"
        old = datetime.now(UTC) - timedelta(days=30)
        for refused, code in (
            (trusting(node), "client_certificate_missing"),
            (showing(node, client_certificate(other, "x"), tmp_path), "client_certificate_refused"),
            (
                showing(node, client_certificate(authority, "x", days=2, now=old), tmp_path),
                "client_certificate_refused",
            ),
        ):
            before = len(rejects_of(node))
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask_for_health(node, refused)
            rejects = more_rejects(node, before)
            assert (rejects[-1].code, rejects[-1].status) == (code, 0)
            assert rejects[-1].peer == "127.0.0.1"


def ask_for_health(node: Node, context: ssl.SSLContext, name: str = "127.0.0.1") -> None:
    """Raises what a caller sees whose certificate is refused."""
    with dial(node, context, name) as caller:
        caller.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if caller.recv(1) == b"":
            raise ConnectionResetError


def rejects_of(node: Node) -> list[Reject]:
    return [event for event in node.events() if isinstance(event, Reject)]


def more_rejects(node: Node, before: int) -> list[Reject]:
    """All of them, as soon as there are more than `before`."""
    return eventually(lambda: found if len(found := rejects_of(node)) > before else None)


def _chat_by(node: Node, context: ssl.SSLContext) -> shim_node.Answer:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", node.config.api.listen_port, timeout=PATIENCE, context=context
    )
    try:
        return node.request("POST", "/v1/chat/completions", ask(), connection=connection)
    finally:
        connection.close()


def showing(node: Node, issued: Issued, directory: Path) -> ssl.SSLContext:
    file = directory / "client.pem"
    file.write_bytes(issued.key_pem + issued.pem)
    context = trusting(node)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize(
    ("settings", "error", "code"),
    [
        ({"listen_host": "0.0.0.0"}, ConfigError, "tls_required"),
        ({"tls": True}, NotFoundError, "tls_certificate_missing"),
        ({"client_certificates": True}, ConfigError, "config_invalid"),
    ],
)
def test_an_endpoint_that_would_be_open_does_not_start(
    tmp_path: Path, settings: dict[str, Any], error: type[ApplianceError], code: str
) -> None:
    config = prepare(tmp_path)
    config = Config(
        Layout(tmp_path), api=ApiSettings(listen_port=config.api.listen_port, **settings)
    )
    with pytest.raises(error) as caught, running_shim(config):
        pass
    assert caught.value.code == code
    assert caught.value.hint


def test_an_endpoint_by_other_settings_is_told_from_one_that_runs_as_set(node: Node) -> None:
    """What an installation goes by: an endpoint that is as set is not started again."""
    layout, api = node.config.layout, node.config.api
    assert is_as_set(node.config)
    for other in (
        replace(api, tls=False),
        replace(api, listen_port=own_port()),
        replace(api, listen_host="127.0.0.2"),
    ):
        assert not is_as_set(Config(layout, api=other)), other


def test_an_endpoint_in_clear_is_not_one_with_tls(tmp_path: Path) -> None:
    with standing(tmp_path) as node:
        assert is_as_set(node.config)
        tls.create(node.config)
        by_tls = replace(node.config.api, tls=True)
        assert not is_as_set(Config(node.config.layout, api=by_tls))


def test_other_networks_are_turned_away_at_the_socket(tmp_path: Path) -> None:
    config = prepare(tmp_path, tls=True, listen_host="0.0.0.0", clients="10.9.0.0/16")
    with FakeEngine(config.layout.engine_socket) as engine, running_shim(config):
        node = Node(config, engine)
        assert node.base_url == f"https://127.0.0.1:{config.api.listen_port}/v1"
        assert node.request("GET", "/v1/models").status == 200, "this machine always may"
