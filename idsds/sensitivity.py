"""How far a method's maps, and its IDSDS, depend on its hyperparameters: what :func:`idsds.plots.hyperparameters` draws.

Each hyperparameter is varied alone, on the net whose IDSDS is measured. The maps of one image under all its values are compared by the
protocol ``hyperparameter_sensitivity``; IDSDS is measured with each value as a method of its own.

Source: Bansal, Agarwal, Nguyen, "SAM: The Sensitivity of Attribution Methods to Hyperparameters", CVPR 2020 (arXiv 2003.08754).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, Field, model_validator

from idsds.benchmark import evaluate
from idsds.methods.base import METHODS, Method, split_name
from idsds.models import MODELS, create_model
from idsds.protocols.hyperparameters import plain_value, sweeps_of
from idsds.registry import UnknownNameError
from idsds.settings import RunSettings
from idsds.statistics import rank

Value = Annotated[int | float | str, BeforeValidator(plain_value)]
Sweeps = dict[str, dict[str, Annotated[list[Value], Field(min_length=2)]]]


class SensitivitySettings(RunSettings):
    """What the notebook ``hyperparameter_sensitivity`` takes: a run, and which values to try.

    ``sweeps`` gives by method and hyperparameter the values; a method that is not in it is tried with those of
    :data:`idsds.protocols.hyperparameters.SWEEPS`.
    """

    sweeps: Sweeps = {}

    @model_validator(mode="after")
    def _can_be_varied(self) -> Self:
        for method, options in self.sweeps.items():
            if method not in self.methods:
                raise UnknownNameError("method with a sweep", method, self.methods)
            known = METHODS[split_name(method)[0]].settings()
            for option, values in options.items():
                if option not in known:
                    raise UnknownNameError(f"option of method {method!r}", option, known)
                if len(set(map(repr, values))) < len(values):
                    raise ValueError(f"sweeps.{method}.{option} lists a value more than once: {values}")
        return self


def sweeps_on(settings: SensitivitySettings, model: str) -> dict[str, dict[str, list[Value]]]:
    """By method that applies to the model and hyperparameter, the values to try.

    Raises:
        ValueError: for a method that has nothing to vary.
    """
    with torch.device("meta"):
        net = create_model(model)
    found: dict[str, dict[str, list[Value]]] = {}
    for name in settings.methods:
        if METHODS[split_name(name)[0]].inapplicable(net):
            continue
        chosen = settings.sweeps.get(name) or {option: list(values) for option, values in sweeps_of(Method(name, net)).items()}
        if not chosen:
            raise ValueError(f"method {name!r} has no hyperparameter to vary")
        found[name] = {option: list(values) for option, values in chosen.items()}
    return found


def _runs(settings: SensitivitySettings) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What to call :func:`idsds.evaluate` with, and what its records are: IDSDS once per model, the maps per hyperparameter."""
    given = {**settings.evaluate(), "progress": False}
    for name in ("models", "methods", "sweeps", "output"):
        given.pop(name)
    weights = given.pop("checkpoints")
    for model in settings.models:
        common = {**given, "models": [model], "checkpoints": {name: path for name, path in weights.items() if name == model}}
        sweeps = sweeps_on(settings, model)
        names = {
            f"{method}, {option}={value}": (method, {option: value})
            for method, options in sweeps.items()
            for option, values in options.items()
            for value in values
        }
        yield {**common, "methods": names, "output": f"{settings.output}/idsds/{model}"}, {"model": model, "names": names}
        for method, options in sweeps.items():
            for option, values in options.items():
                maps = {"protocol": "hyperparameter_sensitivity", "option": option, "values": ", ".join(map(str, values))}
                folder = f"{settings.output}/maps/{model}/{method}/{option}"
                yield {**common, **maps, "methods": [method], "output": folder}, {"model": model, "method": method, "option": option}


def cost(settings: SensitivitySettings) -> pd.DataFrame:
    """What the run will do, one row per model, seed and shared computation; the columns are those of a dry run."""
    parts = []
    for call, _ in _runs(settings):
        plan = evaluate(**call, dry_run=True)
        parts.append(plan.assign(protocol=call.get("protocol", "idsds")))
    return pd.concat(parts, ignore_index=True)


