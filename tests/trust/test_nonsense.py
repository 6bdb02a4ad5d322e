"""Metadata that are properly signed and make no sense are a refusal, never a crash.

A stolen key can sign anything; the parser and the verifier still answer with a typed error.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import MetaFile

from appliance.errors import MetadataError
from appliance.trust.metadata import ROLES, TrustedMetadata
from tests.fakes.repository import NOW, Repository

TRIES = 200
NONSENSE: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**30, "", "x", "é", [], [1], [[]], {}, {"a": 1}),
    *("2027-01-01T00:00:00Z", {"keyids": [], "threshold": 1}, {"keyids": ["x"], "threshold": 1}),
]


@pytest.mark.parametrize("role", ["root", *ROLES])
def test_signed_nonsense_is_a_typed_refusal(role: str, tmp_path: Path) -> None:
    repository = Repository()
    repository.write(tmp_path)
    good = {name: (tmp_path / f"metadata/{name}.json").read_bytes() for name in ROLES}
    good["root"] = repository.roots[1]
    chance = random.Random(f"nonsense {role}")
    refused = 0
    for _ in range(TRIES):
        document = _spoilt(json.loads(good[role]), chance)
        data = _signed(document, repository, role)
        try:
            _feed(good | {role: data}, role)
        except MetadataError as error:
            assert error.path  # noqa: PT017
            refused += 1
    assert refused > TRIES / 2


def _feed(documents: dict[str, bytes], changed: str) -> None:
    """Run the verifier, with whatever pins `changed` pinning the changed bytes."""
    trusted = TrustedMetadata(documents["root"], NOW)
    for role in ROLES:
        if role == changed and role == "snapshot":
            assert trusted.timestamp is not None
            trusted.timestamp.snapshot_meta = _pin(trusted.timestamp.snapshot_meta, documents[role])
        elif role == changed and role != "timestamp":
            assert trusted.snapshot is not None
            meta = trusted.snapshot.meta
            meta[f"{role}.json"] = _pin(meta[f"{role}.json"], documents[role])
        trusted.update(role, documents[role])


def _pin(meta: MetaFile, data: bytes) -> MetaFile:
    return MetaFile.from_data(meta.version, data, ["sha256"])


def _signed(document: dict[str, Any], repository: Repository, role: str) -> bytes:
    try:
        payload = str(encode_canonical(document["signed"])).encode()
        document["signatures"] = [
            {"keyid": signer.public_key.keyid, "sig": signer.sign(payload).signature}
            for signer in repository.signers[role]
        ]
    except (FormatError, KeyError):
        pass  # no canonical form: it cannot be signed at all
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _spoilt(document: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    for _ in range(chance.randint(1, 2)):
        *way, last = chance.choice([place for place in _places(document) if place])
        inner: Any = document
        for step in way:
            inner = inner[step]
        action = chance.random()
        if action < 0.3 and isinstance(inner, dict):
            del inner[last]
        elif action < 0.4 and isinstance(inner, dict):
            inner["extra"] = copy.deepcopy(chance.choice(NONSENSE))
        else:
            inner[last] = copy.deepcopy(chance.choice(NONSENSE))
        if not document:
            break
    return document


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*way, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from _places(value[index], (*way, index))
