"""From a verified bundle to what the engine loads on this machine.

`ensure_artifact` compiles in a process of its own and signs a record of the result;
`open_artifact` verifies that record and every byte before the engine loads it.
"""

from appliance.compiler.artifact import Artifact, open_artifact
from appliance.compiler.fingerprint import artifact_key, fingerprint
from appliance.compiler.process import compile_in_process, disk_bytes, ensure_artifact
from appliance.compiler.record import Record

__all__ = [
    "Artifact",
    "Record",
    "artifact_key",
    "compile_in_process",
    "disk_bytes",
    "ensure_artifact",
    "fingerprint",
    "open_artifact",
]
