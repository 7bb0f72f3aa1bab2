"""Pictures of many images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from msd.errors import ConfigError
from msd.store import write_with

SCALE_TO = 64  # smaller images are enlarged to about this size, without smoothing
TITLE_HEIGHT = 14
MAX_CLASSES = 20  # rows of a picture


def shown_classes(number: int, limit: int = MAX_CLASSES) -> list[int]:
    """All classes, or as many as fit, evenly spread so that every part is likely to be seen."""
    if number <= limit:
        return list(range(number))
    return [round(i) for i in np.linspace(0, number - 1, limit)]


def save_grid(images: NDArray[np.uint8], path: Path, columns: int | None = None, titles: Sequence[str] = ()) -> None:
    """Write images (N, C, H, W) uint8 as one picture.

    Args:
        columns: images in a row; None: as square as can be.
        titles: one for each column, above it.

    Raises:
        ConfigError: the name's ending is of no known picture format.
    """
    n, channels, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    sheet = np.zeros((math.ceil(n / columns) * h, columns * w, channels), dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * h, i % columns * w
        sheet[y : y + h, x : x + w] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet)
    scale = max(1, SCALE_TO // h)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    if titles:
        picture = _titled(picture, titles)
    try:
        write_with(path, picture.save)
    except ValueError as e:
        raise ConfigError("This picture format is not known.", where=str(path), why=str(e), todo="Use .png.") from None


def _titled(picture: Image.Image, titles: Sequence[str]) -> Image.Image:
    sheet = Image.new(picture.mode, (picture.width, picture.height + TITLE_HEIGHT))
    sheet.paste(picture, (0, TITLE_HEIGHT))
    for i, title in enumerate(titles):
        white = 255 if picture.mode == "L" else (255, 255, 255)
        ImageDraw.Draw(sheet).text((i * picture.width // len(titles) + 2, 1), title, fill=white)
    return sheet
