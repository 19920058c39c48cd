"""One encoded picture as an array of the shape that is wanted."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fsr_lab.dataset.arrays import Array

MAX_PIXELS = 1 << 26
"""A picture of more pixels is not decoded: 67 million, 200 MB, is more than any camera of such data sets gives."""

_MODES = {1: "L", 3: "RGB"}


def decode(data: bytes | Path, name: str, shape: tuple[int, int, int], *, resize: bool, cure: str) -> Array:
    """Return a picture as (C, H, W) uint8.

    Args:
        data: an encoded picture of any format that Pillow reads, or its file.
        name: what it is, for messages.
        shape: the (C, H, W) that is wanted; C is 1 for grey or 3 for colour.
        resize: whether another size is enlarged or reduced (bicubic, antialiased) until it covers the frame, and
            what then stands out is cut off evenly.
        cure: what to do about another size.

    Raises:
        ValueError: it is damaged, no picture, far too large, or of another size.
    """
    channels, height, width = shape
    if channels not in _MODES:
        raise ValueError(f"expected image_shape of 1 or 3 channels, got {channels}; correct dataset.image_shape")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own about odd metadata and about size, which is checked here
            with Image.open(BytesIO(data) if isinstance(data, bytes) else data) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise ValueError(f"{name}: expected at most {MAX_PIXELS} pixels, got {opened.size}; remove it")
                picture = ImageOps.exif_transpose(opened).convert(_MODES[channels])
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as err:
        reason = str(err).splitlines()[0]
        raise ValueError(f"{name} is damaged: expected a picture, got {reason}; replace or remove it") from err
    if picture.size != (width, height):
        if not resize:
            got = f"{picture.width}x{picture.height}"
            raise ValueError(f"{name}: expected {width}x{height} pixels, got {got}; {cure}")
        picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1)
