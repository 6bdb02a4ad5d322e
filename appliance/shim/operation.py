"""One operation of the endpoint, as routing, keys and /openapi.json need to know it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.shim.exchange import Dialect
from appliance.shim.layers.authorise import ADMINISTRATION
from appliance.shim.wire.parameters import Parameter

Method = Literal["GET", "POST", "DELETE"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: Method
    path: str
    """With `{names}` for its variable parts."""
    summary: str
    answer: object
    """The type of a 200's JSON, or its media types."""
    body: type | None = None
    """The type of the request's JSON."""
    form: type | None = None
    """The type of the request's form, for an upload."""
    parameters: Sequence[Parameter] = ()
    query: type | None = None
    stream: object = None
    """The type of each event where the answer can be streamed."""
    public: bool = False
    """Needs no key and leaves no record."""
    statuses: Sequence[int] = ()
    """Those that it may answer with besides what all of its kind do."""
    dialect: Dialect = "openai"
    """Whose API it is, and so the shape of its errors."""
    anthropic_answer: object = None
    """The type of a 200's JSON for callers that speak Anthropic's API, where both have the path."""

    @property
    def names(self) -> list[str]:
        """The variable parts of the path."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def admin(self) -> bool:
        """Whether it needs an admin key, where others need an API key."""
        return self.path.startswith(ADMINISTRATION)
