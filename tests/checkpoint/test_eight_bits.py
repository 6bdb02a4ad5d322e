"""Products of integers over an 8-bit cache: what they round, and that nothing else is changed.

That logits are those of the reference with the same roundings: the parity table. What is left
between the two is roundings that fall the other way by the last bit of a float. Errors are
relative, in the Euclidean norm.
"""

from __future__ import annotations

import numpy as np
import pytest

from appliance.native import library
from installer.checkpoint.calibration import spread
from tests.checkpoint.byte_runner import OTHER_WAY, Bytes, Natively, distance
from tests.checkpoint.conftest import BuildBundle
from tests.checkpoint.reference import ReferenceDecoder

TOKENS = np.random.default_rng(11).integers(0, 480, 120).tolist()
WINDOWS = ["qwen3", "mistral"]
"""Without a window, and with one that is shorter than the prompts."""
NAMES = ["qwen3", "qwen3-odd-widths", "qwen2", "llama"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_stay_near_the_unrounded_reference(built: BuildBundle, name: str) -> None:
    model = built(name, "w8a8")
    wanted = ReferenceDecoder(model.checkpoint).logits(TOKENS)
    assert distance(Bytes(model).prefill(TOKENS, rows=len(TOKENS)), wanted) <= 0.08


@pytest.mark.parametrize("name", WINDOWS)
def test_a_row_is_the_same_to_the_bit_in_any_batch(built: BuildBundle, name: str) -> None:
    model = built(name, "w8a8")
    prompts = [TOKENS[:5], TOKENS[5:70], TOKENS[70:71], TOKENS[80:110]]
    runner = Bytes(model)
    for slot, prompt in enumerate(prompts):
        runner.prefill(prompt, slot=slot)
    together = runner.decode([len(p) for p in prompts], [[9], [8], [7], [6]])
    for slot, prompt in enumerate(prompts):
        alone = Bytes(model, slots=1)
        alone.prefill(prompt)
        row = alone.decode([len(prompt)], [[9 - slot]])
        assert (row[0] == together[slot]).all()


@pytest.mark.parametrize("name", WINDOWS)
def test_a_prompt_gives_the_same_cache_in_any_pieces(built: BuildBundle, name: str) -> None:
    model = built(name, "w8a8")
    whole, pieces = Bytes(model), Bytes(model)
    wanted = whole.prefill(TOKENS)
    start = 0
    for size in (1, 64, 7, 48):
        got = pieces.prefill(TOKENS[start : start + size], start=start)
        start += size
    assert start == len(TOKENS)
    assert distance(got, wanted) <= OTHER_WAY
    # Sums in another order move a number by its last bits: an integer by one, now and then.
    for one, other in zip(whole.pool.keys, pieces.pool.keys, strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.02


def test_a_prompt_goes_on_from_a_copied_slot_to_the_bit(built: BuildBundle) -> None:
    # A cached prefix in another slot, or a slot that was moved: the integers are all there is.
    model = built("qwen3", "w8a8")
    runner = Bytes(model)
    runner.prefill(TOKENS[:64], slot=0)
    for array in (*runner.pool.keys, *runner.pool.values):
        array[2, :, :64] = array[0, :, :64]
    wanted = runner.prefill(TOKENS[64:], slot=0, start=64)
    got = runner.prefill(TOKENS[64:], slot=2, start=64)
    assert (got == wanted).all()


@pytest.mark.parametrize("name", NAMES)
def test_decoding_step_by_step_agrees_with_prefill(built: BuildBundle, name: str) -> None:
    model = built(name, "w8a8")
    wanted = Bytes(model).prefill(TOKENS, rows=40)
    runner = Bytes(model)
    runner.prefill(TOKENS[:80])
    got = [runner.decode([80 + i], [[token]])[0] for i, token in enumerate(TOKENS[80:])]
    assert distance(np.stack(got), wanted) <= OTHER_WAY


def test_any_number_of_a_pieces_last_rows_can_be_had(built: BuildBundle) -> None:
    model = built("qwen3", "w8a8")
    runner = Bytes(model)
    rows = runner.prefill(TOKENS[:30], rows=30)
    assert (runner.prefill(TOKENS[:30], rows=7) == rows[-7:]).all()
    assert runner.prefill(TOKENS[:30], rows=0).shape == (0, model.spec.vocab_size)


@pytest.mark.parametrize("name", WINDOWS)
def test_several_tokens_of_each_sequence_can_be_decoded_at_once(
    built: BuildBundle, name: str
) -> None:
    model = built(name, "w8a8")
    together, single = Bytes(model), Bytes(model)
    prompts = [TOKENS[:5], TOKENS[5:70], TOKENS[70:90]]
    drafts = [TOKENS[90:94], TOKENS[94:95], TOKENS[95:98]]
    for slot, prompt in enumerate(prompts):
        together.prefill(prompt, slot=slot)
        single.prefill(prompt, slot=slot)
    got = together.decode([len(p) for p in prompts], drafts)
    wanted = []
    for slot, draft in enumerate(drafts):
        for index, token in enumerate(draft):
            starts = [len(p) for p in prompts]
            starts[slot] += index
            tokens = [[0] for _ in prompts]
            tokens[slot] = [token]
            # The others are computed over and over at one place, which nobody looks at.
            wanted.append(single.decode(starts, tokens)[slot])
    assert distance(got, np.stack(wanted)) <= OTHER_WAY


def test_what_calibration_saw_fits_the_cache(built: BuildBundle) -> None:
    model = built("qwen3", "w8a8")
    runner = Bytes(model)
    runner.prefill(spread(model.spec.vocab_size, 128))
    for array in (*runner.pool.keys, *runner.pool.values):
        assert 20 < np.abs(array.astype(int)).max() < 127


@pytest.mark.skipif(not library.supported(), reason="this processor lacks the native operators")
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_in_four_bits_processors_without_native_operators_compute_nearly_the_same(
    built: BuildBundle, name: str
) -> None:
    # There MatMulNBits rounds activations by the block, not by the token.
    model = built(name, "w4a8")
    assert distance(Bytes(model).prefill(TOKENS, rows=120), Natively(model).run(TOKENS)) <= 0.1


def test_widths_that_are_no_whole_blocks_have_no_native_graph_in_four_bits(
    built: BuildBundle,
) -> None:
    for name in ("qwen3-odd-widths", "llama-vocabulary-of-499"):
        graphs = [graph.variant for graph in built(name, "w4a8").manifest.graphs]
        assert graphs == ["cpu", "cuda"], name
        assert built(name, "w8a8").manifest.variant("native") is not None, name
