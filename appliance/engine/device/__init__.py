"""Models whose cache and logits lie in a GPU's memory.

    spread.py: on which GPUs     budget.py: how much cache
         │                            │
         v                            v
    opened.py ──> runner.py, or static_runner.py for TensorRT ──> logits.py ──> the sampler
                      │                                              │
                      v                                              v
                  binding.py over pool.py, static_pool.py        draw.py, change.py over rows.py
                      └───────────────────> device.py <──────────────┘

`device.py` is a GPU's memory, or this machine's own in its place: all of this runs where there is
no GPU, too, by the processor's provider. `recordings.py` keeps threads out of each other's way.
"""
