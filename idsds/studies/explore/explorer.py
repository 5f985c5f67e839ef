"""A view of a run: the selection, shown with controls in a browser and as a figure elsewhere."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from idsds import plots
from idsds.common import paths
from idsds.common.registry import UnknownNameError, check_name, check_names
from idsds.plots.explore import Thumbnail
from idsds.plots.gallery import Example
from idsds.studies.explore.source import ORDERS, Case, Source

if TYPE_CHECKING:
    from idsds.studies.explore.widget import Widget


class Explorer:
    """A view of a run: one image with the maps of some methods. In JupyterLab it has controls, elsewhere it is a figure."""

    def __init__(self, source: Source) -> None:
        self.source, self.order = source, ORDERS[0]
        self.select(model=next(iter(source.cases)))

    @property
    def case(self) -> Case:
        """The model, seed and grid."""
        return self.source.cases[self.model]

    @property
    def images(self) -> list[str]:
        """The images in the chosen order."""
        return self.source.order(self.case, self.order, self.method)

    def select(
        self,
        *,
        model: str | None = None,
        method: str | None = None,
        image: str | None = None,
        order: str | None = None,
        shown: Sequence[str] | None = None,
    ) -> Explorer:
        """Select what is shown; None keeps a selection or, if it does not apply to the model, takes the first.

        Args:
            model: one of ``source.cases``.
            method: the method whose worst and best images are shown, and whose map is beside the drops.
            image: an image id.
            order: order of the images, one of :data:`ORDERS`.
            shown: further methods whose maps are shown.

        Raises:
            UnknownNameError: with the nearest match.
        """
        if model is not None:
            check_name("model of the records", model, self.source.cases)
            self.model = model
        every = list(self.source.ranking(self.case)["method"])
        check_names(f"method of {self.model}", [name for name in (method, *(shown or [])) if name is not None], every)
        self.method = method or (self.method if getattr(self, "method", None) in every else every[0])
        kept = list(shown) if shown is not None else [name for name in getattr(self, "shown", []) if name in every]
        self.shown = kept if shown is not None or kept else [*every[:5], *every[-1:]] if len(every) > 6 else every
        if order is not None:
            self.source.order(self.case, order, self.method)
            self.order = order
        images = self.source.scores(self.case).index
        if image is not None and image not in images:
            raise UnknownNameError(f"image of {self.model}", image, images)
        self.image = image or (self.image if getattr(self, "image", None) in images else self.images[0])
        return self

    def example(self) -> tuple[Example, list[str]]:
        """Return what is shown, and notes on it."""
        return self.source.example(self.case, self.image, list(dict.fromkeys([self.method, *self.shown])))

    def thumbnails(self) -> tuple[list[Thumbnail], list[Thumbnail]]:
        """The images with the worst and the best scores of the method."""
        scores = self.source.scores(self.case)[self.method]
        worst, best = (
            [Thumbnail(image, float(scores[image]), self.source.picture(self.case, image)) for image in images]
            for images in self.source.extremes(self.case, self.method)
        )
        return worst, best

    def figure(self) -> Figure:
        """Draw the view as a self-contained page."""
        return plots.explore(self.example()[0], self.method, self.source.ranking(self.case), *self.thumbnails())

    def save(self, path: str | Path | None = None, kind: str = "png") -> Path:
        """Save the page and return its path; by default it goes to the run's figures, named by model, image and method."""
        if path is None:
            where = paths.figures_of(self.source.run.folder) if self.source.run is not None else Path.cwd()
            path = where / (re.sub(r"[^\w.+-]+", "_", f"explore_{self.model}_{self.image}_{self.method}") + f".{kind}")
        path = Path(path)
        (saved,) = plots.save(self.figure(), path.with_suffix(""), {}, formats=[path.suffix.lstrip(".")])
        return saved

    @cached_property
    def widget(self) -> Widget:
        """The controls, for a notebook in a browser."""
        from idsds.studies.explore.widget import Widget  # ipywidgets is slow to import

        return Widget(self)

    def _ipython_display_(self) -> None:
        from IPython.display import Image, display

        buffer = io.BytesIO()
        figure = self.figure()
        figure.savefig(buffer, format="png", dpi=200)
        image = Image(buffer.getvalue(), format="png", width=int(100 * figure.get_size_inches()[0]))
        if not has_browser():
            display(image)
            for note in self.example()[1]:
                print(note)
            return
        # For notebooks read without a kernel, or printed.
        data, metadata = image._repr_mimebundle_()
        bundle = self.widget.box._repr_mimebundle_()
        display({**data, **(bundle[0] if isinstance(bundle, tuple) else bundle)}, metadata=metadata, raw=True)


def has_browser() -> bool:
    """Return whether the kernel was started from a notebook in a browser or an editor; papermill, nbval and nbconvert start their own."""
    return "google.colab" in sys.modules or any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID", "KAGGLE_KERNEL_RUN_TYPE"))
