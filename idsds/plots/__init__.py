"""One function per figure. A plot draws a table; it never computes a score."""

from idsds.plots.design import design
from idsds.plots.finetuning import finetuning
from idsds.plots.gallery import gallery
from idsds.plots.ranking import ranking
from idsds.plots.style import COLUMNS, STYLE, STYLES, Look, look_of, save, style_of
from idsds.plots.tradeoff import tradeoff

__all__ = ["COLUMNS", "STYLE", "STYLES", "Look", "design", "finetuning", "gallery", "look_of", "ranking", "save", "style_of", "tradeoff"]
