"""The record of a compiled artifact: what was compiled, where, and every resulting byte.

Owns the document's form. Signed by the node key (DSSE), so that an artifact that this node did
not make, or that changed since, never loads.
"""

from __future__ import annotations

import msgspec

from appliance.bundle.manifest import FileEntry
from appliance.errors import LayoutError
from appliance.trust.node_key import NodeKey, NodePublicKey

NAME = "record.json"
PAYLOAD_TYPE = "application/vnd.appliance.artifact+json"
MAX_BYTES = 1024 * 1024


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the node vouches for.

    Attributes:
        bundle: digest of the bundle that was compiled.
        key: the artifact's key, which is its directory's name.
        fingerprint: of the machine and runtime it was compiled on.
        files: every file but the record, sorted by path.
        created: Unix seconds.
    """

    bundle: str
    key: str
    fingerprint: dict[str, str]
    files: tuple[FileEntry, ...]
    created: int


def sign(record: Record, node_key: NodeKey) -> bytes:
    """The bytes of a `record.json`."""
    return node_key.sign(msgspec.json.encode(record, order="sorted"), PAYLOAD_TYPE)


def verify(data: bytes, node: NodePublicKey, *, path: str) -> Record:
    """The record that the node signed. Raises SignatureError, LayoutError."""
    payload = node.verify(data, PAYLOAD_TYPE, path=path)
    try:
        return msgspec.json.decode(payload, type=Record)
    except msgspec.DecodeError as error:
        raise LayoutError(
            f"{path} is not an artifact record: {error}",
            path=path,
            hint="another release of the appliance wrote it: compile the model again",
        ) from None
