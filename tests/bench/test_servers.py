"""`appliance bench --base-url` against servers with odd habits: figures or named failures."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from appliance.errors import (
    ApplianceError,
    CapacityError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UsageError,
)
from installer.bench.watcher import TerminalWatcher
from installer.bench.workload import Level
from installer.cli.app import app
from tests.fakes.odd_server import MODEL, Habits, OddServer

LOOPBACK = IPv4Address("127.0.0.1")
SHAPE = ("--input-tokens", "40", "--output-tokens", "6", "--requests", "4", "--concurrency", "2")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OddServer]:
    monkeypatch.delenv("APPLIANCE_API_KEY", raising=False)
    with OddServer() as made:
        yield made


def bench(server: OddServer, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "--base-url", server.base_url, *SHAPE, *arguments])


def measured(server: OddServer, *arguments: str) -> Any:
    result = bench(server, "--json", *arguments)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def failure(result: Result) -> ApplianceError:
    assert isinstance(result.exception, ApplianceError)
    assert result.exception.hint
    return result.exception


@pytest.mark.parametrize(
    "habits",
    [
        Habits(),
        Habits(line_end="\r\n", comments=True),
        Habits(line_end="\r"),
        Habits(empty_choices=True),
        Habits(chunked=False),
        Habits(done=False),
        Habits(finish_reason=False),
        Habits(tokenize=True),
        Habits(tokens_per_piece=3),
    ],
    ids=str,
)
def test_odd_but_legal_streams_are_measured_in_full(server: OddServer, habits: Habits) -> None:
    server.habits = habits
    document = measured(server)
    (level,) = document["levels"]
    assert (level["requests"], level["failed"]) == (4, 0)
    assert level["prompt_tokens"] == {"low": 40, "high": 40, "total": 160}
    assert level["completion_tokens"] == {"low": 6, "high": 6, "total": 24}
    assert level["gap"]["count"] == 4 * (-(-6 // habits.tokens_per_piece) - 1)
    assert level["ttft"]["count"] == 4
    assert document["target"]["model"] == MODEL
    assert document["exact_prompts"]


def test_several_tokens_in_a_piece_are_said(server: OddServer) -> None:
    server.habits.tokens_per_piece = 3
    assert any("several tokens in one piece" in note for note in measured(server)["notes"])


def test_without_usage_it_says_so_and_has_no_figure_in_tokens(server: OddServer) -> None:
    server.habits.usage = False
    document = measured(server)
    (level,) = document["levels"]
    assert level["requests"] == 4
    assert level["output_tokens_per_second"] is None
    assert level["ttft"]["count"] == 4
    assert not document["exact_prompts"]
    assert any("no usage" in note for note in document["notes"])
    assert any("in words" in note for note in document["notes"])
    assert "no usage" in bench(server).stdout


def test_answers_that_end_by_themselves_are_said_to(server: OddServer) -> None:
    server.habits.ends_early = True
    document = measured(server)
    assert document["levels"][0]["completion_tokens"]["high"] == 3
    assert any("as they came" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("unknown", "dialect"),
    [
        ({"ignore_eos"}, {"length": "max_tokens", "ignore_eos": False, "usage": True}),
        (
            {"ignore_eos", "max_tokens"},
            {"length": "max_completion_tokens", "ignore_eos": False, "usage": True},
        ),
        (
            {"ignore_eos", "stream_options"},
            {"length": "max_tokens", "ignore_eos": False, "usage": False},
        ),
    ],
)
def test_a_refused_parameter_is_left_out(
    server: OddServer, unknown: set[str], dialect: dict[str, object]
) -> None:
    server.habits.unknown = frozenset(unknown)
    document = measured(server)
    assert document["target"]["dialect"] == dialect
    assert document["levels"][0]["requests"] == 4
    assert not unknown & server.requests[-1].keys()


def test_a_server_that_refuses_everything_is_quoted(server: OddServer) -> None:
    server.habits.unknown = frozenset({"temperature"})
    error = failure(bench(server))
    assert isinstance(error, RequestError)
    assert error.message == "unknown parameter: temperature"


@pytest.mark.parametrize(
    ("habits", "reason"),
    [
        (Habits(error_after=2), "error in the stream: the cache is full"),
        (Habits(error_after=2, error="only a text"), "error in the stream: only a text"),
        (Habits(hang_up_after=2), "the connection was closed before the answer was complete"),
        (Habits(nonsense_after=2), "an event is not a chunk of a chat completion"),
        (Habits(done=False, finish_reason=False), "the stream broke off"),
        (Habits(status=503), "status 503: out of order"),
        (Habits(status=500, body=b"<html>"), "status 500: the server answered with status 500"),
        (Habits(status=302, body=b""), "status 302: the server answered with status 302"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_goes_wrong_under_load_is_counted_by_its_name(
    server: OddServer, habits: Habits, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_at_level(server, habits, monkeypatch)
    document = measured(server)
    (level,) = document["levels"]
    assert (level["requests"], level["failed"]) == (0, 4)
    assert level["errors"] == {reason: 4}
    assert level["ttft"] is None


def test_silence_is_given_up_and_named(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_at_level(server, Habits(silent_after=2), monkeypatch)
    arguments = ["--timeout", "4", "--requests", "2"]
    (level,) = measured(server, *arguments)["levels"]
    assert level["errors"] == {"silent for 4 s": 2}


def turn_at_level(server: OddServer, habits: Habits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server take on `habits` when the first level begins."""
    begin = TerminalWatcher.begin

    def turned(self: TerminalWatcher, level: Level, requests: int) -> None:
        server.habits = habits
        begin(self, level, requests)

    monkeypatch.setattr(TerminalWatcher, "begin", turned)


