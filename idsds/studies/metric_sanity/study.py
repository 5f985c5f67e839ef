"""Do the metrics make sense? Every protocol on known ground truth, and on trained nets with controls that do not depend on the net.

Known ground truth is :func:`idsds.studies.metric_sanity.known_truth.judge`'s; here controls are added, and a verdict per protocol.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from pydantic import PositiveInt, model_validator

from idsds import plots
from idsds.common import paths
from idsds.common.devices import one_of
from idsds.common.processes import side_by_side
from idsds.common.progress import Progress
from idsds.evaluation.evaluate import evaluate
from idsds.methods.base import METHODS, split_name
from idsds.protocols import PROTOCOLS, list_protocols
from idsds.statistics import paired_differences
from idsds.statistics.intervals import jackknife
from idsds.statistics.verdicts import SUPPORTED
from idsds.studies.base import EvaluationStudy, Findings, Result, in_memory, resolve, takes_folder
from idsds.studies.metric_sanity.agreement import agreement
from idsds.studies.metric_sanity.known_maps import LEVELS, known_models
from idsds.studies.metric_sanity.known_parts import asked, sprite_stage
from idsds.studies.metric_sanity.known_truth import VERDICTS, Reading, cost_of, judge, readings, retrained_on, verdict
from idsds.studies.metric_sanity.retraining import RETRAINING
from idsds.studies.roar import Roar, retraining_areas
from idsds.training.checkpoints import Stage
from idsds.training.processes import train

CONTROLS = ("Random", "Edges", "Center")
DISTILLED = "the trained nets are distilled, fine-tuned without labels"
#: The columns about trained nets, see :func:`against_controls`.
ON_NETS = ["label", "undefined_on_nets", "confounded_on_nets"]
ON_NETS += [f"{kind}_{name.lower()}" for name in CONTROLS for kind in ("above", "pairs")]
ON_NETS += ["control_shift", "control_shift_low", "control_shift_high"]


class MetricSanity(EvaluationStudy):
    """Judge protocols (all if none is named) by known ground truth, and by controls on trained nets.

    ``retraining`` is what ROAR and KAR do on trained nets, as in ``params/*/roar.yaml``, whose retrained nets are then taken from the
    cache; the data set, the device and the precision are those of the run. If it is empty, they are judged on known ground truth alone.
    ``processes`` work side by side, each with one thread.
    """

    PLAN_BY: ClassVar[tuple[str, ...]] = ("label",)

    protocols: list[Annotated[str, one_of("protocol", PROTOCOLS)]] = []
    libraries: list[Literal["quantus"]] = []
    parts: bool = False
    known_images: PositiveInt = 64
    retraining: dict[str, Any] = {}
    processes: PositiveInt = 1

    @model_validator(mode="after")
    def _has_methods_and_a_control(self) -> Self:
        families = [METHODS[split_name(name)[0]].family for name in self.methods]
        if "Random" not in self.methods or set(families) == {"control"}:
            raise ValueError("methods must hold 'Random' and at least one that is not a control: each is compared with it")
        _ = self.roar
        return self

    @property
    def judged(self) -> list[Reading]:
        """The rows of the table."""
        own = self.protocols or list_protocols()
        return readings([*own, *(name for library in self.libraries for name in list_protocols(library=library))])

    @property
    def roar(self) -> Roar | None:
        """Return the study of retrained nets; None if there is none."""
        if not self.retraining:
            return None
        shared = {name: getattr(self, name) for name in ("dataset", "device", "precision")}
        checkpoints = {name: path for name, path in self.checkpoints.items() if name in self.retraining.get("models", self.models)}
        own = {name: getattr(self, name) for name in ("models", "methods", "images")} | {"output": f"{self.output}/roar"}
        return Roar(**{**own, "checkpoints": checkpoints, **self.retraining, **shared})

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return one run per row that can be scored image by image, by its label."""
        runs = {}
        for reading in self.judged:
            if reading.applies and reading.entry.level == "image":
                changes = {**reading.settings, "images": reading.images(self.images, nets=True)}
                changes["output"] = f"{self.output}/{reading.label.replace(', ', '_').replace('/', '_')}"
                runs[reading.label] = self.arguments(protocol=reading.protocol, **changes)
        return runs

    def plan_table(self) -> pd.DataFrame:
        """Return what will be done, one row per protocol, model, seed and computation: on trained nets, then on known ground truth."""
        plans = [super().plan_table(), self._known_plan()] if self.runs() else [self._known_plan()]
        if self.roar is not None and any(reading.entry.level == "data set" for reading in self.judged):
            plans.append(self.roar.plan_table().assign(label="roar and kar"))
        return pd.concat(plans, ignore_index=True)

    def _known_plan(self) -> pd.DataFrame:
        """Return the passes on models in closed form, and the nets that are trained for known parts."""
        maps, rows = len(known_models()) * (len(LEVELS) + 1) + 2, []
        for reading in self.judged:
            if reading.applies and reading.entry.level == "image":
                images = reading.images(self.known_images)
                passes = cost_of(reading, RETRAINING)["forward"]
                forward = int(images * maps * passes) if np.isfinite(passes) else pd.NA
                shared = {"label": reading.label, "protocol": reading.protocol, "model": "patches", "seed": self.seeds[0]}
                rows.append({**shared, "work": "known truth", "images": images, "forward": forward, "backward": 0})
        wanted = [reading for reading in self.judged if self.parts and asked(reading)]
        for stage in {stage.key: stage for reading in wanted for stage in sprite_stage(reading).missing}.values():
            shared = {"label": "known parts", "model": stage.model, "seed": stage.seed, "work": "train on sprites"}
            rows.append({**shared, "images": stage.train_images, "epochs": stage.recipe.epochs, "checkpoint": stage.path.name})
        columns = ["label", "protocol", "model", "seed", "work", "images", "epochs", "forward", "backward", "note", "checkpoint"]
        table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("images", "epochs", "forward", "backward"), "Int64"))
        return table.assign(**{name: table[name].astype(object).fillna("") for name in ("protocol", "note", "checkpoint")})

    def measure(self, progress: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Do the runs, or read their stored results.

        Returns:
            Two tables; the second is :func:`idsds.studies.metric_sanity.agreement.agreement`'s. The first has one row per reading: the
            columns of :func:`idsds.studies.metric_sanity.known_truth.judge`, of :func:`against_controls`, and the ``verdict`` of
            :func:`idsds.studies.metric_sanity.known_truth.verdict` on both.
        """
        runs, judged = self.runs(), self.judged
        data_sets = [reading for reading in judged if reading.entry.level == "data set"]
        train(self.stages(), progress=progress)  # no net is trained twice
        with Progress(total=len(judged) + len(runs), desc="metrics", disable=not progress) as bar, side_by_side(self.processes) as each:

            def report(label: str) -> None:
                bar.set_postfix_str(label)
                bar.update()

            retrain = partial(Roar.retrain, progress=progress and self.processes == 1)
            retrained = each(retrain, [self.roar] if self.roar is not None and data_sets else [])
            on_nets = each(_on_nets, runs.items())
            rows, of_nets = [], {}
            for row, records in on_nets:
                report(f"{row['label']}, trained nets")
                rows.append(row)
                of_nets[row["label"]] = records
            kept = paths.resolve(self.output) / "known"
            known = {"images": self.known_images, "seed": self.seeds[0], "parts": self.parts, "folder": kept}
            table = judge(judged, **known, report=lambda label: report(f"{label}, known truth"), each=each)
            for records in retrained:
                rows += [{"label": reading.label, **retrained_controls(records, reading.protocol)} for reading in data_sets]
        table = table.drop(columns="verdict").merge(pd.DataFrame(rows, columns=ON_NETS), on="label", how="left")
        distilled = table["label"].isin([row["label"] for row in rows if row.get("distilled")])
        table.loc[distilled, "note"] = [f"{note}; {DISTILLED}".removeprefix("; ") for note in table.loc[distilled, "note"]]
        return table.assign(verdict=[verdict(row) for row in table.to_dict("records")]), agreement(of_nets, seed=self.seeds[0])

    def stages(self) -> list[Stage]:
        """Return the nets that several rows need and are not cached."""
        runs = {(PROTOCOLS[run["protocol"]].in_domain, PROTOCOLS[run["protocol"]].masked_share): run for run in self.runs().values()}
        stages = [job.source for run in runs.values() for job in resolve(**run).jobs]
        stages += [sprite_stage(reading) for reading in self.judged if self.parts and asked(reading)]
        return list({stage.key: stage for stage in stages if isinstance(stage, Stage) and stage.missing}.values())

    def _run(self, progress: bool) -> Result:
        table, agreed = self.measure(progress)
        shifts = [f"{what}_shift" for what in ("scale", "model", "control")]
        shown = table[["asks", "label", "ordering", "exact_first", "resolution", *shifts, "note", "verdict"]]
        draw = partial(plots.metric_sanity, table, agreed, columns=self.columns)
        return Result(self.stem, {"": table, "agreement": agreed}, Findings(sentences(table), shown), draw)


def _on_nets(run: tuple[str, Mapping[str, Any]]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the row of a label and the arguments of its run, and the columns of its records for :func:`agreement`."""
    label, arguments = run
    records = in_memory(evaluate(**arguments, progress=False))
    row = {"label": label, **against_controls(records, PROTOCOLS[arguments["protocol"]].higher_is_better)}
    row["distilled"] = "distilled" in records and bool(records["distilled"].any())
    return row, records[["image_id", "model", "method", "family", "direction", "score"]]


@takes_folder
def against_controls(records: pd.DataFrame, higher_is_better: bool) -> dict[str, float]:
    """Compare methods with controls on trained nets, by one protocol.

    Args:
        records: of one protocol, from :func:`idsds.evaluate`, with ``Random`` and at least one method that is not a control.

    Returns:
        ``above_random``, ``above_edges``, ``above_center``: the fraction of the pairs (model, method) whose mean over images is better than
        the control's, by a paired 95 % interval over images that excludes 0; of ``pairs_random`` and so on, those with images that both
        have a score on (NaN of none);
        ``undefined_on_nets``, the fraction of the methods' scores that are NaN;
        ``control_shift``: how much Random's mean changes from model to model, in units of the mean distance between Random and the best
        method of each model: 0 if a score means the same on every model, with a 95 % interval over images (jackknife) in ``_low`` and
        ``_high``. NaN for fewer than two models that have methods, and where Random has one score on all images, which holds
        by construction and tells nothing.
    """
    good = records.assign(score=records["score"] * (1 if higher_is_better else -1), direction="higher is better")
    families = dict(zip(records["method"], records["family"], strict=True))
    methods = [name for name in dict.fromkeys(records["method"]) if families[name] != "control"]
    models = list(dict.fromkeys(records["model"]))
    of_methods = good[good["method"].isin(methods)]
    found: dict[str, float] = {"undefined_on_nets": float(of_methods["score"].isna().mean())}
    for control in CONTROLS:
        clearly = pd.Series(dtype=bool)
        if control in families:
            table = paired_differences(good, pairs=[(name, control) for name in methods], permutations=1, resamples=1000, nested=True)
            clearly = table.loc[table["count"] > 0, "low"] > 0
        found |= _above(control, clearly)
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
    """Return the fraction of the pairs of method and model that score clearly above a control; NaN without pairs."""
    key = control.lower()
    return {f"above_{key}": float(clearly.mean()) if len(clearly) else np.nan, f"pairs_{key}": len(clearly)}


def retrained_controls(records: pd.DataFrame, protocol: str) -> dict[str, float]:
    """Return :func:`against_controls` for ROAR or KAR, from the verdicts on areas between two methods' curves over training seeds.

    A verdict that leakage alone may explain (:func:`idsds.studies.roar.retraining_areas`) does not count as above a control;
    ``confounded_on_nets`` is the fraction of all pairs with such a verdict, NaN where leakage was not tested. With a single training seed
    there is no verdict, and every fraction is NaN.

    Args:
        records: from :meth:`idsds.studies.roar.Roar.retrain`.
        protocol: ``roar`` or ``kar``.
    """
    found: dict[str, float] = {"confounded_on_nets": np.nan}
    for control in CONTROLS:
        clearly = pd.Series(dtype=bool)
        if control in set(records["method"]):
            areas = retraining_areas(records, control)
            areas = areas[(areas["kind"] == retrained_on(PROTOCOLS[protocol])) & (areas["family"] != "control") & areas["p"].notna()]
            confounded = areas["confounded"].fillna(False).astype(bool)
            clearly = (areas["verdict"] == SUPPORTED) & ~confounded
            if control == "Random" and areas["confounded"].notna().any():
                found["confounded_on_nets"] = float(confounded.mean())
        found |= _above(control, clearly)
    return found


def sentences(table: pd.DataFrame) -> list[str]:
    """Name the protocols that rank methods, those that are also comparable between models, and the others."""
    found = []
    for kind in VERDICTS[:3]:
        names = table.loc[table["verdict"] == kind, "label"]
        own, others = [name for name in names if "/" not in name], [name.partition("/")[2] for name in names if "/" in name]
        if others:
            own.append(f"of Quantus {' and '.join(others)}" if len(others) <= 2 else f"{len(others)} of Quantus")
        if own:
            found.append(f"{kind.capitalize()}: {', '.join(own)}.")
    return found
