"""Marker, colour and line of each architecture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.lines import Line2D

from idsds.models import MODELS

#: Marker, colour and line of each architecture, in the order in which they are given.
ARCHITECTURES = [("o", "#0072B2", "-"), ("s", "#D55E00", "--"), ("^", "#009E73", "-."), ("D", "#CC79A7", ":"), ("v", "#000000", "-")]


def looks_of(models: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Return marker, colour and line by architecture; a small net looks like the large one of its family."""
    models = list(dict.fromkeys(models))
    families = {model: MODELS[model].family if model in MODELS else model for model in models}
    sizes = {model: model.startswith("mini_") for model in models}
    looks: dict[str, int] = {}
    for model in models:
        alike = [other for other in looks if families[other] == families[model] and sizes[other] != sizes[model]]
        looks[model] = looks[alike[0]] if alike else max(looks.values(), default=-1) + 1
    return {model: ARCHITECTURES[number % len(ARCHITECTURES)] for model, number in looks.items()}


def architecture_handles(models: Sequence[str], *, lines: bool = True) -> list[Line2D]:
    """Return the legend's entries for architectures, one for those that look alike; with lines, the marks of :func:`_series`."""
    named: dict[tuple[str, str, str], list[str]] = {}
    for model, look in looks_of(models).items():
        named.setdefault(look, []).append(model)
    handles = []
    for (marker, colour, line), alike in named.items():
        face = face_of(marker, colour) if lines else colour
        looks = {"marker": marker, "color": colour, "linestyle": line if lines else "", "markerfacecolor": face, "markersize": 4}
        handles.append(Line2D([], [], label=", ".join(alike), **looks))
    return handles


def face_of(marker: str, colour: str) -> str:
    """Return a mark's fill: squares are hollow, to differ from dots without colour."""
    return "white" if marker == "s" else colour
