"""Adapters on a node: only beside their base, which stays as long as they are served."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from appliance.audit import create_signer, read_events
from appliance.audit.event import Admin
from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import Manifest, decode, digest, encode
from appliance.bundle.verify import VerifiedBundle
from appliance.config import Config, Layout
from appliance.errors import ApplianceError, ConflictError
from appliance.model_store import ModelStore
from appliance.trust.model_signer import ModelSigner
from appliance.trust.node_key import NodeKey
from installer.checkpoint import build_bundle
from installer.cli.models import app
from installer.models import Models
from installer.node import PrefixNode
from installer.progress import NoProgress
from tests.conftest import BuildOnce
from tests.fakes.adapter_node import BASE, NAME, build_adapter_node
from tests.fakes.bundles import write_signer
from tests.fakes.gpu import machine_with, write_release

SIGNER = ModelSigner(name="a curator", public_key="never used: verification is behind us")
Open = Callable[[], Models]


@pytest.fixture
def root(build_once: BuildOnce, tmp_path: Path) -> Path:
    """`base` 1.0 with the adapters `all` and `half` is active; `base` 2.0 is there, too."""
    root = tmp_path / "n"
    shutil.copytree(build_once(NAME, build_adapter_node), root, symlinks=True)
    create_signer(Layout(root).audit_key, "test")
    return root


@pytest.fixture
def models(root: Path) -> Models:
    layout = Layout(root)
    node = PrefixNode(layout)
    node.prepare()
    return Models(Config(layout), node, NoProgress())


def code(call: Callable[[], object]) -> str:
    with pytest.raises(ApplianceError) as refusal:
        call()
    assert refusal.value.hint
    return refusal.value.code


def verified(directory: Path) -> VerifiedBundle:
    data = (directory / MANIFEST_NAME).read_bytes()
    manifest: Manifest = decode(data)
    return VerifiedBundle(directory, manifest, digest(data), manifest.files, SIGNER)


def test_a_base_with_adapters_cannot_be_taken_away(models: Models) -> None:
    assert code(lambda: models.remove(BASE, "1.0", even_active=True)) == "adapter_base_in_use"
    assert code(lambda: models.store.deactivate(BASE)) == "adapter_base_in_use"
    assert set(models.store.active()) == {BASE, "all", "half"}
    for name in ("all", "half"):
        models.remove(name, "1.0", even_active=True)
    models.remove(BASE, "1.0", even_active=True)
    assert models.store.active() == {}


def test_an_adapter_waits_for_its_base(models: Models) -> None:
    for name in ("all", "half"):
        models.store.deactivate(name)
    models.store.deactivate(BASE)
    assert code(lambda: models.activate("all", "1.0")) == "adapter_base_missing"
    models.activate(BASE, "1.0")
    models.activate("all", "1.0")
    assert set(models.store.active()) == {BASE, "all"}


def test_another_grade_of_the_base_keeps_the_adapters(models: Models) -> None:
    models.store.activate(BASE, "2.0")
    assert set(models.store.active()) == {BASE, "all", "half"}
    models.store.rollback()
    assert models.store.active()[BASE].version == "1.0"


def test_another_model_under_the_bases_name_is_refused(models: Models, root: Path) -> None:
    out = root / "other"
    build_bundle(
        root / "merged-all", out, name=BASE, version="3.0", precision="fp32", adapters=True,
        signer=None, created=1,
    )  # fmt: skip
    signed = write_signer(root, "another").sign(out)
    models.store.import_bundle(signed, advance=lambda _: None)
    before = models.store.current_generation()
    assert code(lambda: models.store.activate(BASE, "3.0")) == "adapter_base_differs"
    assert models.store.current_generation() == before


def test_an_adapter_without_its_base_is_not_even_imported(models: Models, root: Path) -> None:
    lonely = ModelStore(root / "elsewhere")
    stored = models.store.get("stable")
    others = Models(Config(Layout(root / "apart")), PrefixNode(Layout(root)), NoProgress())
    with pytest.raises(ConflictError) as refusal:
        others.add([verified(stored.directory)])
    assert refusal.value.code == "adapter_base_missing"
    assert others.store.bundles() == lonely.bundles() == []


def test_activating_an_adapter_is_recorded_and_compiles_nothing(models: Models, root: Path) -> None:
    layout = Layout(root)
    artifacts = sorted(path.name for path in layout.artifacts.iterdir())
    models.activate("stable", "1.0")
    models.activate("stable", "1.0")
    events = [e for _, e in read_events(layout.audit) if isinstance(e, Admin)]
    assert [(e.action, e.target) for e in events] == [("models.activate", "stable")]
    now = sorted(path.name for path in layout.artifacts.iterdir())
    assert [name for name in now if not name.startswith(".")] == [
        name for name in artifacts if not name.startswith(".")
    ]


def test_on_a_gpu_an_adapter_needs_a_base_whose_graph_has_room(root: Path, tmp_path: Path) -> None:
    layout = Layout(root)
    NodeKey.create(layout.node)
    python = write_release(tmp_path / "release", machine_with())
    models = Models(Config(layout), PrefixNode(layout), NoProgress(), python=python)
    models.activate("stable", "1.0")
    assert "stable" in models.store.active()

    room = models.store.get(BASE, "1.0")
    copy = Path(shutil.copytree(room.directory, tmp_path / "base"))
    plain = [
        g if g.variant == "cpu" else msgspec.structs.replace(g, adapted=msgspec.UNSET)
        for g in room.manifest.graphs
    ]
    old = msgspec.structs.replace(room.manifest, version="0.9", graphs=tuple(plain))
    (copy / MANIFEST_NAME).unlink()
    (copy / MANIFEST_NAME).write_bytes(encode(old))
    signed = write_signer(root, "another").sign(copy)
    models.store.import_bundle(signed, advance=lambda _: None)
    for name in ("all", "half", "stable"):
        models.store.deactivate(name)
    models.activate(BASE, "0.9")
    assert code(lambda: models.activate("stable", "1.0")) == "adapters_need_processor"
    assert set(models.store.active()) == {BASE}


@pytest.mark.usefixtures("models")
def test_compiling_anew_says_what_computes_each_model_and_of_an_adapter_its_state(
    root: Path,
) -> None:
    done = CliRunner().invoke(app, ["compile", "--root", str(root)])
    assert done.exit_code == 0, done.output
    assert f"{BASE} 1.0: active, computed by cpu; not by tensorrt or cuda: " in done.output
    assert "half 1.0: active\n" in done.output


def test_the_commands_show_an_adapter_and_its_base(root: Path) -> None:
    shown = CliRunner().invoke(app, ["show", "half", "--root", str(root)])
    assert shown.exit_code == 0, shown.output
    assert "base" in shown.output
    assert "gate" in shown.output
    listed = CliRunner().invoke(app, ["list", "--root", str(root), "--json"])
    assert '"kind": "adapter"' in listed.output
