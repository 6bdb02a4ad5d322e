"""Angles of every rescaling, and of every way to write it into config.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from installer.checkpoint.families.gemma3 import read as read_gemma3
from installer.checkpoint.graph.kinds import FULL, SLIDING, LayerKind
from installer.checkpoint.graph.rope import ORIGINAL, Rope, read_rope
from installer.checkpoint.settings import Settings
from tests.checkpoint.conftest import BuildBundle, OpenConfig
from tests.checkpoint.families.gemma3 import GEMMA3
from tests.checkpoint.reference import ReferenceDecoder
from tests.checkpoint.runner import SlotRunner, relative_error

TOKENS = np.random.default_rng(12).integers(0, 480, 500).tolist()
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def read(scaling: dict[str, Any] | None, **keys: object) -> Rope:
    config = {"max_position_embeddings": 128, "rope_scaling": scaling, **keys}
    return read_rope(Settings(config, "config.json"), 16, partial=True, names={"su": "longrope"})


@pytest.mark.parametrize("name", ["llama-yarn", "llama-longrope", "phi3-longrope", "phi4-mini"])
def test_beyond_the_original_context_the_reference_has_the_same_angles(
    built: BuildBundle, name: str
) -> None:
    # The reference as it is: long prompts get the angles that the bundle has for all.
    model = built(name, "fp32")
    reference = ReferenceDecoder(model.checkpoint, settled=False).logits(TOKENS)
    runner = SlotRunner(model.graph, model.spec, capacity=512)
    runner.prefill(0, TOKENS[:300])
    assert relative_error(runner.prefill(0, TOKENS[300:]), reference[-1]) <= 1e-4


def test_a_rescaling_may_stand_in_either_object() -> None:
    new = {"rope_theta": 5e5, **YARN}
    old = read(YARN, rope_theta=5e5)
    assert read(None, rope_parameters=new) == old
    assert read(None, rope_parameters=new, rope_theta=5e5) == old
    assert old != read(YARN)


def test_yarn_reaches_as_far_as_it_was_stretched() -> None:
    assert read(YARN).reach == 256
    assert read({"rope_type": "yarn", ORIGINAL: 64}).reach == 128


def test_dynamic_angles_are_plain_within_the_stated_context() -> None:
    assert read({"type": "dynamic", "factor": 8.0}) == read(None)


@pytest.mark.parametrize(("original", "factor"), [(128, 1.0), (127, 2.0)])
def test_longrope_takes_the_list_that_the_whole_context_needs(original: int, factor: float) -> None:
    rope, plain = read({**LONG, ORIGINAL: original}), read(None)
    assert rope.frequencies == pytest.approx([f / factor for f in plain.frequencies])
    assert (rope.magnitude > 1) == (factor > 1)


def test_what_stands_outside_the_rescaling_goes_before() -> None:
    inside = read({**LONG, ORIGINAL: 32})
    assert read(LONG, **{ORIGINAL: 32}) == inside
    assert read({**LONG, "type": "su"}, **{ORIGINAL: 32}) == inside
    assert read({**LONG, "type": "su", "rope_type": "longrope"}, **{ORIGINAL: 32}) == inside


def test_a_head_may_turn_in_part() -> None:
    config = Settings(
        {"max_position_embeddings": 128, "partial_rotary_factor": 0.75}, "config.json"
    )
    assert read_rope(config, 64, partial=True).turned == 48


def test_gemmas_angles_may_stand_in_either_form(open_config: OpenConfig) -> None:
    old = {key: value for key, value in GEMMA3.items() if not key.startswith("rope")}
    new = {
        FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    }
    checkpoint = open_config({**old, "rope_parameters": new})
    shape = read_gemma3(checkpoint)
    assert shape == read_gemma3(open_config(GEMMA3))
    near, far = shape.kinds[0], shape.kinds[1]
    assert near.window == 20
    assert far.window is None
    assert near.rope.frequencies[1] != far.rope.frequencies[1]


def test_a_window_that_no_sequence_reaches_is_none() -> None:
    kind = LayerKind(read(None), 128)
    assert kind.within(129) == kind
    assert kind.within(128) == LayerKind(kind.rope)
