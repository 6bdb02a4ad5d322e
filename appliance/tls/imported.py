"""A certificate from the organisation's own authority, tried before it is taken.

Owns the checks: key and certificate belong together, everything is strong enough and in its time,
and one handshake in memory for each name, with the very settings of the endpoint, in which a client
that trusts the given authorities decides. Refuses what that client refuses.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.errors import VerificationError
from appliance.tls.certificate import (
    Certificate,
    check_authorities,
    check_dates,
    check_strength,
    described,
    read_pem,
)
from appliance.tls.chains import load_chain

_MOST_STEPS = 16


@dataclass(frozen=True, slots=True)
class Imported:
    """What may become the node's certificate."""

    certificate: Certificate
    key_pem: bytes
    chain_pem: bytes
    ca_pem: bytes
    remarks: tuple[str, ...]
    """What is good enough here, and some clients mind."""


def imported(
    certificate_pem: bytes, key_pem: bytes, ca_pem: bytes, now: float, *, wanted: Sequence[str] = ()
) -> Imported:
    """Check a certificate (and those between it and the authority), its key and the authorities.

    `wanted` are names and addresses that it must be good for. Raises VerificationError.
    """
    chain = read_pem(certificate_pem, name="the certificate file")
    roots = read_pem(ca_pem, name="the authority's file")
    key = _plain_key(key_pem)
    leaf = chain[0]
    found = described(leaf)
    for one in chain:
        name = one.subject.rfc4514_string() or "the certificate"
        check_strength(one, name=name)
        check_dates(one, now, name=name)
    check_authorities(roots, now, name="the authority's file")
    check_authorities(chain[1:], now, name="the certificate file")
    _check_pair(leaf, key)
    if not (found.names or found.addresses):
        raise _refused("it names no host and no address", "have it issued with alternative names")
    missing = [name for name in wanted if name not in (*found.names, *found.addresses)]
    if missing:
        raise _refused(f"it is not for {', '.join(missing)}", "have it issued for these names too")
    chain_pem = b"".join(one.public_bytes(Encoding.PEM) for one in chain)
    roots_pem = b"".join(one.public_bytes(Encoding.PEM) for one in roots)
    hosts = [name for name in found.names if not name.startswith("*")] + [*found.addresses]
    for host in hosts or [found.names[0].replace("*", "host")]:
        _shake_hands(key, chain_pem, roots_pem, host, strict=False)
    return Imported(found, key, chain_pem, roots_pem, _remarks(key, chain_pem, roots_pem, hosts))


def _plain_key(key_pem: bytes) -> bytes:
    try:
        key = load_pem_private_key(key_pem, password=None)
    except TypeError:
        raise _refused(
            "its key is encrypted", "decrypt it for the import, with `openssl pkey -in …`"
        ) from None
    except ValueError as error:
        raise _refused(f"its key cannot be read: {error}", "it must be PEM, PKCS #8") from None
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _check_pair(leaf: x509.Certificate, key_pem: bytes) -> None:
    if load_pem_private_key(key_pem, password=None).public_key() != leaf.public_key():
        raise _refused(
            "the key is another one's",
            "the first certificate of the file must be the node's, and the key its own",
        )


def _remarks(key: bytes, chain: bytes, roots: bytes, hosts: Sequence[str]) -> tuple[str, ...]:
    try:
        for host in hosts[:1]:
            _shake_hands(key, chain, roots, host, strict=True)
    except VerificationError as error:
        return (
            f"clients that check strictly, as Python's from 3.13 on, refuse it: {error.message}",
        )
    return ()


def _shake_hands(key: bytes, chain: bytes, roots: bytes, host: str, *, strict: bool) -> None:
    """One handshake in memory. Raises VerificationError with the client's words."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.minimum_version = client.minimum_version = ssl.TLSVersion.TLSv1_3
    if strict:
        client.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        load_chain(server, key + chain)
        client.load_verify_locations(cadata=roots.decode("ascii"))
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(to_client, to_server, server_hostname=host),
            server.wrap_bio(to_server, to_client, server_side=True),
        )
        for _ in range(_MOST_STEPS):
            done = [_step(end) for end in ends]
            if all(done):
                return
    except (OSError, ValueError) as error:
        said = getattr(error, "verify_message", "") or str(error)
        raise _refused(
            f"a client that calls {host} refuses it: {said}",
            "the file must hold the node's certificate and those between it and --ca-file",
        ) from None
    raise _refused(f"a client that calls {host} comes to no end", "have it issued again")


def _step(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _refused(reason: str, hint: str) -> VerificationError:
    return VerificationError(
        f"the certificate cannot be used: {reason}", hint=hint, code="certificate_invalid"
    )
