"""What is in the data sets: images per class and split, sizes of the files, and samples.

The second study that this package repeats (burnpiro/xai-correlation) begins with these overviews of its five data sets.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import Field, PositiveInt

from idsds import plots
from idsds.datasets import create_dataset
from idsds.datasets.base import ImageDataset, fixed_order
from idsds.studies.base import DatasetName, Findings, Result, Study

SPLITS = ("train", "val", "test")


def counts(dataset: ImageDataset) -> pd.DataFrame:
    """Count the images of each class of a split: ``dataset``, ``split``, ``class``, ``images``; classes without one have 0."""
    found = np.bincount(dataset.targets, minlength=dataset.num_classes)
    return pd.DataFrame({"dataset": dataset.name, "split": dataset.split, "class": dataset.classes, "images": found})


def sizes(dataset: ImageDataset, images: int) -> pd.DataFrame:
    """Return sizes of the first ``images`` of the fixed order: ``dataset``, ``split``, ``image_id``, ``height``, ``width`` in pixels."""
    order = fixed_order(dataset.image_ids)[:images]
    rows = [(dataset.name, dataset.split, dataset.image_ids[index], *dataset.size(index)) for index in order]
    return pd.DataFrame(rows, columns=["dataset", "split", "image_id", "height", "width"])


def overview(classes: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Summarise each data set and split.

    Returns:
        One row per data set and split: ``classes``, ``images``, ``least`` and ``most`` per class, ``imbalance`` (most / least, infinite
        where a class has none), ``median_height`` and ``median_width`` of the ``measured`` files, ``smallest`` and ``largest`` side.
    """
    by, sides = ["dataset", "split"], measured[["height", "width"]]
    table = classes.groupby(by, sort=False)["images"].agg(classes="size", images="sum", least="min", most="max")
    table["imbalance"] = table["most"] / table["least"]
    files = measured.assign(smallest=sides.min(axis=1), largest=sides.max(axis=1)).groupby(by)
    table["measured"] = files.size()
    table[["median_height", "median_width"]] = files[["height", "width"]].median()
    return table.assign(smallest=files["smallest"].min(), largest=files["largest"].max()).reset_index()


class Datasets(Study):
    """Describe data sets; ``images`` is how many files of each split are opened for their sizes, ``samples`` how many are shown."""

    PLAN_BY = ("dataset",)

    datasets: Annotated[list[DatasetName], Field(min_length=1)]
    images: PositiveInt = 500
    samples: PositiveInt = 6

    def splits(self) -> list[ImageDataset]:
        """Return every split of every data set. Raises FileNotFoundError for one that is not on this disk."""
        return [create_dataset(name, split) for name in self.datasets for split in SPLITS]

    def plan_table(self) -> pd.DataFrame:
        """List the images to open: ``dataset``, ``split``, ``files``; no net is at work."""
        rows = [{"dataset": data.name, "split": data.split, "files": min(self.images, len(data))} for data in self.splits()]
        return pd.DataFrame(rows)

    def _run(self, progress: bool) -> Result:
        splits = self.splits()
        classes = pd.concat([counts(data) for data in splits], ignore_index=True)
        measured = pd.concat([sizes(data, self.images) for data in splits], ignore_index=True)
        table = overview(classes, measured)
        shown = {data.name: self._samples(data) for data in splits if data.split == "train"}
        pages = [partial(plots.datasets, classes, measured, columns=self.columns), partial(plots.samples, shown, columns=self.columns)]
        train = table[table["split"] == "train"]
        most = train.loc[train["imbalance"].idxmax()]
        sentences = [
            f"{len(self.datasets)} data sets with {int(table['images'].sum()):,} images in {int(train['classes'].sum())} classes.",
            f"The least balanced is {most['dataset']}: {most['least']} to {most['most']} training images per class.",
        ]
        return Result(self.stem, {"": table, "classes": classes}, Findings(sentences), pages, measured)

    def _samples(self, data: ImageDataset) -> list[tuple[str, torch.Tensor]]:
        """Return class and pixels of the first images of the fixed order, each of another class as long as there are others."""
        order, seen = fixed_order(data.image_ids), set()
        fresh = [index for index in order if not (data.targets[index] in seen or seen.add(data.targets[index]))]
        chosen = [*fresh, *(index for index in order if index not in set(fresh))][: self.samples]
        return [(data.classes[data.targets[index]], data.read(index)) for index in chosen]
