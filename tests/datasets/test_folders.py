"""Every folder layout, its splits and its errors; torchvision's ImageFolder is the oracle for indices and files."""

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from idsds.common.normalisation import UNIT
from idsds.common.registry import UnknownNameError
from idsds.datasets import ImageReadError, collate, create_dataset, list_datasets
from idsds.datasets.base import DATASETS
from idsds.datasets.folders import imagenet_classes

from .conftest import write_classes, write_image

ON_DISK = [name for name in list_datasets() if not DATASETS[name].embedded]


def parts(name, root, **options):
    return {split: create_dataset(name, split, root=root, **options) for split in ("train", "val", "test")}


def assert_partition(found, total):
    ids = [image_id for part in found.values() for image_id in part.image_ids]
    assert len(ids) == len(set(ids)) == total
    assert all(len(part) for part in found.values())
    assert len({tuple(part.classes) for part in found.values()}) == 1


def test_train_and_val_folders(photos):
    found = parts("image_folder", photos, held_out=0.25)
    assert_partition(found, 36 + 12)
    assert found["train"].classes == ["C", "a", "b"]
    assert [len(found[split]) for split in ("train", "val", "test")] == [36 - 4 - 3 - 2, 9, 12]  # round(3.5) = 4, round(2.5) = 2
    oracle = ImageFolder(photos / "val")
    assert found["test"].image_ids == [f"image_folder/val/{path.split('/val/')[1]}" for path, _ in oracle.samples]
    assert found["test"].targets == oracle.targets
    assert sorted(found["train"].targets + found["val"].targets) == ImageFolder(photos / "train").targets


def test_nothing_held_out_is_the_published_way(photos):
    found = parts("image_folder", photos, held_out=0)
    assert len(found["train"]) == 36
    assert found["val"].image_ids == found["test"].image_ids


def test_three_folders_are_taken_as_they_are(photos):
    write_classes(photos / "test", {"b": 3, "a": 3, "C": 3})
    found = parts("image_folder", photos)
    assert_partition(found, 36 + 12 + 9)
    assert [len(found[split]) for split in ("train", "val", "test")] == [36, 12, 9]


def test_class_folders_only(tmp_path):
    write_classes(tmp_path, {"x y": 50, "z": 50})
    found = parts("image_folder", tmp_path)
    assert_partition(found, 100)
    assert [len(found[split]) for split in ("train", "val", "test")] == [82, 8, 10]
    assert all(part.targets.count(0) == part.targets.count(1) for part in found.values())


def test_a_split_does_not_move_when_images_are_added(tmp_path):
    write_classes(tmp_path, {"a": 40, "b": 50})
    before = create_dataset("image_folder", "test", root=tmp_path)
    write_classes(tmp_path, {"b": 60})
    after = create_dataset("image_folder", "test", root=tmp_path)
    assert [i for i in before.image_ids if "/a/" in i] == [i for i in after.image_ids if "/a/" in i]


def test_pixels_are_normalised_and_one_batch_is_what_the_files_hold(photos):
    plain, own = (create_dataset("image_folder", root=photos, normalisation=n, image_size=28) for n in (UNIT, None))
    images, targets, ids = next(iter(DataLoader(own, 5, collate_fn=collate)))
    assert images.shape == (5, 3, 28, 28)
    assert targets.tolist() == own.targets[:5]
    assert ids == own.image_ids[:5]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(images[2], (plain[2][0] - mean[:, None, None]) / std[:, None, None], atol=1e-6)


IMAGENET_WNIDS = {"n01440764": 0, "n02102040": 217, "n03888257": 701}


