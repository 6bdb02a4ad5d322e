"""What of a step comes before the sequences that decode: moves, then pieces of prompts.

Owns their order, and what of a plan counts whose later piece was given up. What computes a piece
is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.engine.interruption import Interrupted
from appliance.engine.slot_pool import Array, SlotPool
from appliance.scheduler import Plan, PrefillChunk


def compute_pieces(
    plan: Plan, pool: SlotPool, compute: Callable[[PrefillChunk, Array], None], logits: Array
) -> int:
    """Move, then `compute` each piece of a prompt; how many rows of `logits` those have filled.

    `compute` is given the rows that its piece fills: one if the prompt ends with it. Raises
    Interrupted if a piece was given up; those before it are computed.
    """
    for move in plan.moves:
        pool.move(move)
    row = 0
    for done, chunk in enumerate(plan.prefills):
        wanted = logits[row : row + chunk.completes]
        try:
            compute(chunk, wanted)
        except Interrupted:
            raise Interrupted(done) from None
        if chunk.snapshot is not None:
            assert pool.recurrent is not None, "others can be cut anywhere"
            pool.recurrent.keep(chunk.slot, chunk.snapshot)
        row += len(wanted)
    return row
