"""What has to follow when the settings of the endpoint change: certificate, unit, restart.

Refuses to stop an endpoint that serves for one that could not start.
"""

from __future__ import annotations

from appliance.config import Config
from appliance.errors import PreflightError
from appliance.tls.contexts import server_context
from appliance.tls.files import TlsFiles
from installer import tls
from installer.install import installing
from installer.node import Node
from installer.preflight import listening_blockers
from installer.progress import Progress


def apply_settings(config: Config, node: Node, progress: Progress) -> None:
    """Check them, make what they need, and let the endpoint start with them.

    Raises NotFoundError if nothing is installed here, PreflightError, VerificationError, and
    UnavailableError if it does not start.
    """
    with installing(config.layout, progress):
        blockers = list(listening_blockers(config))
        if blockers:
            raise PreflightError(blockers)
        tls.ensure(config)
        if config.api.tls:
            check_files(config)
        node.configure_endpoint(config.api, progress)


def check_files(config: Config) -> None:
    """Raise what the endpoint would raise at its start."""
    api = config.api
    server_context(TlsFiles.of(config.layout), client_certificates=api.client_certificates)
