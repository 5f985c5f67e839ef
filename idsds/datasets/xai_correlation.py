"""The data sets of the study "Don't Augment Me" (xai-correlation) in the folder layouts of their downloads.

The study takes its classes in the order of a folder listing, which differs between machines; here they are sorted by name. Its fifth
data set, Food-101, is in :mod:`idsds.datasets.torchvision`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from idsds.common.normalisation import IMAGENET, Normalisation
from idsds.common.registry import check_name
from idsds.datasets.base import ImageDataset, OnError, register_dataset
from idsds.datasets.folders import Layout, Root, data_root, folder_dataset, listed_dataset, register_folders
from idsds.datasets.splits import VALIDATION, official_half

#: How Stanford Dogs is split: by the official lists, or with a fifth of each class for testing, as in the study.
Division = Literal["official", "80/20"]
FIFTH = 0.2

# The file of Stanford Dogs' official split for each half.
DOG_LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


def folded(name: str) -> str:
    """Return a class name in lower case without spaces, because these differ between parts of the study's downloads."""
    return "-".join(name.split()).lower()


def _dogs_listed(root: Path, split: str, held_out: float) -> list[str] | None:
    """Return the images of a split by the official lists, as ``<class>/<file>``; None without the lists."""
    found = [folder for folder in (root, root / "lists") if all((folder / name).is_file() for name in DOG_LISTS.values())]
    if not found:
        return None
    from scipy.io import loadmat

    content = loadmat(found[0] / DOG_LISTS[official_half(split, held_out)])
    cells = content["file_list"].ravel()  # an object array of one-element arrays of text
    return [str(cell.item()) for cell in cells]


@register_dataset(
    num_classes=120,
    image_size=224,
    normalisation=IMAGENET,
    source="Stanford Dogs (Khosla et al., FGVC at CVPR 2011): images.tar and lists.tar, or Kaggle jessicali9530/stanford-dogs-dataset",
)
def stanford_dogs(
    split: str,
    normalisation: Normalisation,
    root: Root = None,
    image_size: int = 224,
    held_out: float = VALIDATION,
    on_error: OnError = "raise",
    division: Division = "official",
) -> ImageDataset:
    """Load 20,580 photos of 120 breeds from ``Images/n02085620-Chihuahua/*.jpg`` (official) or ``images/Images/...`` (Kaggle).

    With ``train_list.mat`` and ``test_list.mat`` beside ``Images`` (or in ``lists/``) the official 12,000 and 8,580 images are ``train``
    and ``test``, and ``val`` is the fraction ``held_out`` of the former; without them all three follow the keyed, stratified rule.
    With ``division="80/20"``, as in the study, a fifth of each class is ``test``, whatever the lists say, and ``val`` is the fraction
    ``held_out`` of the rest.
    """
    check_name("division of 'stanford_dogs'", division, get_args(Division))
    wanted = "Images/<wnid>-<breed>/*.jpg, and for the official split train_list.mat and test_list.mat"
    layout = Layout(wanted, bases=("images/Images", "Images", "images", ""), names={})
    root = data_root("stanford_dogs", root, wanted)
    options = {"image_size": image_size, "held_out": held_out, "on_error": on_error}
    if division == "80/20":
        # With nothing held out, the validation images are the test images, as for the official lists.
        part = "test" if split == "val" and not held_out else split
        options |= {"held_out": (1 - FIFTH) * held_out, "test": FIFTH}
        found = folder_dataset("stanford_dogs", part, normalisation, layout, root, **options)
        found.split = split
        return found
    listed = _dogs_listed(root, split, held_out)
    if listed is None:
        return folder_dataset("stanford_dogs", split, normalisation, layout, root, **options)
    base, _ = layout.find(root, "stanford_dogs")
    classes = sorted(folder.name for folder in base.iterdir() if folder.is_dir())
    absent = sorted({name.split("/")[0] for name in listed} - set(classes))
    if absent:
        raise FileNotFoundError(f"data set 'stanford_dogs': {str(base)!r} lacks the folder {absent[0]!r} of the official lists")
    return listed_dataset("stanford_dogs", split, normalisation, base, listed, classes, **options)


@register_folders(num_classes=99, source="Plants_Dataset[99 classes], Kaggle muhammadjawad1998/plants-dataset99-classes")
def plants99() -> Layout:
    """Describe photos of 99 plants in ``Plant_Data/Plant_Data/{train,valid,test}/<class>`` (or in one of the folders above)."""
    bases = ("Plant_Data/Plant_Data", "Plant_Data", "")
    return Layout("Plant_Data/Plant_Data/{train,valid,test}/<class>/*.jpg", bases=bases, key=folded)


@register_folders(num_classes=62, source="Edible wild plants, Kaggle gverzea/edible-wild-plants")
def edible_plants() -> Layout:
    """Describe photos of 62 plants in ``datasets/dataset/<class>`` (training), ``datasets/dataset-test`` and optionally ``dataset-val``."""
    names = {"train": ("dataset",), "val": ("dataset-val", "dataset-valid"), "test": ("dataset-test",)}
    return Layout("datasets/{dataset,dataset-test}/<class>/*.jpg", bases=("datasets", ""), names=names, key=folded)


@register_folders(num_classes=8, source="Marvel Heroes, Kaggle hchen13/marvel-heroes")
def marvel() -> Layout:
    """Describe pictures of 8 heroes in ``marvel/{train,valid}/<class>``; ``valid`` is the test split, as in the study."""
    return Layout("marvel/{train,valid}/<class>/*.jpg", bases=("marvel/marvel", "marvel", ""), key=folded)
