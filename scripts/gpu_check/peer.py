"""The worker that measures transformers' continuous batching: `python -m gpu_check.peer DIR`.

In bfloat16, the precision of the checkpoint, with what the library chooses by itself: CUDA
graphs, and the fastest attention that is installed. The library sizes its buffers by the first
batch it sees, so each workload gets a manager of its own; the first run of it warms up.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from gpu_check.workloads import Workload, serve

_SHARE = 0.4
"""Of the card's free memory, for the cache; the engine beside it needs the rest."""


def main(checkpoint: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).to(device)
    model.eval()
    serve(
        _Run(model).run,
        transformers=transformers.__version__,
        torch=torch.__version__,
        device=torch.cuda.get_device_name(0) if device == "cuda" else device,
        attention=str(model.config._attn_implementation),
    )


class _Run:
    def __init__(self, model: Any) -> None:  # noqa: ANN401  # the library's classes are made at run time
        self._model = model
        self._sized_for: Workload | None = None

    def run(self, workload: Workload, seed: int) -> float:
        """Seconds from the first request to the last token."""
        prompts = list(workload.prompts(self._model.config.vocab_size, seed))
        config = GenerationConfig(
            max_new_tokens=workload.wanted, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        batching = ContinuousBatchingConfig(max_memory_percent=_SHARE)
        if workload != self._sized_for:
            self._model.destroy_cached_continuous_batching_manager()
            self._sized_for = workload
        start = time.perf_counter()
        outputs = self._model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=batching,
            persistent_manager=True,
        )
        seconds = time.perf_counter() - start
        made = sum(len(output.generated_tokens) for output in outputs.values())
        errors = {str(output.error) for output in outputs.values()}
        assert made == workload.tokens, f"{made} tokens instead of {workload.tokens}: {errors}"
        return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]))
