"""A normalisation in the forms in which users give it."""

import numpy as np
import pytest

from idsds.common.normalisation import Normalisation, as_normalisation


def test_ways_to_say_a_normalisation():
    from torchvision.transforms import v2

    known = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for given in (known, ((0.5,) * 3, (0.25,) * 3), (0.5, 0.25), v2.Normalize([0.5] * 3, [0.25] * 3), np.array([[0.5] * 3, [0.25] * 3])):
        assert as_normalisation(given) == known
    assert as_normalisation(None) is None
    for wrong in ("imagenet", 0.5, (0.5,), ((0.5, 0.5), (1, 1)), (0.5, 0.0), (float("nan"), 1.0)):
        with pytest.raises((TypeError, ValueError), match="normalisation must be"):
            as_normalisation(wrong)
