"""`appliance status`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from appliance.config import Layout
from installer.cli.output import (
    JsonOption,
    RootOption,
    node_config,
    out,
    print_fields,
    print_json,
    print_table,
)
from installer.units import TARGET

if TYPE_CHECKING:
    from installer.disks import Disk
    from installer.status import Health, ServedModel, Status

NOT_SERVING = 9
"""Exit status; that of an UnavailableError."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(status)


def status(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Show services, models, health and disk; the exit status is 9 if not every model is served."""
    import msgspec

    from installer.node import node_at
    from installer.status import status_of

    config = node_config(root)
    found = status_of(config, node_at(config.layout))
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        print_fields(
            {
                "state": _state(found),
                "endpoint": found.base_url,
                **_certificate(found),
                "release": found.release or "nothing is installed",
                "programs": found.programs,
                **found.services,
                "engine": _word(found.health, found.health.engine),
                "audit log": _word(found.health, found.health.audit),
                "root sha256": _root(found),
                "audit key": found.audit_key or "readable by root only",
                **_disks(found),
                "generation": found.generation,
            }
        )
        out.print()
        print_table(
            ["MODEL", "VERSION", "KIND", "STATE", "MEMORY", "PROVIDER"],
            [
                (m.name, m.version, m.kind, m.state, _mib(m.memory_bytes), m.computed_by)
                for m in found.models
            ],
            empty="No model is active: `appliance models list` shows what there is.",
        )
        for model in (m for m in found.models if m.error):
            out.print(f"\n{model.name} {model.version} is not served: {model.error}.", markup=False)
            if model.hint:
                out.print(f"hint: {model.hint}", markup=False)
        if found.state_missing:
            state = Layout(Path(found.root)).state
            out.print(
                f"\nThe programs are here, and nothing of what the node keeps in {state}: the disk "
                "that holds it is not mounted, or was replaced.\n"
                f"hint: mount it (`findmnt --fstab`) and `systemctl restart {TARGET}`, or restore "
                "a backup; what is installed now would begin a new node",
                markup=False,
            )
        if found.release_withdrawn:
            out.print(
                f"\nRelease {found.release} was {found.release_withdrawn}.\n"
                "It goes on until you install newer media, or `appliance releases rollback`.",
                markup=False,
            )
        for model in (m for m in found.models if m.withdrawn):
            out.print(f"\n{model.name} {model.version} was {model.withdrawn}.", markup=False)
        if any(model.withdrawn for model in found.models):
            out.print("\nIt goes on until you serve another version, or remove it.")
        for (reason, remedy), names in _reasons(found.models).items():
            out.print(f"\n{', '.join(names)}: {reason}.", markup=False)
            if remedy:
                out.print(f"hint: {remedy}", markup=False)
        if stopped := _stopped(found):
            out.print(f"\n{stopped}", markup=False)
        for failure in found.failures:
            out.print(f"\n{failure.message}.\n{failure.hint}.", markup=False)
        for disk in found.disks:
            if disk.room != "enough":
                out.print(f"\n{_warning(disk)}", markup=False)
    if not found.serving:
        raise typer.Exit(NOT_SERVING)


def _stopped(found: "Status") -> str:
    """What helps where services were stopped, or never started; empty if none is."""
    names = [name for name, state in found.services.items() if state == "inactive"]
    if not names or not found.release:
        return ""
    root = Path(found.root)
    start = f"{Layout(root).command} serve" if root != Path("/") else f"systemctl start {TARGET}"
    runs = "do not run" if len(names) > 1 else "does not run"
    return f"{' and '.join(names)} {runs}: start with `{start}`."


def _state(found: "Status") -> str:
    if found.serving:
        return "serving"
    failed = [model.name for model in found.models if model.error]
    if found.health.status == "ok" and failed:
        return f"NOT serving {', '.join(failed)}"
    return "NOT serving"


def _root(found: "Status") -> str:
    """Which root's media the node believes, and the newest of them."""
    if found.trust is None:
        return "unknown: no media were verified here"
    media = f"media {found.trust.media_version} of {found.trust.issued_at:%Y-%m-%d}"
    return f"{found.trust.root_sha256} (root {found.trust.root_version}, {media})"


def _certificate(found: "Status") -> dict[str, str]:
    """Its line, where the endpoint speaks TLS."""
    from appliance.tls.certificate import day

    if not found.base_url.startswith("https:"):
        return {}
    if found.tls is None:
        return {"certificate": "there is none: `appliance tls create`"}
    until = f"until {day(found.tls.certificate.not_after)}"
    return {"certificate": f"{until}; {found.tls.remark}" if found.tls.remark else until}


def _disks(found: "Status") -> dict[str, str]:
    """A line for each disk; where the state lies is the disk, others are named by what they hold.

    Before anything is installed it is the disk that it would be on.
    """
    if not found.disks:
        return {"disk": f"{_gib(found.disk_free_bytes)} of {_gib(found.disk_total_bytes)} free"}
    marks = {"enough": "", "short": ", nearly full", "none": ", FULL"}
    return {
        f"disk of {disk.holds[0]}" if number else "disk": f"{_free(disk)}{marks[disk.room]}"
        for number, disk in enumerate(found.disks)
    }


def _warning(disk: "Disk") -> str:
    """What stops, or will, and what helps."""
    full = disk.room == "none"
    state = "is full" if full else "is nearly full"
    when = "Until there is room" if full else "When it is full"
    return (
        f"The disk of {disk.path} {state}: {_free(disk)}. It holds {', '.join(disk.holds)}.\n"
        f"{when}: {'; '.join(disk.stops)}.\n"
        f"To make room: {'; '.join(disk.remedies)}."
    )


def _free(disk: "Disk") -> str:
    free = f"{_gib(disk.free_bytes)} of {_gib(disk.total_bytes)} free"
    if disk.inodes == "enough":
        return free
    return f"{free}, and room for {disk.free_inodes} of {disk.total_inodes} files (inodes)"


def _reasons(models: "Sequence[ServedModel]") -> dict[tuple[str, str], list[str]]:
    """Why models are not computed by something faster, and what helps -> their names."""
    names: dict[tuple[str, str], list[str]] = {}
    for model in models:
        if model.reason:
            names.setdefault((model.reason, model.remedy), []).append(model.name)
    return names


def _word(health: "Health", good: bool) -> str:
    """What the endpoint says of a part, which nobody knows if it does not answer."""
    if health.status == "unreachable":
        return "unknown: the endpoint does not answer"
    return "works" if good else "does NOT work"


def _mib(count: int) -> str:
    return f"{count / 1024**2:.1f} MiB"


def _gib(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB"
