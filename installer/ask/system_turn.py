"""The system turn that carries passages to the guide.

Owns its wording and form. Training, evaluation and `appliance ask` write it with this one
function, because the guide knows no other. It is kept short: heading and lead of each passage.
"""

from __future__ import annotations

from collections.abc import Sequence

from installer.ask.passages import Passage

_TASK = "Answer from the handbook of this appliance."
_NOTHING = "No section of it fits."


def system_turn(passages: Sequence[Passage]) -> str:
    """The system message for `passages`, best first; there may be none."""
    blocks = [f"[{n}] {p.heading}\n{p.lead}" for n, p in enumerate(passages, start=1)]
    return "\n\n".join((_TASK, *(blocks or [_NOTHING])))
