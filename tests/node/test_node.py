"""On a bare, offline Debian 12: install from a stick, serve, reboot, serve again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.config import Layout
from appliance.tls.authority import make_authority, names_of
from installer import units
from tests.fakes.node_media import ADAPTER, CHAT, EMBEDDING, GUESSED, RANKS, SEES, NodeMedia
from tests.node.asked import (
    BOOT_SECONDS,
    EVERYTHING,
    SERVICES,
    UNITS,
    chat_from,
    exposed,
    processes,
    releases,
    serves,
    states,
    updated_from,
    use_units,
    wait_until_serving,
)
from tests.node.conftest import MEDIA, InstalledNode, no_network
from tests.node.lan import CALLER, NAME, NODE, STRANGER, Lan
from tests.tls.clients import client_certificate

pytestmark = [pytest.mark.node, pytest.mark.timeout(1800)]

Measured = Callable[[str, object], None]
MAX_EXPOSURE = {units.ENGINE_UNIT: 0.3, units.SHIM_UNIT: 2.0}
MAX_GPU_EXPOSURE = 0.5
TLS = "/var/lib/appliance/tls"
OLD = "0.0.9-0000000000aa"


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


def test_the_units_are_what_systemd_understands(node: InstalledNode) -> None:
    done = node.machine.run("systemd-analyze", "verify", units.TARGET, *SERVICES)
    assert done.stdout + done.stderr == ""
    assert node.machine.run("systemctl", "--failed", "--quiet", "--no-legend").stdout == ""


def test_chat_and_embeddings_work_from_inside(node: InstalledNode) -> None:
    serves(node)


def test_whatever_the_engine_can_do_it_can_do_in_its_sandbox(
    node: InstalledNode, media: NodeMedia
) -> None:
    """Each of these has processes, files or system calls that no other needs."""
    names = [SEES, RANKS, GUESSED, ADAPTER]
    for name in names:
        node.machine.copy_in(media.further(name), f"/srv/{name}")
        node.machine.run("appliance", "models", "add", f"/srv/{name}")
    try:
        for path, document in EVERYTHING:
            usage = node.ask(path, document)["usage"]
            assert any(usage.values()), (path, document)
        said = node.machine.run("journalctl", "-b", "-u", units.ENGINE_UNIT, "-q", "-o", "cat")
        lines = said.stdout.splitlines()
        assert any(line.startswith("INFO ") for line in lines)
        assert [line for line in lines if line.startswith(("WARNING ", "ERROR "))] == []
    finally:
        for name in reversed(names):
            node.machine.run("appliance", "models", "remove", name, "1.0", "--active")


def test_nothing_listens_beyond_loopback(node: InstalledNode) -> None:
    listening = node.machine.run("ss", "--no-header", "-lntu").stdout.splitlines()
    addresses = [line.split()[4].rpartition(":")[0].strip("[]") for line in listening]
    assert addresses, "the endpoint listens"
    assert all(ip_address(address.split("%")[0]).is_loopback for address in addresses)


def test_what_tests_run_on_a_node_cannot_set_this_machines_clock(node: InstalledNode) -> None:
    """The node shares it. What would be set here is the time that it is."""
    set_it = "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())"
    done = node.machine.run("python3", "-c", set_it, check=False)
    assert "PermissionError" in done.stderr


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


def test_the_former_release_takes_over_again_and_the_newer_one_after_it(
    node: InstalledNode, record_property: Measured
) -> None:
    """The former has the same programs under another name; the update to the newer one is real."""
    updated_from(node, OLD)
    states = {r["id"]: r["state"] for r in releases(node, "list")["releases"]}
    assert (len(states), states[OLD.rpartition("-")[2]]) == (2, "former")
    for expected in (OLD, "0.1.0"):
        begin = time.monotonic()
        done = releases(node, "rollback")
        record_property("measured", f"to release {expected}: {time.monotonic() - begin:.1f} s")
        assert expected.startswith(done["release"])
        assert done["proof"]["tokens"] > 0
        for unit in SERVICES:
            run = node.machine.run("systemctl", "show", unit, "-p", "ExecStart", "--value").stdout
            assert f"/opt/appliance/releases/{expected}" in run
        serves(node)
    assert node.machine.run("systemctl", "--failed", "--quiet", "--no-legend").stdout == ""


def test_a_former_release_that_cannot_read_the_keys_stops_nothing(node: InstalledNode) -> None:
    (schema,) = node.machine.run(
        "find", f"/opt/appliance/releases/{OLD}/venv", "-path", "*/appliance/access/schema.py"
    ).stdout.split()
    node.machine.run("sed", "-i", "s/^VERSION = .*/VERSION = 1/", schema)
    before = processes(node)
    done = node.machine.run("appliance", "releases", "rollback", "--json", check=False)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["code"]) == (9, "release_not_reinstated")
    assert "keys.db was written by a newer release" in error["message"]
    assert processes(node) == before
    serves(node)


def test_a_crashed_engine_comes_back(node: InstalledNode) -> None:
    before = processes(node)
    node.machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", units.ENGINE_UNIT)
    wait_until_serving(node)
    assert processes(node)[units.ENGINE_UNIT] != before[units.ENGINE_UNIT]
    assert processes(node)[units.SHIM_UNIT] == before[units.SHIM_UNIT]
    serves(node)


def test_a_service_started_too_often_is_named_and_the_target_starts_it(node: InstalledNode) -> None:
    for _ in range(6):
        node.machine.run("systemctl", "restart", units.SHIM_UNIT, check=False)
    status = node.machine.run("appliance", "status", "--json", check=False)
    assert status.returncode == 9, status.stdout + status.stderr
    (failure,) = json.loads(status.stdout)["failures"]
    assert (failure["service"], failure["result"]) == ("appliance-shim", "start-limit-hit")
    shown = node.machine.run("appliance", "status", check=False).stdout
    assert f"{failure['message']}.\n{failure['hint']}.\n" in shown
    node.machine.run("systemctl", "restart", units.TARGET)
    wait_until_serving(node)
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


@pytest.fixture(scope="module")
def lan(node: InstalledNode) -> Lan:
    """Another machine, and the node made to serve it: the settings, then the installation again."""
    made = Lan(node.machine, node.result["api_key"])
    made.connect()
    made.use_settings(clients=f"{CALLER}/32")
    node.machine.run("appliance", "tls", "create", "--name", NAME, "--address", NODE)
    done = node.machine.run("appliance", "install", MEDIA, "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["base_url"] == f"https://{NODE}:8400/v1"
    assert result["proof"]["tokens"] > 0
    made.give("ca.crt", node.machine.run("cat", f"{TLS}/ca.crt").stdout.encode())
    return made


def test_another_machine_is_served_by_tls_alone(lan: Lan, node: InstalledNode) -> None:
    for name in (NAME, NODE):
        assert chat_from(lan, name=name)["status"] == 200
    in_clear = chat_from(lan, tls=False)
    assert (in_clear["status"], in_clear["body"]["error"]["code"]) == (400, "tls_required")
    assert "PROTOCOL_VERSION" in chat_from(lan, version="TLSv1_2")["error"]
    assert "CERTIFICATE_VERIFY_FAILED" in chat_from(lan, ca=None)["error"]
    assert exposed(node, units.SHIM_UNIT) <= MAX_EXPOSURE[units.SHIM_UNIT]


def test_packets_of_who_may_not_call_do_not_arrive(lan: Lan) -> None:
    """The kernel drops them: the caller sees no refusal, only silence."""
    assert "timed out" in chat_from(lan, source=STRANGER)["error"]


def test_the_nodes_own_commands_speak_tls(lan: Lan, node: InstalledNode) -> None:
    status = json.loads(node.machine.run("appliance", "status", "--json").stdout)
    assert (status["serving"], status["base_url"]) == (True, f"https://{NODE}:8400/v1")
    load = ("--concurrency", "1", "--requests", "1", "--output-tokens", "4", "--input-tokens", "24")
    bench = ("appliance", "bench", *load, "--warmup", "0", "--model", CHAT, "--json")
    node.machine.run(*bench)
    elsewhere = ("--base-url", status["base_url"], "--ca-file", f"{TLS}/ca.crt")
    node.machine.run("env", f"APPLIANCE_API_KEY={lan.api_key}", *bench, *elsewhere)
    # The endpoint answers; its tiny model reads less than a section of the handbook.
    models = ("--model", CHAT, "--embeddings", EMBEDDING)
    asked = node.machine.run("appliance", "ask", "What is a key?", *models, "--json", check=False)
    assert "the model reads 64" in asked.stdout + asked.stderr


def test_callers_show_certificates_where_they_have_to(lan: Lan, node: InstalledNode) -> None:
    authority = make_authority(names_of(["callers.example"], []))
    callers = lan.give("callers.crt", authority.pem)
    billing = client_certificate(authority, "billing")
    shown = lan.give("billing.pem", billing.key_pem + billing.pem)
    node.machine.run("appliance", "tls", "trust", callers)
    lan.use_settings(clients=f"{CALLER}/32", client_certificates=True)
    node.machine.run("appliance", "tls", "apply")
    assert chat_from(lan, certificate=shown)["status"] == 200
    assert "error" in chat_from(lan)
    assert json.loads(node.machine.run("appliance", "status", "--json").stdout)["serving"]
    records = [
        json.loads(line)
        for line in node.machine.run("appliance", "audit", "tail", "--json").stdout.splitlines()
    ]
    assert "CN=billing" in {record.get("caller") for record in records if record["type"] == "REQ"}
    refused = [r for r in records if r.get("code") == "client_certificate_missing"]
    assert {(record["type"], record["peer"]) for record in refused} == {("REJECT", CALLER)}


def test_after_a_reboot_everything_works_by_itself_and_its_address_may_come_later(
    lan: Lan, node: InstalledNode
) -> None:
    """No unit waits for a network: the cable is laid when the endpoint serves already."""
    lan.use_settings()
    node.machine.reboot()
    assert no_network(node.machine)
    assert states(node) == {"active"}
    lan.connect()
    wait_until_serving(node)
    assert chat_from(lan)["status"] == 200
    verified = node.machine.run("appliance", "audit", "verify", "--json")
    assert verified.returncode == 0
    assert node.machine.run("systemctl", "--failed", "--quiet", "--no-legend").stdout == ""
