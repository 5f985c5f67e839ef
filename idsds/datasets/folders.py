"""Data sets as folders of image files, one folder per class; nothing is downloaded.

A data set's folder is ``root=``, else ``$IDSDS_DATA/<name>``, else ``data/<name>`` below the repository root. The splits are:

- with folders for training, validation and test: these;
- with folders for training and one other: the other is ``test``, on which papers report, and ``val`` is a keyed, stratified fraction
    ``held_out`` of the training folder, so that no checkpoint is chosen on test images. ``held_out=0`` uses the whole training folder for
    ``train`` and the same images for ``val`` and ``test``, as much published code does;
- with class folders only: all three come from :func:`idsds.datasets.splits.stratified_split`.

Class indices follow the sorted names of the class folders, as in torchvision's ``ImageFolder``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idsds.common import paths
from idsds.common.normalisation import IMAGENET, Normalisation
from idsds.common.registry import check_name
from idsds.datasets.base import ImageDataset, OnError, register_dataset
from idsds.datasets.images import EXTENSIONS, FileImages
from idsds.datasets.splits import TEST, VALIDATION, stratified_split, within_half

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def data_root(name: str, root: str | os.PathLike[str] | None, wanted: str, fallbacks: Sequence[str] = ()) -> Path:
    """Return the folder of a data set.

    Args:
        root: the folder; None looks at ``$IDSDS_DATA/<name>``, or ``data/<name>`` if ``IDSDS_DATA`` is not set.
        wanted: the folder's required content, for the error message.
        fallbacks: folders of a system package that contains the data, tried last.

    Raises:
        FileNotFoundError: if there is no folder; the message names it and what to put there.
    """
    candidates: list[str | os.PathLike[str]] = (
        [root] if root is not None else [Path(os.environ.get("IDSDS_DATA", "data")) / name, *fallbacks]
    )
    tried = [paths.resolve(folder) for folder in candidates]
    for folder in tried:
        if folder.is_dir():
            return folder
    looked = " nor ".join(repr(str(folder)) for folder in tried)
    raise FileNotFoundError(
        f"data set {name!r}: there is no folder {looked}. Nothing is downloaded: put {wanted} there, pass root=, "
        f"or set IDSDS_DATA to the folder that holds {name!r}."
    )


@dataclass(frozen=True)
class Layout:
    """The layout of a data set's files.

    Args:
        wanted: what the folder must hold, in words.
        bases: folders below the root that may hold the split or class folders; the first that does is used, so list the deepest first.
        names: the names that the folder of each split may have.
        key: maps a class folder's name to the name by which classes are sorted and matched between splits.
        upright: whether to apply the camera's orientation tag; torchvision, and hence published numbers, ignore it.
    """

    wanted: str
    bases: tuple[str, ...] = ("",)
    names: dict[str, tuple[str, ...]] = field(default_factory=lambda: NAMES)
    key: Callable[[str], str] = str
    upright: bool = False

    def find(self, root: Path, name: str) -> tuple[Path, dict[str, Path]]:
        """Return the base folder below ``root`` and the folders of the splits in it, none if the class folders lie in the base.

        A folder with a split's name that directly holds images is a class of that name.

        Raises:
            FileNotFoundError: if there are no images.
            ValueError: if, beside class folders, a single folder could be either a split or a class.
        """
        for base in self.bases:
            folder = root / base
            if not folder.is_dir():
                continue
            present = {entry.name.casefold(): entry for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name)}
            named = {split: present[option] for split, options in self.names.items() for option in options if option in present}
            classes = [entry for entry in present.values() if _holds_images(entry)]
            splits = {split: entry for split, entry in named.items() if entry not in classes}
            if len(splits) == 1 and classes:
                (split, entry), beside = next(iter(splits.items())), classes[0].name
                raise ValueError(
                    f"data set {name!r}: {entry.name!r} in {str(folder)!r} may be the {split} split or a class with subfolders, since"
                    f" {beside!r} beside it holds images; move one of them elsewhere"
                )
            if splits or classes:
                return folder, splits
        raise FileNotFoundError(f"data set {name!r}: {str(root)!r} does not hold {self.wanted}")


def _is_hidden(name: str) -> bool:
    """Return whether a file or folder belongs to an editor, an archiver or the system rather than the data set."""
    return name.startswith(".") or name == "__MACOSX"


def _images(folder: Path) -> list[str]:
    """Return the image files in and below a class folder, sorted; hidden files are skipped, links are followed.

    As strings, not ``Path`` objects: ImageNet has 1.3 million, and each loader process holds them all.
    """
    found: list[str] = []
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(top))
        # A link to a parent folder would be followed forever.
        folders[:] = [name for name in folders if not _is_hidden(name) and os.path.realpath(os.path.join(top, name)) not in seen]
        found += [os.path.join(top, file) for file in files if not _is_hidden(file) and file.lower().endswith(EXTENSIONS)]
    return sorted(found)


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in EXTENSIONS and not _is_hidden(entry.name) for entry in folder.iterdir() if not entry.is_dir())


def _class_folders(folder: Path, layout: Layout, name: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or _is_hidden(entry.name):
            continue
        if (key := layout.key(entry.name)) in found:
            raise ValueError(f"data set {name!r}: the folders {str(found[key])!r} and {str(entry)!r} are of the same class {key!r}")
        found[key] = entry
    if not found:
        raise FileNotFoundError(f"data set {name!r}: {str(folder)!r} has no folder of a class in it")
    return dict(sorted(found.items()))


def folder_dataset(
    name: str,
    split: str,
    normalisation: Normalisation,
    layout: Layout,
    root: str | os.PathLike[str] | None,
    *,
    image_size: int = 224,
    held_out: float = VALIDATION,
    test: float = TEST,
    on_error: OnError = "raise",
    named: tuple[Sequence[str], Sequence[str]] | None = None,
) -> ImageDataset:
    """Load a split of a data set whose classes are folders.

    Args:
        root: the folder; None to find it with :func:`data_root`.
        held_out: fraction of each class's training images used for validation if the data set has only two parts.
        test: fraction of each class used for testing if the data set has only one part.
        named: the class folders' names in the order of their indices, and readable names in the same order; None for the sorted names in
            the training folder.

    Raises:
        FileNotFoundError: for a missing folder or an empty class; the message names it and the required content.
        UnknownNameError: for a class folder that the training folder lacks.
    """
    base, folders = layout.find(data_root(name, root, layout.wanted), name)
    if folders and "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    cut = folders.get("train") if split != "test" and "val" not in folders and (held_out or split == "train") else None
    source = base if not folders else cut or folders.get(split) or (folders.get("test") if split == "val" else None)
    if source is None:
        raise FileNotFoundError(f"data set {name!r} has no folder for {split!r} in {str(base)!r}: wanted is {layout.wanted}")
    classes, names = named or (None, None)
    if classes is None:
        classes = names = list(_class_folders(folders.get("train", source), layout, name))
    files, targets = _labelled(source, layout, name, classes)
    below = len(str(base)) + 1
    ids = [f"{name}/{file[below:].replace(os.sep, '/')}" for file in files]
    if not folders:
        chosen = stratified_split(ids, targets, split, validation=held_out, test=test)
    else:
        chosen = within_half(ids, targets, split if source == cut else "test", held_out)
    if not chosen:
        raise ValueError(f"data set {name!r}: the split {split!r} of {str(base)!r} is empty; {len(files)} images, held_out={held_out}")
    files, ids, targets = ([values[i] for i in chosen] for values in (files, ids, targets))
    return file_dataset(name, split, normalisation, files, ids, targets, names, image_size, on_error, layout.upright)


def _labelled(source: Path, layout: Layout, name: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return all files below the class folders of ``source``, and the class index of each."""
    index = {key: number for number, key in enumerate(classes)}
    files: list[str] = []
    targets: list[int] = []
    for key, folder in _class_folders(source, layout, name).items():
        check_name(f"class folder {str(folder)!r} of data set {name!r}", key, index)
        images = _images(folder)
        if not images:
            raise FileNotFoundError(f"data set {name!r}: no image in {str(folder)!r}; files that count end in {', '.join(EXTENSIONS)}")
        files += images
        targets += [index[key]] * len(images)
    return files, targets


