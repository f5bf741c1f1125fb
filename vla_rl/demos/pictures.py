"""Decoding of pictures to pixels."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vla_rl.types import UInt8Array

JPEG = b"\xff\xd8\xff"


class PictureError(ValueError):
    """Bytes that are not a readable picture."""


def decode_picture(data: bytes | memoryview) -> UInt8Array:
    """Decode JPEG or PNG to (H, W, 3) uint8; JPEG exactly as TensorFlow does by default, with the fast transform.

    Raises:
        PictureError: it is neither, or damaged.
    """
    content = bytes(data)
    try:
        if content.startswith(JPEG):
            return np.asarray(simplejpeg.decode_jpeg(content, "RGB", fastdct=True, fastupsample=False))
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (ValueError, OSError, UnidentifiedImageError, SyntaxError) as error:
        raise PictureError(f"{len(content)} bytes that are no readable JPEG or PNG: {error}") from error


def size_of_picture(data: bytes | memoryview) -> tuple[int, int]:
    """Return height and width in pixels, from the header.

    Raises:
        PictureError: there is no header of a JPEG or PNG.
    """
    try:
        with Image.open(io.BytesIO(bytes(data))) as picture:
            return picture.height, picture.width
    except (ValueError, OSError, UnidentifiedImageError, SyntaxError) as error:
        raise PictureError(f"{len(data)} bytes that are no JPEG or PNG") from error
