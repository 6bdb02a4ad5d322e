"""What may be the name of a key or a project, as far as a schema can say it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from appliance.access.words import MAX_NAME

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
