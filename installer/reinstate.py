"""A release that is on the node takes over: it makes what its models need, starts, proves itself.

`python -I -m installer.reinstate ROOT RELEASE --models N` is run by that release's interpreter
for `installer.rollback`, which holds the node's lock and puts things right if this fails: so this
undoes nothing. Each release knows best how a node of its kind is set up. Standard output is one
JSON document on one line: what serves, or the error. Its arguments and that document are spoken
between releases: add to them, change nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.access import check_readable
from appliance.config import Config, load_config
from appliance.errors import ApplianceError, ConflictError
from appliance.model_store import Generation, ModelStore
from appliance.model_store.blobs import storage_errors
from installer import tls
from installer.cli.output import err, error_document
from installer.models import Models
from installer.node import Node, node_at
from installer.progress import NoProgress, Progress, TerminalProgress
from installer.proof import Proof, prove
from installer.staging import InstalledRelease


@dataclass(frozen=True, slots=True)
class Reinstated:
    """What serves now. `models`: name -> version."""

    models: dict[str, str]
    generation: int
    proof: Proof


def reinstate(
    config: Config,
    node: Node,
    progress: Progress,
    release: InstalledRelease,
    generations: Sequence[int],
) -> Reinstated:
    """Let `release` serve the first of `generations` that it can, and prove it.

    The caller holds the node's lock. Raises what reading, compiling, starting and asking raise.
    """
    layout = config.layout
    check_readable(layout.keys_db)  # first: what serves would be stopped for nothing
    with storage_errors(layout.state):
        tls.ensure(config)
        models = Models(config, node, progress, python=release.python)
        serve_first_possible(models, generations, progress)
        models.settle()
        node.deploy(release)
        with node.running(progress):
            models.tell_engine()
            progress.step("asking for one completion as a proof")
            active = models.store.active()
            proof = prove(config, list(active.values()))
        versions = {name: bundle.version for name, bundle in active.items()}
        return Reinstated(versions, models.store.current_generation().number, proof)


def serve_first_possible(models: Models, generations: Sequence[int], progress: Progress) -> None:
    """Make the first of `generations` active whose bundles can be read and compiled.

    Raises what the last one raises.
    """
    for number in generations[:-1]:
        try:
            _choose(models, number)
        except ApplianceError as error:
            progress.note(f"it cannot serve the active models: {error.message}")
            progress.step("going back to the models that it served before")
        else:
            return
    _choose(models, generations[-1])


def _choose(models: Models, number: int) -> None:
    if number != models.store.current_generation().number:
        models.store.go_back_to(_generation(models.store, number))
    models.compile([])


def _generation(store: ModelStore, number: int) -> Generation:
    for generation in store.generations():
        if generation.number == number:
            return generation
    raise ConflictError(
        f"the models of generation {number} are not on this node any more",
        hint="`appliance models activate NAME VERSION` chooses models directly",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run by the release that is to take over."""
    parser = argparse.ArgumentParser(prog="appliance releases rollback")
    parser.add_argument("root", type=Path)
    parser.add_argument("release")
    parser.add_argument("--models", type=int, action="append", required=True)
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    progress = NoProgress() if options.quiet else TerminalProgress(err)
    try:
        config = load_config(options.root)
        release = InstalledRelease(config.layout.releases / options.release)
        node = node_at(config.layout)
        done = reinstate(config, node, progress, release, options.models)
    except ApplianceError as error:
        _answer({"error": error_document(error)})
        return error.exit_status
    _answer(asdict(done))
    return 0


def _answer(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
