"""An API key as the appliance knows it, and how a fresh one is made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from appliance.access import secret
from appliance.access.apis import APIS
from appliance.access.limits import NO_LIMITS, Limits
from appliance.access.reserves import percent_of
from appliance.access.words import DEFAULT_PROJECT, MAX_NAME, check_words
from appliance.errors import UsageError

KeyState = Literal["active", "expired", "revoked", "archived"]
KeyKind = Literal["api", "admin"]
MAX_WORDS = 32
"""Tags, models or APIs of one key."""


NODE_TAG = "appliance:node"
"""On keys that the node makes for itself; a person's tags do not begin like it."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key, without its secret. Times are Unix seconds; None means never."""

    id: str
    name: str
    created: int
    expires: int | None = None
    revoked: int | None = None
    kind: KeyKind = "api"
    """`api` opens models, `admin` the administration API; neither opens the other."""
    project: str = DEFAULT_PROJECT
    """Id of the project that groups it."""
    owner: str = ""
    tags: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    """The models it may use; None is all."""
    apis: tuple[str, ...] | None = None
    """The APIs it may call, from APIS; None is all."""
    priority: bool = False
    """Whether it may ask to be served before others."""
    lineage: str = ""
    """Id of the key that it replaces by rotation, the first one; its own if it replaces none.
    Limits belong to the lineage, so a rotation neither loses nor doubles them."""
    successor: str = ""
    """Id of the key that replaces it."""
    limits: Limits = NO_LIMITS
    project_limits: Limits = NO_LIMITS
    reserves: Mapping[str, int] = field(default_factory=dict)
    """Percent reserved for its lineage, by model; see Reserves."""
    project_reserves: Mapping[str, int] = field(default_factory=dict)
    project_archived: bool = False
    project_shares_cache: bool = False

    @property
    def of_node(self) -> bool:
        """Whether the node made it for itself: to prove, to ask, to measure."""
        return NODE_TAG in self.tags

    @property
    def prefix(self) -> str:
        """What the secret begins with: enough to recognise it, useless to a thief."""
        return secret.prefix(self.id, self.kind)

    @property
    def cache_namespace(self) -> str:
        """Whose prefixes its requests may find in the cache: its own, or its project's by choice.

        Never another project's: the time to the first token tells what was asked before.
        """
        return self.project if self.project_shares_cache else self.lineage or self.id

    def share(self, model: str) -> tuple[str, int] | None:
        """Whose reserve its requests for `model` have, and how many percent; None: nobody's.

        Its own goes before its project's.
        """
        for owner, reserves in (
            (self.lineage or self.id, self.reserves),
            (self.project, self.project_reserves),
        ):
            percent = percent_of(reserves, model)
            if percent:
                return owner, percent
        return None

    def state(self, now: float) -> KeyState:
        """What the key is worth at `now`."""
        if self.revoked is not None:
            return "revoked"
        if self.project_archived:
            return "archived"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "active"

    def may_use(self, model: str) -> bool:
        """Whether `model` is among its models."""
        return self.models is None or model in self.models

    def may_call(self, api: str) -> bool:
        """Whether `api` is among its APIs."""
        return self.apis is None or api in self.apis


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that nobody has stored yet. `secret` exists here and with the caller, nowhere else."""

    info: KeyInfo
    secret: str

    def __repr__(self) -> str:
        return f"NewKey({self.info!r})"


def new_key(
    name: str,
    *,
    expires: int | None = None,
    kind: KeyKind = "api",
    project: str = DEFAULT_PROJECT,
    owner: str = "",
    tags: Sequence[str] = (),
    models: Sequence[str] | None = None,
    apis: Sequence[str] | None = None,
    priority: bool = False,
    lineage: str = "",
) -> NewKey:
    """Make a key called `name` that is valid until `expires`. Raises UsageError."""
    now = int(time.time())
    check_words([name], "the name of a key")
    check_words([owner] if owner else [], "the owner of a key")
    for given, what in ((tags, "a tag"), (models, "the name of a model")):
        check_words(given or (), what)
    unknown = [api for api in apis or () if api not in APIS]
    if unknown:
        raise UsageError(f"there is no API {unknown[0]!r}", hint=f"APIs are {', '.join(APIS)}")
    if kind == "admin" and (models is not None or apis is not None or priority):
        raise UsageError(
            "an admin key opens no model",
            hint="leave out the models, APIs and priority, or make an API key",
        )
    if any(len(given or ()) > MAX_WORDS for given in (tags, models, apis)):
        raise UsageError(f"more than {MAX_WORDS} of one kind", hint="make a second key")
    if expires is not None and expires <= now:
        raise UsageError("the key would expire at once", hint="give a time that is still to come")
    key_id, whole = secret.generate(kind)
    info = KeyInfo(
        key_id,
        name,
        now,
        expires,
        kind=kind,
        project=project,
        owner=owner,
        tags=tuple(dict.fromkeys(tags)),
        models=None if models is None else tuple(dict.fromkeys(models)),
        apis=None if apis is None else tuple(dict.fromkeys(apis)),
        priority=priority,
        lineage=lineage or key_id,
    )
    return NewKey(info, whole)


__all__ = ["MAX_NAME", "NODE_TAG", "KeyInfo", "KeyKind", "KeyState", "NewKey", "new_key"]
