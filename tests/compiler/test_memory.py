"""What a model takes of a GPU is reckoned from its manifest, before anything is tried."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.bundle.specs import RecurrentSpec
from appliance.compiler.memory import (
    STATES,
    candidates,
    choose_precision,
    needed,
    reading_bytes,
    slot_token_bytes,
)
from appliance.compiler.record import Fit
from appliance.compiler.sources import weight_files

GRADES: dict[str, list[tuple[str, float]]] = {
    "fp32": [("fp16", 0.5)],
    "fp16": [("fp16", 1)],
    "fp8": [("fp16", 2), ("fp8", 1)],
    "w8a8": [("fp16", 2), ("int8", 1.1)],
    "int8": [("int8", 1)],
    "int4": [("int4", 1)],
    "w4a8": [("int4", 1)],
}


def test_the_grade_says_what_weights_can_become(decoder_bundle: Path) -> None:
    manifest = decode((decoder_bundle / MANIFEST_NAME).read_bytes())
    stored = sum(entry.size for entry in weight_files(manifest).values())
    cuda = manifest.variant("cuda")
    assert cuda is not None
    for grade, expected in GRADES.items():
        graph = msgspec.structs.replace(manifest.graph, precision=grade)
        compact = msgspec.structs.replace(cuda, precision=expected[-1][0])
        graphs = (graph, cuda, compact)[: 1 + len(expected)]
        changed = msgspec.structs.replace(manifest, graphs=graphs)
        found = candidates(changed, 1 << 34)
        assert [(f.precision, f.weights) for f in found] == [
            (precision, int(stored * factor)) for precision, factor in expected
        ]
        assert {fit.memory for fit in found} == {1 << 34}


def test_a_smaller_gpu_gets_smaller_weights(decoder_bundle: Path) -> None:
    manifest = decode((decoder_bundle / MANIFEST_NAME).read_bytes())
    graph = msgspec.structs.replace(manifest.graph, precision="w8a8")
    cuda = manifest.variant("cuda")
    assert cuda is not None
    compact = msgspec.structs.replace(cuda, precision="int8")
    both = msgspec.structs.replace(manifest, graphs=(graph, cuda, compact))
    large, small = candidates(both, 0)
    for memory, expected in (
        (needed(large), "fp16"),
        (needed(large) - 1, "int8"),
        (needed(small), "int8"),
        (needed(small) - 1, None),
    ):
        chosen = choose_precision(candidates(both, memory))
        assert (chosen and chosen.precision) == expected


def test_a_sequence_is_reckoned_in_half_precision(decoder_bundle: Path) -> None:
    manifest = decode((decoder_bundle / MANIFEST_NAME).read_bytes())
    spec = manifest.decoder
    assert spec is not None
    assert slot_token_bytes(spec) == 4 * spec.layers * spec.kv_heads * spec.head_dim
    slots = {fit.slot for fit in candidates(manifest, 0)}
    assert slots == {min(spec.context_length, 4096) * slot_token_bytes(spec)}


def test_running_states_are_reckoned_in_32_bits(decoder_bundle: Path) -> None:
    manifest = decode((decoder_bundle / MANIFEST_NAME).read_bytes())
    assert manifest.decoder is not None
    states = RecurrentSpec(layers=2, heads=4, key_dim=8, value_dim=16, channels=24, tail=3)
    assert states.nbytes == 4 * 2 * (4 * 8 * 16 + 3 * 24)
    decoder = msgspec.structs.replace(manifest.decoder, recurrent=states)
    own = msgspec.structs.replace(manifest, decoder=decoder)
    for without, with_states in zip(candidates(manifest, 0), candidates(own, 0), strict=True):
        assert with_states.slot == without.slot + STATES * states.nbytes


def test_a_model_that_reads_needs_its_weights_and_the_longest_text(encoder_bundle: Path) -> None:
    manifest = decode((encoder_bundle / MANIFEST_NAME).read_bytes())
    spec = manifest.encoder
    assert spec is not None
    stored = sum(entry.size for entry in weight_files(manifest).values())
    wide, compact = candidates(manifest, 0)
    assert [(f.precision, f.weights) for f in (wide, compact)] == [
        ("fp16", 2 * stored),
        ("int8", stored),
    ]
    assert {wide.slot, compact.slot} == {spec.max_length * reading_bytes(spec)}
    assert candidates(manifest, 0, "trt") == ()


def test_an_older_model_that_reads_has_nothing_to_reckon(encoder_bundle: Path) -> None:
    manifest = decode((encoder_bundle / MANIFEST_NAME).read_bytes())
    assert manifest.encoder is not None
    encoder = msgspec.structs.replace(
        manifest.encoder, vocab_size=msgspec.UNSET, token_bytes=msgspec.UNSET
    )
    old = msgspec.structs.replace(manifest, graphs=manifest.graphs[:1], encoder=encoder)
    assert candidates(old, 1 << 34) == ()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 1 << 36), st.integers(1, 1 << 34)), max_size=4),
    memory=st.integers(0, 1 << 37),
)
def test_the_first_that_fits_is_chosen(sizes: list[tuple[int, int]], memory: int) -> None:
    options = [Fit(precision="p", weights=w, slot=s, memory=memory) for w, s in sizes]
    chosen = choose_precision(options)
    before = options if chosen is None else options[: options.index(chosen)]
    assert all(needed(option) > memory for option in before)
    assert chosen is None or needed(chosen) <= memory
