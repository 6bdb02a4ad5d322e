"""Where everything of a node lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

VENV, GPU_VENV = "venv", "venv-cuda13"
"""A release's virtual environments: for the processor, and on a node with a GPU one for that."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Every path of a node, below `root` ("/" for a system install, a prefix otherwise)."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "etc/appliance/appliance.toml"

    @property
    def releases(self) -> Path:
        return self.root / "opt/appliance/releases"

    @property
    def current_release(self) -> Path:
        return self.root / "opt/appliance/current"

    @property
    def command(self) -> Path:
        return self.current_release / "venv/bin/appliance"

    @property
    def python(self) -> Path:
        return self.current_release / VENV / "bin/python"

    @property
    def gpu_python(self) -> Path:
        """The interpreter with the GPU's runtime; absent where the media brought none."""
        return gpu_python(self.python)

    @property
    def state(self) -> Path:
        return self.root / "var/lib/appliance"

    @property
    def trust(self) -> Path:
        """TUF state: the last verified metadata of each role."""
        return self.state / "trust"

    @property
    def node(self) -> Path:
        """The node's own signing key and identity; readable by root alone."""
        return self.state / "node"

    @property
    def models(self) -> Path:
        """The model store: blobs, bundles, generations."""
        return self.state / "models"

    @property
    def artifacts(self) -> Path:
        """Compiled artifacts, one directory each, with their signed records."""
        return self.state / "artifacts"

    @property
    def engine_environment(self) -> Path:
        """Names the virtual environment that the artifacts are for: `appliance.interpreter`."""
        return self.artifacts / ".environment"

    @property
    def docs(self) -> Path:
        return self.state / "docs"

    @property
    def audit(self) -> Path:
        """The audit log: segments, tiles, checkpoints. What an auditor copies."""
        return self.state / "audit"

    @property
    def audit_key(self) -> Path:
        """The audit signer's private key; outside `audit`, so a copy of the log holds no secret."""
        return self.state / "audit-key"

    @property
    def audit_content(self) -> Path:
        """Content sealed to the auditor's key, outside the log: it may be erased."""
        return self.state / "audit-content"

    @property
    def access(self) -> Path:
        """Directory of the API keys' database."""
        return self.state / "access"

    @property
    def keys_db(self) -> Path:
        return self.access / "keys.db"

    @property
    def metering(self) -> Path:
        return self.state / "metering"

    @property
    def usage_db(self) -> Path:
        return self.metering / "usage.db"

    @property
    def prices_db(self) -> Path:
        return self.metering / "prices.db"

    @property
    def bench(self) -> Path:
        """Reports of `appliance bench`; made by the first run that may write here."""
        return self.state / "bench"

    @property
    def responses(self) -> Path:
        """Directory of what callers asked to keep, responses and files: content at rest."""
        return self.state / "responses"

    @property
    def responses_db(self) -> Path:
        return self.responses / "responses.db"

    @property
    def files_db(self) -> Path:
        """Files and batches, beside the responses: content at rest too."""
        return self.responses / "files.db"

    @property
    def tls(self) -> Path:
        """What the endpoint shows and trusts in TLS: `appliance.tls.files`."""
        return self.state / "tls"

    @property
    def install_state(self) -> Path:
        return self.state / "install"

    @property
    def run(self) -> Path:
        return self.root / "run/appliance"

    @property
    def engine_socket(self) -> Path:
        return self.run / "engine.sock"


def gpu_python(python: Path) -> Path:
    """The interpreter with the GPU's runtime of the release that `python` belongs to."""
    return python.parent.parent.parent / GPU_VENV / "bin/python"
