"""FunnyBirds' layout, drawn by the test: what is read is what the files say."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from idsds.common.normalisation import IMAGENET, UNIT
from idsds.datasets import ImageReadError, create_dataset
from idsds.datasets.funnybirds import COLOURS, NAMES

#: Variants of the parts of each class, as far as the test needs them.
CLASSES = [(0, 0, 0, 0, 0), (0, 0, 1, 1, 1), (1, 1, 0, 0, 1), (2, 2, 2, 2, 0)]


def place(number):
    """Rows and columns of a part's, or of object number - 5's, block in images of 64 pixels; parts come in pairs of blocks."""
    return slice(8 + 12 * (number // 5), 14 + 12 * (number // 5)), slice(12 * (number % 5) + 2, 12 * (number % 5) + 10)


def picture(target, kept, objects):
    image = np.full((64, 64, 4), 255, np.uint8)
    image[..., :3] = 40
    for part in kept:
        image[place(part)][..., :3] = 60
        image[(*place(part), CLASSES[target][part])] = 250
    for number in objects:
        image[place(5 + number)][..., :3] = 120 + 20 * number
    return image


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_birds(root, train=24, test=8, objects=2):
    """Write the layout of the zip, with four classes and 64 pixels per side; every second training image lacks the beak."""
    root.mkdir(parents=True)
    parts = {"beak": 4, "eye": 3, "foot": 4, "tail": 9, "wing": 6}
    (root / "parts.json").write_text(
        json.dumps({name: [{"model": f"{name}{n}.glb"} for n in range(count)] for name, count in parts.items()})
    )
    classes = [{"class_idx": number, "parts": dict(zip(NAMES, row, strict=True))} for number, row in enumerate(CLASSES)]
    (root / "classes.json").write_text(json.dumps(classes[::-1]))
    for half, count in (("train", train), ("test", test)):
        scenes = []
        for number in range(count):
            target, there = number % 4, range(number % (objects + 1))
            lacking = half == "train" and number // 4 % 2
            kept = range(1, 5) if lacking else range(5)
            models = {f"{name}_model": "placeholder" if lacking and name == "beak" else f"{name}.glb" for name in NAMES}
            listed = ",".join(map(str, range(7, 7 + len(there))))
            scenes.append({"class_idx": target, "camera_distance": 3, **models, "bg_objects": listed, "bg_radius": listed})
            write(root / half / str(target) / f"{number:06d}.png", picture(target, kept, there))
            if half == "train":
                continue
            folder = root / "test_interventions" / str(target) / f"{number:06d}"
            for size in range(6):
                for some in itertools.combinations(range(5), size):
                    write(folder / f"body_{'_'.join(NAMES[part] for part in some)}.png", picture(target, some, there))
            for gone in there:
                others = [other for other in there if other != gone]
                write(folder / "background_interventions" / f"{gone}.png", picture(target, range(5), others))
            part_map = np.zeros((64, 64, 4), np.uint8)
            part_map[2:4], part_map[..., 3] = 170, 255
            for part, name in enumerate(NAMES):
                rows, columns = place(part)
                for side, colour in enumerate(COLOURS[name]):  # one of a pair is the left half
                    half_columns = columns if len(COLOURS[name]) == 1 else slice(columns.start + 4 * side, columns.start + 4 * side + 4)
                    part_map[rows, half_columns, :3] = colour
            for other in there:
                part_map[place(5 + other)][..., :3] = (204, 204, 204 + other)
            write(root / "test_part_map" / str(target) / f"{number:06d}.png", part_map)
        (root / f"dataset_{half}.json").write_text(json.dumps(scenes))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_birds(tmp_path_factory.mktemp("data") / "funnybirds" / "FunnyBirds").parent


def test_the_test_images_and_their_interventions(root):
    data = create_dataset("funnybirds", "test", IMAGENET, root=root, image_size=64)
    assert (len(data), data.num_classes, data.normalisation) == (8, 4, UNIT)
    assert data.parts.variants.tolist() == [list(row) for row in CLASSES]
    for index in (2, 5):
        image, target, image_id = data[index]
        assert (image_id, target) == (f"funnybirds/test/{index:06d}", index % 4)
        count = data.parts.count(image_id)
        assert count == index % 3

        def pixels(kept, objects, target=target):
            return torch.from_numpy(picture(target, kept, objects)[..., :3]).permute(2, 0, 1) / 255

        assert torch.equal(image, pixels(range(5), range(count)))
        for subset in range(32):
            kept = [part for part in range(5) if subset >> part & 1]
            assert torch.equal(data.parts.draw(image_id, subset), pixels(kept, range(count)))
        assert torch.equal(data.parts.without_object(image_id, 0), pixels(range(5), range(1, count)))
        regions, owners = data.parts.regions(image_id), torch.tensor(data.parts.owners)
        assert regions.shape == (58, 64, 64)
        for owner in range(5 + count):
            expected = torch.zeros(64, 64, dtype=torch.bool)
            expected[place(owner)] = True
            assert torch.equal(regions[owners == owner].any(dim=0), expected)
        assert not regions[owners >= 5 + count].any()


def test_part_maps_are_resized_without_new_colours(root):
    data = create_dataset("funnybirds", "test", root=root, image_size=32)
    regions = data.parts.regions(data.image_ids[0])
    assert data[0][0].shape == (3, 32, 32)
    assert regions.sum(dim=(1, 2)).sum() == 5 * 48 / 4  # a quarter of the pixels of each block


def test_training_images_say_which_classes_fit(root):
    train, val = (create_dataset("funnybirds", split, root=root, held_out=0.25) for split in ("train", "val"))
    assert not set(train.image_ids) & set(val.image_ids)
    assert len(train) == 20 or len(train) == 16
    assert all(val.parts.subset(image_id) == 31 for image_id in val.image_ids)
    lacking = [index for index, image_id in enumerate(train.image_ids) if train.parts.subset(image_id) == 30]
    assert lacking
    for index in lacking:
        _, target, _ = train.augmented(0, 0)[index]
        assert target.tolist() == [float(k == train.targets[index]) for k in range(4)]  # without the beak the others still differ
    assert train.parts.fitting(0, 0b00011).tolist() == [0.5, 0.5, 0, 0]


def test_what_is_missing_is_named(tmp_path):
    birds = write_birds(tmp_path / "birds", train=8, test=1)
    (birds / "classes.json").rename(birds / "other.json")
    with pytest.raises(FileNotFoundError, match=r"does not hold 'classes\.json'; wanted is FunnyBirds\.zip"):
        create_dataset("funnybirds", root=birds)
    (birds / "other.json").rename(birds / "classes.json")
    data = create_dataset("funnybirds", root=birds)
    data.parts.file(data.image_ids[0], "_interventions", "body_.png").unlink()
    with pytest.raises(ImageReadError, match="body_"):
        data.parts.draw(data.image_ids[0], 0)
