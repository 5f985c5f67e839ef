"""ROAR and KAR: nets retrained on modified images."""

from idsds.studies.roar.curves import retraining_areas, retraining_curves
from idsds.studies.roar.study import Roar
