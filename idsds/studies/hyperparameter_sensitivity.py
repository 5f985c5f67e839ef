"""How far a method's maps, and its IDSDS, depend on its hyperparameters: what :func:`idsds.plots.hyperparameter_sensitivity` draws.

Each hyperparameter is varied alone, on the net whose IDSDS is measured. The maps of one image under all its values are compared by the
protocol ``hyperparameter_sensitivity``; IDSDS is measured with each value as a method of its own.

Source: Bansal, Agarwal, Nguyen, "SAM: The Sensitivity of Attribution Methods to Hyperparameters", CVPR 2020 (arXiv 2003.08754).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, Field, model_validator

from idsds.common.registry import UnknownNameError
from idsds.evaluation.evaluate import evaluate
from idsds.methods.base import METHODS, Method, split_name
from idsds.models import MODELS, create_model
from idsds.protocols.hyperparameters import plain_value, sweeps_of
from idsds.statistics import holm, rank
from idsds.statistics.intervals import check_options, rng_for, weights
from idsds.studies.base import RunSettings

LIKENESSES = ("spearman", "ssim", "deviation")
HALF = 0.5  # of the gap between the methods: a hyperparameter that moves one method by more can turn their order about
ALPHA = 0.05

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
        plan = evaluate(**call, dry_run=settings.planning)
        parts.append(plan.assign(protocol=call.get("protocol", "idsds")))
    return pd.concat(parts, ignore_index=True)


def measure(settings: SensitivitySettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Do the runs, or read what is there.

    Returns:
        Two tables. Per setting: ``model``, ``method``, ``family``, ``hyperparameter``, ``value``, ``default`` (whether it is the method's
        own), and IDSDS: ``mean``, ``low``, ``high``, ``count``, ``nan``, ``interval`` (what it covers). Per hyperparameter: how many
        ``settings``; ``spearman`` with ``low`` and ``high``, ``ssim`` and ``deviation`` of the maps with ``ssim_low`` and so on, means over
        images; ``undefined`` images (of Spearman); ``idsds_lowest`` and ``idsds_highest`` of the means; and the columns of
        :func:`movements` with ``p_holm``, corrected for the hyperparameters of the model.
    """
    scores, spreads, moved = [], [], []
    for call, what in _runs(settings):
        records = evaluate(**call)
        families = dict(zip(records["method"], records["family"], strict=True))
        if "names" in what:
            scores += _scores(records, what["model"], what["names"], families)
            moved.append(_moved(records, what["model"], what["names"]))
        else:
            facts = {name: what[name] for name in ("model", "method")} | {"family": families[what["method"]]}
            settings_tried = len(call["values"].split(", "))
            spreads.append({**facts, "hyperparameter": what["option"], "settings": settings_tried, **_likeness(records)})
    per_setting = pd.DataFrame(scores)
    key = ["model", "method", "hyperparameter"]
    span = per_setting.groupby(key)["mean"].agg(idsds_lowest="min", idsds_highest="max").reset_index()
    columns = [*key, "value", "default", "family", "mean", "low", "high", "count", "nan", "interval"]
    return per_setting[columns], pd.DataFrame(spreads).merge(span, on=key).merge(pd.concat(moved), on=key)


Names = Mapping[str, tuple[str, dict[str, Any]]]


def _scores(records: pd.DataFrame, model: str, names: Names, families: Mapping[str, str]) -> list[dict[str, Any]]:
    """IDSDS at every setting, one row each."""
    ranked = rank(records).set_index("method")
    rows = []
    for name, (method, options) in names.items():
        ((option, value),) = options.items()
        facts = {"model": model, "method": method, "hyperparameter": option, "value": value, "family": families[name]}
        rows.append({**ranked.loc[name], **facts, "default": value == _own_value(method, option, model)})
    return rows


def _likeness(records: pd.DataFrame) -> dict[str, Any]:
    """How alike the maps of one hyperparameter's settings are: the mean of each measure, with its interval over images."""
    found: dict[str, Any] = {}
    for measure_name in LIKENESSES:
        row = rank(records.assign(score=records[measure_name])).iloc[0]
        ends = {"low": row["low"], "high": row["high"]}
        found |= {measure_name: row["mean"]}
        found |= {end if measure_name == "spearman" else f"{measure_name}_{end}": value for end, value in ends.items()}
        if measure_name == "spearman":
            found |= {"undefined": row["nan"], "interval": row["interval"]}
    return found


