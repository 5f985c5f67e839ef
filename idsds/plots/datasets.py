"""The data sets: images per class, image sizes, and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from idsds.plots.style import COLUMNS, panel_grid, styled

# The colour, line and marker of each split.
SPLITS = {"train": ("#0072B2", "-", "o"), "val": ("#E69F00", "--", "s"), "test": ("#009E73", ":", "^")}
ROW = 1.8  # inches


@styled
def datasets(classes: pd.DataFrame, measured: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw a row per data set: images per class, the classes by size, and height against width of the files.

    Args:
        classes: dataset, split, class, images.
        measured: dataset, split, height, width in pixels.
    """
    names = list(dict.fromkeys(classes["dataset"]))
    figure, grid = panel_grid(len(names), 2, COLUMNS[columns], 0.5 + ROW * len(names))
    for (left, right), name in zip(grid, names, strict=True):
        for split, (colour, line, marker) in SPLITS.items():
            part = classes[(classes["dataset"] == name) & (classes["split"] == split)]
            images = np.sort(part["images"].to_numpy())[::-1]
            label = f"{split}, {images.sum():,} images"
            left.step(np.arange(1, len(images) + 1), images, where="mid", color=colour, linestyle=line, label=label)
            files = measured[(measured["dataset"] == name) & (measured["split"] == split)]
            looks = {"markersize": 2.5, "markerfacecolor": "none", "markeredgewidth": 0.5, "alpha": 0.6}
            right.plot(files["width"], files["height"], marker, color=colour, rasterized=True, **looks)
        left.set_title(f"{name}, {len(images)} classes", fontsize=8)
        left.set_ylabel("images")
        left.set_ylim(bottom=0)
        left.legend(frameon=False, fontsize=6)
        right.set_title(f"{name}, {len(measured[measured['dataset'] == name])} images", fontsize=8)
        right.set_ylabel("height (pixels)")
        right.margins(0.2)
        for axis in (left.xaxis, right.xaxis, right.yaxis):
            axis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=6))
    grid[-1, 0].set_xlabel("classes, largest first")
    grid[-1, 1].set_xlabel("width (pixels)")
    return figure


@styled
def samples(shown: Mapping[str, Sequence[tuple[str, Tensor]]], *, columns: int = 2) -> Figure:
    """Draw a row of training images per data set, cropped for a net's input, with their classes.

    Args:
        shown: per data set the class and the pixels, (3, H, W) in [0, 1], of each image.
    """
    across = max(len(images) for images in shown.values())
    side = COLUMNS[columns] / across
    figure, grid = panel_grid(len(shown), across, COLUMNS[columns], (side + 0.25) * len(shown))
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, images) in zip(grid, shown.items(), strict=True):
        for number, (axes, (label, pixels)) in enumerate(zip(row, images, strict=False)):
            axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
            short = label if len(label) <= 14 else f"{label[:13]}\N{HORIZONTAL ELLIPSIS}"
            axes.set_title(f"{name}: {short}" if not number else short, fontsize=6.5, loc="left")
    return figure
