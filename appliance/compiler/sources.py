"""What of a bundle is compiled: its graphs and weight files, every byte checked.

Refuses bytes that are not the manifest's, and graphs that are not allowed, before the runtime
sees them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import Adapted, FileEntry
from appliance.compiler.artifact import (
    ADAPTED_NAME,
    ADAPTED_PREFILL_NAME,
    GRAPH_NAME,
    PREFILL_NAME,
)
from appliance.compiler.graph_check import MAX_GRAPH_BYTES, check_graph
from appliance.errors import DigestError
from appliance.fsops import hash_regular, read_regular, resolve_inside

_HASHERS = 4
"""Files that are hashed at once; more would only make a disk seek."""


def compiled_graphs(manifest: Manifest) -> dict[str, str]:
    """Path in the bundle of each graph for the CPU -> its name in the artifact.

    The first has the weights.
    """
    graph = manifest.graph
    names = {graph.path: GRAPH_NAME}
    if isinstance(graph.prefill, str):
        names[graph.prefill] = PREFILL_NAME
    return names | adapted_graphs(manifest)


def plain_graphs(manifest: Manifest) -> list[str]:
    """Paths of the graphs for the CPU that compute the model alone; the last is for prompts."""
    adapted = adapted_graphs(manifest)
    return [path for path in compiled_graphs(manifest) if path not in adapted]


def adapted_graphs(manifest: Manifest) -> dict[str, str]:
    """The same of the graphs for the CPU that have room for adapters; the last is for prompts."""
    adapted = manifest.graph.adapted
    if not isinstance(adapted, Adapted):
        return {}
    names = {adapted.path: ADAPTED_NAME}
    if isinstance(adapted.prefill, str):
        names[adapted.prefill] = ADAPTED_PREFILL_NAME
    return names


def weight_files(manifest: Manifest, folder: str | None = None) -> dict[str, FileEntry]:
    """Name -> entry of the weight files in `folder`, the one of the graphs for the CPU if None."""
    parent = PurePosixPath(manifest.graph.weights_folder if folder is None else folder)
    graphs = compiled_graphs(manifest)
    return {
        PurePosixPath(entry.path).name: entry
        for entry in manifest.files
        if PurePosixPath(entry.path).parent == parent
        and entry.path not in graphs
        and not entry.path.endswith(".onnx")
    }


def verified_weights(
    bundle_dir: Path, manifest: Manifest, folder: str | None = None
) -> dict[str, int]:
    """Name -> size of the weight files in `folder`; all hashed now. Raises DigestError."""
    files = weight_files(manifest, folder)

    def check(entry: FileEntry) -> None:
        path = resolve_inside(bundle_dir, entry.path)
        if hash_regular(path, name=entry.path) != (entry.size, entry.sha256):
            raise _altered(entry)

    with ThreadPoolExecutor(min(_HASHERS, os.cpu_count() or 1)) as pool:
        list(pool.map(check, files.values()))
    return {name: entry.size for name, entry in files.items()}


def verified_graph(
    bundle_dir: Path, manifest: Manifest, path: str, weights: Mapping[str, int]
) -> bytes:
    """The bytes of a graph over `weights` (name -> size), which are the manifest's and allowed.

    Raises DigestError, VerificationError.
    """
    entry = next(entry for entry in manifest.files if entry.path == path)
    graph = read_regular(resolve_inside(bundle_dir, path), limit=MAX_GRAPH_BYTES, name=path)
    if (len(graph), hashlib.sha256(graph).hexdigest()) != (entry.size, entry.sha256):
        raise _altered(entry)
    check_graph(graph, weights, path=path)
    return graph


def _altered(entry: FileEntry) -> DigestError:
    return DigestError(
        f"{entry.path} is not the file that was signed",
        path=entry.path,
        hint="the disk may be failing: remove the model and add it again from the media",
    )
