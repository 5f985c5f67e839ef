import pytest

from idsds.studies.infidelity_sensitivity.correlations import correlations, study_table


@pytest.fixture(scope="session")
def study():
    return study_table()


@pytest.fixture(scope="session")
def theirs(study):
    return correlations(study)
