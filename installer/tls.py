"""Changes of the endpoint's certificate, each with its audit record.

Owns the order: check, record, write. The endpoint takes a new certificate for its next connection
by itself; running streams keep the one they began with. Refuses to replace an authority that
applications trust unless that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.audit import acting_as_owner, admin_event
from appliance.config import Config
from appliance.errors import ConflictError, NotFoundError, UsageError
from appliance.fsops import make_dirs
from appliance.tls.authority import (
    CERTIFICATE_DAYS,
    Issued,
    Names,
    issue,
    make_authority,
    make_local_client,
    names_of,
)
from appliance.tls.certificate import (
    Certificate,
    check_authorities,
    day,
    described,
    read_pem,
)
from appliance.tls.files import TlsFiles, read
from appliance.tls.imported import imported
from installer.addresses import own_addresses, own_name

WARN_DAYS = 30
"""So long before it expires `appliance status` begins to say so."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The certificate in force and what goes with it."""

    certificate: Certificate
    days_left: int
    own_authority: bool
    """Whether this node made it, and can renew it."""
    ca_file: str
    """What applications trust."""
    client_authorities: tuple[str, ...]
    """Subjects of those whose certificates callers may show."""

    @property
    def remark(self) -> str:
        """What the operator should do about it; empty if nothing."""
        command = "`appliance tls renew`" if self.own_authority else "`appliance tls import`"
        if self.days_left < 0:
            return f"the certificate has EXPIRED, applications refuse it: {command}"
        if self.days_left < WARN_DAYS:
            return f"the certificate expires in {self.days_left} days: {command}"
        return ""


def shown(config: Config) -> Shown:
    """What the node has. Raises NotFoundError without a certificate."""
    files = TlsFiles.of(config.layout)
    if not files.there:
        raise NotFoundError(
            "the endpoint has no certificate",
            hint="make one with `appliance tls create`, or import one with `appliance tls import`",
            code="tls_certificate_missing",
        )
    chain = read_pem(read(files.node_crt, what="certificate"), name=files.node_crt.name)
    found = described(chain[0])
    clients: tuple[str, ...] = ()
    if files.clients_crt.exists():
        trusted = read_pem(read(files.clients_crt, what="authority"), name=files.clients_crt.name)
        clients = tuple(one.subject.rfc4514_string() for one in trusted)
    return Shown(
        certificate=found,
        days_left=found.days_left(time.time()),
        own_authority=_has_authority(files),
        ca_file=str(files.ca_crt),
        client_authorities=clients,
    )


def create(
    config: Config,
    names: Sequence[str] = (),
    addresses: Sequence[str] = (),
    *,
    days: int = CERTIFICATE_DAYS,
    replace: bool = False,
) -> Shown:
    """Make an authority and a certificate; without names, for those that the machine has.

    Raises ConflictError if there is a certificate and not `replace`, UsageError.
    """
    files = TlsFiles.of(config.layout)
    if files.there and not replace:
        raise ConflictError(
            "the endpoint has a certificate already, and applications trust it",
            hint="`appliance tls renew` keeps that so; --replace makes another authority, which "
            "applications have to be told",
        )
    wanted = _wanted(config, names, addresses)
    authority = make_authority(wanted)
    issued = issue(authority, wanted, days=days)
    _record(config, "tls.create", described(issued.certificate))
    files.put_secret(files.ca_key, authority.key_pem)
    _put_issued(config, issued, authority)
    return shown(config)


def renew(config: Config, *, days: int = CERTIFICATE_DAYS) -> Shown:
    """Another certificate for the same names by the same authority, with a new key.

    Raises NotFoundError, ConflictError if another authority made it, SignatureError.
    """
    files = TlsFiles.of(config.layout)
    before = shown(config)
    if not before.own_authority:
        raise ConflictError(
            "another authority made the endpoint's certificate",
            hint="have it issued again and import it with `appliance tls import`",
        )
    authority = Issued.parse(
        read(files.ca_key, what="authority's key"), read(files.ca_crt, what="authority")
    )
    left = described(authority.certificate).days_left(time.time())
    if left < 1:
        raise ConflictError(
            "the node's authority has expired",
            hint="`appliance tls create --replace` makes another, which applications have to "
            "be told",
        )
    names = Names(before.certificate.names, before.certificate.addresses)
    issued = issue(authority, names, days=min(days, left))
    _record(config, "tls.renew", described(issued.certificate))
    _put_issued(config, issued, authority)
    return shown(config)


