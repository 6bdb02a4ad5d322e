"""What /metrics shows: names follow vLLM's, under the prefix `appliance_`.

Owns the registry. Labels are routes, models and status codes: sets that a caller cannot grow,
because a model becomes a label only after the engine accepted a request for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.audit.event import Response
from appliance.pb import engine_v1_pb2 as pb
from appliance.shim.token_histogram import Series, TokenHistogram

BatchOutcome = Literal["completed", "failed", "tried_again"]
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of this process, and the engine's as it last told them."""

    def __init__(self, in_progress: Callable[[], int]) -> None:
        registry = CollectorRegistry(auto_describe=True)
        self.registry = registry
        self.engine = EngineCollector()
        registry.register(self.engine)
        ProcessCollector(namespace="appliance_shim", registry=registry)
        self._requests = Counter(
            "appliance_http_requests",
            "HTTP requests answered, by route and status (0: the caller hung up first).",
            ("route", "status"),
            registry=registry,
        )
        Gauge(
            "appliance_http_requests_in_progress",
            "HTTP requests that are being worked on, this scrape included.",
            registry=registry,
        ).set_function(in_progress)
        self._durations = Histogram(
            "appliance_http_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "appliance_time_to_first_token_seconds",
            "From the request's head to the first token from the engine.",
            ("model", "capacity"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._between_tokens = TokenHistogram(
            "appliance_inter_token_latency_seconds",
            "Between two deltas of one sequence, per token.",
            _STEP_SECONDS,
        )
        registry.register(self._between_tokens)
        self._batches = Gauge(
            "appliance_batches_in_progress",
            "Batches that have not ended.",
            registry=registry,
        )
        self._batch_lines = Counter(
            "appliance_batch_lines",
            "Tries of lines of batches, by what came of it.",
            ("outcome",),
            registry=registry,
        )
        self._handshakes = Counter(
            "appliance_tls_handshakes_failed",
            "TLS connections that ended before they were open, by reason.",
            ("reason",),
            registry=registry,
        )
        self._finished = Counter(
            "appliance_request_finished",
            "Admitted requests that ended, by outcome.",
            ("model", "outcome", "finished_reason"),
            registry=registry,
        )
        self._tokens = {
            name: Counter(f"appliance_{name}_tokens", help_text, ("model",), registry=registry)
            for name, help_text in (
                ("prompt", "Prompt tokens billed."),
                ("cached_prompt", "Of the prompt tokens, taken from the prefix cache."),
                ("generation", "Generated tokens billed."),
                ("reasoning", "Of the generated tokens, reasoning."),
            )
        }

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; `status` 0 if nobody was there to read it."""
        self._requests.labels(route, str(status)).inc()
        self._durations.labels(route).observe(seconds)

    def first_token(self, model: str, seconds: float, *, dedicated: bool) -> None:
        """The engine gave the first token of a request, of dedicated or of shared capacity."""
        capacity = "dedicated" if dedicated else "shared"
        self._first_token.labels(model, capacity).observe(seconds)

    def between_tokens(self, model: str) -> Series:
        """Where the seconds between tokens of `model` are noted."""
        return self._between_tokens.series(model)

    def batches(self, count: int) -> None:
        """So many batches have not ended."""
        self._batches.set(count)

    def batch_line(self, outcome: BatchOutcome) -> None:
        """A line of a batch was tried."""
        self._batch_lines.labels(outcome).inc()

    def handshake_failed(self, reason: str) -> None:
        """A TLS connection did not come to be."""
        self._handshakes.labels(reason).inc()

    def shows_certificate(self, expires: Callable[[], float]) -> None:
        """Show when the endpoint's certificate ends, in Unix seconds."""
        Gauge(
            "appliance_tls_certificate_expires_seconds",
            "When the endpoint's certificate expires, Unix time.",
            registry=self.registry,
        ).set_function(expires)

    def settled(self, response: Response) -> None:
        """An admitted request ended."""
        model, tokens = response.model, response.tokens
        self._finished.labels(model, response.outcome, response.finish_reason).inc()
        self._tokens["prompt"].labels(model).inc(tokens.prompt)
        self._tokens["cached_prompt"].labels(model).inc(tokens.cached)
        self._tokens["generation"].labels(model).inc(tokens.generated)
        self._tokens["reasoning"].labels(model).inc(tokens.reasoning)


class EngineCollector(Collector):
    """The engine's own counters; `latest` is None while it does not answer."""

    latest: Sequence[pb.ModelStats] | None = None

    def collect(self) -> Iterable[Metric]:
        """All families, whether or not the engine answers, so that names are always known."""
        models = self.latest or ()
        up = GaugeMetricFamily("appliance_engine_up", "Whether the engine answers.")
        up.add_metric((), 0 if self.latest is None else 1)
        yield up
        gauges = (
            ("num_requests_running", "Sequences in the running batch.", "sequences_running"),
            ("num_requests_waiting", "Sequences in the queue.", "sequences_waiting"),
            ("kv_cache_total_bytes", "Key-value cache of the model.", "cache_bytes_total"),
        )
        for name, text, field in gauges:
            gauge = GaugeMetricFamily(f"appliance_{name}", text, labels=("model",))
            for model in models:
                gauge.add_metric((model.model,), getattr(model, field))
            yield gauge
        used = GaugeMetricFamily(
            "appliance_kv_cache_usage_perc", "Cache in use, 1 is all of it.", labels=("model",)
        )
        for model in models:
            used.add_metric((model.model,), model.cache_bytes_used / (model.cache_bytes_total or 1))
        yield used
        counters = (
            ("engine_prompt_tokens", "Prompt tokens computed.", "prompt_tokens"),
            ("engine_generation_tokens", "Tokens sampled.", "generated_tokens"),
            ("prefix_cache_queries", "Prompt tokens looked up in it.", "prefix_cache_queries"),
            ("prefix_cache_hits", "Prompt tokens taken from the cache.", "cached_tokens"),
            ("engine_sequences_finished", "Sequences that ended.", "sequences_finished"),
            ("engine_sequences_cancelled", "Sequences cancelled.", "sequences_cancelled"),
            ("engine_sequences_expired", "Sequences ended by a deadline.", "sequences_expired"),
            ("num_preemptions", "Sequences put back into the queue.", "preemptions"),
            (
                "engine_recomputed_tokens",
                "Tokens computed again after a preemption.",
                "recomputed_tokens",
            ),
            ("engine_steps", "Steps of the engine.", "steps"),
            (
                "engine_spec_decode_num_draft_tokens",
                "Tokens guessed ahead and verified.",
                "drafted_tokens",
            ),
            (
                "engine_spec_decode_num_accepted_tokens",
                "Of the tokens guessed ahead, right.",
                "accepted_tokens",
            ),
        )
        for name, text, field in counters:
            counter = CounterMetricFamily(f"appliance_{name}", text, labels=("model",))
            for model in models:
                counter.add_metric((model.model,), getattr(model, field))
            yield counter
        yield from _by_class(models)


def _by_class(models: Iterable[pb.ModelStats]) -> Iterable[Metric]:
    """The figures of shared and of dedicated capacity."""
    labels = ("model", "capacity")
    kinds = (
        (GaugeMetricFamily, "sequences_running", "In the running batch.", "sequences_running"),
        (GaugeMetricFamily, "sequences_waiting", "In the queue.", "sequences_waiting"),
        (GaugeMetricFamily, "slots_reserved", "Kept for who is there.", "slots_reserved"),
        (CounterMetricFamily, "prompt_tokens", "Prompt tokens computed.", "prompt_tokens"),
        (CounterMetricFamily, "generation_tokens", "Tokens sampled.", "generated_tokens"),
        (CounterMetricFamily, "preemptions", "Sequences put back.", "preemptions"),
    )
    for kind, name, text, field in kinds:
        family = kind(f"appliance_capacity_{name}", f"{text} By class of capacity.", labels=labels)
        for model in models:
            for figures in model.classes:
                family.add_metric((model.model, figures.name), getattr(figures, field))
        yield family
