"""A service that does not run though it should, and the way out.

Owns the words. `systemctl restart appliance.target` succeeds whatever becomes of the services,
because a target only wants them, so this is where an operator learns it. Refuses to ask systemd
itself: `installer.node` does.
"""

from __future__ import annotations

import msgspec

from installer import units

_GAVE_UP = "start-limit-hit"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One service that failed."""

    service: str
    result: str
    """systemd's word for how it ended, for example `exit-code` or `start-limit-hit`."""
    message: str
    hint: str


def failure_of(unit: str, active: str, sub: str, result: str) -> Failure | None:
    """What is wrong with `unit`, of its ActiveState, SubState and Result; None if nothing is."""
    service = unit.removesuffix(".service")
    if active == "failed":
        again = " ".join(each.removesuffix(".service") for each in units.DAEMONS)
        return Failure(
            service=service,
            result=result,
            message=f"{service} failed ({result}){_meaning(result)} and stays down",
            hint=f"`journalctl -u {service}` says why; then `systemctl reset-failed {again}` and "
            f"`systemctl start {units.TARGET}`",
        )
    if sub == "auto-restart":
        return Failure(
            service=service,
            result=result,
            message=f"{service} ended ({result}) and is being started again",
            hint=f"`journalctl -u {service}` says why; after five starts in five minutes it stays "
            "down",
        )
    return None


def _meaning(result: str) -> str:
    gave_up = ": it was started five times in five minutes, by hand or after it had ended,"
    return gave_up if result == _GAVE_UP else ""
