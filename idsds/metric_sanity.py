"""Do the metrics make sense? Every protocol on known ground truth, and on trained nets with controls that know nothing of the net.

What :func:`idsds.plots.metric_sanity` draws. Known ground truth is :func:`idsds.protocols.ground_truth.judge`'s; here controls are added,
and a verdict per protocol in plain words.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, PositiveInt, model_validator

from idsds.benchmark import evaluate
from idsds.methods.base import METHODS, split_name
from idsds.protocols import PROTOCOLS, list_protocols
from idsds.protocols.ground_truth import NOT_APPLICABLE, SETTINGS, VERDICTS, judge, refuse_data_sets
from idsds.registry import UnknownNameError
from idsds.settings import RunSettings
from idsds.statistics import paired_differences

CONTROLS = ("Random", "Edges", "Center")


def _is_protocol(value: str) -> str:
    if value not in PROTOCOLS:
        raise UnknownNameError("protocol", value, PROTOCOLS)
    refuse_data_sets([PROTOCOLS[value]])
    return value


class MetricSanitySettings(RunSettings):
    """What the notebook ``metric_sanity`` takes: a run, the protocols (none named: all), and how many images with known ground truth."""

    protocols: list[Annotated[str, AfterValidator(_is_protocol)]] = []
    known_images: PositiveInt = 64

    @model_validator(mode="after")
    def _has_methods_and_a_control(self) -> Self:
        families = [METHODS[split_name(name)[0]].family for name in self.methods]
        if "Random" not in self.methods or set(families) == {"control"}:
            raise ValueError("methods must hold 'Random' and at least one that is no control: each is compared with it")
        return self

    @property
    def judged(self) -> list[str]:
        """The protocols by name: those that score single images, as a map that is known for one image cannot be retrained on."""
        return self.protocols or list_protocols("image")

    def runs(self) -> list[dict[str, Any]]:
        """What to call :func:`idsds.evaluate` with, once per protocol that a method with one map can be put to."""
        given = {**self.evaluate(), "progress": False}
        for name in ("protocols", "known_images"):
            given.pop(name)
        names = [name for name in self.judged if name not in NOT_APPLICABLE]
        return [{**given, "protocol": name, **SETTINGS.get(name, {}), "output": f"{self.output}/{name}"} for name in names]


def cost(settings: MetricSanitySettings) -> pd.DataFrame:
    """What the runs on trained nets will do, one row per protocol, model, seed and shared computation."""
    return pd.concat([evaluate(**run, dry_run=True).assign(protocol=run["protocol"]) for run in settings.runs()], ignore_index=True)


def against_controls(records: pd.DataFrame, higher_is_better: bool) -> dict[str, float]:
    """What a protocol makes of controls on trained nets.

    Args:
        records: of one protocol, from :func:`idsds.evaluate`, with ``Random`` and at least one method that is no control.
        higher_is_better: the direction of its score.

    Returns:
        ``above_random``, ``above_edges``, ``above_center``: the share of pairs (model, method) whose mean over images is better than the
        control's, by a paired 95 % interval over images that leaves 0 out (NaN for a control that is not there);
        ``control_shift``: how far Random's mean moves from model to model, in units of the mean distance between Random and the best
        method of each model: 0 where a score means the same on every model (NaN for a single model).
    """
    good = records.assign(score=records["score"] * (1 if higher_is_better else -1))
    families = dict(zip(records["method"], records["family"], strict=True))
    methods = [name for name in dict.fromkeys(records["method"]) if families[name] != "control"]
    found = {}
    for control in CONTROLS:
        key = f"above_{control.lower()}"
        if control not in families:
            found[key] = np.nan
            continue
        table = paired_differences(good, pairs=[(name, control) for name in methods], permutations=1, resamples=1000)
        found[key] = float((table["low"] > 0).mean())
    means = good.groupby(["model", "method"])["score"].mean().unstack()
    random, best = means["Random"], means[methods].max(axis=1)
    distance = (best - random).abs().mean()
    found["control_shift"] = float((random.max() - random.min()) / distance) if len(means) > 1 and distance > 0 else np.nan
    return found


def measure(settings: MetricSanitySettings) -> pd.DataFrame:
    """Do the runs, or read what is there.

    Returns:
        One row per protocol: the columns of :func:`idsds.protocols.ground_truth.judge` and of :func:`against_controls`.
    """
    table = judge(settings.judged, images=settings.known_images, seed=settings.seeds[0])
    rows = []
    for run in settings.runs():
        found = against_controls(evaluate(**run), PROTOCOLS[run["protocol"]].higher_is_better)
        rows.append({"protocol": run["protocol"], **found})
    columns = ["protocol", "above_random", "above_edges", "above_center", "control_shift"]
    return table.merge(pd.DataFrame(rows, columns=columns), on="protocol", how="left")


def plain_verdicts(table: pd.DataFrame) -> list[str]:
    """Per protocol, the verdict in a sentence with the numbers behind it."""
    lines = []
    for row in table.itertuples():
        if not row.applies:
            lines.append(f"{row.protocol}: does not apply ({row.note}).")
            continue
        told = (
            f"tells the exact map from it with {row.resolution:g} noise"
            if np.isfinite(row.resolution)
            else "does not tell the exact map from a noisy one"
        )
        why = f"; it {row.note}" if row.note else ""
        moved = (
            ""
            if np.isnan(row.model_shift)
            else f"; another model moves a map's score by {row.model_shift:.0%} of what replacing the exact map by noise does"
        )
        controls = "" if np.isnan(row.above_random) else f"; on trained nets {row.above_random:.0%} of the methods beat Random"
        lines.append(f"{row.protocol}: {row.verdict} (ordering {row.ordering:+.2f}, {told}{moved}{controls}{why}).")
    return lines


def summary(table: pd.DataFrame) -> str:
    """One sentence: which protocols got which verdict."""
    groups = [(kind, table.loc[table["verdict"] == kind, "protocol"]) for kind in VERDICTS]
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups if len(names)) + "."