def _moved(records: pd.DataFrame, model: str, names: Names) -> pd.DataFrame:
    """:func:`movements` of every hyperparameter of one model, with the p values corrected for their number."""
    sweeps: dict[tuple[str, str], list[str]] = {}
    own: dict[str, str] = {}
    for name, (method, options) in names.items():
        ((option, value),) = options.items()
        sweeps.setdefault((method, option), []).append(name)
        if value == _own_value(method, option, model):
            own.setdefault(method, name)
    table = movements(records, list(sweeps.values()), list(own.values()))
    facts = pd.DataFrame(list(sweeps), columns=["method", "hyperparameter"]).assign(model=model)
    return pd.concat([facts, table.assign(p_holm=holm(table["p"].to_numpy()))], axis=1)


def movements(
    records: pd.DataFrame,
    sweeps: Sequence[Sequence[str]],
    own: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far each hyperparameter moves the mean score, beside the gap between methods and beside what image noise alone would do.

    ``idsds_range`` is the highest less the lowest mean over the settings of a sweep, ``gap`` that over the methods' own settings, ``share``
    the one divided by the other. The range of noisy means is above 0 even where nothing moves, and which settings are the extremes is
    itself a matter of the images. So each resample of images gives the errors of all means, its own mean less that of all images, and
    their range over the sweep, whichever settings they are: a range is never farther from the true one than the range of its errors. The
    interval is the range plus and minus the ``confidence`` quantile of these, cut at 0. It holds for every pair of settings at once, and
    reaches 0 where image noise alone could have made the range. For ``share`` the errors are those of the means in units of the gap, which
    is drawn with them; all errors are multiplied by sqrt(n / (n - 1)), as n images vary less about their own mean.

    Args:
        records: of one model, one ``method`` per setting, with ``image_id`` and ``score``; several seeds of an image are drawn together.
        sweeps: by hyperparameter the names of its settings.
        own: the names of the settings between which ``gap`` lies; of fewer than two, it and the shares are NaN.
        confidence, resamples, seed: of the bootstrap.

    Returns:
        One row per sweep: ``idsds_range``, ``range_low``, ``range_high``; ``noise``, the mean range of the errors, which is what is to be
        expected where nothing moves; ``p``, how often that is at least the range found; ``share``, ``share_low``, ``share_high``, ``gap``,
        ``gap_low``, ``gap_high``. A setting without any score takes no part; NaN without images, and no interval for one.
    """
    check_options(confidence, resamples=resamples)
    names = list(dict.fromkeys([*(name for sweep in sweeps for name in sweep), *own]))
    each = records.groupby(["image_id", "method"])["score"].agg(["sum", "count"]).unstack(fill_value=0)
    sums, counts = (each[what].reindex(columns=names, fill_value=0).to_numpy(float) for what in ("sum", "count"))  # (images, settings)
    images, own_places = len(sums), [names.index(name) for name in own]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums.sum(axis=0) / counts.sum(axis=0)
        drawn = np.concatenate([(w @ sums) / (w @ counts) for w in weights(rng_for(seed, "images", images), images, resamples)])
        wider = np.sqrt(images / (images - 1)) if images > 1 else np.nan
        errors = (drawn - means) * wider  # (resamples, settings)
        gap = _span(means[own_places]) if len(own) > 1 else np.nan
        drawn_gap = _span(drawn[:, own_places]) if len(own) > 1 else np.full(resamples, np.nan)
        scaled_errors = (drawn / drawn_gap[:, None] - means / gap) * wider
        gap_ends = _ends(gap, _span(errors[:, own_places]) if len(own) > 1 else drawn_gap, confidence)
        rows = []
        for sweep in sweeps:
            places = [names.index(name) for name in sweep]
            found, noise = _span(means[places]), _span(errors[:, places])
            row = {"idsds_range": found, **_named_ends("range", _ends(found, noise, confidence)), "noise": noise.mean()}
            row["p"] = (1 + (noise >= found - 1e-12).sum()) / (1 + resamples) if np.isfinite(noise).all() else np.nan
            row |= {"share": found / gap, **_named_ends("share", _ends(found / gap, _span(scaled_errors[:, places]), confidence))}
            rows.append({**row, "gap": gap, **_named_ends("gap", gap_ends)})
    return pd.DataFrame(rows)


def _span(values: np.ndarray) -> np.ndarray:
    """Largest less smallest along the last axis; NaN takes no part."""
    return np.fmax.reduce(values, axis=-1) - np.fmin.reduce(values, axis=-1)


def _ends(found: float, errors: np.ndarray, confidence: float) -> tuple[float, float]:
    """The number plus and minus the quantile of its errors (resamples,), at least 0; NaN where it or an error is undefined."""
    half = np.quantile(errors, confidence)
    return np.maximum(found - half, 0.0), found + half


def _named_ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _own_value(method: str, option: str, model: str) -> Any:
    """The value that the method has where none is given."""
    own = METHODS[split_name(method)[0]].settings()[option]
    return MODELS[model].cam_layer if option == "layer" and own is None else own


def findings(scores: pd.DataFrame, spreads: pd.DataFrame) -> list[str]:
    """What the tables say, in short sentences whose numbers are computed."""
    lines = []
    for model, rows in spreads.groupby("model", sort=False):
        lines += [f"{model}: {sentence}" for sentence in (*_what_moves(rows), *_beside_the_gap(scores, rows), _what_changes_maps(rows))]
    return lines


def _named(row: Any) -> str:
    return f"{row.hyperparameter} of {row.method}"


def _with_ends(row: Any, name: str, low: str, high: str, form: str = ".2f") -> str:
    """A number of a row with its interval."""
    return f"{row[name]:{form}} [{row[low]:{form}}, {row[high]:{form}}]"


def _what_moves(rows: pd.DataFrame) -> list[str]:
    """The hyperparameters that move IDSDS most and least, beside image noise."""
    most, least = rows.loc[rows["idsds_range"].idxmax()], rows.loc[rows["idsds_range"].idxmin()]
    ends = ("idsds_range", "range_low", "range_high")
    above = rows[rows["p_holm"] <= ALPHA]
    return [
        f"{_named(most)} moves IDSDS most, by {_with_ends(most, *ends)} ({most.idsds_lowest:.2f} to {most.idsds_highest:.2f}); "
        f"{_named(least)} least, by {_with_ends(least, *ends, '.3f')} (95 % bootstrap over images, for all settings at once).",
        f"{len(above)} of {len(rows)} hyperparameters move IDSDS by more than image noise alone would (p at most {ALPHA}, Holm's "
        f"correction); noise alone gives a range of {rows['noise'].min():.3f} to {rows['noise'].max():.3f}.",
    ]


def _beside_the_gap(scores: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """The largest shares of the gap between the methods, and how many are above a half of it."""
    first = rows.iloc[0]
    if not np.isfinite(first.gap):
        return []
    own = scores[(scores["model"] == first.model) & scores["default"]].groupby("method")["mean"].first()
    above = rows[rows["share"] > HALF].sort_values("share", ascending=False)
    sure = int((above["share_low"] > HALF).sum())
    shares = [f"{_named(row)} by {_with_ends(row, 'share', 'share_low', 'share_high', '.0%')}" for _, row in above.iterrows()]
    return [
        f"at their own settings the methods are {_with_ends(first, 'gap', 'gap_low', 'gap_high')} apart ({own.idxmax()} {own.max():.2f}, "
        f"{own.idxmin()} {own.min():.2f}).",
        f"{len(above)} of {len(rows)} hyperparameters move one method by more than half of that{': ' if shares else ''}"
        f"{', '.join(shares)}; {sure} with the whole interval above half (range and gap drawn together).",
    ]


def _what_changes_maps(rows: pd.DataFrame) -> str:
    """The hyperparameter that changes the maps most, by each measure."""
    by_rank, by_ssim, by_pixel = (rows.loc[rows[name].idxmax() if name == "deviation" else rows[name].idxmin()] for name in LIKENESSES)
    return (
        f"the maps change most, by Spearman between settings, with {_named(by_rank)} ({_with_ends(by_rank, 'spearman', 'low', 'high')}); "
        f"by SSIM, with {_named(by_ssim)} ({_with_ends(by_ssim, 'ssim', 'ssim_low', 'ssim_high')}); by deviation per pixel, with "
        f"{_named(by_pixel)} ({_with_ends(by_pixel, 'deviation', 'deviation_low', 'deviation_high')})."
    )
