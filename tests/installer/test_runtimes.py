"""A change of models that needs the node's other runtime lets the engine start with that.

The GPU computes with the processor's provider (tests/fakes/gpu.py); store, ladder, compiler and
the word that the engine reads are the real ones.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from appliance.audit import create_signer
from appliance.bundle import manifest as manifests
from appliance.bundle.files import MANIFEST_NAME, SIGNATURE_NAME
from appliance.bundle.specs import FileEntry
from appliance.bundle.verify import VerifiedBundle
from appliance.config import Config, Layout
from appliance.fsops import hash_regular, walk_files
from appliance.interpreter import engine_python
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from installer.models import Models
from installer.progress import NoProgress
from tests.conftest import BuildOnce
from tests.fakes.checkpoints import write_bert, write_qwen3
from tests.fakes.gpu import H100, machine_with, with_driver, write_release
from tests.fakes.node import FakeNode
from tests.model_store.bundles import SIGNER


class Site:
    """A node whose release has programs for a GPU."""

    def __init__(self, directory: Path, bundles: Path) -> None:
        self.node = FakeNode(Layout(directory / "node"))
        self.node.prepare()
        self.layout = self.node.layout
        self.release = self.layout.releases / "1-a"
        self.python = write_release(self.release, machine_with())
        create_signer(self.layout.audit_key, "test")
        NodeKey.create(self.layout.node)
        self._bundles = bundles

    def models(self) -> Models:
        """As one command has them."""
        return Models(Config(self.layout), self.node, NoProgress(), python=self.python)

    def serve(self, name: str) -> None:
        """What `appliance models add` and `activate` do."""
        models = self.models()
        (bundle,) = models.add([verified(self._bundles / name)])
        models.activate(bundle.name, bundle.version)
        models.serve_active()

    @property
    def environment(self) -> str:
        """What the engine would run with."""
        return engine_python(self.layout, self.python).parent.parent.name


def verified(directory: Path) -> VerifiedBundle:
    """A bundle as its verification would return it; a signature is not the point here."""
    data = (directory / MANIFEST_NAME).read_bytes()
    entries = []
    for path in walk_files(directory):
        size, sha256 = hash_regular(directory / path, name=path)
        entries.append(FileEntry(path=path, size=size, sha256=sha256))
    manifest = manifests.decode(data)
    return VerifiedBundle(directory, manifest, manifests.digest(data), tuple(entries), SIGNER)


@pytest.fixture(scope="session")
def bundles(build_once: BuildOnce) -> Path:
    def build(directory: Path) -> None:
        chat = write_qwen3(directory / "chat-checkpoint", tied=False)
        build_bundle(chat, directory / "chat", name="chat", version="1", signer=None)
        bert = write_bert(directory / "bert-checkpoint")
        build_bundle(bert, directory / "bert", name="bert", version="1", signer=None)
        shutil.copytree(directory / "bert", directory / "new-bert")
        # The one of an older release has no graph for a GPU.
        manifest = manifests.decode((directory / "bert" / MANIFEST_NAME).read_bytes())
        old = msgspec.structs.replace(manifest, graphs=manifest.graphs[:1])
        (directory / "bert" / MANIFEST_NAME).write_bytes(manifests.encode(old))
        for name in ("chat", "bert", "new-bert"):
            (directory / name / SIGNATURE_NAME).write_text("signature")

    return build_once("runtime-bundles", build)


@pytest.fixture
def site(tmp_path: Path, bundles: Path) -> Site:
    return Site(tmp_path, bundles)


def test_the_first_model_for_the_gpu_starts_the_engine_with_its_runtime(site: Site) -> None:
    site.serve("bert")
    assert (site.environment, site.node.engine_restarts) == ("venv", 0)
    site.serve("chat")
    assert (site.environment, site.node.engine_restarts) == ("venv-cuda13", 1)
    site.models().serve_active()
    assert site.node.engine_restarts == 1, "nothing changed"


def test_an_embedder_is_enough_for_the_gpus_runtime(site: Site) -> None:
    site.serve("new-bert")
    assert (site.environment, site.node.engine_restarts) == ("venv-cuda13", 1)


def test_when_the_last_model_for_the_gpu_goes_the_processors_runtime_is_back(site: Site) -> None:
    site.serve("bert")
    site.serve("chat")
    site.models().remove("chat", "1", even_active=True)
    assert (site.environment, site.node.engine_restarts) == ("venv", 2)


def test_adding_alone_changes_nothing_that_runs(site: Site, bundles: Path) -> None:
    site.serve("bert")
    site.models().add([verified(bundles / "chat")])
    assert (site.environment, site.node.engine_restarts) == ("venv", 0)


def test_a_gpu_that_can_no_longer_be_used_is_left_at_the_next_settling(site: Site) -> None:
    site.serve("chat")
    assert site.environment == "venv-cuda13"
    write_release(site.release, machine_with(replace(H100, driver="550.54", cuda=(12, 4))))
    assert site.models().settle()
    assert site.environment == "venv"
    write_release(site.release, machine_with())
    assert site.models().settle()
    shutil.rmtree(site.release / "venv-cuda13")
    assert site.environment == "venv"
    assert site.models().settle()
    assert not site.models().settle()


def test_after_a_new_driver_what_is_active_is_compiled_again_and_only_once(site: Site) -> None:
    site.serve("bert")
    site.serve("chat")
    before = artifacts(site.layout)
    write_release(site.release, machine_with(with_driver(H100, "590.44.01")))
    assert not site.models().recompile(), "the engine does not run"
    after = artifacts(site.layout)
    assert len(after - before) == 2
    assert site.environment == "venv-cuda13"
    site.models().recompile()
    assert artifacts(site.layout) == after


def artifacts(layout: Layout) -> set[str]:
    return {path.name for path in layout.artifacts.iterdir() if path.is_dir()}
