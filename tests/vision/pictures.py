"""Encoded images, good and bad, as callers send them."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image as Pillow

from tests.vision.conftest import picture


def encoded(image: Pillow.Image, kind: str = "PNG", **more: Any) -> bytes:
    """`image` in a file format."""
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def png(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    """Random pixels."""
    return encoded(Pillow.fromarray(picture(height, width, seed)))


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose head promises so many pixels, and whose data keep it."""
    rows = zlib.compressobj(9)
    line = bytes(1 + width // 8 + 1)
    data = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


def wide_gif() -> bytes:
    """A GIF whose head promises four gigapixels."""
    data = bytearray(encoded(gradient(32, 32), "GIF"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def wide_jpeg() -> bytes:
    """A JPEG of 32 x 32 whose head promises four gigapixels."""
    data = bytearray(encoded(gradient(32, 32), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def empty() -> bytes:
    """A PNG of no pixels."""
    head = struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)
    nothing = zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", nothing)


def gradient(height: int, width: int) -> Pillow.Image:
    """Smooth colours, which lossy formats keep."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (rows * 255 // height, columns * 255 // width, (rows + columns) % 256 // 2)
    return Pillow.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
