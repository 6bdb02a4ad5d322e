"""The node's own endpoint, as its commands reach it: in clear, or by TLS and its certificate."""

from __future__ import annotations

import http.client
import ssl

from appliance.config import Config
from appliance.tls.contexts import local_context
from appliance.tls.files import TlsFiles


def local_tls(config: Config) -> ssl.SSLContext | None:
    """How to call it; None in clear. Raises NotFoundError, VerificationError."""
    if not config.api.tls:
        return None
    files = TlsFiles.of(config.layout)
    return local_context(files, client_certificates=config.api.client_certificates)


def connection(config: Config, seconds: float) -> http.client.HTTPConnection:
    """A connection that is not open yet. `http.client` knows nothing of proxies: the point."""
    api, context = config.api, local_tls(config)
    if context is None:
        return http.client.HTTPConnection(api.local_host, api.listen_port, timeout=seconds)
    return http.client.HTTPSConnection(
        api.local_host, api.listen_port, timeout=seconds, context=context
    )
