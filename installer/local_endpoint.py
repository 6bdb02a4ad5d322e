"""The node's own endpoint, as its commands reach it: in clear, or by TLS and its certificate."""

from __future__ import annotations

import http.client
import ssl

from appliance.config import Config
from appliance.tls.contexts import local_context
from appliance.tls.files import TlsFiles

_SECONDS = 10.0


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


def is_as_set(config: Config) -> bool:
    """Whether the endpoint that runs is where, and speaks as, the settings say now.

    One that is only slow is. Raises NotFoundError, VerificationError.
    """
    calling = connection(config, _SECONDS)
    try:
        calling.request("GET", "/health")
        return calling.getresponse().status != http.client.BAD_REQUEST  # in clear, to one with TLS
    except TimeoutError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        calling.close()
