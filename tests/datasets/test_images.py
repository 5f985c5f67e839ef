"""Reading and cropping, against torchvision's own transforms."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from idsds.common.randomness import generator
from idsds.datasets.base import ImageReadError
from idsds.datasets.images import FileImages, TensorImages, evaluation_crop, read_rgb

from .conftest import write_image


@pytest.mark.parametrize("size", [(300, 260), (130, 400)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_evaluation_crop_is_resize_256_and_centre_crop_224(tmp_path, size, mode):
    path = write_image(tmp_path / "a.png", size=size, mode=mode)
    oracle = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    wanted = oracle(Image.open(path).convert("RGB"))
    found = FileImages([path], 224).read(0)
    assert found.shape == (3, 224, 224)
    assert torch.equal(found, wanted)


def test_other_sizes_keep_the_ratio_of_the_crop():
    assert evaluation_crop(112).transforms[0].size == [128]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "LA", "RGBA", "I;16", "1"])
def test_every_mode_becomes_rgb_of_the_same_picture(tmp_path, mode):
    grey = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (30, 1))
    path = tmp_path / f"a{'.jpg' if mode == 'CMYK' else '.png'}"
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert("RGB").convert(mode)
    picture.save(path)
    found = np.asarray(read_rgb(path)).astype(int)
    assert found.shape == (30, 40, 3)
    # Black-and-white dithers: the mean stays. The palette has 6 levels a channel, CMYK is stored as JPEG.
    tolerance = {"1": None, "P": 52, "CMYK": 12}.get(mode, 1)
    assert abs(found.mean() - grey.mean()) < 4
    assert tolerance is None or np.abs(found - grey[..., None]).max() <= tolerance


def test_transparent_palette_is_read_without_a_warning(tmp_path, recwarn):
    picture = Image.new("P", (20, 20))
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    picture.paste(1, (0, 0, 20, 20))
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert read_rgb(tmp_path / "a.png").getpixel((3, 3)) == (255, 0, 0)
    assert not recwarn.list


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "absent"])
def test_unreadable_files_are_named(tmp_path, damage):
    path = write_image(tmp_path / "broken.jpg", size=(200, 200))
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with pytest.raises(ImageReadError, match=r"broken\.jpg"):
        read_rgb(path)


def test_training_crop_depends_on_the_generator_alone_and_leaves_the_global_one(tmp_path):
    images = FileImages([write_image(tmp_path / "a.png", size=(90, 70))], 32)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = images.augment(0, generator(0, "a"))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, images.augment(0, generator(0, "a")))
    assert not torch.equal(first, images.augment(0, generator(1, "a")))
    assert first.shape == (3, 32, 32)
    assert 0 <= first.min() <= first.max() <= 1


def test_training_crop_has_the_distribution_of_random_resized_crop(tmp_path):
    """A picture whose red is the column and whose green is the row: the crop's extent can be read off its pixels."""
    row, column = np.mgrid[:240, :240]
    Image.fromarray(np.stack([column, row, 0 * row], -1).astype(np.uint8)).save(tmp_path / "a.png")
    images = FileImages([tmp_path / "a.png"], 48)
    areas, ratios, mirrored = [], [], []
    for draw in range(300):
        red, green, _ = 255 * images.augment(0, generator(draw, "x"))
        # Pixel centres lie half a target pixel inside the crop, hence 48/47.
        width, height = ((red[:, -1] - red[:, 0]).mean() * 48 / 47).item(), ((green[-1] - green[0]).mean() * 48 / 47).item()
        areas.append(abs(width) * height / 240**2)
        ratios.append(abs(width) / height)
        mirrored.append(width < 0)
    assert 0.07 < min(areas) < 0.15 < 0.8 < max(areas) < 1.02
    assert 0.72 < min(ratios) < 0.8 < 1.25 < max(ratios) < 1.38
    assert 0.41 < np.mean(mirrored) < 0.59  # 3 standard deviations of 300 fair draws are 0.087
    assert 0.42 < np.mean(areas) < 0.60  # uniform in (.08, 1) has mean 0.54; a crop that does not fit is drawn again


def test_shift_and_mirror_moves_the_whole_picture():
    pixels = torch.zeros(1, 1, 9, 7)
    pixels[0, 0, 4, 3] = 1  # the centre: a mirror alone leaves it
    images = TensorImages(pixels, shift=2)
    seen = {tuple(images.augment(0, generator(seed, "s"))[0].nonzero()[0].tolist()) for seed in range(400)}
    assert seen == {(row, column) for row in range(2, 7) for column in range(1, 6)}


def test_pictures_of_unusual_kinds(tmp_path):
    grey = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    Image.fromarray(grey).save(tmp_path / "unit.tif")
    Image.fromarray(255 * grey).save(tmp_path / "bytes.tif")
    for name in ("unit", "bytes"):
        found = np.asarray(read_rgb(tmp_path / f"{name}.tif"))
        assert np.abs(found[..., 0] / 255 - grey).max() < 1 / 255
    Image.fromarray(1000 * grey).save(tmp_path / "other.tif")
    with pytest.raises(ImageReadError, match=r"go from 0 to 1000, but a picture of mode 'F' must lie in \[0, 1\] or \[0, 255\]"):
        read_rgb(tmp_path / "other.tif")
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red, green, blue = np.asarray(read_rgb(tmp_path / "cmyk.jpg"))[0, 0].astype(int)
    assert red > 200
    assert max(green, blue) < 60
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "alpha.png")
    assert np.asarray(read_rgb(tmp_path / "alpha.png"))[0, 0].tolist() == [10, 20, 30]


def test_orientation_is_applied_where_it_is_asked_for(tmp_path):
    picture = Image.new("RGB", (6, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").size == (6, 4)
    assert read_rgb(tmp_path / "turned.jpg", upright=True).size == (4, 6)


def test_a_huge_picture_is_scaled_down_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("idsds.datasets.images.LARGE", 50 * 50)
    monkeypatch.setattr("idsds.datasets.images.LARGE_SIDE", 32)
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (80, 60), (200, 100, 50)).save(tmp_path / name)
        found = read_rgb(tmp_path / name)
        assert found.size == (32, 24)
        assert np.abs(np.asarray(found)[12, 16].astype(int) - [200, 100, 50]).max() < 4