def file_dataset(
    name: str,
    split: str,
    normalisation: Normalisation,
    files: Sequence[str],
    image_ids: Sequence[str],
    targets: Sequence[int],
    classes: Sequence[str],
    image_size: int,
    on_error: OnError,
    upright: bool = False,
) -> ImageDataset:
    """Return a data set of the given files, with the evaluation and training crops of :mod:`idsds.datasets.images`."""
    images = FileImages(files, image_size, upright)
    return ImageDataset(name, split, image_ids, targets, images.read, classes, normalisation, images.augment, on_error)


def listed_dataset(
    name: str,
    split: str,
    normalisation: Normalisation,
    folder: Path,
    listed: Sequence[str],
    classes: Sequence[str],
    *,
    suffix: str = "",
    image_size: int,
    held_out: float,
    on_error: OnError,
) -> ImageDataset:
    """Load a split of a data set whose official half is defined by a list, not a folder.

    Args:
        name, split, normalisation, image_size, held_out, on_error: see :func:`folder_dataset`.
        folder: the folder that contains the class folders.
        listed: ``<class>/<file>`` of every image of the :func:`~idsds.datasets.splits.official_half`.
        suffix: the file extension, if the list omits it.
    """
    index = {key: number for number, key in enumerate(classes)}
    ids, targets = [f"{name}/{entry}" for entry in listed], [index[entry.split("/")[0]] for entry in listed]
    files = [str(folder / f"{entry}{suffix}") for entry in listed]
    chosen = within_half(ids, targets, split, held_out)
    files, ids, targets = ([values[i] for i in chosen] for values in (files, ids, targets))
    return file_dataset(name, split, normalisation, files, ids, targets, classes, image_size, on_error)