def bring(
    config: Config, certificate: Path, key: Path, ca_file: Path, *, names: Sequence[str] = ()
) -> tuple[Shown, tuple[str, ...]]:
    """Take a certificate of the organisation's authority; with remarks on it.

    `names` are those that it must be good for, besides the address that is listened on.
    Raises NotFoundError, VerificationError.
    """
    found = imported(
        read(certificate, what="certificate"),
        read(key, what="key"),
        read(ca_file, what="authority"),
        time.time(),
        wanted=[str(_address(name)) for name in names],
    )
    files = TlsFiles.of(config.layout)
    _record(config, "tls.import", found.certificate)
    _put(config, key=found.key_pem, chain=found.chain_pem, ca=found.ca_pem)
    # The key of an authority that nobody trusts any more is of use to thieves alone.
    files.ca_key.unlink(missing_ok=True)
    return shown(config), found.remarks


def trust(config: Config, ca_file: Path) -> list[Certificate]:
    """Let callers show certificates of these authorities. Raises VerificationError."""
    files = TlsFiles.of(config.layout)
    certificates = read_pem(read(ca_file, what="authority"), name=ca_file.name)
    check_authorities(certificates, time.time(), name=ca_file.name)
    authorities = [described(one) for one in certificates]
    admin_event(
        config.layout,
        config.audit,
        "tls.trust",
        target=", ".join(one.subject for one in authorities),
        digest=authorities[0].sha256,
    )
    _put_local(config)
    with acting_as_owner(config.layout.tls):
        files.put_clients(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
    return authorities


def ensure(config: Config) -> None:
    """Make a certificate if the settings need one and there is none."""
    if config.api.tls and not TlsFiles.of(config.layout).there:
        create(config)


def _wanted(config: Config, names: Sequence[str], addresses: Sequence[str]) -> Names:
    """What was asked for, else what the machine is called; and where it listens."""
    if not names and not addresses:
        name = own_name()
        names = [name] if _is_name(name) else []
        addresses = own_addresses()
    listening = ip_address(config.api.listen_host)
    if not (listening.is_unspecified or listening.is_loopback):
        addresses = [*addresses, str(listening)]
    return names_of(names, addresses)


def _is_name(name: str) -> bool:
    try:
        names_of([name], [])
    except UsageError:
        return False
    return True


def _address(name: str) -> str:
    """`name`, or an address in the form that certificates are read in."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()


def _has_authority(files: TlsFiles) -> bool:
    """Root knows by the key; everybody else by who signed."""
    try:
        return files.ca_key.exists()
    except PermissionError:
        return False


def _record(config: Config, action: str, certificate: Certificate) -> None:
    """Before it is made, as every change (docs/decisions/0066)."""
    files = TlsFiles.of(config.layout)
    admin_event(
        config.layout,
        config.audit,
        action,
        target=", ".join((*certificate.names, *certificate.addresses)),
        version=f"until {day(certificate.not_after)}",
        digest=certificate.sha256,
        previous=shown(config).certificate.sha256 if files.there else "",
    )


def _put_issued(config: Config, issued: Issued, authority: Issued) -> None:
    by_name = issued.by_name_pem
    _put(config, key=issued.key_pem, chain=issued.pem, ca=authority.pem, by_name=by_name)


def _put(config: Config, *, key: bytes, chain: bytes, ca: bytes, by_name: bytes = b"") -> None:
    make_dirs(config.layout.tls, mode=0o755)
    _put_local(config)
    with acting_as_owner(config.layout.tls):
        files = TlsFiles.of(config.layout)
        files.put(key_pem=key, chain_pem=chain, ca_pem=ca, by_name_pem=by_name)


def _put_local(config: Config) -> None:
    """A certificate for the node's own commands, if there is none."""
    files = TlsFiles.of(config.layout)
    if files.local_pem.exists() and files.local_crt.exists():
        return
    local = make_local_client()
    files.put_secret(files.local_pem, local.key_pem + local.pem)
    with acting_as_owner(config.layout.tls):
        files.put_local(local.pem)
