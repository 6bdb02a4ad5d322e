"""What tests over a device of ordinary memory have in common."""

from __future__ import annotations

from functools import partial

from appliance.engine.session import open_small_session

on_processor = partial(open_small_session, provider="cpu")
"""Opens a small graph of the engine's beside that device."""
