"""The process that decodes images: `python -m appliance.engine.vision.worker`.

A codec reads bytes from outside in C. So it runs here, with a bounded address space, no open
files but its two pipes, and a parent that kills it when it takes too long. Owns which formats are
read, how every kind of pixel becomes red, green and blue, and the scaling. Refuses, by what the
header says and before a pixel is decoded, an image that is too large. Ends when its parent does.

Standard input carries requests and standard output answers: two lengths, JSON, bytes.
"""

from __future__ import annotations

import io
import json
import math
import resource
import struct
import sys
import warnings
from itertools import product
from typing import Any, BinaryIO

from PIL import Image, ImageOps, WebPImagePlugin

MAX_MEMORY_BYTES = 1 << 30
MOST_PIXELS = 40_000_000
"""Of an image as it comes: 160 MB while it is decoded."""
MOST_STRETCHED = 200
"""Times the shorter side that the longer one may be; the models' processors have it so."""
HEADER = struct.Struct(">II")
MEDIA_TYPES = {
    "image/png": ("PNG",),
    "image/jpeg": ("JPEG", "MPO"),
    "image/webp": ("WEBP",),
    "image/gif": ("GIF",),
}
_READ = ("PNG", "JPEG", "WEBP", "GIF")
"""What is looked for in the bytes; of JPEG, MPO is the kind with several pictures."""
_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
# Named, since Pillow would load every codec it has to look for one that it does not know.
assert WebPImagePlugin.SUPPORTED
_WHITE = (255, 255, 255, 255)


class ImageError(Exception):
    """What is wrong with an image, for its sender."""


def main() -> None:
    """Decode until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (given := read(source)) is not None:
        wanted, data = given
        try:
            size, pixels = decode(data, **wanted)
        except ImageError as error:
            write(sink, {"error": str(error)}, b"")
        except MemoryError:
            write(sink, {"error": "it needs too much memory"}, b"")
        else:
            write(sink, {"width": size[0], "height": size[1]}, pixels)


def decode(
    data: bytes,
    *,
    media_type: str,
    factor: int,
    least: int,
    most: int,
    sizing: str = "sides",
    resample: str = "bicubic",
) -> tuple[tuple[int, int], bytes]:
    """Width and height, multiples of `factor`, and the pixels, three bytes each.

    An image is scaled by one of `SIZINGS` to have `least` to `most` pixels. Of several frames the
    first counts. Raises ImageError.
    """
    scaled = SIZINGS[sizing]
    image = _open(data, media_type)
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"it has {width} x {height} pixels, more than {MOST_PIXELS} in all")
    size = scaled(width, height, factor, least, most)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # a codec and a damaged file: anything can be raised
        raise ImageError(f"it cannot be decoded: {_first_line(error)}") from error
    if upright.size != (width, height):
        size = scaled(upright.width, upright.height, factor, least, most)
    return size, coloured(upright).resize(size, _FILTERS[resample]).tobytes()


def scaled(width: int, height: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """The size that a model of this family sees an image of `width` x `height` in.

    Sides are the nearest multiples of `factor`; if that is more than `most` pixels or less than
    `least`, the image is shrunk or enlarged evenly first. Raises ImageError.
    """
    _check_sides(width, height)
    sides = [round(side / factor) * factor for side in (width, height)]
    if sides[0] * sides[1] > most:
        shrink = math.sqrt(width * height / most)
        sides = [
            max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)
        ]
    elif sides[0] * sides[1] < least:
        grow = math.sqrt(least / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    if sides[0] * sides[1] > max(most, factor * factor) * 2:
        raise ImageError(f"it has {width} x {height} pixels: too stretched for this model")
    return sides[0], sides[1]


def scaled_by_tokens(
    width: int, height: int, factor: int, least: int, most: int
) -> tuple[int, int]:
    """The same for a model that counts tokens of `factor` pixels a side, at most `most` pixels.

    Of the whole numbers around those that the sides are, or are shrunk to, those are taken whose
    ratio is nearest to the image's. Raises ImageError.
    """
    _check_sides(width, height)
    most, ratio = max(1, most // factor**2), width / height
    high, wide = height / factor, width / factor
    if high * wide > most:
        high = math.sqrt(most / ratio)
        wide = high * ratio
    around = ((math.floor(side), math.ceil(side)) for side in (high, wide))
    # Of grids that are as near that one is taken which a set has first, as in the reference.
    grids = [one for one in set(product(*around)) if min(one) >= 1 and one[0] * one[1] <= most]
    if not grids:
        grids = [(max(1, round(high)), max(1, round(wide)))]
    rows, columns = min(grids, key=lambda one: abs(one[0] / one[1] - height / width))
    if rows * columns > 2 * most:
        raise ImageError(f"it has {width} x {height} pixels: too stretched for this model")
    return columns * factor, rows * factor


SIZINGS = {"sides": scaled, "tokens": scaled_by_tokens}
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def _check_sides(width: int, height: int) -> None:
    if min(width, height) < 1 or max(width, height) > MOST_STRETCHED * min(width, height):
        raise ImageError(f"it has {width} x {height} pixels; sides may differ {MOST_STRETCHED}fold")


def coloured(image: Image.Image) -> Image.Image:
    """`image` in red, green and blue: what is transparent shows white, 16 bits become 8."""
    if image.mode in _DEEP:
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in {"LA", "PA", "RGBA", "RGBa", "La"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return image.convert("RGB")


def _open(data: bytes, media_type: str) -> Image.Image:
    formats = MEDIA_TYPES.get(media_type)
    if formats is None:
        raise ImageError(f"images of type {media_type!r} are not read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.MAX_IMAGE_PIXELS = MOST_PIXELS
            image = Image.open(io.BytesIO(data), formats=_READ)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(f"it has more than {MOST_PIXELS} pixels") from None
    except MemoryError:
        raise
    except Exception:  # as above
        raise ImageError("it is no image of a kind that is read, or its head is damaged") from None
    if image.format not in formats:
        raise ImageError(f"it is said to be {media_type} and is {image.format}")
    return image


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """One request; None at the end."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    about, size = HEADER.unpack(header)
    return json.loads(source.read(about)), source.read(size)


def write(sink: BinaryIO, about: dict[str, object], data: bytes) -> None:
    """One answer."""
    text = json.dumps(about).encode("ascii")
    sink.write(HEADER.pack(len(text), len(data)) + text + data)
    sink.flush()


if __name__ == "__main__":
    main()
