"""The histogram of token times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from appliance.shim.token_histogram import TokenHistogram

BOUNDS = (0.01, 0.1, 1.0)
TIMES = st.lists(st.sampled_from(BOUNDS) | st.floats(0, 2), max_size=20)


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@given(TIMES)
def test_it_shows_what_the_reference_library_s_shows(times: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = TokenHistogram("seconds", "of tokens", BOUNDS)
    ours.register(histogram)
    reference = Histogram("seconds", "of tokens", ("model",), buckets=BOUNDS, registry=theirs)
    series, child = histogram.series("m"), reference.labels("m")
    for seconds in times:
        series.observe(seconds)
        child.observe(seconds)
    assert samples(ours) == samples(theirs)
