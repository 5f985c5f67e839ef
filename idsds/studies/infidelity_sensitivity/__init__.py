"""Infidelity, sensitivity and model quality."""

from idsds.studies.infidelity_sensitivity.study import InfidelitySensitivity