Root = str | os.PathLike[str] | None


def register_folders(
    *, validation: float = VALIDATION, named: Callable[[], tuple[list[str], list[str]]] | None = None, **entry: Any
) -> Callable[[Callable[[], Layout]], Callable]:
    """Register a data set that is fully described by its layout: the decorated function has its name and returns the layout.

    The data set has the options ``root``, ``image_size``, ``held_out`` and ``on_error``, see :func:`folder_dataset`.

    Args:
        validation: the default of ``held_out``.
        named: returns the names of the class folders, in the order of their indices, and of the classes; None to sort the folders.
        entry: ``num_classes`` and ``source`` of :class:`~idsds.datasets.base.DatasetEntry`.
    """

    def decorate(layout: Callable[[], Layout]) -> Callable:
        name = layout.__name__

        def load(
            split: str,
            normalisation: Normalisation,
            root: Root = None,
            image_size: int = 224,
            held_out: float = validation,
            on_error: OnError = "raise",
        ) -> ImageDataset:
            options = {"image_size": image_size, "held_out": held_out, "on_error": on_error}
            return folder_dataset(name, split, normalisation, layout(), root, named=named and named(), **options)

        load.__doc__ = layout.__doc__
        return register_dataset(name, image_size=224, normalisation=IMAGENET, **entry)(load)

    return decorate


@register_folders(num_classes=None, source="a folder of your own: train/<class>/*.jpg and so on")
def image_folder() -> Layout:
    """Describe any folder in the layout of torchvision's ``ImageFolder``, with or without split folders."""
    return Layout("one folder of images per class, or such folders in train/, val/ and test/", upright=True)


def imagenet_classes() -> tuple[list[str], list[str]]:
    """Return ImageNet's 1,000 WordNet ids and their descriptions, in the order of the class indices."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return list(info.label_names()), [info.index_to_description(index) for index in range(info.num_classes())]


@register_folders(
    validation=0.01,
    named=imagenet_classes,
    num_classes=1000,
    source="ImageNet, ILSVRC 2012 (Russakovsky et al., IJCV 2015), image-net.org: 1,281,167 training and 50,000 validation images",
)
def imagenet() -> Layout:
    """Describe ILSVRC 2012 in ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``.

    ``test`` is the official validation set, whose labels are public and on which the paper evaluates; ``val`` is 1 % of the training
    images. Targets are the usual 1,000 indices even if only some of the class folders exist.
    """
    return Layout("train/<wnid>/*.JPEG and val/<wnid>/*.JPEG", bases=("ILSVRC/Data/CLS-LOC", ""))
