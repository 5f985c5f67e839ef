"""Small folders in the layouts of the real downloads, made with PIL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (60, 44), mode: str = "RGB") -> Path:
    """A smooth random picture, ``size`` = (width, height): noise of a few pixels, enlarged, as an encoder of photos expects."""
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    small = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    picture = Image.fromarray(small[..., 0] if channels == 1 else small, mode=mode).resize(size, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def write_classes(folder: Path, counts: dict[str, int], ending: str = ".jpg", prefix: str = "") -> None:
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            write_image(folder / name / f"{prefix}{name[:9].strip()}_{index:03d}{ending}", seed=1000 * number + index + len(prefix))


@pytest.fixture
def photos(tmp_path):
    """train/ and val/ with the classes b, a and C, whose sorted order is C, a, b."""
    write_classes(tmp_path / "train", {"b": 10, "a": 12, "C": 14})
    write_classes(tmp_path / "val", {"b": 4, "a": 4, "C": 4})
    return tmp_path
