"""How much a method's maps and its IDSDS depend on its hyperparameters.

Each hyperparameter is varied alone, on the net for which IDSDS is measured. An image's maps are compared over all values by the protocol
``hyperparameter_sensitivity``; for IDSDS, each value is a separate method.

Source: Bansal, Agarwal, Nguyen, "SAM: The Sensitivity of Attribution Methods to Hyperparameters", CVPR 2020 (arXiv 2003.08754).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, Field, model_validator

from idsds import plots
from idsds.common.registry import check_name
from idsds.evaluation.evaluate import evaluate
from idsds.methods.base import METHODS, Method, split_name
from idsds.models import MODELS, create_model
from idsds.protocols.hyperparameters import sweeps_of
from idsds.statistics import holm, rank
from idsds.statistics.intervals import check_options, drawn_sums, rng_for
from idsds.statistics.scores import unit_of
from idsds.statistics.verdicts import NOT_SUPPORTED, SUPPORTED, count_verdicts, verdicts
from idsds.studies.base import EvaluationStudy, Findings, Result, in_memory, named_score, takes_folder

SIMILARITIES = ("spearman", "ssim", "deviation")
HALF = 0.5  # of the gap between the methods: a hyperparameter that changes one method by more can reverse their order
ALPHA = 0.05
#: The claims tested for each hyperparameter, and the column of the verdict.
CLAIMS = {"noise_verdict": "moves IDSDS by more than sampling noise", "gap_verdict": "moves it by more than half the gap between methods"}


def plain_value(value: Any) -> Any:
    """Return a string that spells a number as that number: YAML reads ``1e-05``, without a decimal point, as a string."""
    try:
        return float(value) if isinstance(value, str) and any(character.isdigit() for character in value) else value
    except ValueError:
        return value


Value = Annotated[int | float | str, BeforeValidator(plain_value)]
Sweeps = dict[str, dict[str, Annotated[list[Value], Field(min_length=2)]]]


class HyperparameterSensitivity(EvaluationStudy):
    """Vary each hyperparameter of each method alone, and compare maps and IDSDS.

    ``sweeps`` gives the values by method and hyperparameter; a method that is not in it uses
    :data:`idsds.protocols.hyperparameters.SWEEPS`.
    """

    PLAN_BY: ClassVar[tuple[str, ...]] = ("model", "protocol")

    sweeps: Sweeps = {}

    @model_validator(mode="after")
    def _can_be_varied(self) -> Self:
        for method, options in self.sweeps.items():
            check_name("method with a sweep", method, self.methods)
            known = METHODS[split_name(method)[0]].settings()
            for option, values in options.items():
                check_name(f"option of method {method!r}", option, known)
                if len(set(map(repr, values))) < len(values):
                    raise ValueError(f"sweeps.{method}.{option} lists a value more than once: {values}")
        return self

    def sweeps_on(self, model: str) -> Sweeps:
        """Return the values to try, by method that applies to the model and by hyperparameter.

        Raises:
            ValueError: for a method that has nothing to vary.
        """
        with torch.device("meta"):
            net = create_model(model)
        found: Sweeps = {}
        for name in self.methods:
            if METHODS[split_name(name)[0]].inapplicable(net):
                continue
            found[name] = self.sweeps.get(name) or {option: list(values) for option, values in sweeps_of(Method(name, net)).items()}
            if not found[name]:
                raise ValueError(f"method {name!r} has no hyperparameter to vary")
        return found

    def settings_on(self, model: str) -> pd.DataFrame:
        """Return one row per setting on a model: ``name``, ``method``, ``hyperparameter``, ``value``, and whether it is the ``default``."""
        rows = [
            (f"{method}, {option}={value}", method, option, value, value == _own_value(method, option, model))
            for method, options in self.sweeps_on(model).items()
            for option, values in options.items()
            for value in values
        ]
        return pd.DataFrame(rows, columns=["name", "method", "hyperparameter", "value", "default"]).astype({"value": object})

    def runs(self) -> dict[str, dict[str, Any]]:
        """IDSDS once per model, labelled by it; the maps per model, method and hyperparameter."""
        runs = {}
        for model in self.models:
            common = {"models": [model], "checkpoints": {name: path for name, path in self.checkpoints.items() if name == model}}
            sweeps = self.sweeps_on(model)
            methods = {row.name: (row.method, {row.hyperparameter: row.value}) for row in self.settings_on(model).itertuples(index=False)}
            runs[model] = self.arguments(**common, protocol="idsds", methods=methods, output=f"{self.output}/idsds/{model}")
            for method, options in sweeps.items():
                for option, values in options.items():
                    maps = {"protocol": "hyperparameter_sensitivity", "methods": [method], "sweep": {option: values}}
                    folder = f"{self.output}/maps/{model}/{method}/{option}"
                    runs[f"{model}, {method}, {option}"] = self.arguments(**common, **maps, output=folder)
        return runs

    def _run(self, progress: bool) -> Result:
        scores, spreads = self.measure(progress)
        score = score_of(spreads)
        draw = partial(plots.hyperparameter_sensitivity, scores, spreads, score=score, columns=self.columns)
        claims = pd.concat(
            [spreads[["model"]].assign(claim=claim.replace("IDSDS", score), verdict=spreads[name]) for name, claim in CLAIMS.items()]
        )
        found = Findings(sentences(spreads), count_verdicts(claims, ["model", "claim"]))
        return Result(self.stem, {"": spreads, "settings": scores}, found, draw)

    def measure(self, progress: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Do the runs, or read their stored records.

        Returns:
            Two tables. Per setting: ``model``, ``method``, ``family``, ``hyperparameter``, ``value``, ``default`` (whether it is the
            method's own), and IDSDS: ``mean``, ``low``, ``high``, ``count``, ``nan``, ``interval`` (what it covers).

            Per hyperparameter:

            ============================================ =============================================================================
            ``settings``                                 how many were tried
            ``spearman``, ``ssim``, ``deviation``        of the maps, means over images; each with its ``low`` and ``high``
            ``undefined``                                images without a Spearman correlation
            ``idsds_lowest``, ``idsds_highest``          of the means
            columns of :func:`movements`, ``p_holm``     corrected for the hyperparameters of the model
            ``noise_verdict``, ``gap_verdict``           on :data:`CLAIMS`
            ``score``                                    IDSDS (distilled), where a net was fine-tuned in-domain without labels
            ============================================ =============================================================================
        """
        runs, scores, spreads, moved = self.runs(), [], [], []
        for model in self.models:
            settings, records = self.settings_on(model).assign(model=model), in_memory(evaluate(**runs[model], progress=progress))
            families = dict(zip(records["method"], records["family"], strict=True))
            ranked = rank(records, nested=True).set_index("method").loc[settings["name"]].reset_index(drop=True)
            facts = settings.assign(family=settings["name"].map(families))
            scores.append(pd.concat([facts, ranked[["mean", "low", "high", "count", "nan", "interval"]]], axis=1))
            moved.append(_moved(records, settings))
            for (method, option), rows in settings.groupby(["method", "hyperparameter"], sort=False):
                maps = in_memory(evaluate(**runs[f"{model}, {method}, {option}"], progress=progress))
                own = {"model": model, "method": method, "family": maps["family"].iloc[0], "hyperparameter": option, "settings": len(rows)}
                named = {"score": score} if (score := named_score(records, "IDSDS")) != "IDSDS" else {}
                spreads.append({**own, **named, **_similarity(maps)})
        key = ["model", "method", "hyperparameter"]
        per_setting = pd.concat(scores, ignore_index=True)
        span = per_setting.groupby(key)["mean"].agg(idsds_lowest="min", idsds_highest="max").reset_index()
        columns = [*key, "value", "default", "family", "mean", "low", "high", "count", "nan", "interval"]
        return per_setting[columns], judged(pd.DataFrame(spreads).merge(span, on=key).merge(pd.concat(moved), on=key))


