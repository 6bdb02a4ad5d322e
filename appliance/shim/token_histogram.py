"""A histogram that is told of every token, for /metrics.

Its series are fed and read on the event loop alone, so they need no lock: that is most of what an
observation costs elsewhere, and tokens come by the ten thousand a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Series:
    """The observations of one model."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations in each bucket, the last one without a bound."""
        self.total = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """Note one, or `count` of the same; a bound belongs to the bucket below it."""
        self.counts[bisect_left(self._bounds, seconds)] += count
        self.total += seconds * count


class TokenHistogram(Collector):
    """By model. `bounds` of the buckets are in seconds, ascending."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._names = [*map(floatToGoString, bounds), "+Inf"]
        self._series: dict[str, Series] = {}

    def series(self, model: str) -> Series:
        """That of `model`, from now on in /metrics."""
        found = self._series.get(model)
        if found is None:
            found = self._series[model] = Series(self._bounds)
        return found

    def collect(self) -> Iterable[Metric]:
        """The one family, with or without series, so that its name is always known."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["model"])
        for model, series in self._series.items():
            sums = [sum(series.counts[: end + 1]) for end in range(len(series.counts))]
            buckets = list(zip(self._names, map(float, sums), strict=True))
            family.add_metric([model], buckets, series.total)
        yield family