def test_imagenet_keeps_its_indices_with_some_classes_only(tmp_path):
    write_classes(tmp_path / "train", dict.fromkeys(IMAGENET_WNIDS, 4), ".JPEG")
    write_classes(tmp_path / "val", dict.fromkeys(IMAGENET_WNIDS, 2), ".JPEG")
    found = create_dataset("imagenet", root=tmp_path)
    assert found.num_classes == 1000
    assert found.targets == [t for t in IMAGENET_WNIDS.values() for _ in range(2)]
    assert found.classes[217].startswith("English springer")
    assert found.image_ids[0] == "imagenet/val/n01440764/n01440764_000.JPEG"
    assert len(imagenet_classes()[0]) == 1000
    val = create_dataset("imagenet", "val", root=tmp_path, held_out=0.25)
    assert (len(val), set(val.targets)) == (3, set(IMAGENET_WNIDS.values()))


def test_imagenet_for_evaluation_alone_needs_no_training_folder(tmp_path):
    write_classes(tmp_path / "val", dict.fromkeys(IMAGENET_WNIDS, 2), ".JPEG")
    assert len(create_dataset("imagenet", root=tmp_path)) == 6
    with pytest.raises(FileNotFoundError, match="no folder for 'train'"):
        create_dataset("imagenet", "train", root=tmp_path)


def test_imagenet_names_a_folder_that_is_not_a_class(tmp_path):
    write_classes(tmp_path / "val", {"n01440764": 1, "n01440765": 1}, ".JPEG")
    with pytest.raises(UnknownNameError, match=r"n01440765.*Did you mean"):
        create_dataset("imagenet", root=tmp_path)


def test_a_class_that_training_does_not_have_is_named(photos):
    write_classes(photos / "val", {"bb": 1})
    with pytest.raises(UnknownNameError, match=r"'bb'.*Did you mean 'b'"):
        create_dataset("image_folder", root=photos)


def test_two_folders_of_one_class_are_named(tmp_path):
    write_classes(tmp_path / "train", {"Iron Man": 2, "iron-man": 2})
    with pytest.raises(ValueError, match=r"Iron Man.*iron-man"):
        create_dataset("marvel", "train", root=tmp_path)


