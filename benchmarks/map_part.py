"""How much of infidelity is due to the map, for the methods and the noise that the second study used, on nets trained here.

    python benchmarks/map_part.py params/reasons/infidelity_sensitivity.yaml

Prints the table of ``map_part`` (in idsds.studies.infidelity_sensitivity) for each of the params' ``other_sigmas``; a number of
docs/findings.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import yaml

from idsds import evaluate
from idsds.studies.infidelity_sensitivity import InfidelitySensitivity
from idsds.studies.infidelity_sensitivity.correlations import map_part

if __name__ == "__main__":
    study = InfidelitySensitivity(**yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
    study.quality(progress=False)  # trains what is missing
    identity = pd.DataFrame([{**member.identity, "name": member.name} for member in study.members()])
    runs = {label: run for label, run in study.runs().items() if "infidelity at" in label}
    for sigma in study.other_sigmas:
        records = pd.concat([evaluate(**run, progress=False) for run in runs.values() if run["sigma"] == sigma]).rename(
            columns={"model": "name"}
        )
        means = records.groupby(["dataset", "name", "method", "family"], sort=False)["raw"].mean().reset_index()
        print(f"sigma {sigma:g}\n{map_part(identity.merge(means, on=['dataset', 'name'])).round(3).to_string()}")
        print(means.groupby("method")["raw"].median().to_string())
