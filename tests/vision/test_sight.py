"""Where images are in a prompt, whatever their sizes and wherever a prompt is cut."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from appliance.compiler.grid import Grid, patch_places
from appliance.engine.vision.decoder import Image
from appliance.engine.vision.eyes import Eyes, Shown
from appliance.engine.vision.kept import KeptFeatures
from appliance.engine.vision.sight import Placed, Sight, expanded, key_of, words
from appliance.errors import CapacityError, RequestError
from appliance.prompting import Conversation, Message
from appliance.prompting.environment import compile_template, render
from installer.checkpoint.probe import open_graph
from tests.fakes.vision_checkpoints import TEMPLATE
from tests.vision.conftest import BuildSeeing, picture

TOKEN, LEVELS, WIDTH = 7, 2, 3
SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3)


def build(sizes: Listing[tuple[int, int]], gaps: Listing[int]) -> tuple[list[int], Sight]:
    """A prompt with images of these sizes, and as many words before each and behind the last."""
    prompt = [1] * gaps[0]
    for gap in gaps[1 : 1 + len(sizes)]:
        prompt += [TOKEN, *[2] * gap]
    grids = [Grid(*size) for size in sizes]
    ids, starts = expanded(prompt, TOKEN, grids)
    placed = []
    for number, (start, grid) in enumerate(zip(starts, grids, strict=True)):
        shape = (LEVELS, grid.tokens, WIDTH)
        features = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1000 * (number + 1)
        placed.append(Placed(start, grid, key_of(picture(number + 1, 1)), features))
    return ids, Sight(len(ids), TOKEN, placed)


@given(SIZES, st.lists(st.integers(1, 6), min_size=4, max_size=4), st.data())
def test_any_piece_of_a_prompt_is_a_part_of_the_whole(
    sizes: Listing[tuple[int, int]], gaps: Listing[int], data: st.DataObject
) -> None:
    ids, sight = build(sizes, gaps)
    keyed, behind = sight.keyed(ids), 4
    total = len(ids) + behind
    first = data.draw(st.integers(0, total - 1))
    count = data.draw(st.integers(1, total - first))
    whole = sight.positions(0, total)
    assert np.array_equal(sight.positions(first, count), whole[first : first + count])
    tokens = [*keyed, *[3] * behind]
    assert (
        sight.plain(first, tokens[first : first + count])
        == [*ids, *[3] * behind][first : first + count]
    )
    every, index = sight.features(0, total)
    some, part = sight.features(first, count)
    assert np.array_equal(some[:, part], every[:, index][:, first : first + count])
    assert not some[:, 0].any()
    assert ((index > 0) == np.array([token > 1 << 100 for token in tokens])).all()


@given(SIZES, st.lists(st.integers(1, 6), min_size=4, max_size=4))
def test_positions_go_on_behind_the_longer_side(
    sizes: Listing[tuple[int, int]], gaps: Listing[int]
) -> None:
    ids, sight = build(sizes, gaps)
    positions, at, place = sight.positions(0, len(ids) + 1), gaps[0], gaps[0]
    assert np.array_equal(positions[:place], words(0, place))
    for (rows, columns), gap in zip(sizes, gaps[1:], strict=False):
        image = positions[place : place + rows * columns]
        assert (image[:, 0] == at).all()
        assert image[-1].tolist() == [at, at + rows - 1, at + columns - 1]
        place, at = place + rows * columns + gap, at + max(rows, columns) + gap
    assert positions[place].tolist() == [at] * 3


def test_tokens_of_different_images_and_of_one_image_all_differ() -> None:
    ids, sight = build([(2, 3), (2, 3)], [1, 1, 1, 1])
    keyed = sight.keyed(ids)
    images = [token for token in keyed if token > 1 << 64]
    assert len(set(images)) == len(images) == 12
    assert key_of(picture(2, 3)) != key_of(picture(2, 3, seed=1))
    assert key_of(picture(2, 3)) != key_of(picture(2, 3).reshape(3, 2, 3))


def test_patches_of_a_token_follow_each_other() -> None:
    places = patch_places(Grid(2, 2), 2)
    assert places[:8].tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [0, 3], [1, 2], [1, 3]),
    ]


def test_room_for_features_is_bounded_and_comes_back(seeing: BuildSeeing) -> None:
    model = seeing("qwen3_vl")
    vision = model.vision
    session = open_graph(model.bundle / vision.graph)
    room = 16 * 3 * 64 * 4  # tokens, levels, width, bytes of a float
    eyes = Eyes(session, vision, room=room)
    prompt = Shown([vision.image_token] * 16, [0], [picture(64, 64)])
    held = eyes.see(prompt, lambda: False)
    assert eyes.free_bytes == 0
    with pytest.raises(CapacityError):
        eyes.see(prompt, lambda: False)
    del held
    assert eyes.free_bytes == room
    with pytest.raises(RequestError, match="gone"):
        eyes.see(prompt, lambda: True)
    eyes.see(prompt, lambda: False, "mine")
    assert eyes.see(prompt, lambda: True, "mine"), "it was seen in this namespace"
    assert eyes.free_bytes == room
    with pytest.raises(RequestError, match="every image"):
        eyes.show([1, 2], [("messages[0].content[0]", Image("image/png", b""))])


def test_features_are_kept_for_their_namespace_only_and_within_their_room() -> None:
    one = np.zeros((1, 4, 8), np.float32)
    kept = KeptFeatures(2 * one.nbytes)
    kept.put("a", 1, one)
    assert kept.get("a", 1) is one
    assert kept.get("b", 1) is None
    kept.put("", 1, one)
    assert kept.get("", 1) is None
    kept.put("b", 1, one)
    assert kept.get("a", 1) is one, "and so it is not the next to go"
    kept.put("c", 1, one)
    assert [kept.get(name, 1) is one for name in "abc"] == [True, False, True]
    kept.put("d", 1, np.zeros((1, 4, 80), np.float32))
    assert kept.get("d", 1) is None


PARTS = st.lists(
    st.one_of(st.none(), st.sampled_from(["see ", "what is this?", " 你好\n", "<b>"])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=30)
@given(st.lists(PARTS, min_size=1, max_size=4))
def test_conversations_with_images_render_as_the_reference_renders_them(
    turns: list[list[str | None]],
) -> None:
    conversation = Conversation(
        (
            Message("system", "Be brief."),
            *(
                Message(
                    "user" if number % 2 == 0 else "assistant",
                    "".join(part or "" for part in parts),
                    parts=tuple(parts) if None in parts and number % 2 == 0 else (),
                )
                for number, parts in enumerate(turns)
            ),
        )
    )
    messages = conversation.template_messages()
    ours = render(
        compile_template(TEMPLATE), {"messages": messages, "add_generation_prompt": True}, 1 << 20
    )
    theirs: Any = render_jinja_template(  # its annotation is not what it returns
        [messages], chat_template=TEMPLATE, add_generation_prompt=True
    )
    assert theirs[0] == [ours]
    shown = sum(part is None for message in conversation.messages for part in message.parts)
    assert ours.count("<|image_pad|>") == shown
