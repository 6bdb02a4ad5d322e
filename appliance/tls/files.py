"""Where the endpoint's certificate is, and who may read it.

    tls/                    the endpoint's user; everybody may read what is not a key
      node.pem              private key and chain in one file, so that they change together, and
                            behind them the certificate for host names alone, if there is one;
                            read by the endpoint's user alone
      node.crt              the chain, for everybody
      ca.crt                what applications trust
      clients.crt           authorities whose certificates callers may show; absent until given
      local.crt             the certificate of this node's own commands
    node/                   root
      tls-ca.key            key of the node's own authority; absent if the certificate came from
                            another one
      tls-local.pem         key and certificate of this node's own commands

Owns the names, the modes and the order of writing: what trusts comes before what is trusted.
Refuses to know why they change; a change is recorded by whoever makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config import Layout
from appliance.errors import NotFoundError, StorageError
from appliance.fsops import make_dirs, write_durable

_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The paths of one node."""

    public: Path
    secret: Path

    @classmethod
    def of(cls, layout: Layout) -> TlsFiles:
        return cls(layout.tls, layout.node)

    @property
    def node_pem(self) -> Path:
        return self.public / "node.pem"

    @property
    def node_crt(self) -> Path:
        return self.public / "node.crt"

    @property
    def ca_crt(self) -> Path:
        return self.public / "ca.crt"

    @property
    def clients_crt(self) -> Path:
        return self.public / "clients.crt"

    @property
    def local_crt(self) -> Path:
        return self.public / "local.crt"

    @property
    def ca_key(self) -> Path:
        return self.secret / "tls-ca.key"

    @property
    def local_pem(self) -> Path:
        return self.secret / "tls-local.pem"

    @property
    def there(self) -> bool:
        """Whether the node has a certificate."""
        return self.node_crt.exists()

    def put(
        self, *, key_pem: bytes, chain_pem: bytes, ca_pem: bytes, by_name_pem: bytes = b""
    ) -> None:
        """Make this the node's certificate, for connections from now on. Raises StorageError."""
        with_key = key_pem.rstrip() + b"\n" + chain_pem + by_name_pem
        self._write(self.ca_crt, ca_pem, 0o644)
        self._write(self.node_crt, chain_pem, 0o644)
        self._write(self.node_pem, with_key, 0o600)

    def put_clients(self, ca_pem: bytes) -> None:
        """Make these the authorities of callers. Raises StorageError."""
        self._write(self.clients_crt, ca_pem, 0o644)

    def put_local(self, pem: bytes) -> None:
        """Let the node's own commands show this certificate. Raises StorageError."""
        self._write(self.local_crt, pem, 0o644)

    def put_secret(self, path: Path, data: bytes) -> None:
        """Write one of the files that belong to root. Raises StorageError."""
        self._write(path, data, 0o600)

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        try:
            make_dirs(path.parent, mode=0o755)
            write_durable(path, data, mode=mode)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written: {error.strerror}", hint="run the command as root"
            ) from error

    def mark(self, paths: Sequence[Path]) -> tuple[tuple[int, int, int], ...]:
        """Changes whenever one of the files does; a name's new file has a new inode or time."""
        return tuple(_mark(path) for path in paths)


def read(path: Path, *, what: str) -> bytes:
    """The bytes of `path`. Raises NotFoundError, StorageError."""
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no {what} at {path}", hint="name a file that is there"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror}", hint="run the command as root"
        ) from error


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
