"""Runs in OpenVINO's own environment: measures workloads that come as JSON lines.

    openvino_worker.py MODEL CACHE_TOKENS VOCABULARY

It prints `ready`, then for each line a JSON list with the figures of the workload's rows. Prompts
are random ids, each time others; time is taken when a step of the pipeline has ended.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai


class Request:
    """One request and when its tokens came."""

    def __init__(
        self,
        pipeline: genai.ContinuousBatchingPipeline,
        number: int,
        prompt: list[int],
        tokens: int,
    ) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        self.begin = time.perf_counter()
        self.first: float | None = None
        self.last = self.begin
        self.tokens = 0
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._handle = pipeline.add_request(number, ids, config)

    def look(self, now: float) -> None:
        """Take what the last step brought."""
        while self._handle.can_read():
            for output in self._handle.read().values():
                self.tokens += len(output.generated_ids)
            if self.tokens and self.first is None:
                self.first = now
            self.last = now


class Worker:
    """The pipeline and what is asked of it."""

    def __init__(self, model: str, cache_tokens: int, vocabulary: int) -> None:
        config = genai.SchedulerConfig()
        config.cache_size = 0
        config.num_kv_blocks = cache_tokens // 32
        config.enable_prefix_caching = True
        self._pipeline = genai.ContinuousBatchingPipeline(model, config, "CPU")
        self._vocabulary = vocabulary
        self._random = random.Random(time.time_ns())
        self._number = 0

    def measure(self, work: dict[str, Any]) -> list[float]:
        return {
            "batch": self._batch,
            "prefill": self._prefill,
            "decode": self._decode,
            "warm": self._warm,
            "beside": self._beside,
        }[work["kind"]](work)

    def _batch(self, work: dict[str, Any]) -> list[float]:
        self._alone(work["tokens_in"], work["tokens_out"])
        begin = time.perf_counter()
        requests = [
            self._ask(self._prompt(work["tokens_in"]), work["tokens_out"])
            for _ in range(work["streams"])
        ]
        self._until_idle(requests)
        seconds = max(request.last for request in requests) - begin
        tokens = sum(request.tokens for request in requests)
        assert tokens == work["streams"] * work["tokens_out"], "not every answer is complete"
        return [tokens / seconds, statistics.median(map(_first, requests))]

    def _prefill(self, work: dict[str, Any]) -> list[float]:
        self._alone(work["tokens_in"], work["tokens_out"])
        times = [
            _first(self._alone(work["tokens_in"], work["tokens_out"]))
            for _ in range(work["repeats"])
        ]
        return [work["tokens_in"] / statistics.median(times)]

    def _decode(self, work: dict[str, Any]) -> list[float]:
        rates = []
        for _ in range(work["repeats"] + 1):
            request = self._alone(work["tokens_in"], work["tokens_out"])
            assert request.first is not None
            rates.append((request.tokens - 1) / (request.last - request.first))
        return [statistics.median(rates[1:])]

    def _warm(self, work: dict[str, Any]) -> list[float]:
        cold = [_first(self._alone(work["tokens_in"], 2)) for _ in range(work["repeats"])]
        shared, warm = self._prompt(work["part"]), []
        for _ in range(work["repeats"] + 1):
            own = self._prompt(work["tokens_in"] - work["part"])
            request = self._ask(shared + own, 2)
            self._until_idle([request])
            warm.append(_first(request))
        return [statistics.median(cold), statistics.median(warm[1:])]

    def _beside(self, work: dict[str, Any]) -> list[float]:
        alone = [_first(self._alone(work["part"], 2)) for _ in range(work["repeats"])]
        beside = []
        for _ in range(work["repeats"]):
            long = self._ask(self._prompt(work["tokens_in"]), 2)
            self._pipeline.step()
            assert long.first is None
            short = self._ask(self._prompt(work["part"]), 2)
            self._until_idle([long, short])
            beside.append(_first(short))
        return [statistics.median(alone), statistics.median(beside)]

    def _alone(self, tokens_in: int, tokens_out: int) -> Request:
        request = self._ask(self._prompt(tokens_in), tokens_out)
        self._until_idle([request])
        return request

    def _ask(self, prompt: list[int], tokens: int) -> Request:
        self._number += 1
        return Request(self._pipeline, self._number, prompt, tokens)

    def _until_idle(self, requests: list[Request]) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for request in requests:
                request.look(now)

    def _prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(256, self._vocabulary) for _ in range(tokens)]


def _first(request: Request) -> float:
    assert request.first is not None, "an answer without a token"
    return request.first - request.begin


def main() -> None:
    worker = Worker(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.measure(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
