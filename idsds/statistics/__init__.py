"""From records to results with their uncertainty: means, paired comparisons, rankings with ties, agreement between images.

Every function takes records (a tidy pandas frame, one row per image, model, method and setting) and returns a tidy frame. The column
``interval`` says what each interval covers: images only, or training seeds and images. Undefined (NaN) scores are counted, never dropped.
"""

from idsds.statistics.agreement import kendalls_w, krippendorffs_alpha
from idsds.statistics.intervals import covers_seeds, seed_interval
from idsds.statistics.means import nested_bootstrap, null_band, rank
from idsds.statistics.paired import holm, images_needed, paired_differences, ranking_with_ties
from idsds.statistics.rankings import rank_agreement, rank_each
