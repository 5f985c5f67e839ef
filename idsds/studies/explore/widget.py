"""The controls of :func:`idsds.explore`: native, keyboard-accessible inputs around an HTML card."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from idsds.plots.explore import card, strip_card
from idsds.studies.explore.source import ORDERS, UnavailableError

if TYPE_CHECKING:
    from idsds.studies.explore.explorer import Explorer

#: Images in the list at a time.
PAGE = 200
#: JupyterLab captures arrow keys and Enter while a notebook has the focus, unless the focused element suppresses that.
KEYS = """<img src="data:," alt="" hidden onerror="setTimeout(() => document.querySelectorAll(
'.idsds-explorer :is(select, button)').forEach(one => one.setAttribute('data-lm-suppress-shortcuts', 'true')), 300)">"""


class Widget:
    """Controls of an explorer; parts that a selection does not change are not redrawn."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self._busy = explorer, False
        wide = widgets.Layout(width="290px")
        self.model = widgets.Dropdown(options=list(explorer.source.cases), layout=wide)
        self.method = widgets.Select(rows=9, layout=wide)
        self.shown = widgets.SelectMultiple(rows=6, layout=wide)
        self.order = widgets.Dropdown(options=ORDERS, layout=wide)
        self.image = widgets.Select(rows=9, layout=wide)
        self.before, self.after = (widgets.Button(description=text, layout={"width": "142px"}) for text in ("previous 200", "next 200"))
        self.png, self.pdf = (widgets.Button(description=text, layout={"width": "142px"}) for text in ("Save PNG", "Save PDF"))
        self.card, self.said = widgets.HTML(), widgets.HTML()
        self.strips = [(widgets.HTML(), [widgets.Button(layout={"width": "86px", "margin": "0 1px"}) for _ in range(4)]) for _ in range(2)]
        self.start = 0
        for box, choice in ((self.model, "model"), (self.method, "method"), (self.order, "order"), (self.image, "image")):
            box.observe(lambda change, choice=choice: self.choose(**{choice: change["new"]}), "value")
        self.shown.observe(lambda change: self.choose(shown=change["new"]), "value")
        for _, buttons in self.strips:
            for button in buttons:
                button.on_click(lambda pressed: self.choose(image=pressed.tooltip))
        self.before.on_click(lambda _: self._page(-PAGE))
        self.after.on_click(lambda _: self._page(PAGE))
        for button, kind in ((self.png, "png"), (self.pdf, "pdf")):
            button.on_click(lambda _, kind=kind: self.save(kind))
        boxes = {"Model": self.model, "Method, best first: its images are below": self.method}
        boxes |= {"Maps shown (several with Ctrl or Shift)": self.shown, "Order of the images": self.order, "Image": self.image}
        parts = [part for head, box in boxes.items() for part in (widgets.HTML(f"<b>{head}</b>"), box)]
        self.turn = widgets.HBox([self.before, self.after])
        left = widgets.VBox([*parts, self.turn, widgets.HBox([self.png, self.pdf])])
        rows = [
            widgets.VBox([widgets.HTML(f"<b>{label} images of the method</b>"), html, widgets.HBox(buttons)])
            for label, (html, buttons) in zip(("Worst", "Best"), self.strips, strict=True)
        ]
        below = widgets.HBox(rows, layout=widgets.Layout(flex_flow="row wrap"))
        right = widgets.VBox([self.card, below, self.said, widgets.HTML(KEYS)], layout=widgets.Layout(flex="1 1 500px", min_width="0"))
        self.box = widgets.HBox([left, right], layout=widgets.Layout(flex_flow="row wrap"))
        self.box.add_class("idsds-explorer")
        self._fill("model")

    def choose(self, **choice: Any) -> None:
        """Apply a selection and show what it changes, or the error."""
        if self._busy or None in choice.values():
            return
        self.said.value = ""
        try:
            self.explorer.select(**choice)
            self._fill(next(iter(choice)))
        except Exception as error:  # ipywidgets would swallow it
            self.said.value = f"<b>{escape(type(error).__name__)}: {escape(str(error))}</b>"

    def save(self, kind: str) -> None:
        """Save the view, and show where."""
        try:
            self.said.value = f"saved: {escape(str(self.explorer.save(kind=kind)))}"
        except OSError as error:
            self.said.value = f"<b>{escape(str(error))}</b>"

    def _page(self, step: int) -> None:
        self.start = min(max(0, self.start + step), (len(self.explorer.images) - 1) // PAGE * PAGE)
        self._fill("page")

    def _fill(self, changed: str) -> None:
        explorer, self._busy = self.explorer, True
        try:
            ranking, case = explorer.source.ranking(explorer.case), explorer.case
            if changed == "model":
                self.model.value = explorer.model
                self.method.options = [(_entry(row), row.method) for row in ranking.itertuples()]
                self.shown.options = list(ranking["method"])
                self.shown.value = explorer.shown
            if changed in ("model", "method"):
                self.method.value = explorer.method
                for (html, buttons), shown in zip(self.strips, explorer.thumbnails(), strict=True):
                    html.value = strip_card(shown)
                    for number, button in enumerate(buttons):
                        there = number < len(shown)
                        button.layout.visibility = "visible" if there else "hidden"
                        button.description = f"{shown[number].score:.2f}" if there else ""
                        button.tooltip = shown[number].image_id if there else ""
            if changed in ("model", "method", "order", "page") or explorer.image not in [value for _, value in self.image.options]:
                images = explorer.images
                if changed != "page":
                    self.start = images.index(explorer.image) // PAGE * PAGE
                scores = explorer.source.scores(case)[explorer.method]
                some = images[self.start : self.start + PAGE]
                self.image.options = [(f"{scores[image]:.2f}   {image}".replace("nan", "undefined"), image) for image in some]
                self.turn.layout.display = "" if len(images) > PAGE else "none"
            self.image.value = explorer.image if explorer.image in [value for _, value in self.image.options] else None
            if changed != "page":
                try:
                    self.card.value = card(explorer.example()[0], explorer.method, explorer.example()[1])
                except UnavailableError as error:
                    self.card.value = f"<b>{escape(str(error))}</b>"
        finally:
            self._busy = False


def _entry(row: Any) -> str:
    return f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]  {row.method}" + (f"  ({row.nan} undefined)" if row.nan else "")