def test_an_empty_training_class_is_named(photos):
    (photos / "train" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        create_dataset("image_folder", "train", root=photos)


@pytest.mark.parametrize("name", ON_DISK)
def test_missing_data_says_where_to_put_what(tmp_path, monkeypatch, name):
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("idsds.datasets.torchvision.FASHION_PACKAGE", str(tmp_path / "no package"))
    with pytest.raises(FileNotFoundError, match=rf"'{name}'.*nowhere/{name}.*Nothing is downloaded"):
        create_dataset(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=name):
        create_dataset(name, root=tmp_path / "empty")


def test_the_environment_names_the_folder(tmp_path, monkeypatch, photos):
    monkeypatch.setenv("IDSDS_DATA", str(photos.parent))
    (photos.parent / "image_folder").symlink_to(photos)
    assert len(create_dataset("image_folder")) == 12


@pytest.mark.parametrize("name", ON_DISK)
def test_wrong_options_are_named_before_any_file_is_looked_for(name):
    with pytest.raises(UnknownNameError, match="root"):
        create_dataset(name, rot="x")
    with pytest.raises(UnknownNameError, match="train"):
        create_dataset(name, "trian")


def broken(folder, split="val"):
    path = folder / split / "a" / "a_001.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return f"image_folder/{split}/a/a_001.jpg"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(photos, workers):
    name = broken(photos)
    found = create_dataset("image_folder", root=photos)
    with pytest.raises(ImageReadError, match=name):
        list(DataLoader(found, 4, collate_fn=collate, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_skipped_and_counted(photos, workers):
    name = broken(photos)
    found = create_dataset("image_folder", root=photos, on_error="skip", image_size=28)
    batches = list(DataLoader(found, 3, collate_fn=collate, num_workers=workers))
    assert [i for _, _, ids in batches for i in ids] == [i for i in found.image_ids if i != name]
    assert all(len(images) == len(targets) == len(ids) for images, targets, ids in batches)
    assert found.skipped == [name]


def test_a_batch_of_which_nothing_is_left(photos):
    for path in (photos / "val" / "a").iterdir():
        path.write_bytes(b"")
    found = create_dataset("image_folder", root=photos, on_error="skip")
    images, targets, ids = collate([found[4], found[5]])
    assert (images.shape, len(targets), ids) == ((0, 3, 1, 1), 0, [])


def test_on_error_is_checked(photos):
    with pytest.raises(UnknownNameError, match="skip"):
        create_dataset("image_folder", root=photos, on_error="skp")


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_keyed(photos, workers):
    """The same stream in another order and with other loader processes; another one in the next epoch."""
    found = create_dataset("image_folder", "train", root=photos, image_size=28)
    first = {i: image for image, _, i in found.augmented(seed=0, epoch=3)}
    loader = DataLoader(found.augmented(seed=0, epoch=3), 7, collate_fn=collate, num_workers=workers, shuffle=True)
    for images, _, ids in loader:
        assert all(torch.equal(first[i], image) for i, image in zip(ids, images, strict=True))
    for other in (found.augmented(seed=0, epoch=4), found.augmented(seed=1, epoch=3)):
        assert sum(torch.equal(first[i], image) for image, _, i in other) == 0


def test_hidden_and_other_files_do_not_count(photos):
    write_image(photos / "val" / "a" / "._a_000.jpg")
    (photos / "val" / "a" / "notes.txt").write_text("x")
    (photos / "val" / ".ipynb_checkpoints").mkdir()
    assert len(create_dataset("image_folder", root=photos)) == 12


def tree(root, *files):
    for number, file in enumerate(files):
        write_image(root / file, number)
    return root


def test_what_editors_and_archivers_leave_is_not_counted(tmp_path):
    root = tree(tmp_path, *(f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("cat", "dog") for i in range(4)))
    for extra in (
        "test/cat/.ipynb_checkpoints/1-checkpoint.png",
        "test/__MACOSX/cat/1.png",
        "test/cat/._1.png",
        "test/.hidden/1.png",
        "__MACOSX/x.png",
        ".cache/1.png",
    ):
        write_image(root / extra, 1)
    assert len(create_dataset("image_folder", "test", root=root)) == 8
    assert create_dataset("image_folder", "test", root=root).classes == ["cat", "dog"]


def test_nested_and_linked_folders_are_counted_once(tmp_path):
    root = tree(tmp_path / "data", *(f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("cat", "dog") for i in range(3)))
    write_image(root / "test/cat/more/deep/9.png", 9)
    elsewhere = tree(tmp_path / "elsewhere", "a.png", "b.png").resolve()
    (root / "test/dog/linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "test/dog/back").symlink_to(root / "test", target_is_directory=True)
    dogs = [i for i in create_dataset("image_folder", "test", root=root).image_ids if "/dog/" in i.split("test", 1)[1][:5]]
    assert len([i for i in dogs if "linked" in i]) == 2


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    root = tree(tmp_path, *(f"{kind}/{i}.png" for kind in ("bus", "car", name) for i in range(20)))
    found = {split: create_dataset("image_folder", split, root=root) for split in ("train", "val", "test")}
    assert sum(map(len, found.values())) == 60
    assert found["train"].classes == sorted(["bus", "car", name])


def test_a_folder_that_may_be_a_split_or_a_class_is_named(tmp_path):
    root = tree(tmp_path, "bus/1.png", "train/steam/1.png")
    with pytest.raises(ValueError, match=r"'train' in .* may be the train split or a class"):
        create_dataset("image_folder", "train", root=root)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_named(tmp_path, split):
    root = tree(tmp_path, *(f"{part}/cat/{i}.png" for part in ("train", "test") for i in range(4)))
    for part in ("train", "test"):
        (root / part / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*dog"):
        create_dataset("image_folder", split, root=root)


def test_the_first_image_may_be_unreadable(tmp_path):
    root = tree(tmp_path, *(f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("cat", "dog") for i in range(2)))
    (root / "test/cat/0.png").write_bytes(b"no image")
    found = create_dataset("image_folder", "test", root=root, on_error="skip")
    assert found[0] is None
    assert found.skipped == [found.image_ids[0]]