def measure(settings: SensitivitySettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Do the runs, or read what is there.

    Returns:
        Two tables. Per setting: ``model``, ``method``, ``family``, ``hyperparameter``, ``value``, ``default`` (whether it is the method's
        own), and IDSDS: ``mean``, ``low``, ``high``, ``count``, ``nan``, ``interval`` (what it covers). Per hyperparameter: how many
        ``settings``; ``spearman`` with ``low`` and ``high``, ``ssim`` and ``deviation`` of the maps, means over images; ``undefined``
        images; ``idsds_lowest``, ``idsds_highest`` and their difference ``idsds_range``, of the means, with ``range_low`` and
        ``range_high``, see :func:`range_interval`.
    """
    scores, spreads, intervals = [], [], []
    for call, what in _runs(settings):
        records = evaluate(**call)
        families = dict(zip(records["method"], records["family"], strict=True))
        if "names" in what:
            ranked = rank(records).set_index("method")
            swept: dict[tuple[str, str], list[str]] = {}
            for name, (method, options) in what["names"].items():
                swept.setdefault((method, *options), []).append(name)
            for (method, option), names in swept.items():
                low, high = range_interval(records[records["method"].isin(names)])
                facts = {"model": what["model"], "method": method, "hyperparameter": option}
                intervals.append({**facts, "range_low": low, "range_high": high})
            for name, (method, options) in what["names"].items():
                ((option, value),) = options.items()
                own = _own_value(method, option, what["model"])
                facts = {"hyperparameter": option, "value": value, "default": value == own, "family": families[name]}
                scores.append({**ranked.loc[name], "model": what["model"], "method": method, **facts})
        else:
            row = rank(records).iloc[0]
            spreads.append(
                {
                    "model": what["model"],
                    "method": what["method"],
                    "family": families[what["method"]],
                    "hyperparameter": what["option"],
                    "settings": len(call["values"].split(", ")),
                    "spearman": row["mean"],
                    **row[["low", "high"]],
                    **records[["ssim", "deviation"]].mean(),
                    "undefined": row["nan"],
                    "interval": row["interval"],
                }
            )
    per_setting = pd.DataFrame(scores)
    key = ["model", "method", "hyperparameter"]
    span = per_setting.groupby(key)["mean"].agg(idsds_lowest="min", idsds_highest="max").reset_index()
    span["idsds_range"] = span["idsds_highest"] - span["idsds_lowest"]
    span = span.merge(pd.DataFrame(intervals), on=key)
    columns = [*key, "value", "default", "family", "mean", "low", "high", "count", "nan", "interval"]
    return per_setting[columns], pd.DataFrame(spreads).merge(span, on=key)


def range_interval(records: pd.DataFrame, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """How sure the difference between the highest and the lowest mean score is: a percentile bootstrap over images, paired.

    The range of several noisy means is above zero even where nothing matters, so that it is to be read with its interval.

    Args:
        records: of one model, one ``method`` per setting, with ``image_id`` and ``score``; seeds are averaged, and images without a score
            under one of the two settings are left out.
        confidence, resamples, seed: of the bootstrap.

    Returns:
        Lower and upper end; NaN without an image.
    """
    table = records.pivot_table(index="image_id", columns="method", values="score", sort=False)
    means = table.mean().dropna()
    if means.empty:
        return np.nan, np.nan
    paired = (table[means.idxmax()] - table[means.idxmin()]).dropna().to_numpy()
    if not len(paired):
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(0, len(paired), (resamples, len(paired)))
    low, high = np.quantile(paired[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _own_value(method: str, option: str, model: str) -> Any:
    """The value that the method has where none is given."""
    own = METHODS[split_name(method)[0]].settings()[option]
    return MODELS[model].cam_layer if option == "layer" and own is None else own


def findings(scores: pd.DataFrame, spreads: pd.DataFrame) -> list[str]:
    """What the tables say, in sentences whose numbers are computed."""
    lines = []
    for model, rows in spreads.groupby("model", sort=False):
        most = rows.loc[rows["idsds_range"].idxmax()]
        least = rows.loc[rows["idsds_range"].idxmin()]
        alike = rows.loc[rows["spearman"].idxmin()]
        own = scores[(scores["model"] == model) & scores["default"]].groupby("method")["mean"].first()
        gap = own.max() - own.min()
        lines.append(
            f"{model}: {most.hyperparameter} moves the IDSDS of {most.method} by {most.idsds_range:.2f} "
            f"({most.idsds_lowest:.2f} to {most.idsds_highest:.2f}; 95 % paired bootstrap over images of the difference "
            f"{most.range_low:.2f} to {most.range_high:.2f}); {least.hyperparameter} that of {least.method} by "
            f"{least.idsds_range:.2f}, the least."
        )
        if len(own) > 1:
            wide = rows[rows["range_low"] > gap / 2]
            lines.append(
                f"{model}: at their own settings the methods are {gap:.2f} apart ({own.idxmax()} {own.max():.2f}, {own.idxmin()} "
                f"{own.min():.2f}); {len(wide)} of {len(rows)} hyperparameters move one method by more than half of that, "
                "with the lower end of a 95 % interval (paired bootstrap over images)."
            )
        lines.append(
            f"{model}: the maps change most with {alike.hyperparameter} of {alike.method}: mean rank correlation between settings "
            f"{alike.spearman:.2f} [{alike.low:.2f}, {alike.high:.2f}]."
        )
    return lines
