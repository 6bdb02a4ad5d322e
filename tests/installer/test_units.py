"""The units say what the kernel is to enforce. How exposed they are is measured on a real node."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import Layout
from installer import units

PYTHON = Path("/opt/appliance/releases/1.0-abc/venv/bin/python")
FILES = units.unit_files(Layout(Path("/")), PYTHON)
DAEMONS = (units.ENGINE_UNIT, units.SHIM_UNIT)


def settings(unit: str) -> list[tuple[str, str]]:
    pairs = (line.partition("=") for line in FILES[unit].splitlines() if "=" in line)
    return [(key, value) for key, _, value in pairs]


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


def test_neither_daemon_sees_what_only_the_other_needs() -> None:
    layout = Layout(Path("/"))
    engine = dict(settings(units.ENGINE_UNIT))["InaccessiblePaths"]
    shim = dict(settings(units.SHIM_UNIT))["InaccessiblePaths"]
    for path in (layout.audit, layout.audit_key, layout.access, layout.metering):
        assert f"-{path}" in engine.split()
    for path in (layout.models, layout.artifacts):
        assert f"-{path}" in shim.split()


@pytest.mark.parametrize("unit", FILES)
def test_no_unit_waits_for_a_network_or_a_time_server(unit: str) -> None:
    for word in ("network-online", "time-sync", "network.target"):
        assert word not in FILES[unit]


@pytest.mark.parametrize("unit", DAEMONS)
def test_a_unit_names_the_release_it_runs(unit: str) -> None:
    assert dict(settings(unit))["ExecStart"].startswith(f"{PYTHON} -I -m appliance.")