def test_failures_stand_in_the_printed_report(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_at_level(server, Habits(error_after=2), monkeypatch)
    result = bench(server)
    assert "failed at load 2: 4 x error in the stream: the cache is full" in result.stdout


@pytest.mark.parametrize(
    ("habits", "kind", "words"),
    [
        (Habits(status=503), UnavailableError, "out of order"),
        (Habits(status=429), CapacityError, "out of order"),
        (Habits(key="secret"), UsageError, "no such key"),
        (Habits(models=()), NotFoundError, "nothing here"),
        (Habits(models=("one", "two")), UsageError, "several models"),
        (Habits(error_after=0), UnavailableError, "the cache is full"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_stands_in_the_way_at_the_start_ends_the_run(
    server: OddServer, habits: Habits, kind: type[ApplianceError], words: str
) -> None:
    server.habits = habits
    error = failure(bench(server))
    assert isinstance(error, kind)
    assert words in error.message


def test_of_several_models_those_that_chat_are_offered(server: OddServer) -> None:
    server.habits = Habits(models=("one", "two"), embedders=("vectors",))
    assert failure(bench(server)).hint == "choose with --model: one, two"


def test_the_key_of_another_server_comes_from_the_environment(
    server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.habits.key = "secret"
    monkeypatch.setenv("APPLIANCE_API_KEY", "secret")
    assert measured(server)["levels"][0]["requests"] == 4


def test_a_model_is_chosen_by_name_and_an_unknown_one_is_refused(server: OddServer) -> None:
    server.habits.models = ("one", "two")
    assert measured(server, "--model", "two")["target"]["model"] == "two"
    assert server.requests[-1]["model"] == "two"
    assert "'three'" in failure(bench(server, "--model", "three")).message
    server.habits.models = ()
    assert measured(server, "--model", "unlisted")["target"]["model"] == "unlisted"


def test_nothing_is_sent_where_a_tokenizer_counts(server: OddServer) -> None:
    server.habits.tokenize = True
    measured(server)
    dialect, rehearsal, warmup, requests = 1, 1, 1, 4
    assert len(server.requests) == dialect + rehearsal + warmup + requests


def test_prompts_differ_early_and_share_a_prefix_only_when_asked_to(server: OddServer) -> None:
    measured(server)
    plain = [prompt.split() for prompt in server.prompts()[-4:]]
    assert len({tuple(prompt[:8]) for prompt in plain}) == 4
    measured(server, "--shared-prefix", "30")
    shared = [prompt.split() for prompt in server.prompts()[-4:]]
    assert len({tuple(prompt[:28]) for prompt in shared}) == 1
    assert len({tuple(prompt) for prompt in shared}) == 4


def test_one_seed_asks_the_same_and_without_one_every_run_asks_something_else(
    server: OddServer,
) -> None:
    runs = []
    for arguments in (["--seed", "1"], ["--seed", "1"], []):
        server.requests.clear()
        measured(server, *arguments)
        runs.append(sorted(server.prompts()[-4:]))
    assert runs[0] == runs[1] != runs[2]


def test_real_prompts_are_asked_in_turn(server: OddServer, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text("first question\nsecond question here\n")
    arguments = ["--prompts", str(path), "--output-tokens", "6", "--requests", "4"]
    result = CliRunner().invoke(
        app,
        ["bench", "--base-url", server.base_url, "--concurrency", "1", "--json", *arguments],
    )
    assert result.exit_code == 0, result.output
    (level,) = json.loads(result.stdout)["levels"]
    assert level["prompt_tokens"] == {"low": 4, "high": 5, "total": 18}
    assert sorted(server.prompts()[-4:]) == ["first question"] * 2 + ["second question here"] * 2


def test_an_open_loop_reports_its_rates(server: OddServer) -> None:
    arguments = ["--rate", "50,200", "--input-tokens", "40", "--requests", "5", "--warmup", "0"]
    result = CliRunner().invoke(app, ["bench", "--base-url", server.base_url, "--json", *arguments])
    assert result.exit_code == 0, result.output
    levels = json.loads(result.stdout)["levels"]
    assert [level["level"]["rate"] for level in levels] == [50, 200]
    assert [level["requests"] for level in levels] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "1", "--concurrency", "2"], "--concurrency and --rate"),
        (["--prompts", "f", "--input-tokens", "9"], "--prompts and --input-tokens"),
        (["--prompts", "f", "--shared-prefix", "9"], "--prompts and --shared-prefix"),
        (["--shared-prefix", "64", "--input-tokens", "64"], "--shared-prefix 64"),
        (["--requests", "3", "--concurrency", "4"], "--requests 3"),
        (["--concurrency", "0"], "--concurrency takes"),
        (["--concurrency", "1.5"], "--concurrency takes"),
        (["--concurrency", "9999"], "--concurrency takes"),
        (["--concurrency", "4,4"], "names a level twice"),
        (["--rate", "inf"], "--rate takes"),
        (["--rate", "often"], "--rate takes"),
        (["--root", "/x"], "--base-url and --root"),
    ],
    ids=" ".join,
)
def test_nonsense_is_refused_by_name_before_anything_is_sent(
    server: OddServer, arguments: list[str], words: str
) -> None:
    result = CliRunner().invoke(app, ["bench", "--base-url", server.base_url, *arguments])
    error = failure(result)
    assert isinstance(error, UsageError)
    assert words in error.message
    assert not server.requests


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x/v1", "http://", "http://x:nan/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    error = failure(CliRunner().invoke(app, ["bench", "--base-url", url]))
    assert isinstance(error, UsageError)


def test_a_prompt_shorter_than_the_template_is_refused(server: OddServer) -> None:
    result = CliRunner().invoke(
        app, ["bench", "--base-url", server.base_url, "--input-tokens", "5"]
    )
    assert "--input-tokens 5 is too short" in failure(result).message


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        error = failure(CliRunner().invoke(app, ["bench", "--base-url", url]))
    assert isinstance(error, UnavailableError)
    assert "no connection" in error.message


def test_a_server_that_does_not_speak_http_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(300)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-hello\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        error = failure(CliRunner().invoke(app, ["bench", "--base-url", url]))
        thread.join()
    assert "does not speak HTTP" in error.message


def test_a_server_over_tls_is_measured_if_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    with OddServer(tls_context(certificate)) as server:
        error = failure(bench(server))
        assert isinstance(error, UnavailableError)
        assert "no connection" in error.message
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert measured(server)["levels"][0]["requests"] == 4


def tls_context(certificate: Path) -> ssl.SSLContext:
    """A server's context for 127.0.0.1, whose own certificate is written to `certificate`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(LOOPBACK)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = certificate.with_name("key.pem")
    certificate.write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return context
