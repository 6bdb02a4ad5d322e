"""Making, renewing, importing: what operators do, and what is recorded and refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.audit import read_events
from appliance.audit.event import Admin
from appliance.config import Config
from appliance.errors import ApplianceError, ConflictError, UsageError, VerificationError
from appliance.tls.authority import issue, make_authority, names_of
from appliance.tls.certificate import described
from appliance.tls.chains import Chains
from appliance.tls.files import TlsFiles
from installer import tls
from installer.cli.app import app
from tests.shim.node import prepare

NAMES = names_of(["node.example"], ["10.1.2.3"])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return prepare(tmp_path / "node")


def run(config: Config, *words: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["tls", *words, "--root", str(config.layout.root), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_commands_make_show_and_renew(config: Config) -> None:
    made = run(config, "create", "--name", "node.example", "--address", "10.1.2.3")
    certificate = made["certificate"]
    assert isinstance(certificate, dict)
    assert certificate["names"] == ["node.example", "localhost"]
    assert certificate["addresses"] == ["10.1.2.3", "127.0.0.1", "::1"]
    assert run(config, "show") == made
    renewed = run(config, "renew", "--days", "10")
    assert renewed["days_left"] in {9, 10}
    assert tls.shown(config).remark.startswith("the certificate expires in")
    actions = [
        (e.action, e.digest) for _, e in read_events(config.layout.audit) if isinstance(e, Admin)
    ]
    assert [action for action, _ in actions] == ["tls.create", "tls.renew"]
    assert actions[1][1] == tls.shown(config).certificate.sha256


def test_keys_are_readable_by_their_owner_alone(config: Config) -> None:
    tls.create(config)
    files = TlsFiles.of(config.layout)
    modes = {path.name: path.stat().st_mode & 0o777 for path in files.public.iterdir()}
    assert modes == {"node.pem": 0o600, "node.crt": 0o644, "ca.crt": 0o644, "local.crt": 0o644}
    for path in (files.ca_key, files.local_pem):
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_applications_trust_is_not_replaced_unasked(config: Config) -> None:
    tls.create(config, ["a.example"])
    before = TlsFiles.of(config.layout).ca_crt.read_bytes()
    with pytest.raises(ConflictError, match="already"):
        tls.create(config, ["b.example"])
    tls.renew(config)
    assert TlsFiles.of(config.layout).ca_crt.read_bytes() == before
    tls.create(config, ["b.example"], replace=True)
    assert TlsFiles.of(config.layout).ca_crt.read_bytes() != before


def test_a_certificate_by_name_comes_and_goes_with_the_other_one(config: Config) -> None:
    files = TlsFiles.of(config.layout)
    tls.create(config, ["node.example"], ["10.1.2.3"])
    for again in (tls.create, tls.renew, tls.renew):
        before = files.node_pem.read_bytes()
        again(config, **({"replace": True} if again is tls.create else {}))
        assert files.node_pem.read_bytes() != before
        chains = Chains.parse(files.node_pem.read_bytes(), name="node.pem")
        assert chains.by_name is not None
        assert described(chains.by_name).names == tls.shown(config).certificate.names
        assert described(chains.by_name).addresses == ()
        assert [described(one) for one in chains.chain] == [tls.shown(config).certificate]


def test_an_authority_between_is_no_certificate_by_name(config: Config) -> None:
    authority = make_authority(NAMES)
    issued = issue(authority, NAMES)
    chain = issued.pem + authority.pem
    TlsFiles.of(config.layout).put(key_pem=issued.key_pem, chain_pem=chain, ca_pem=authority.pem)
    data = TlsFiles.of(config.layout).node_pem.read_bytes()
    chains = Chains.parse(data, name="node.pem")
    assert chains.by_name is None
    assert chains.chain == (issued.certificate, authority.certificate)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a..b", "10.1.2.3", "x" * 64, "ä.example"])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        names_of([name], [])


def _import(config: Config, tmp_path: Path, **parts: bytes) -> tuple[str, ...]:
    authority = make_authority(NAMES)
    issued = issue(authority, NAMES)
    given = {"crt": issued.pem, "key": issued.key_pem, "ca": authority.pem} | parts
    for name, data in given.items():
        (tmp_path / name).write_bytes(data)
    _, remarks = tls.bring(config, tmp_path / "crt", tmp_path / "key", tmp_path / "ca")
    return remarks


def test_an_authority_elsewhere_may_issue_the_certificate(config: Config, tmp_path: Path) -> None:
    tls.create(config)
    assert _import(config, tmp_path) == ()
    files = TlsFiles.of(config.layout)
    assert not files.ca_key.exists()
    assert tls.shown(config).certificate.names == NAMES.names
    assert Chains.parse(files.node_pem.read_bytes(), name="it").by_name is None
    with pytest.raises(ConflictError, match="another authority"):
        tls.renew(config)


def test_a_certificate_that_clients_would_refuse_is_not_taken(
    config: Config, tmp_path: Path
) -> None:
    other, long_ago = make_authority(NAMES), datetime.now(UTC) - timedelta(days=900)
    authority = make_authority(NAMES)
    expired = issue(authority, NAMES, now=long_ago)
    outside = issue(authority, names_of(["else.example"], []))
    cases = {
        "another one's": {"key": other.key_pem},
        "expired": {"crt": expired.pem, "key": expired.key_pem, "ca": authority.pem},
        "refuses it": {"ca": other.pem},
        "permitted": {"crt": outside.pem, "key": outside.key_pem, "ca": authority.pem},
        "no readable": {"crt": b"nonsense"},
        "cannot be read": {"key": b"nonsense"},
        "not a certificate authority": {"ca": issue(authority, NAMES).pem},
    }
    for words, parts in cases.items():
        with pytest.raises(VerificationError, match=words) as caught:
            _import(config, tmp_path, **parts)
        assert caught.value.hint
    assert not TlsFiles.of(config.layout).there


def test_only_authorities_are_trusted_for_callers(config: Config, tmp_path: Path) -> None:
    authority = make_authority(NAMES)
    file = tmp_path / "ca.pem"
    file.write_bytes(issue(authority, NAMES).pem)
    with pytest.raises(ApplianceError, match="not a certificate authority"):
        tls.trust(config, file)
    file.write_bytes(authority.pem)
    assert run(config, "trust", str(file))["client_authorities"]
