"""Muse's images: scaled to whole tokens, tokens around them, refusals by name."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from appliance.bundle.specs import Parity
from appliance.config import EngineSettings
from appliance.engine.chat_model import ChatModel
from appliance.engine.vision.decoder import Image, ImageDecoder
from appliance.engine.vision.eyes import Eyes
from appliance.engine.vision.worker import ImageError, scaled_by_tokens
from appliance.errors import CheckpointError
from installer.checkpoint import build_bundle
from installer.checkpoint.probe import open_graph
from tests.checkpoint.conftest import build_unsigned
from tests.conftest import BuildOnce
from tests.engine.conftest import open_model_of
from tests.engine.results import run
from tests.fakes.engine_node import EngineNode
from tests.fakes.muse_checkpoints import write_muse_glimmer
from tests.vision.conftest import COUNTED, BuildSeeing, Seeing, picture
from tests.vision.pictures import encoded
from tests.vision.test_checkpoint import Edit, edited, put
from tests.vision.test_parity import Reference, text
from tests.vision.test_running_states import ask, show


def reference_sizes() -> Callable[..., tuple[int, int]]:
    """The reference's own function, of a module that cannot be imported without torchvision."""
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "models/muse_glimmer"
    tree = ast.parse((folder / "image_processing_muse_glimmer.py").read_text())
    (made,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "smart_resize"
    ]
    known: dict[str, Any] = {"itertools": itertools, "math": math}
    exec(compile(ast.Module([made], []), "reference", "exec"), known)
    sizes: Callable[..., tuple[int, int]] = known["smart_resize"]
    return sizes


REFERENCE_SIZES = reference_sizes()


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([16, 28]), st.integers(1, 4096))
def test_sizes_equal_the_references(width: int, height: int, factor: int, tokens: int) -> None:
    wanted = REFERENCE_SIZES(height, width, factor, tokens)
    try:
        got = scaled_by_tokens(width, height, factor, factor**2, tokens * factor**2)
    except ImageError:
        stretched = max(width, height) > 200 * min(width, height)
        assert stretched or wanted[0] * wanted[1] > 2 * tokens * factor**2
        return
    assert got == (wanted[1], wanted[0])


def test_an_image_is_scaled_by_lanczos_to_whole_tokens(seeing: BuildSeeing) -> None:
    vision = seeing(COUNTED).vision
    decoder = ImageDecoder(vision)
    image = Pillow.fromarray(picture(100, 61))
    got = decoder.decode(Image("image/png", encoded(image)))
    decoder.close()
    rows, columns = got.shape[0] // 16, got.shape[1] // 16
    assert (rows, columns) == (7, 4)
    wanted = image.resize((columns * 16, rows * 16), Pillow.Resampling.LANCZOS)
    assert np.array_equal(got, np.asarray(wanted))


def test_tokens_that_the_template_leaves_out_stand_around_an_image(seeing: BuildSeeing) -> None:
    model = seeing(COUNTED)
    vision = model.vision
    eyes = Eyes(open_graph(model.bundle / vision.graph), vision)
    data = Image("image/png", encoded(Pillow.fromarray(picture(32, 48))))
    shown = eyes.show([5, vision.image_token, 6], [("messages[0]", data)])
    eyes.close()
    first, last = vision.image_token - 2, vision.image_token - 1
    assert vision.around == (first, last)
    assert shown.ids == [5, first, *[vision.image_token] * 6, last, 6]
    assert shown.starts == [2]


def test_words_alone_have_the_graphs_of_a_dense_model(seeing: BuildSeeing) -> None:
    manifest = seeing(COUNTED, "w8a8").manifest
    assert not manifest.vision
    assert {graph.variant for graph in manifest.graphs} == {"cpu", "native", "cuda", "trt"}
    assert {graph.variant for graph in seeing(COUNTED).manifest.graphs} == {"cpu", "cuda"}


def build_model(root: Path) -> None:
    """The checkpoint is left beside the node's files, for the reference implementation."""
    EngineNode(root).add(write_muse_glimmer(root / COUNTED), name=COUNTED)


@pytest.fixture(scope="module")
def node(build_once: BuildOnce) -> Path:
    return build_once("seeing-muse", build_model)


