"""On a bare, offline Debian 12: install from a stick, serve, reboot, serve again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.config import Layout
from installer import units
from tests.fakes.node_media import CHAT, EMBEDDING, NodeMedia
from tests.node.conftest import MEDIA, InstalledNode, no_network

pytestmark = pytest.mark.node

Measured = Callable[[str, object], None]
SERVICES = {units.ENGINE_UNIT: units.ENGINE_USER, units.SHIM_UNIT: units.API_USER}
MAX_EXPOSURE = {units.ENGINE_UNIT: 0.2, units.SHIM_UNIT: 2.0}
MAX_GPU_EXPOSURE = 0.5
UNITS = "/etc/systemd/system"
BOOT_SECONDS = 120


def test_the_installation_proves_itself_with_a_real_completion(
    node: InstalledNode, record_property: Measured
) -> None:
    record_property("measured", f"installing on a bare node: {node.seconds:.1f} s")
    assert node.result["proof"]["model"] == CHAT
    assert node.result["proof"]["tokens"] > 0
    assert node.result["api_key"].startswith("sk-")
    assert node.result["models"] == {CHAT: "1.0", EMBEDDING: "1.0"}


@pytest.mark.parametrize("unit", SERVICES)
def test_each_service_is_active_as_its_own_user(node: InstalledNode, unit: str) -> None:
    show = node.machine.run("systemctl", "show", unit, "-p", "ActiveState,MainPID,User")
    shown = dict(line.split("=", 1) for line in show.stdout.splitlines())
    assert (shown["ActiveState"], shown["User"]) == ("active", SERVICES[unit])
    owner = node.machine.run("stat", "--format=%U", f"/proc/{shown['MainPID']}").stdout.strip()
    assert owner == SERVICES[unit]


@pytest.mark.parametrize("unit", SERVICES)
def test_each_unit_is_hardly_exposed(
    node: InstalledNode, unit: str, record_property: Measured
) -> None:
    exposure = exposed(node, unit)
    record_property("measured", f"{unit}: exposure {exposure}")
    assert exposure <= MAX_EXPOSURE[unit]


def exposed(node: InstalledNode, unit: str) -> float:
    """What systemd thinks of the unit: 0 is best, 10 is worst."""
    report = node.machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report)
    assert found is not None, report
    return float(found[1])


def test_a_gpu_nodes_engine_is_hardly_more_exposed_and_starts_without_the_gpus_files(
    node: InstalledNode, record_property: Measured
) -> None:
    """The units that a GPU node would have, on this one: the files in /dev are not there."""
    machine = node.machine
    before = machine.run("cat", f"{UNITS}/{units.ENGINE_UNIT}").stdout
    (command,) = re.findall(r"^ExecStart=(\S+)", before, re.MULTILINE)
    access = units.GpuAccess(
        nodes=("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"), modprobe="/usr/bin/true"
    )
    files = units.unit_files(Layout(Path("/")), Path(command), access)
    try:
        use_units(node, {name: files[name] for name in (units.GPU_UNIT, units.ENGINE_UNIT)})
        exposure = exposed(node, units.ENGINE_UNIT)
        record_property("measured", f"{units.ENGINE_UNIT} with a GPU: exposure {exposure}")
        assert exposure <= MAX_GPU_EXPOSURE
        done = machine.run("systemd-analyze", "verify", units.GPU_UNIT, units.ENGINE_UNIT)
        assert done.stdout + done.stderr == ""
        assert machine.run("systemctl", "is-active", units.GPU_UNIT).stdout.strip() == "active"
        serves(node)
    finally:
        machine.run("rm", "-f", f"{UNITS}/{units.GPU_UNIT}")
        use_units(node, {units.ENGINE_UNIT: before})
    serves(node)


def use_units(node: InstalledNode, files: Mapping[str, str]) -> None:
    """Let the node run its engine by these units."""
    for name, text in files.items():
        node.machine.run("tee", f"{UNITS}/{name}", stdin=text)
    node.machine.run("systemctl", "daemon-reload")
    node.machine.run("systemctl", "restart", units.ENGINE_UNIT)
    wait_until_serving(node)


def test_the_units_are_what_systemd_understands(node: InstalledNode) -> None:
    done = node.machine.run("systemd-analyze", "verify", units.TARGET, *SERVICES)
    assert done.stdout + done.stderr == ""
    assert node.machine.run("systemctl", "--failed", "--quiet", "--no-legend").stdout == ""


def test_chat_and_embeddings_work_from_inside(node: InstalledNode) -> None:
    serves(node)


def test_nothing_listens_beyond_loopback(node: InstalledNode) -> None:
    listening = node.machine.run("ss", "--no-header", "-lntu").stdout.splitlines()
    addresses = [line.split()[4].rpartition(":")[0].strip("[]") for line in listening]
    assert addresses, "the endpoint listens"
    assert all(ip_address(address.split("%")[0]).is_loopback for address in addresses)


def test_nobody_else_can_read_secrets_or_models(node: InstalledNode) -> None:
    private = [
        "/var/lib/appliance/node/node.key", "/var/lib/appliance/audit-key/audit.key",
        "/var/lib/appliance/access/keys.db", "/var/lib/appliance/models/bundles",
        "/var/lib/appliance/audit/segments", "/run/appliance/engine.sock",
    ]  # fmt: skip
    for path in private:
        assert node.machine.run("test", "-e", path).returncode == 0
        tried = node.machine.run(
            *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "test", "-r", path),
            check=False,
        )
        assert tried.returncode != 0, path


def test_installing_again_is_harmless_and_quick(
    node: InstalledNode, record_property: Measured
) -> None:
    before = processes(node)
    begin = time.monotonic()
    done = node.machine.run("appliance", "install", MEDIA, "--json")
    record_property("measured", f"installing again: {time.monotonic() - begin:.1f} s")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["api_key"] is None, "the first key is shown once"
    assert processes(node) == before, "what serves was not restarted"
    serves(node)


def test_a_newer_model_can_be_added_activated_and_taken_back(
    node: InstalledNode, media: NodeMedia
) -> None:
    node.machine.copy_in(media.newer_chat, "/srv/newer")
    for command, version in (
        (["add", "/srv/newer"], "1.0"),
        (["activate", CHAT, "2.0"], "2.0"),
        (["rollback"], "1.0"),
    ):
        node.machine.run("appliance", "models", *command)
        status = json.loads(node.machine.run("appliance", "status", "--json").stdout)
        served = {m["name"]: m["version"] for m in status["models"] if m["state"] == "serving"}
        assert served == {CHAT: version, EMBEDDING: "1.0"}
        serves(node)


def test_a_crashed_engine_comes_back(node: InstalledNode) -> None:
    before = processes(node)
    node.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", units.ENGINE_UNIT)
    wait_until_serving(node)
    assert processes(node)[units.ENGINE_UNIT] != before[units.ENGINE_UNIT]
    assert processes(node)[units.SHIM_UNIT] == before[units.SHIM_UNIT]
    serves(node)


def test_the_target_stops_and_starts_both(node: InstalledNode) -> None:
    node.machine.run("systemctl", "stop", units.TARGET)
    deadline = time.monotonic() + BOOT_SECONDS
    while states(node) != {"inactive"}:
        assert time.monotonic() < deadline, states(node)
        time.sleep(0.2)
    node.machine.run("systemctl", "start", units.TARGET)
    wait_until_serving(node)
    serves(node)


def test_after_a_reboot_everything_works_by_itself(node: InstalledNode) -> None:
    node.machine.reboot()
    wait_until_serving(node)
    assert no_network(node.machine)
    serves(node)
    verified = node.machine.run("appliance", "audit", "verify", "--json")
    assert verified.returncode == 0
    assert node.machine.run("systemctl", "--failed", "--quiet", "--no-legend").stdout == ""


def serves(node: InstalledNode) -> None:
    """One chat and one embedding, from inside."""
    answer = node.ask(
        "/v1/chat/completions",
        {"model": CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8},
    )
    assert answer["usage"]["completion_tokens"] > 0
    vectors = node.ask("/v1/embeddings", {"model": EMBEDDING, "input": ["one", "two"]})["data"]
    assert len(vectors) == 2


def wait_until_serving(node: InstalledNode) -> None:
    """Until `appliance status` says so."""
    deadline = time.monotonic() + BOOT_SECONDS
    while node.machine.run("appliance", "status", "--json", check=False).returncode:
        assert time.monotonic() < deadline, node.machine.run("journalctl", "-b", "-n", "50").stdout
        time.sleep(0.5)


def states(node: InstalledNode) -> set[str]:
    """What systemd says of the services."""
    return set(node.machine.run("systemctl", "is-active", *SERVICES, check=False).stdout.split())


def processes(node: InstalledNode) -> dict[str, str]:
    """The process number of each service."""
    return {
        unit: node.machine.run("systemctl", "show", unit, "-p", "MainPID", "--value").stdout
        for unit in SERVICES
    }
