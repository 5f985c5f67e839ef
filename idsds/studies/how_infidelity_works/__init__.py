"""How infidelity works, step by step."""

from idsds.studies.how_infidelity_works.study import HowInfidelityWorks
