"""One function per figure. A plot draws a table; it never computes a score."""

from idsds.plots.augmentation import augmentation_robustness
from idsds.plots.comparing import comparing
from idsds.plots.design import design
from idsds.plots.explain import explain
from idsds.plots.finetuning import finetuning
from idsds.plots.gallery import gallery
from idsds.plots.hyperparameters import hyperparameters
from idsds.plots.infidelity import infidelity_sensitivity
from idsds.plots.infidelity_steps import infidelity_steps
from idsds.plots.metric_sanity import metric_sanity
from idsds.plots.ranking import ranking
from idsds.plots.roar import roar
from idsds.plots.sanity import sanity
from idsds.plots.stability import stability
from idsds.plots.study import train_fractions
from idsds.plots.style import COLUMNS, STYLE, STYLES, Look, look_of, save, style_of
from idsds.plots.tradeoff import tradeoff

__all__ = [
    "COLUMNS",
    "STYLE",
    "STYLES",
    "Look",
    "augmentation_robustness",
    "comparing",
    "design",
    "explain",
    "finetuning",
    "gallery",
    "hyperparameters",
    "infidelity_sensitivity",
    "infidelity_steps",
    "look_of",
    "metric_sanity",
    "ranking",
    "roar",
    "sanity",
    "save",
    "stability",
    "style_of",
    "tradeoff",
    "train_fractions",
]
