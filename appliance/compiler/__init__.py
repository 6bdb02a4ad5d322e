"""From a verified bundle to what the engine loads on this machine.

`ensure_artifact` compiles in a process of its own, for the fastest provider that this machine and
the bundle have, and signs a record of the result; `open_artifact` verifies that record and every
byte before the engine loads it.
"""

from appliance.compiler.artifact import Artifact, open_artifact, read_record
from appliance.compiler.child import compile_in_process
from appliance.compiler.fingerprint import artifact_key, fingerprint
from appliance.compiler.process import (
    Compiled,
    ensure_artifact,
    ensure_artifacts,
)
from appliance.compiler.record import (
    Comparison,
    Fit,
    Provider,
    Record,
    Refusal,
    compiled_as,
    why_not_faster,
)
from appliance.compiler.runtime import Runtime, choose_runtime

__all__ = [
    "Artifact",
    "Comparison",
    "Compiled",
    "Fit",
    "Provider",
    "Record",
    "Refusal",
    "Runtime",
    "artifact_key",
    "choose_runtime",
    "compile_in_process",
    "compiled_as",
    "ensure_artifact",
    "ensure_artifacts",
    "fingerprint",
    "open_artifact",
    "read_record",
    "why_not_faster",
]
