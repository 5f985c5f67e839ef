"""Names beside an axis: they keep their distance."""

import numpy as np
import pytest

from idsds.plots.parallel_axes import spread


@pytest.mark.parametrize("positions", [[0, 0, 0, 0], [0, 0.01, 0.5, 0.51, 0.9], [0.99, 1.0, 1.0], [0.3]])
def test_names_keep_their_distance_order_and_range(positions):
    found = spread(np.array(positions, float), 0.05, 0.0, 1.0)
    assert (np.diff(found) >= 0.05 - 1e-12).all()
    assert found.min() >= -1e-12
    assert found.max() <= 1 + 1e-12


def test_names_that_have_room_stay_where_they_are():
    np.testing.assert_allclose(spread(np.array([0.1, 0.4, 0.8]), 0.05, 0, 1), [0.1, 0.4, 0.8])
