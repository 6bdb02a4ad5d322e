"""Every step that the scheduler can ask for is in exactly one of the planned engines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.profiles import MOST_ENGINES, Profile, Sizes, capacities, find, plan, sizes
from appliance.config import EngineSettings
from appliance.errors import CapacityError, UnsupportedError


@given(
    slots=st.integers(1, 128),
    chunk=st.integers(16, 4096),
    context=st.integers(64, 40_000),
    engines=st.integers(2, 60),
    data=st.data(),
)
def test_every_step_is_in_exactly_one_engine(
    slots: int, chunk: int, context: int, engines: int, data: st.DataObject
) -> None:
    profiles = plan(Sizes(slots=slots, chunk=chunk, context=context, engines=engines))
    assert len(profiles) <= min(engines, MOST_ENGINES)
    assert len({profile.name for profile in profiles}) == len(profiles)
    lengths = sorted({profile.capacity for profile in profiles})
    assert lengths[-1] == context
    assert set(lengths) <= set(capacities(context))
    for capacity in lengths:
        batch = data.draw(st.integers(1, slots))
        tokens = data.draw(st.integers(1, min(chunk, capacity)))
        assert find(profiles, "decode", batch, 1, capacity).rows.holds(batch)
        assert find(profiles, "prefill", 1, tokens, capacity).rows.holds(1)


@given(slots=st.integers(1, 200), engines=st.integers(2, 40))
def test_no_batch_is_left_out(slots: int, engines: int) -> None:
    profiles = plan(Sizes(slots=slots, chunk=512, context=4096, engines=engines))
    for capacity in {profile.capacity for profile in profiles}:
        held = [
            batch
            for profile in profiles
            if (profile.phase, profile.capacity) == ("decode", capacity)
            for batch in range(profile.batch.least, profile.batch.most + 1)
        ]
        assert held == list(range(1, slots + 1))


def names(profiles: tuple[Profile, ...]) -> list[str]:
    return [profile.name for profile in profiles]


def test_with_memory_enough_batches_double_and_caches_quadruple() -> None:
    profiles = plan(Sizes(slots=6, chunk=512, context=3000, engines=100))
    assert names(profiles) == [
        f"{phase}-of-{capacity}"
        for capacity in (1024, 3000)
        for phase in ("prefill", "decode-1-1", "decode-2-2", "decode-3-4", "decode-5-6")
    ]


def test_a_small_model_on_a_large_gpu_has_not_more_engines_than_somebody_waits_for() -> None:
    profiles = plan(Sizes(slots=128, chunk=2048, context=40_960, engines=60))
    assert names(profiles) == [
        f"{phase}-of-{capacity}"
        for capacity in (1024, 4096, 16_384, 40_960)
        for phase in ("prefill", "decode-1-1", "decode-2-128")
    ]
    short = plan(Sizes(slots=128, chunk=2048, context=4096, engines=60))
    assert names(short)[6:] == [
        f"{phase}-of-4096"
        for phase in ("prefill", "decode-1-1", "decode-2-4", "decode-5-16", "decode-17-64")
    ] + ["decode-65-128-of-4096"]


def test_with_less_batches_are_joined_first_and_then_lengths() -> None:
    few = plan(Sizes(slots=8, chunk=512, context=4096, engines=6))
    assert names(few)[:3] == ["prefill-of-1024", "decode-1-1-of-1024", "decode-2-8-of-1024"]
    fewer = plan(Sizes(slots=8, chunk=512, context=4096, engines=3))
    assert names(fewer) == ["prefill-of-4096", "decode-1-1-of-4096", "decode-2-8-of-4096"]
    least = plan(Sizes(slots=8, chunk=512, context=4096, engines=2))
    assert names(least) == ["prefill-of-4096", "decode-1-8-of-4096"]
    with pytest.raises(CapacityError, match="two engines"):
        plan(Sizes(slots=8, chunk=512, context=4096, engines=1))


def test_the_options_name_every_input_of_the_graph() -> None:
    spec = DecoderSpec(layers=1, kv_heads=2, head_dim=8, vocab_size=9, context_length=64)
    prefill, decode = plan(Sizes(slots=4, chunk=16, context=64, engines=2))
    assert prefill.options(spec) == {
        "trt_profile_min_shapes": (
            "input_ids:1x1,starts:1,rows:1,past_key_0:1x2x64x8,past_value_0:1x2x64x8"
        ),
        "trt_profile_opt_shapes": (
            "input_ids:1x16,starts:1,rows:1,past_key_0:1x2x64x8,past_value_0:1x2x64x8"
        ),
        "trt_profile_max_shapes": (
            "input_ids:1x16,starts:1,rows:9,past_key_0:1x2x64x8,past_value_0:1x2x64x8"
        ),
    }
    assert decode.options(spec)["trt_profile_max_shapes"].startswith(
        "input_ids:4x1,starts:4,rows:4"
    )


def test_a_step_outside_is_refused() -> None:
    profiles = plan(Sizes(slots=4, chunk=512, context=4096, engines=2))
    for step in (("decode", 5, 1, 4096), ("prefill", 1, 513, 4096), ("decode", 1, 1, 2048)):
        with pytest.raises(UnsupportedError, match="0 engines"):
            find(profiles, *step)


def test_the_sizes_are_those_that_the_engine_runs_with() -> None:
    spec = DecoderSpec(layers=1, kv_heads=2, head_dim=8, vocab_size=9, context_length=8192)
    gib = 1 << 30
    usual = sizes(spec, EngineSettings(), weights=2 * gib, memory=80 * gib)
    sized = EngineSettings().sized(gpu=True)
    assert (usual.slots, usual.chunk) == (sized.max_sequences, sized.token_budget)
    assert (usual.context, usual.engines) == (8192, 20)
    chosen = EngineSettings(max_sequences=4, token_budget=64, max_context=100)
    few = sizes(spec, chosen, weights=50 * gib, memory=80 * gib)
    assert few == Sizes(slots=4, chunk=64, context=100, engines=0)
