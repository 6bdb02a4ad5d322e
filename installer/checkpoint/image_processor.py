"""How a checkpoint's images are prepared, read from what it says of its processor.

Refuses, by name, steps that the engine does not have: a model that sees other colours or sizes
than it was trained on answers fluently and wrongly.
"""

from __future__ import annotations

import msgspec

from appliance.bundle.specs import VisionSpec
from appliance.errors import CheckpointError
from installer.checkpoint.graph.pictures import PictureShape
from installer.checkpoint.graph.tower import TowerShape
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tokenizer import CheckpointTokenizer

NAME = "preprocessor_config.json"
_NEWER, _SECTION = "processor_config.json", "image_processor"
"""Where newer checkpoints say the same."""
_BICUBIC, _LANCZOS = 3, 1
_RESCALE = 1 / 255
_LEAST, _MOST = 56 * 56, 28 * 28 * 1280
"""Pixels, where the file is silent, as in the reference implementation."""
_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast")
_COUNTING = ("MuseGlimmerImageProcessor", "MuseGlimmerImageProcessorFast")
"""Of towers whose tokens are counted."""
_AROUND = ("<|image_start|>", "<|image_end|>")
_MOST_TOKENS = 4096
_HARMLESS = frozenset({"processor_class", "default_to_square"})
"""Sides follow from pixels, not from a default."""


def read_vision(
    checkpoint: Checkpoint,
    shape: PictureShape,
    tokenizer: CheckpointTokenizer,
    graph: str,
    cuda: str,
) -> VisionSpec:
    """What the manifest says of the tower whose graphs are `graph` and, for CUDA, `cuda`.

    Raises CheckpointError.
    """
    settings = _settings(checkpoint)
    tower = shape.tower
    settings.expect("image_processor_type", *(_COUNTING if tower.counted else _PROCESSORS))
    for key, value in (
        ("patch_size", tower.patch),
        ("temporal_patch_size", tower.temporal),
        ("merge_size", tower.merge),
        ("resample", _LANCZOS if tower.counted else _BICUBIC),
        ("rescale_factor", _RESCALE),
    ):
        settings.expect(key, value)
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        settings.expect(key, True)
    settings.expect("data_format", "channels_first")
    settings.expect("do_pad", False)
    settings.expect("do_center_crop", False)
    least, most = _read_tokens(settings, tower) if tower.counted else _read_size(settings)
    spec = VisionSpec(
        graph=graph,
        cuda=cuda,
        image_token=_read_token(shape, tokenizer),
        patch=tower.patch,
        temporal=tower.temporal,
        merge=tower.merge,
        min_pixels=least,
        max_pixels=most,
        mean=_colours(settings, "image_mean"),
        std=_colours(settings, "image_std"),
        side=tower.side or msgspec.UNSET,
        window=tower.window or msgspec.UNSET,
    )
    settings.finish(_HARMLESS)
    return _counting(spec, tokenizer) if tower.counted else spec


def _settings(checkpoint: Checkpoint) -> Settings:
    """The file of its own, or the section of the newer one."""
    if (checkpoint.directory / NAME).exists():
        return checkpoint.settings(NAME)
    if (checkpoint.directory / _NEWER).exists():
        return checkpoint.settings(_NEWER).needed(_SECTION)
    return checkpoint.settings(NAME)


def _counting(spec: VisionSpec, tokenizer: CheckpointTokenizer) -> VisionSpec:
    """The same of a processor that counts tokens, and puts some around an image's itself."""
    around = [_special(tokenizer, text) for text in _AROUND]
    return msgspec.structs.replace(
        spec, table="centres", sizing="tokens", resample="lanczos", around=(around[0], around[1])
    )


def _special(tokenizer: CheckpointTokenizer, text: str) -> int:
    """The number of a token that no user may be able to write."""
    token = tokenizer.id_of(text) if tokenizer.is_special(text) else None
    if token is None:
        raise CheckpointError(
            f"tokenizer.json has no special token {text}, which stands around an image",
            hint="tokenizer.json belongs to another checkpoint",
        )
    return token


def _read_tokens(settings: Settings, tower: TowerShape) -> tuple[int, int]:
    """Fewest and most pixels of a processor that counts tokens."""
    settings.expect("size")
    one = (tower.patch * tower.merge) ** 2
    return one, one * settings.integer("max_image_tokens", _MOST_TOKENS)


def _read_size(settings: Settings) -> tuple[int, int]:
    """Fewest and most pixels: the older keys, or the newer edges, which mean the same."""
    least = settings.integer("min_pixels", _LEAST) if "min_pixels" in settings else None
    most = settings.integer("max_pixels", _MOST) if "max_pixels" in settings else None
    size = settings.section("size")
    if size is not None:
        shortest, longest = size.integer("shortest_edge"), size.integer("longest_edge")
        size.expect("min_pixels", shortest)
        size.expect("max_pixels", longest)
        size.finish()
        least, most = least or shortest, most or longest
    return least or _LEAST, most or _MOST


def _colours(settings: Settings, key: str) -> tuple[float, float, float]:
    values = settings.numbers(key, 3)
    return values[0], values[1], values[2]


def _read_token(shape: PictureShape, tokenizer: CheckpointTokenizer) -> int:
    """The image's token, which no user may be able to write."""
    if not tokenizer.is_special(tokenizer.text_of(shape.image_token)):
        raise CheckpointError(
            f"config.json: image_token_id {shape.image_token} is not a special token",
            hint="tokenizer.json belongs to another checkpoint",
        )
    return shape.image_token
