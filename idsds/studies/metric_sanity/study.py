"""Do the metrics make sense? Every protocol on known ground truth, and on trained nets with controls that know nothing of the net.

What :func:`idsds.plots.metric_sanity` draws. Known ground truth is :func:`idsds.studies.metric_sanity.known_truth.judge`'s; here
controls are added, and a verdict per protocol in plain words.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, PositiveInt, model_validator
from tqdm import tqdm

from idsds.common.registry import UnknownNameError
from idsds.evaluation.evaluate import evaluate
from idsds.methods.base import METHODS, split_name
from idsds.protocols import PROTOCOLS
from idsds.protocols.roar import SCORES
from idsds.statistics import paired_differences, retraining_areas
from idsds.statistics.intervals import jackknife
from idsds.studies.base import RunSettings
from idsds.studies.metric_sanity.known_truth import VERDICTS, Reading, judge, readings, verdict
from idsds.studies.roar.study import RoarSettings, plan_table, roar

CONTROLS = ("Random", "Edges", "Center")


def _is_protocol(value: str) -> str:
    if value not in PROTOCOLS:
        raise UnknownNameError("protocol", value, PROTOCOLS)
    return value


class MetricSanitySettings(RunSettings):
    """What the notebook ``metric_sanity`` takes: a run, the protocols (none named: all), and how many images with known ground truth.

    ``retraining`` is what ROAR and KAR do on trained nets, as in ``params/*/roar.yaml``, whose retrainings are then found in the cache; the
    data set, the device and the precision are those of the run. Empty: they are judged on known ground truth alone.
    """

    protocols: list[Annotated[str, AfterValidator(_is_protocol)]] = []
    known_images: PositiveInt = 64
    retraining: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_methods_and_a_control(self) -> Self:
        families = [METHODS[split_name(name)[0]].family for name in self.methods]
        if "Random" not in self.methods or set(families) == {"control"}:
            raise ValueError("methods must hold 'Random' and at least one that is no control: each is compared with it")
        _ = self.roar
        return self

    @property
    def judged(self) -> list[Reading]:
        """The rows of the table."""
        return readings(self.protocols or None)

    @property
    def roar(self) -> RoarSettings | None:
        """What is retrained on trained nets; None for nothing."""
        if not self.retraining:
            return None
        shared = {name: getattr(self, name) for name in ("dataset", "device", "precision")}
        checkpoints = {name: path for name, path in self.checkpoints.items() if name in self.retraining.get("models", self.models)}
        defaults = {
            "models": self.models,
            "methods": self.methods,
            "images": self.images,
            "checkpoints": checkpoints,
            "output": f"{self.output}/roar",
        }
        return RoarSettings(**{**defaults, **self.retraining, **shared})

    def runs(self) -> dict[str, dict[str, Any]]:
        """What to call :func:`idsds.evaluate` with, by the label of each reading that methods can be put to image by image."""
        given = {**self.evaluate(), "progress": False}
        for name in ("protocols", "known_images", "retraining"):
            given.pop(name)
        return {
            reading.label: {
                **given,
                "protocol": reading.protocol,
                **reading.settings,
                "output": f"{self.output}/{reading.label.replace(', ', '_')}",
            }
            for reading in self.judged
            if reading.applies and reading.entry.level == "image"
        }


def cost(settings: MetricSanitySettings) -> pd.DataFrame:
    """What the runs on trained nets will do, one row per reading, model, seed and computation; known ground truth takes another minute."""
    plans = [evaluate(**run, dry_run=settings.planning).assign(label=label) for label, run in settings.runs().items()]
    if settings.roar is not None and any(reading.entry.level == "data set" for reading in settings.judged):
        plans.append(plan_table(settings.roar).assign(label="roar and kar"))
    return pd.concat(plans, ignore_index=True) if plans else pd.DataFrame(columns=["label", "model", "forward", "backward"])


def against_controls(records: pd.DataFrame, higher_is_better: bool) -> dict[str, float]:
    """What a protocol makes of controls on trained nets.

    Args:
        records: of one protocol, from :func:`idsds.evaluate`, with ``Random`` and at least one method that is no control.
        higher_is_better: the direction of its score.

    Returns:
        ``above_random``, ``above_edges``, ``above_center``: the share of the pairs (model, method) whose mean over images is better than
        the control's, by a paired 95 % interval over images that leaves 0 out; of ``pairs_random`` and so on, those with images that both
        have a score on (NaN of none);
        ``undefined_on_nets``, the share of the methods' scores that are NaN;
        ``control_shift``: how far Random's mean moves from model to model, in units of the mean distance between Random and the best
        method of each model: 0 where a score means the same on every model, with a 95 % interval over images (jackknife) in ``_low`` and
        ``_high``. NaN for fewer than two models that have methods, and where Random has one score on all images, which is by construction
        and says nothing.
    """
    good = records.assign(score=records["score"] * (1 if higher_is_better else -1))
    families = dict(zip(records["method"], records["family"], strict=True))
    methods = [name for name in dict.fromkeys(records["method"]) if families[name] != "control"]
    models = list(dict.fromkeys(records["model"]))
    of_methods = good[good["method"].isin(methods)]
    found: dict[str, float] = {"undefined_on_nets": float(of_methods["score"].isna().mean())}
    for control in CONTROLS:
        table = pd.DataFrame()
        if control in families:
            table = paired_differences(good, pairs=[(name, control) for name in methods], permutations=1, resamples=1000)
            table = table[table["count"] > 0]
        found |= _above(control, table["low"] > 0 if len(table) else pd.Series(dtype=bool))
    scores = good.groupby(["image_id", "model", "method"], sort=False)["score"].mean().unstack(["model", "method"])
    of_random = scores.xs("Random", axis=1, level="method").to_numpy()
    found |= dict.fromkeys(("control_shift", "control_shift_low", "control_shift_high"), np.nan)
    kept = [[(model, name) for name in ("Random", *methods) if (model, name) in scores] for model in models]
    places = [[scores.columns.get_loc(pair) for pair in pairs] for pairs in kept if len(pairs) > 1]
    defined = of_random[np.isfinite(of_random)]
    if len(places) < 2 or not len(defined) or np.ptp(defined) < 1e-9:
        return found

    def shift(values: np.ndarray) -> float:
        with warnings.catch_warnings():  # a method without any score has no mean
            warnings.filterwarnings("ignore", message="Mean of empty slice")
            means = np.nanmean(values, axis=0)
        random = np.array([means[own[0]] for own in places])
        distance = np.mean([abs(np.nanmax(means[own[1:]]) - means[own[0]]) for own in places])
        return float(np.ptp(random) / distance)

    low, high = jackknife(shift, scores.to_numpy())
    return found | {"control_shift": shift(scores.to_numpy()), "control_shift_low": low, "control_shift_high": high}


def _above(control: str, clearly: pd.Series) -> dict[str, float]:
    """How many of the pairs of method and model score clearly above a control; NaN for no pairs."""
    key = control.lower()
    return {f"above_{key}": float(clearly.mean()) if len(clearly) else np.nan, f"pairs_{key}": len(clearly)}


def retrained_controls(records: pd.DataFrame, protocol: str) -> dict[str, float]:
    """As :func:`against_controls` for ROAR or KAR, from the verdicts on areas between two methods' curves over training seeds.

    A verdict that leakage alone may have given (:func:`idsds.statistics.retraining_areas`) does not count as above a control;
    ``confounded_on_nets`` is the share of all pairs with such a verdict, NaN where leakage was not tested. With a single training seed
    there is no verdict, and every share is NaN.

    Args:
        records: from :func:`idsds.studies.roar.study.roar`.
        protocol: ``roar`` or ``kar``.
    """
    kind = next(kind for kind, function in SCORES.items() if function is PROTOCOLS[protocol].function)
    found: dict[str, float] = {}
    for control in CONTROLS:
        areas = pd.DataFrame()
        if control in set(records["method"]):
            areas = retraining_areas(records, control)
            areas = areas[(areas["kind"] == kind) & (areas["family"] != "control") & areas["p"].notna()]
        confounded = areas["confounded"].fillna(False).astype(bool) if len(areas) else pd.Series(dtype=bool)
        found |= _above(control, (areas["verdict"] == "better") & ~confounded if len(areas) else pd.Series(dtype=bool))
        if control == "Random":
            tested = len(areas) and areas["confounded"].notna().any()
            found["confounded_on_nets"] = float(confounded.mean()) if tested else np.nan
    return found


def measure(settings: MetricSanitySettings, *, progress: bool = True) -> pd.DataFrame:
    """Do the runs, or read what is there.

    Returns:
        One row per reading of a protocol: the columns of :func:`idsds.studies.metric_sanity.known_truth.judge`, of
        :func:`against_controls`, and the ``verdict`` of :func:`idsds.studies.metric_sanity.known_truth.verdict` on both.
    """
    runs, judged = settings.runs(), settings.judged
    with tqdm(total=len(judged) + len(runs), desc="metrics", disable=not progress) as bar:

        def report(label: str) -> None:
            bar.set_postfix_str(label)
            bar.update()

        table = judge(judged, images=settings.known_images, seed=settings.seeds[0], report=lambda label: report(f"{label}, known truth"))
        rows = []
        for label, run in runs.items():
            report(f"{label}, trained nets")
            rows.append({"label": label, **against_controls(evaluate(**run), PROTOCOLS[run["protocol"]].higher_is_better)})
    data_sets = [reading for reading in judged if reading.entry.level == "data set"]
    if settings.roar is not None and data_sets:
        records = roar(settings.roar, progress=progress)
        rows += [{"label": reading.label, **retrained_controls(records, reading.protocol)} for reading in data_sets]
    columns = [
        "label",
        "undefined_on_nets",
        "confounded_on_nets",
        *(f"{kind}_{name.lower()}" for name in CONTROLS for kind in ("above", "pairs")),
        "control_shift",
        "control_shift_low",
        "control_shift_high",
    ]
    table = table.drop(columns="verdict").merge(pd.DataFrame(rows, columns=columns), on="label", how="left")
    return table.assign(verdict=[verdict(row) for row in table.to_dict("records")])


def plain_verdicts(table: pd.DataFrame) -> list[str]:
    """Per reading, the verdict in plain words with the numbers behind it; every number is computed."""
    return [_plain(row) for row in table.to_dict("records")]


def _plain(row: dict[str, Any]) -> str:
    name = row["label"].replace("_", " ")
    if not row["applies"]:
        return f"{name}: does not apply ({row['note']})."
    units = f"{row['units']:.0f} repetitions" if PROTOCOLS[row["protocol"]].level == "data set" else f"{row['units']:.0f} images"
    said = [
        f"{name}: {row['verdict']}. On known truth it orders maps by their noise to {_with_ends(row, 'ordering', '+.2f')} and puts the "
        f"exact map first for {_with_ends(row, 'exact_first', '.0%')} of {units}"
    ]
    if row["beaten"]:
        said.append(f"{row['beaten']:.0f} noisier maps score clearly better than the exact one")
    elif np.isfinite(row["resolution"]):
        said.append(f"it tells the exact map from it with {row['resolution']:g} noise")
    else:
        said.append("it does not tell the exact map from a noisy one")
    moved = _with_ends(row, "model_shift", ".0%")
    said.append(f"another model that answers alike moves a score by {moved} of what replacing the exact map by noise does")
    if row["scale_shift"] > 1e-6:
        said.append(f"three times the map moves its score by {_with_ends(row, 'scale_shift', '.0%')} of that distance")
    if not np.isnan(row["control_shift"]):
        said.append(f"between trained nets, Random moves by {_with_ends(row, 'control_shift', '.0%')} of its distance to the best method")
    counts = []
    for name in CONTROLS:
        share, pairs = (row[f"{kind}_{name.lower()}"] for kind in ("above", "pairs"))
        if not np.isnan(share):
            counts.append(f"{share * pairs:.0f} of {pairs:.0f} score clearly above {name}")
    if counts:
        said.append(f"of the pairs of method and net, {', '.join(counts)}")
    if row["confounded_on_nets"] > 0:
        said.append(f"{row['confounded_on_nets']:.0%} of the verdicts against Random on nets may be due to what the masks alone tell")
    if row["undefined_on_nets"] > 0:
        said.append(f"{row['undefined_on_nets']:.0%} of the methods' scores on nets are undefined")
    return "; ".join(said) + (f". It {row['note']}." if row["note"] else ".")


def _with_ends(row: dict[str, Any], name: str, form: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return f"{value:{form}}" + (f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else "")


def summary(table: pd.DataFrame) -> str:
    """One sentence: which protocols got which verdict."""
    groups = [(kind, table.loc[table["verdict"] == kind, "label"]) for kind in VERDICTS]
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups if len(names)) + "."
