import numpy as np
import pandas as pd

from idsds.statistics.verdicts import CONTRADICTED, NOT_SUPPORTED, SUPPORTED, count_verdicts, verdicts


def test_the_whole_interval_decides():
    low, high = np.array([0.1, -0.2, -0.3, 0.0, np.nan]), np.array([0.2, 0.1, -0.1, 0.2, np.nan])
    assert verdicts(low, high).tolist() == [SUPPORTED, NOT_SUPPORTED, CONTRADICTED, NOT_SUPPORTED, NOT_SUPPORTED]
    assert verdicts(0.4, 0.6, threshold=0.5) == NOT_SUPPORTED


def test_verdicts_are_counted_in_the_order_of_the_table():
    table = pd.DataFrame({"claim": ["b", "a", "b"], "verdict": [SUPPORTED, CONTRADICTED, NOT_SUPPORTED]})
    counts = count_verdicts(table, "claim")
    assert counts.values.tolist() == [["b", 2, 1, 1, 0], ["a", 1, 0, 0, 1]]
    assert count_verdicts(table.head(0), "claim").empty