def test_by_the_engine_greedy_answers_behind_images_are_the_references(node: Path) -> None:
    """In pieces that end in an image, and once more from what the cache has of one."""
    settings = EngineSettings(cache_bytes=64 << 20, threads=1, token_budget=32)
    model = open_model_of(node, COUNTED, settings)
    assert isinstance(model, ChatModel)
    reference = Reference(Seeing(node / COUNTED, node / f"{COUNTED}-1.0"))
    pictures = [picture(128, 160, seed) for seed in range(2)]
    ids, sight = show(model, text(20, 3), pictures[0], text(9, 4), pictures[1], text(5, 5))
    wanted: list[int] = []
    for _ in range(6):
        wanted.append(int(reference.logits([*ids, *wanted], pictures)[-1].argmax()))
    cold, warm = (run(model.engine, ask((ids, sight), namespace="a", max_tokens=6)) for _ in "ab")
    model.close()
    assert cold.tokens(0) == warm.tokens(0) == wanted
    assert warm.ends[0, 0].cached_tokens > 20 + 80, "it went on behind the first image"


def test_the_gate_compares_it_behind_an_image(tmp_path: Path) -> None:
    checkpoint = write_muse_glimmer(tmp_path / "checkpoint")
    manifest = build_bundle(
        *(checkpoint, tmp_path / "it"),
        name="tiny",
        version="1.0",
        precision="fp32",
        signer=None,
        parity="required",
    )
    assert isinstance(manifest.parity, Parity)
    assert isinstance(manifest.parity.error, int)
    assert manifest.parity.error < 10_000
    assert manifest.vision, "and so an image was among the tokens"


def inside(section: str, key: str, value: object) -> Edit:
    return lambda document: document[section].update({key: value})


CONFIG: list[tuple[Edit, str]] = [
    (put("", "quantum", 1), "quantum"),
    (put("", "projector_hidden_act", "relu"), "projector_hidden_act"),
    (put("", "out_hidden_size", 64), "out_hidden_size"),
    (put("", "tie_word_embeddings", True), "tie_word_embeddings"),
    (put("text_config", "attention_bias", True), "attention_bias"),
    (put("text_config", "hidden_activation", "gelu"), "hidden_activation"),
    (put("text_config", "attn_logit_softcapping", 50.0), "attn_logit_softcapping"),
    (put("text_config", "layer_rope_theta", [500_000.0, 9.0, 0.0, 0.0]), "layer_rope_theta"),
    (put("text_config", "layer_rope_theta", [0.0]), "layer_rope_theta"),
    (put("text_config", "layer_types", ["chunked_attention"] * 4), "layer_types"),
    (put("vision_config", "pos_emb_width", 8), "pos_emb_width"),
    (put("vision_config", "layer_types", ["full_attention"]), "layer_types"),
    (put("vision_config", "hidden_act", "silu"), "hidden_act"),
    (put("vision_config", "rope_parameters", {"rope_type": "other"}), "rope_parameters"),
    (put("", "image_token_id", 5), "image_token_id"),
]
PROCESSOR: list[tuple[Edit, str]] = [
    (inside("image_processor", "resample", 3), "resample"),
    (inside("image_processor", "size", {"height": 8}), "size"),
    (inside("image_processor", "patch_size", 14), "patch_size"),
    (inside("image_processor", "image_processor_type", "Qwen2VLImageProcessor"), "_type"),
    (lambda document: document.pop("image_processor"), "image_processor"),
]


@pytest.mark.parametrize(
    ("file", "edit", "name"),
    [("config.json", *case) for case in CONFIG]
    + [("processor_config.json", *case) for case in PROCESSOR],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_changes_the_model_is_refused_by_name(
    tmp_path: Path, file: str, edit: Edit, name: str
) -> None:
    checkpoint = write_muse_glimmer(tmp_path / "checkpoint")
    edited(checkpoint / file, edit)
    with pytest.raises(CheckpointError, match=name):
        build_unsigned(checkpoint, tmp_path / "out", precision="fp32")


def test_a_tokenizer_without_the_tokens_around_an_image_is_refused(tmp_path: Path) -> None:
    checkpoint = write_muse_glimmer(tmp_path / "checkpoint")
    file = checkpoint / "tokenizer.json"
    text = file.read_text().replace("<|image_start|>", "<|image_begin|>")
    assert json.loads(text)
    file.write_text(text)
    with pytest.raises(CheckpointError, match="image_start"):
        build_unsigned(checkpoint, tmp_path / "out", precision="fp32")
