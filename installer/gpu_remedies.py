"""What an operator can do so that a model is computed by the GPU: one sentence a reason.

Owns the sentences, by the codes of the compiler's reasons. Refuses to advise where there is nothing
to do, or where it is the packager's to do and the reason says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.compiler import Refusal
from installer.gpu import Gpus

_AGAIN = "`appliance models compile`"
REMEDIES = {
    "no_runtime": "`appliance install MEDIA` from media with programs for a GPU, without "
    "`--processor-only`",
    "driver_too_old": "install a newer driver, restart the machine, then `appliance install MEDIA`",
    "driver_fails": "`nvidia-smi` has to show the GPU: restart the machine, or install the driver "
    f"anew; then {_AGAIN}",
    "library_missing": "`appliance install MEDIA`, from media that have the library",
    "disk_full": f"make room (`appliance models remove NAME VERSION`), then {_AGAIN}",
    "gpu_busy": f"stop what else uses the GPU, then {_AGAIN}",
    "compiler_died": f"look into the system's log for memory, then {_AGAIN}",
}
_DRIVER = "install the driver, restart the machine, then `appliance install MEDIA`"


def remedy(reasons: Sequence[Refusal], gpus: Gpus) -> str:
    """What helps against the reason that is to be mended first; empty if nothing does.

    That is the one against CUDA if there is one: where CUDA computes, little is amiss.
    """
    against = [reason.code for reason in reasons if reason.provider == "cuda"]
    if "no_gpu" in against:
        return _DRIVER if gpus.gpus and not gpus.has_driver else ""
    return next((REMEDIES[code] for code in against if code in REMEDIES), "")
