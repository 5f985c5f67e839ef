"""One function per figure. A plot draws a table; it never computes a score."""

from idsds.plots.finetuning import finetuning
from idsds.plots.gallery import gallery
from idsds.plots.infidelity import infidelity_sensitivity, infidelity_steps
from idsds.plots.ranking import ranking
from idsds.plots.study import train_fractions
from idsds.plots.style import COLUMNS, STYLE, STYLES, save, style_of

__all__ = [
    "COLUMNS",
    "STYLE",
    "STYLES",
    "finetuning",
    "gallery",
    "infidelity_sensitivity",
    "infidelity_steps",
    "ranking",
    "save",
    "style_of",
    "train_fractions",
]
