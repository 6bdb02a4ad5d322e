"""Who may call the API: projects, keys and their limits, in one SQLite file.

Owns the form of a key, its hash at rest, expiry, rotation and revocation, what it may use, and
the limits that the operator set. Refuses to keep or show a secret after it was made, to answer
from what is older than the file (each check looks whether it changed, so a change that has
returned holds for every request that follows it), and to count: what was used stands in the audit
log.
"""

from appliance.access.apis import APIS, api_of
from appliance.access.database import check_readable
from appliance.access.keys import NODE_TAG, KeyInfo, KeyKind, KeyState, NewKey, new_key
from appliance.access.limits import NO_LIMITS, Limits
from appliance.access.projects import DEFAULT_PROJECT, Project, ProjectStore, new_project
from appliance.access.reserves import ALL_MODELS, MOST_RESERVED
from appliance.access.store import KeyStore

__all__ = [
    "ALL_MODELS",
    "APIS",
    "DEFAULT_PROJECT",
    "MOST_RESERVED",
    "NODE_TAG",
    "NO_LIMITS",
    "KeyInfo",
    "KeyKind",
    "KeyState",
    "KeyStore",
    "Limits",
    "NewKey",
    "Project",
    "ProjectStore",
    "api_of",
    "check_readable",
    "new_key",
    "new_project",
]
