"""One function per figure. A plot draws a table; it never computes a score.

Of all figures, ``columns`` is the width in columns of a paper, 1 or 2, ``score`` the name of the axis, ``families`` the family of each
method, ``n_patches`` the number of patches per image, for the null band, and ``where`` says in words which images these are.
"""

from idsds.plots.accuracy_tradeoff import accuracy_tradeoff
from idsds.plots.augmentation_robustness import augmentation_robustness
from idsds.plots.compare_protocols import compare_protocols
from idsds.plots.datasets import datasets, samples
from idsds.plots.design_choice import design_choice
from idsds.plots.explore import explore
from idsds.plots.finetune import finetune
from idsds.plots.funnybirds import funnybirds
from idsds.plots.gallery import gallery
from idsds.plots.how_idsds_works import how_idsds_works
from idsds.plots.how_infidelity_works import how_infidelity_works
from idsds.plots.hyperparameter_sensitivity import hyperparameter_sensitivity
from idsds.plots.infidelity_sensitivity import infidelity_sensitivity
from idsds.plots.leaderboard import leaderboard
from idsds.plots.metric_sanity import agreement, metric_sanity
from idsds.plots.rank_methods import deletion_drops, rank_methods
from idsds.plots.roar import roar
from idsds.plots.sanity_checks import sanity_checks
from idsds.plots.score_vs_metrics import score_vs_metrics
from idsds.plots.stability import stability
from idsds.plots.style import COLUMNS, STYLE, STYLES, Look, look_of, save, style_of
from idsds.plots.train_fractions import confusions, train_fractions
