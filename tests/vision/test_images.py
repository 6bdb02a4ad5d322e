"""Images become the pixels that the reference's image processor makes; bad ones are refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from appliance.engine.vision import worker
from appliance.engine.vision.decoder import Image, ImageDecoder, RefusedImageError
from appliance.engine.vision.patches import patches
from appliance.engine.vision.worker import ImageError, decode, scaled
from tests.vision.conftest import FAMILIES, BuildSeeing, picture
from tests.vision.pictures import bomb, empty, encoded, gradient, png, wide_gif, wide_jpeg

FACTOR, LEAST, MOST = 16, 1024, 65536


@pytest.fixture(scope="module")
def decoder(seeing: BuildSeeing) -> Iterator[ImageDecoder]:
    made = ImageDecoder(seeing("qwen3_vl").vision)
    yield made
    made.close()


def pixels_of(data: bytes, media_type: str = "image/png") -> np.ndarray:
    """What the worker makes of an image, [height, width, 3]."""
    (width, height), found = decode(
        data, media_type=media_type, factor=FACTOR, least=LEAST, most=MOST
    )
    return np.frombuffer(found, np.uint8).reshape(height, width, 3)


def same_size(data: bytes, media_type: str = "image/png") -> np.ndarray:
    """The same for an image whose sides need no scaling."""
    (width, height), found = decode(data, media_type=media_type, factor=8, least=1, most=1 << 20)
    return np.frombuffer(found, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(48, 64), (31, 170), (700, 500), (9, 9)], ids=str)
def test_patches_equal_the_references(
    seeing: BuildSeeing, family: str, size: tuple[int, int]
) -> None:
    model = seeing(family)
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(model.checkpoint)
    image = Pillow.fromarray(picture(*size))
    wanted = processor(images=[image], return_tensors="np")
    got = patches(pixels_of(encoded(image)), model.vision)
    assert got.shape == wanted["pixel_values"].shape
    assert np.abs(got - wanted["pixel_values"]).max() <= 1e-5


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([16, 28, 32]))
def test_sizes_equal_the_references(width: int, height: int, factor: int) -> None:
    bounds = (4 * factor * factor, 900 * factor * factor)
    try:
        wanted = smart_resize(height, width, factor, *bounds)
    except ValueError:
        with pytest.raises(ImageError):
            scaled(width, height, factor, *bounds)
        return
    try:
        assert scaled(width, height, factor, *bounds) == (wanted[1], wanted[0])
    except ImageError:
        assert wanted[0] * wanted[1] > 2 * bounds[1], "only what is far beyond is refused"


def test_every_kind_of_pixel_becomes_the_same_colours() -> None:
    image = gradient(64, 64)
    plain = same_size(encoded(image))
    assert np.array_equal(plain, np.asarray(image))
    opaque = image.copy()
    opaque.putalpha(255)
    assert np.array_equal(same_size(encoded(opaque)), plain)
    palette = image.quantize(256)
    assert np.array_equal(same_size(encoded(palette)), np.asarray(palette.convert("RGB")))
    grey = image.convert("L")
    assert np.array_equal(same_size(encoded(grey)), np.asarray(grey.convert("RGB")))
    deep = Pillow.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(same_size(encoded(deep)), np.asarray(grey.convert("RGB")))
    inks = encoded(image.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(same_size(inks, "image/jpeg").astype(int) - plain).mean() < 8
    for kind in ("WEBP", "GIF"):
        found = same_size(encoded(image, kind), f"image/{kind.lower()}")
        assert np.abs(found.astype(int) - plain).mean() < 12


def test_what_is_transparent_shows_white() -> None:
    clear = Pillow.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert (same_size(encoded(clear)) == 255).all()
    half = Pillow.new("RGBA", (32, 32), (0, 0, 0, 128))
    assert abs(int(same_size(encoded(half))[0, 0, 0]) - 127) <= 1


def test_a_photograph_is_seen_upright() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = encoded(gradient(32, 64), "JPEG", exif=exif.tobytes())
    assert same_size(turned, "image/jpeg").shape == (64, 32, 3)


def test_of_several_frames_the_first_is_seen() -> None:
    frames = [Pillow.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(same_size(moving, "image/gif")[0, 0]) == (255, 0, 0)


BAD = {
    "bomb": (bomb(40_000, 2_000), "image/png", "pixels"),
    "gif-bomb": (wide_gif(), "image/gif", "pixels"),
    "jpeg-bomb": (wide_jpeg(), "image/jpeg", "pixels"),
    "no-pixels": (empty(), "image/png", "head"),
    "truncated": (png()[:-400], "image/png", "cannot be decoded"),
    "head-only": (png()[:30], "image/png", "head"),
    "nothing": (b"", "image/png", "no image"),
    "text": (b"GET / HTTP/1.1", "image/jpeg", "no image"),
    "lying": (encoded(gradient(32, 32), "JPEG"), "image/png", "is JPEG"),
    "stretched": (encoded(Pillow.new("RGB", (3000, 2))), "image/png", "sides"),
    "bitmap": (encoded(gradient(32, 32), "BMP"), "image/png", "no image"),
    "type": (png(), "image/tiff", "not read"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "not read"),
}


@pytest.mark.parametrize(("data", "media_type", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_is_refused_and_the_next_one_is_seen(
    decoder: ImageDecoder, data: bytes, media_type: str, reason: str
) -> None:
    with pytest.raises(RefusedImageError, match=reason):
        decoder.decode(Image(media_type, data))
    assert decoder.decode(Image("image/png", png())).shape == (48, 64, 3)


def test_a_large_image_is_scaled_down_in_bounded_memory(decoder: ImageDecoder) -> None:
    # A megapixel of black in two kilobytes is as large as it says, and allowed.
    assert decoder.decode(Image("image/png", bomb(6000, 6000))).shape == (256, 256, 3)


def test_a_process_that_takes_too_long_is_killed_and_replaced(seeing: BuildSeeing) -> None:
    decoder = ImageDecoder(seeing("qwen3_vl").vision, seconds=0.001)  # its start takes longer
    for _ in range(2):
        with pytest.raises(RefusedImageError, match="too long"):
            decoder.decode(Image("image/png", png()))
    decoder.close()


@given(st.binary(max_size=200), st.integers(0, 3000), st.integers(0, 255))
def test_no_damaged_image_is_more_than_refused(noise: bytes, at: int, value: int) -> None:
    whole = bytearray(png())
    whole[at % len(whole)] = value
    for data in (bytes(whole), bytes(whole[: at % len(whole)]) + noise, noise):
        try:
            pixels_of(data)
        except ImageError:
            continue


def test_the_process_answers_each_image_in_turn() -> None:
    sink = io.BytesIO()
    worker.write(sink, {"media_type": "image/png"}, b"abc")
    sink.seek(0)
    assert worker.read(sink) == ({"media_type": "image/png"}, b"abc")
    assert worker.read(sink) is None
