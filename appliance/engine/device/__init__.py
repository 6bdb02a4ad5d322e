"""Models whose cache and logits lie in a GPU's memory, or in several GPUs'.

    spread.py: on which GPUs     budget.py: how much cache
         │                            │
         v                            v
    opened.py ──> runner.py, or static_runner.py for TensorRT ──> logits.py ──> the sampler
                      │                                              │
          steps.py    v                                              │
             └──> room.py over stages.py: what each GPU computes     v
                      │                                  draw.py, change.py over rows.py
                      v                                              │
                  binding.py over pool.py, static_pool.py            │
                      └───────────────────> device.py <──────────────┘

`device.py` is a GPU's memory, or this machine's own in its place: all of this runs where there is
no GPU, too, by the processor's provider. `recordings.py` keeps threads out of each other's way.
"""
