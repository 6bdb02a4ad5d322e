"""What the endpoint shows its callers: a key with its chain, and a second certificate by name.

Owns the reading of `node.pem`, and the choice between the two: whoever asks by one of the names of
the second one is shown that (RFC 6066, section 3). Refuses nothing itself; OpenSSL does.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.tls.certificate import described, read_pem

_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Chains:
    """A key, the chain of its certificate, and its certificate for host names alone."""

    key_pem: bytes
    chain: tuple[x509.Certificate, ...]
    by_name: x509.Certificate | None

    @classmethod
    def parse(cls, pem: bytes, *, name: str) -> Chains:
        """Read a `node.pem`. Raises VerificationError if no certificate can be read in it."""
        key_pem = pem.partition(_BEGIN)[0]
        first, *others = read_pem(pem, name=name)
        # Nobody else's certificate, such as an authority's, has the node's key.
        if others and others[-1].public_key() == first.public_key():
            return cls(key_pem, (first, *others[:-1]), others[-1])
        return cls(key_pem, (first, *others), None)

    def load(self, context: ssl.SSLContext) -> None:
        """Have `context` show the chain. Raises OSError or ValueError, as the next one."""
        load_chain(context, self.key_pem + _pem(*self.chain))

    def load_by_name(self, context: ssl.SSLContext, named: ssl.SSLContext) -> None:
        """Have `context` leave callers who ask by name to `named`, which shows the other one."""
        if self.by_name is None:
            return
        load_chain(named, self.key_pem + _pem(self.by_name))
        names = frozenset(described(self.by_name).names)

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket, asked: str | None, _: ssl.SSLContext
        ) -> None:
            if asked is not None and asked.lower() in names:
                connection.context = named

        context.sni_callback = choose


def load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL reads a chain from files only: one that has no name and no place on a disk.

    Raises OSError or ValueError.
    """
    fd = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        # The empty password: an encrypted key is an error, and never a question on a terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    finally:
        os.close(fd)


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
