"""Numbers as users give them: of numpy and torch as well."""

import numpy as np
import pytest
import torch

from idsds.common.numbers import as_whole, plain


@pytest.mark.parametrize("value", [0, -1, 1.0, np.float64(2), True, np.True_, "3", None, torch.tensor([1, 2]), torch.tensor(1.0)])
def test_other_things_are_no_whole_numbers(value):
    with pytest.raises(ValueError, match="images must be a whole number of at least 1"):
        as_whole("images", value)


def test_plain_numbers():
    assert [type(plain(value)) for value in (np.int8(1), torch.tensor(1.5), np.True_, "a", [1])] == [int, float, bool, str, list]
