"""Which metrics find a known truth."""

from idsds.studies.metric_sanity.study import MetricSanity
