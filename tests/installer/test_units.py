"""The units say what the kernel is to enforce. How exposed they are is measured on a real node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config import ApiSettings, Layout
from installer import units

PYTHON = Path("/opt/appliance/releases/1.0-abc/venv/bin/python")
FILES = units.unit_files(Layout(Path("/")), PYTHON)
GPU = units.GpuAccess(
    nodes=(
        *("/dev/nvidia0", "/dev/nvidia1"),
        *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"),
    ),
    modprobe="/usr/bin/nvidia-modprobe",
)
GPU_FILES = units.unit_files(Layout(Path("/")), PYTHON, GPU)
DAEMONS = (units.ENGINE_UNIT, units.SHIM_UNIT)
GOLDEN = Path(__file__).parents[1] / "golden/units"


def settings(unit: str) -> list[tuple[str, str]]:
    return parsed(FILES[unit])


def parsed(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return [(key, value) for key, _, value in pairs]


@pytest.mark.parametrize(("kind", "files"), [("processor", FILES), ("gpu", GPU_FILES)])
def test_the_units_are_word_for_word_the_reviewed_ones(kind: str, files: Mapping[str, str]) -> None:
    """After a change that is meant: write the new text there, and read the difference."""
    assert files == {path.name: path.read_text() for path in (GOLDEN / kind).iterdir()}


@pytest.mark.parametrize("unit", DAEMONS)
@pytest.mark.parametrize(
    "setting",
    [
        ("Type", "notify"), ("CapabilityBoundingSet", ""), ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"), ("MemoryDenyWriteExecute", "yes"), ("LimitCORE", "0"),
        ("MemorySwapMax", "0"), ("UMask", "0077"), ("DevicePolicy", "closed"),
        ("IPAddressDeny", "any"), ("SystemCallFilter", "@system-service"),
        ("Restart", "on-failure"), ("StartLimitBurst", "5"),
    ],
)  # fmt: skip
def test_every_daemon_is_confined(unit: str, setting: tuple[str, str]) -> None:
    assert setting in settings(unit)


def test_the_daemons_have_users_of_their_own() -> None:
    users = {dict(settings(unit))["User"] for unit in DAEMONS}
    assert users == {units.ENGINE_USER, units.API_USER}
    for user in users:
        assert f"u {user} " in units.sysusers(Layout(Path("/")))


def test_the_engine_has_no_network_at_all() -> None:
    found = dict(settings(units.ENGINE_UNIT))
    assert found["PrivateNetwork"] == "yes"
    assert found["RestrictAddressFamilies"] == "AF_UNIX"


def test_the_shim_reaches_this_machine_only() -> None:
    assert dict(settings(units.SHIM_UNIT))["IPAddressAllow"] == "localhost"


@pytest.mark.parametrize(
    ("listen_host", "clients", "allowed"),
    [
        ("10.1.2.3", "", "any"),
        ("10.1.2.3", "10.9.0.0/16 fd00::/8", "localhost 10.1.2.3 10.9.0.0/16 fd00::/8"),
        ("0.0.0.0", "10.9.0.0/16", "localhost 10.9.0.0/16"),
        ("::", "fd00::/8", "localhost fd00::/8"),
    ],
)
def test_the_shim_hears_its_callers_and_the_commands_of_this_machine(
    listen_host: str, clients: str, allowed: str
) -> None:
    """These call the address that it listens on, from that address."""
    api = ApiSettings(listen_host=listen_host, tls=True, clients=clients)
    files = units.unit_files(Layout(Path("/")), PYTHON, api=api)
    assert dict(parsed(files[units.SHIM_UNIT]))["IPAddressAllow"] == allowed


def test_neither_daemon_sees_what_only_the_other_needs() -> None:
    layout = Layout(Path("/"))
    engine = dict(settings(units.ENGINE_UNIT))["InaccessiblePaths"]
    shim = dict(settings(units.SHIM_UNIT))["InaccessiblePaths"]
    for path in (layout.audit, layout.audit_key, layout.access, layout.metering):
        assert f"-{path}" in engine.split()
    for path in (layout.models, layout.artifacts):
        assert f"-{path}" in shim.split()


def test_a_start_of_the_target_sets_the_limits_of_starts_back_before_the_daemons() -> None:
    found = dict(settings(units.LIMITS_UNIT))
    assert units.LIMITS_UNIT in dict(settings(units.TARGET))["Wants"].split()
    assert found["Before"].split() == list(DAEMONS)
    assert found["PartOf"] == units.TARGET, "else a restart of the target would not run it again"
    assert found["ExecStart"] == f"systemctl reset-failed {' '.join(DAEMONS)}"
    assert found["StartLimitIntervalSec"] == "0"
    assert found["CapabilityBoundingSet"] == ""


def test_no_daemon_starts_without_the_disk_of_what_it_reads_or_writes() -> None:
    """It would find nothing there, and the log would begin anew on another disk."""
    for unit in DAEMONS:
        given = dict(settings(unit))
        needed = given["RequiresMountsFor"].split()
        assert "/opt/appliance/releases" in needed
        assert set(given.get("ReadWritePaths", "").split()) <= set(needed)
    assert "/var/lib/appliance/models" in dict(settings(units.ENGINE_UNIT))["RequiresMountsFor"]


@pytest.mark.parametrize("unit", FILES)
def test_no_unit_waits_for_a_network_or_a_time_server(unit: str) -> None:
    for word in ("network-online", "time-sync", "network.target"):
        assert word not in FILES[unit]


@pytest.mark.parametrize("unit", DAEMONS)
def test_a_unit_names_the_release_it_runs(unit: str) -> None:
    assert dict(settings(unit))["ExecStart"].startswith(f"{PYTHON} -I -m appliance.")


def test_on_a_gpu_node_only_the_engine_differs_and_only_by_the_gpus_files() -> None:
    assert GPU_FILES[units.SHIM_UNIT] == FILES[units.SHIM_UNIT]
    with_gpu = set(parsed(GPU_FILES[units.ENGINE_UNIT]))
    without = set(parsed(FILES[units.ENGINE_UNIT]))
    assert without - with_gpu == {("PrivateDevices", "yes")}
    assert with_gpu - without == {
        ("PrivateDevices", "no"),
        ("Wants", units.GPU_UNIT),
        ("After", units.GPU_UNIT),
        *(("DeviceAllow", f"{path} rw") for path in GPU.nodes),
    }


def test_files_of_the_gpu_that_belong_to_a_group_are_opened_as_a_member() -> None:
    files = units.unit_files(Layout(Path("/")), PYTHON, replace(GPU, groups=("video",)))
    assert ("SupplementaryGroups", "video") in parsed(files[units.ENGINE_UNIT])


def test_without_the_drivers_program_nothing_waits_for_it() -> None:
    files = units.unit_files(Layout(Path("/")), PYTHON, replace(GPU, modprobe=""))
    assert units.GPU_UNIT not in files
    assert units.GPU_UNIT not in files[units.ENGINE_UNIT]
