"""Who may call the API: keys, kept as hashes in one SQLite file.

Owns the form of a key, its hash at rest, expiry and revocation. Refuses to keep or show a secret
after it was made, and to answer from memory: each check reads the database, so a revocation that
has returned holds for every request that follows it.
"""

from appliance.access.keys import KeyInfo, NewKey, new_key
from appliance.access.store import KeyStore

__all__ = ["KeyInfo", "KeyStore", "NewKey", "new_key"]
