"""The systemd units of a node: who may do what, written down where the kernel enforces it.

Owns the text of the units. Each daemon runs as its own user without capabilities, sees the file
system read-only but for its own state, and reaches no network beyond this machine (the engine:
none at all; the endpoint those alone that the settings let call). Refuses ordering after the
network or time synchronisation: neither ever comes up on an offline node. On a node with a GPU the
engine sees that GPU's files in /dev besides, and no other device. Exposure by
`systemd-analyze security` is at most 2.0, which a test checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from appliance.config import ApiSettings, Layout
from appliance.service import SILENCE_SECONDS

ENGINE_USER = "appliance-engine"
API_USER = "appliance-api"
GROUP = "appliance"
TARGET = "appliance.target"
ENGINE_UNIT = "appliance-engine.service"
SHIM_UNIT = "appliance-shim.service"
DAEMONS = (ENGINE_UNIT, SHIM_UNIT)
LIMITS_UNIT = "appliance-limits.service"
"""Lets the operator start the target as often as he likes: only what ends by itself is counted."""
GPU_UNIT = "appliance-gpu.service"
"""Makes the GPU's files in /dev after a start of the machine; only on a node that uses its GPU."""
UNIT_DIRECTORY = Path("etc/systemd/system")
SYSUSERS_FILE = Path("etc/sysusers.d/appliance.conf")

Settings = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class GpuAccess:
    """What the engine needs of a node to compute on its GPU.

    Attributes:
        nodes: paths in /dev.
        groups: whose members may open them, where not everybody may.
        modprobe: path of the driver's program that makes them; empty if there is none.
    """

    nodes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    modprobe: str = ""