def _own_value(method: str, option: str, model: str) -> Any:
    own = METHODS[split_name(method)[0]].settings()[option]
    return MODELS[model].cam_layer if option == "layer" and own is None else own


def _similarity(records: pd.DataFrame) -> dict[str, Any]:
    """Return how similar the maps of one hyperparameter's settings are: the mean of each measure, with its interval."""
    found: dict[str, Any] = {}
    for name in SIMILARITIES:
        row, prefix = rank(records.assign(score=records[name]), nested=True).iloc[0], "" if name == "spearman" else f"{name}_"
        found |= {name: row["mean"], f"{prefix}low": row["low"], f"{prefix}high": row["high"]}
        if name == "spearman":
            found |= {"undefined": row["nan"], "interval": row["interval"]}
    return found


def _moved(records: pd.DataFrame, settings: pd.DataFrame) -> pd.DataFrame:
    """:func:`movements` of every hyperparameter of one model, with the p values corrected for their number."""
    key = ["model", "method", "hyperparameter"]
    sweeps = settings.groupby(key, sort=False)["name"].agg(list)
    own = settings[settings["default"]].drop_duplicates("method")["name"]
    table = movements(records, list(sweeps), list(own))
    return pd.concat([sweeps.index.to_frame(index=False), table.assign(p_holm=holm(table["p"].to_numpy()))], axis=1)


def judged(spreads: pd.DataFrame) -> pd.DataFrame:
    """Add the verdicts on :data:`CLAIMS`: by the corrected p value, and by the interval of the fraction of the gap."""
    noise = np.where(spreads["p_holm"] <= ALPHA, SUPPORTED, NOT_SUPPORTED)
    return spreads.assign(noise_verdict=noise, gap_verdict=verdicts(spreads["share_low"], spreads["share_high"], HALF))


