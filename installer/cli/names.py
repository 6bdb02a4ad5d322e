"""Names of models that an operator gives where no model needs to be there yet.

A key or a price may come before its model, so the name is taken; a typing error is said in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from installer.cli.output import err

if TYPE_CHECKING:
    from appliance.config import Layout


def note_unknown_models(layout: Layout, names: Iterable[str]) -> None:
    """Tell people which of `names` no model on this node has."""
    from appliance.model_store import ModelStore

    known = sorted({bundle.name for bundle in ModelStore(layout.models).bundles()})
    for name in sorted(set(names) - set(known)):
        there = f"; there are {', '.join(known)}" if known else ""
        err.print(f"note: no model on this node is called {name!r} yet{there}", markup=False)
