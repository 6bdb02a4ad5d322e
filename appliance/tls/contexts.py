"""What TLS is here: version 1.3, full handshakes, and for the node's own commands one certificate.

Owns the settings of both ends. Refuses older versions, and resumption: a session that is taken up
again would not be checked against certificates that changed or expired since. The node's own
commands trust exactly the certificate that lies beside them, whoever issued it and for whatever
name; applications check names and authorities as always.
"""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.errors import ApplianceError, NotFoundError, VerificationError
from appliance.tls.certificate import Certificate, described, read_pem
from appliance.tls.chains import Chains
from appliance.tls.files import TlsFiles, read

_log = logging.getLogger(__name__)


def server_context(
    files: TlsFiles, *, client_certificates: bool
) -> tuple[ssl.SSLContext, Certificate]:
    """How the endpoint answers, and its certificate.

    Raises NotFoundError, VerificationError (`tls_files_invalid`).
    """
    if not files.node_pem.exists():
        raise NotFoundError(
            "the endpoint has no certificate",
            hint="make one with `appliance tls create`, or import one with `appliance tls import`",
            code="tls_certificate_missing",
        )
    context, named = _answering(), _answering()
    try:
        chains = Chains.parse(files.node_pem.read_bytes(), name=files.node_pem.name)
        chains.load(context)
        chains.load_by_name(context, named)
        if client_certificates:
            # A connection takes its authorities from the context that it ends with.
            _require_clients(context, files)
            _require_clients(named, files)
    except (OSError, ValueError, VerificationError) as error:
        reason = error.message if isinstance(error, VerificationError) else error
        raise VerificationError(
            f"the endpoint's certificate cannot be used: {reason}",
            path=files.node_pem.name,
            hint="renew it with `appliance tls renew`, or import it again",
            code="tls_files_invalid",
        ) from error
    return context, described(chains.chain[0])


def _answering() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    return context


def local_context(files: TlsFiles, *, client_certificates: bool) -> ssl.SSLContext:
    """How this node's own commands call. Raises NotFoundError, VerificationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    # The certificate itself is the anchor: nobody else can answer, and no name is needed.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        leaf = read_pem(read(files.node_crt, what="certificate"), name=files.node_crt.name)[0]
        context.load_verify_locations(cadata=_der(leaf))
        if client_certificates and files.local_pem.exists():
            context.load_cert_chain(files.local_pem)
    except PermissionError:
        # Without the right to read it the handshake says what is missing.
        pass
    except NotFoundError:
        raise NotFoundError(
            "the endpoint has no certificate",
            hint="make one with `appliance tls create`",
            code="tls_certificate_missing",
        ) from None
    except (OSError, ValueError) as error:
        raise VerificationError(
            f"the certificate of the endpoint cannot be used: {error}", path=files.node_crt.name
        ) from error
    return context


class ServerContexts:
    """The context in force: another one as soon as the files are others. For one thread."""

    def __init__(self, files: TlsFiles, *, client_certificates: bool) -> None:
        """Raises NotFoundError, VerificationError."""
        self._files = files
        self._client_certificates = client_certificates
        self._paths: list[Path] = [files.node_pem, files.clients_crt, files.local_crt]
        self._mark = files.mark(self._paths)
        self.context, self.certificate = self._load()
        self._warn()

    def in_force(self) -> ssl.SSLContext:
        """For the next connection; those that are open keep theirs.

        What cannot be used does not take over: that is logged, and the one before stays.
        """
        mark = self._files.mark(self._paths)
        if mark != self._mark:
            self._mark = mark
            try:
                self.context, self.certificate = self._load()
            except ApplianceError as error:
                _log.error("%s; the one before stays in force", error.message)
            else:
                _log.info("the endpoint's certificate is now %s", self.certificate.sha256)
                self._warn()
        return self.context

    def _load(self) -> tuple[ssl.SSLContext, Certificate]:
        return server_context(self._files, client_certificates=self._client_certificates)

    def _warn(self) -> None:
        days = self.certificate.days_left(time.time())
        if days < 0:
            _log.error("the endpoint's certificate has expired: applications refuse it")


def _require_clients(context: ssl.SSLContext, files: TlsFiles) -> None:
    if not files.clients_crt.exists():
        raise NotFoundError(
            "callers have to show a certificate, and no authority for these was given",
            hint="give it with `appliance tls trust CA_FILE`, "
            "or set api.client_certificates = false",
            code="client_authority_missing",
        )
    context.verify_mode = ssl.CERT_REQUIRED
    # Of an authority below another it is enough to have its own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(files.clients_crt)
    if files.local_crt.exists():
        context.load_verify_locations(files.local_crt)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