_SANDBOX: Settings = (
    ("AmbientCapabilities", ""),
    ("CapabilityBoundingSet", ""),
    ("NoNewPrivileges", "yes"),
    ("SecureBits", "noroot-locked"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateUsers", "yes"),
    ("PrivateIPC", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectProc", "invisible"),
    ("LockPersonality", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    ("SystemCallErrorNumber", "EPERM"),
    ("UMask", "0077"),
    ("LimitCORE", "0"),
    ("MemorySwapMax", "0"),
)

_CLOSED: Settings = (
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateNetwork", "yes"),
)
"""Of what runs as root for a moment."""
_MODPROBE_CAPABILITIES = "CAP_SYS_MODULE CAP_MKNOD CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE"

_RESTART: Settings = (
    ("Restart", "on-failure"),
    ("RestartSec", "2"),
    ("WatchdogSec", f"{SILENCE_SECONDS:.0f}"),
    ("WatchdogSignal", "SIGKILL"),
    ("KillMode", "mixed"),
    ("TimeoutStopSec", "60"),
)


def unit_files(
    layout: Layout, python: Path, gpu: GpuAccess | None = None, api: ApiSettings | None = None
) -> Mapping[str, str]:
    """Unit name -> text, for daemons started by the interpreter `python`.

    `gpu`: what the engine may use of the node's GPU; nothing if None. `api`: where the endpoint
    listens; by default this machine alone reaches it.
    """
    files = {
        TARGET: _target(),
        LIMITS_UNIT: _limits(),
        ENGINE_UNIT: _engine(layout, python, gpu),
        SHIM_UNIT: _shim(layout, python, api or ApiSettings()),
    }
    if gpu is not None and gpu.modprobe:
        files[GPU_UNIT] = _gpu(gpu)
    return files


def sysusers(layout: Layout) -> str:
    """The users of the node, for systemd-sysusers(8).

    The engine's user is also listed as a member of its own group, so that the daemon, whose
    primary group is the shared one, may read what belongs to the engine alone.
    """
    return (
        f"g {GROUP} -\n"
        f'u {ENGINE_USER} - "Appliance inference engine" {layout.state}\n'
        f'u {API_USER} - "Appliance HTTP endpoint" {layout.state}\n'
        f"m {ENGINE_USER} {GROUP}\n"
        f"m {ENGINE_USER} {ENGINE_USER}\n"
        f"m {API_USER} {GROUP}\n"
    )


def _target() -> str:
    return _text(
        Unit=(
            ("Description", "Appliance: open-weight models behind a local endpoint"),
            ("Wants", f"{LIMITS_UNIT} {ENGINE_UNIT} {SHIM_UNIT}"),
        ),
        Install=(("WantedBy", "multi-user.target"),),
    )


def _limits() -> str:
    """Before the daemons whenever the target starts, so that a limit which was hit by hand, or by a
    setting that is corrected now, holds no more. systemd counts all starts alike, and a target
    that only wants its services does not say that one was refused.
    """
    daemons = " ".join(DAEMONS)
    return _text(
        Unit=(
            ("Description", "Start limits of the appliance's services, set back"),
            ("PartOf", TARGET),
            ("Before", daemons),
            ("StartLimitIntervalSec", "0"),
        ),
        Service=(
            ("Type", "oneshot"),
            ("RemainAfterExit", "yes"),
            ("ExecStart", f"systemctl reset-failed {daemons}"),
            ("CapabilityBoundingSet", ""),
            *_CLOSED,
            ("PrivateDevices", "yes"),
            ("RestrictAddressFamilies", "AF_UNIX"),
        ),
    )


def _engine(layout: Layout, python: Path, gpu: GpuAccess | None) -> str:
    after: Settings = ()
    if gpu is not None and gpu.modprobe:
        after = (("Wants", GPU_UNIT), ("After", GPU_UNIT))
    hidden = (
        layout.audit,
        layout.audit_key,
        layout.audit_content,
        layout.access,
        layout.metering,
        layout.responses,
        layout.tls,
        layout.trust,
    )
    return _text(
        Unit=(
            *_unit("Appliance inference engine", layout.releases, layout.models, layout.artifacts),
            *after,
        ),
        Service=(
            *_daemon(ENGINE_USER, f"{python} -I -m appliance.engine_daemon --root {layout.root}"),
            ("TimeoutStartSec", "30min"),
            ("RuntimeDirectory", "appliance"),
            ("RuntimeDirectoryMode", "0750"),
            ("RuntimeDirectoryPreserve", "restart"),
            *(_SANDBOX if gpu is None else _with_devices(gpu)),
            ("SystemCallFilter", "setpriority"),  # grammars are compiled with less than its share
            ("InaccessiblePaths", " ".join(f"-{path}" for path in hidden)),
            ("PrivateNetwork", "yes"),
            ("IPAddressDeny", "any"),
            ("RestrictAddressFamilies", "AF_UNIX"),
        ),
    )


def _with_devices(gpu: GpuAccess) -> Settings:
    """The sandbox with the GPU's files in /dev, and nothing else less.

    A private /dev has no place for them, so what it implies is said without it: of the devices
    that are there only these can be opened.
    """
    groups = [("SupplementaryGroups", " ".join(gpu.groups))] if gpu.groups else []
    return (
        *((key, "no" if key == "PrivateDevices" else value) for key, value in _SANDBOX),
        *(("DeviceAllow", f"{path} rw") for path in gpu.nodes),
        *groups,
    )


def _gpu(gpu: GpuAccess) -> str:
    numbers = [path.removeprefix("/dev/nvidia") for path in gpu.nodes]
    minors = " ".join(f"-c {number}" for number in numbers if number.isdigit())
    return _text(
        Unit=(("Description", "Files in /dev for the appliance's GPU"),),
        Service=(
            ("Type", "oneshot"),
            ("RemainAfterExit", "yes"),
            # 255 is nvidiactl; -u loads the module for unified memory and makes its files.
            ("ExecStart", f"{gpu.modprobe} -c 255 {minors} -u"),
            ("CapabilityBoundingSet", _MODPROBE_CAPABILITIES),
            *_CLOSED,
        ),
    )


def _shim(layout: Layout, python: Path, api: ApiSettings) -> str:
    writable = (
        layout.audit,
        layout.audit_key,
        layout.audit_content,
        layout.access,
        layout.metering,
        layout.responses,
    )
    hidden = (layout.models, layout.artifacts, layout.trust)
    return _text(
        Unit=(
            *_unit("Appliance HTTP endpoint", layout.releases, *writable, layout.tls),
            ("Wants", ENGINE_UNIT),
            ("After", ENGINE_UNIT),
        ),
        Service=(
            *_daemon(API_USER, f"{python} -I -m appliance.shim --root {layout.root}"),
            ("TimeoutStartSec", "10min"),
            *_SANDBOX,
            ("ReadWritePaths", " ".join(str(path) for path in writable)),
            ("InaccessiblePaths", " ".join(f"-{path}" for path in hidden)),
            ("IPAddressDeny", "any"),
            ("IPAddressAllow", _reachable_from(api)),
            ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
        ),
    )


def _reachable_from(api: ApiSettings) -> str:
    """From where packets may come, and where any may go: systemd's filter knows no direction.

    What the node's own commands send to the address that is listened on comes from it, too, and
    that is none of `localhost`.
    """
    if api.is_loopback:
        return "localhost"
    if not api.networks:
        return "any"
    own = () if ip_address(api.listen_host).is_unspecified else (api.listen_host,)
    return " ".join(("localhost", *own, api.clients))


def _unit(description: str, *directories: Path) -> Settings:
    """`directories` may be on disks of their own, without which the daemon must not start."""
    return (
        ("Description", description),
        ("PartOf", TARGET),
        ("RequiresMountsFor", " ".join(map(str, directories))),
        ("StartLimitIntervalSec", "300"),
        ("StartLimitBurst", "5"),
    )


def _daemon(user: str, command: str) -> Settings:
    return (
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("User", user),
        ("Group", GROUP),
        ("ExecStart", command),
        *_RESTART,
    )


def _text(**sections: Settings) -> str:
    blocks = (
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in settings)
        for name, settings in sections.items()
    )
    return "# Written by `appliance install`; a new release replaces it.\n" + "\n".join(blocks)
