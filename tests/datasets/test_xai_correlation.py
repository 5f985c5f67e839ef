"""The data sets of the study in the layouts of their downloads."""

import pytest
from PIL import Image

from idsds.datasets import create_dataset
from tests.datasets.test_folders import assert_partition, parts

from .conftest import write_classes

DOGS = {"n02085620-Chihuahua": 20, "n02085782-Japanese_spaniel": 20, "n02116738-African_hunting_dog": 20}


@pytest.mark.parametrize("base", ["Images", "images/Images"])
def test_stanford_dogs(tmp_path, base):
    write_classes(tmp_path / base, DOGS)
    (tmp_path / "annotations" / "Annotation" / "n02085620-Chihuahua").mkdir(parents=True)
    found = parts("stanford_dogs", tmp_path)
    assert_partition(found, 60)
    assert found["train"].classes == list(DOGS)


def test_stanford_dogs_as_the_study_divides_them(tmp_path):
    write_classes(tmp_path / "Images", DOGS)
    found = parts("stanford_dogs", tmp_path, division="80/20", held_out=0.25)
    assert {split: len(data) for split, data in found.items()} == {"train": 36, "val": 12, "test": 12}
    assert len({image for data in found.values() for image in data.image_ids}) == 60
    assert [found["test"].targets.count(number) for number in range(3)] == [4, 4, 4]
    assert found["train"].size(0) == Image.open(tmp_path / "Images" / found["train"].image_ids[0].removeprefix("stanford_dogs/")).size[::-1]
    with pytest.raises(ValueError, match="80/20"):
        create_dataset("stanford_dogs", "test", root=tmp_path, division="80-20")


def test_stanford_dogs_with_the_official_lists(tmp_path):
    import numpy as np
    from scipy.io import savemat

    write_classes(tmp_path / "Images", DOGS)
    names = [f"{name}/{name[:9]}_{index:03d}.jpg" for name in DOGS for index in range(20)]
    for file, chosen in {"train_list.mat": names[::2], "test_list.mat": names[1::2]}.items():
        cells = np.empty((len(chosen), 1), dtype=object)
        cells[:, 0] = chosen
        savemat(tmp_path / file, {"file_list": cells, "labels": np.ones((len(chosen), 1))})
    found = parts("stanford_dogs", tmp_path, held_out=0.2)
    assert_partition(found, 60)
    assert sorted(found["test"].image_ids) == sorted(f"stanford_dogs/{name}" for name in names[1::2])
    assert [len(found[split]) for split in ("train", "val", "test")] == [24, 6, 30]
    assert all(image is not None for image, _, _ in (found["test"][i] for i in range(2)))


LAYOUTS = {
    "plants99": ({"train": "Plant_Data/Plant_Data/train", "val": "Plant_Data/Plant_Data/valid", "test": "Plant_Data/Plant_Data/test"}, 0),
    "edible_plants": ({"train": "datasets/dataset", "test": "datasets/dataset-test"}, 0.25),
    "marvel": ({"train": "marvel/train", "test": "marvel/valid"}, 0.25),
}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_studys_layouts(tmp_path, name, depth):
    """As downloaded, and with the root one folder further down; class names may differ in case and spaces between the parts."""
    layout, held_out = LAYOUTS[name]
    counts = {"train": {"Herb Robert": 8, "alfalfa": 8}, "val": {"herb robert": 3, "Alfalfa": 3}, "test": {"Herb-Robert": 2, "alfalfa": 2}}
    for split, folder in layout.items():
        write_classes(tmp_path / folder, counts[split], prefix=split)
    root = tmp_path / next(iter(layout.values())).split("/")[0] if depth else tmp_path
    found = parts(name, root, **({"held_out": held_out} if held_out else {}))
    assert_partition(found, sum(2 * {"train": 8, "val": 3, "test": 2}[split] for split in layout))
    assert found["test"].classes == ["alfalfa", "herb-robert"]
    assert found["test"].targets == [0, 0, 1, 1]
    assert found["test"].image_ids[0].endswith("alfalfa/testalfalfa_000.jpg")
