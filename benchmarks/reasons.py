"""Reasons for published findings that do not show on the digits, tested on the records of the ranking; the numbers of docs/findings.md.

    python -m idsds reproduce mnist5k rank_methods
    python benchmarks/reasons.py runs/mnist5k/rank_methods

The fraction of patches whose attribution has the wrong sign, among those that count, for IxG and IG, with the paired difference; and each
published comparison on those patches alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from idsds import load_records, paired_differences
from idsds.studies.rank_methods import NOISE, above_noise, published_findings


def wrong_signs(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with the fraction of the patches that count whose attribution and drop differ in sign as ``score``."""
    drops, sums = (np.stack(records[name].to_numpy()).astype(float) for name in ("drops", "patch_sums"))  # (records, patches)
    kept = np.abs(drops) > NOISE * np.abs(drops).max(axis=1, keepdims=True)
    return records.assign(score=(kept & (np.sign(drops) != np.sign(sums))).sum(axis=1) / kept.sum(axis=1))


if __name__ == "__main__":
    records = load_records(Path(sys.argv[1]))
    signs = wrong_signs(records[records["method"].isin(["IG", "IxG"])])
    print(signs.groupby(["model", "method"])["score"].mean().unstack().round(3).to_string())
    print(paired_differences(signs, pairs=[("IxG", "IG")], permutations=1, nested=True)[["model", "difference", "low", "high"]].to_string())
    table = published_findings(above_noise(records)).drop(columns="interval")
    print(table.round(3).to_string())