@takes_folder
def movements(
    records: pd.DataFrame,
    sweeps: Sequence[Sequence[str]],
    own: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much each hyperparameter changes the mean score, beside the gap between methods and the range due to sampling noise.

    ``idsds_range`` is the highest minus the lowest mean over the settings of a sweep, ``gap`` that over the methods' own settings,
    ``share`` their ratio. The range of noisy means is above 0 even if nothing changes, and which settings are the extremes depends on
    the images too. So each resample of images, and of training seeds where there are several (:func:`idsds.nested_bootstrap`), gives
    the errors of all means, its own mean minus that of all images, and their range over the sweep, whichever settings these are: a
    range is never farther from the true one than the range of its errors. The interval is the range plus and minus the ``confidence``
    quantile of these, cut at 0. It holds for every pair of settings at once, and reaches 0 where sampling noise alone could have made
    the range. For ``share`` the errors are those of the means in units of the gap, which is drawn with them; all errors are multiplied
    by sqrt(n / (n - 1)), as n images vary less about their own mean.

    Args:
        records: of one model, one ``method`` per setting, with ``image_id``, ``score`` and perhaps ``seed``; images of one ``group`` are
            drawn together.
        sweeps: by hyperparameter the names of its settings.
        own: the names of the settings between which ``gap`` lies; of fewer than two, it and the fractions are NaN.

    Returns:
        One row per sweep: ``idsds_range``, ``range_low``, ``range_high``; ``noise``, the mean range of the errors, expected if nothing
        changes; ``p``, how often that is at least the observed range; ``share``, ``share_low``, ``share_high``, ``gap``, ``gap_low``,
        ``gap_high``. A setting without any score is ignored; NaN without images, and no interval for one image.
    """
    check_options(confidence, resamples=resamples)
    names = list(dict.fromkeys([*(name for sweep in sweeps for name in sweep), *own]))
    sums = _sums(records, names)
    (images, seeds), own_places = sums.shape[:2], [names.index(name) for name in own]
    rng = rng_for(seed, "images", images) if seeds == 1 else rng_for(seed, "seeds and images", images, seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        means, drawn = (x[..., : len(names)] / x[..., len(names) :] for x in (sums.sum(axis=(0, 1)), drawn_sums(sums, resamples, rng)))
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


def _sums(records: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return the sums of the scores of each setting, then how many are defined: (images, training seeds, 2 x settings)."""
    seeds = records["seed"] if "seed" in records else np.zeros(len(records))
    (unit, units), (net, nets) = (pd.factorize(key, sort=True) for key in (records[unit_of(records)], seeds))
    place, score = pd.Index(names).get_indexer(records["method"]), records["score"].to_numpy(float)
    counted = (place >= 0) & np.isfinite(score)
    sums = np.zeros((len(units), len(nets), 2, len(names)))
    for part, values in enumerate((score, np.ones(len(score)))):
        np.add.at(sums, (unit[counted], net[counted], part, place[counted]), values[counted])
    return sums.reshape(len(units), len(nets), -1)


def _span(values: np.ndarray) -> np.ndarray:
    """Return the largest minus the smallest along the last axis; NaN is ignored."""
    return np.fmax.reduce(values, axis=-1) - np.fmin.reduce(values, axis=-1)


def _ends(found: float, errors: np.ndarray, confidence: float) -> tuple[float, float]:
    """The number plus and minus the quantile of its errors (resamples,), at least 0; NaN where it or an error is undefined."""
    half = np.quantile(errors, confidence)
    return np.maximum(found - half, 0.0), found + half


def _named_ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


def score_of(spreads: pd.DataFrame) -> str:
    """The name of the score, from a table of :meth:`HyperparameterSensitivity.measure`."""
    return next(iter(spreads["score"].dropna()), "IDSDS") if "score" in spreads else "IDSDS"


def sentences(spreads: pd.DataFrame) -> list[str]:
    """State which hyperparameters change IDSDS most and least, how many change it beyond noise, and which change the maps most."""
    score = score_of(spreads)
    most, least = spreads.loc[spreads["idsds_range"].idxmax()], spreads.loc[spreads["idsds_range"].idxmin()]
    moved = int((spreads["noise_verdict"] == SUPPORTED).sum())
    by_rank, by_ssim, by_pixel = (
        spreads.loc[spreads[name].idxmax() if name == "deviation" else spreads[name].idxmin()] for name in SIMILARITIES
    )
    return [
        f"{score} changes most with the {_named(most)}, by {_range(most)} ({most.idsds_lowest:.2f} to {most.idsds_highest:.2f}), "
        f"and least with the {_named(least)}, by {_range(least, '.3f')}.",
        f"{moved} of {len(spreads)} hyperparameters change {score} by more than sampling noise alone (Holm-corrected p at most {ALPHA}).",
        f"Maps change most with the {_named(by_rank)} by Spearman ({by_rank.spearman:.2f}), with the {_named(by_ssim)} by SSIM "
        f"({by_ssim.ssim:.2f}), and with the {_named(by_pixel)} by deviation per pixel ({by_pixel.deviation:.2f}).",
    ]


def _named(row: Any) -> str:
    return f"{row.hyperparameter} of {row.method} on {row.model}"


def _range(row: Any, form: str = ".2f") -> str:
    return f"{row.idsds_range:{form}} [{row.range_low:{form}}, {row.range_high:{form}}]"
