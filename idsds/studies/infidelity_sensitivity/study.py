"""Do infidelity and max-sensitivity follow the quality of a model? The xai-correlation study's question, for this package's models and
for the study's printed numbers.

Raw infidelity is a mean of squared logits. It grows with the scale of a map and with the scale of the model's logits, so a model whose
logits change more has a higher infidelity whatever its maps. Three versions separate the two:

* ``raw``: as the paper defines it and the study used it;
* ``normalised``: each map is first multiplied by its best factor, so that its scale does not matter;
* ``relative``: that, divided by the infidelity of a map of zeros, which is the mean squared change of the logit: 0 where the map predicts
  every change. The model's scale does not matter either. The factor is fitted on the same perturbations by which it is scored, so that a
  random map has about 1 - 1 / samples (0.9 with 10) instead of 1: what counts is how far a method is below ``Random``.

With p the change that the map predicts and c that of the logit, raw infidelity is ``E[p^2] - 2 E[p c] + E[c^2]``: the map's scale
(``forecast``), the agreement of the two, and the logit's scale (``change``). The partial correlation of ``raw`` given ``change`` shows
whether ``raw`` says more about a model's quality than ``change``.

Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392); burnpiro/xai-correlation.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt
from torch import Tensor

from idsds import plots
from idsds.common import paths
from idsds.datasets.base import ImageDataset
from idsds.evaluation.plan import Target
from idsds.methods.base import TENFOLD
from idsds.models.base import MODELS
from idsds.protocols.infidelity import Perturbation
from idsds.statistics.intervals import bca, rng_for
from idsds.statistics.means import finite_means, mean_interval
from idsds.studies.base import MethodName, Positive, Result, takes_folder
from idsds.studies.infidelity_sensitivity.correlations import beside_random, correlations, map_part, study_table
from idsds.studies.infidelity_sensitivity.findings import claims, findings
from idsds.studies.method_settings import MethodSettings
from idsds.studies.train_fractions import IDENTITY, ManyModels, Member

ZERO = "map of zeros"
AT = ", infidelity at "  # in the label of a run with another sigma
STUDY_SIGMA = 0.003
#: Confidence and number of resamples of the bootstrap over images.
DRAWN = 0.95, 1_000


def zero_map(images: Tensor, targets: Tensor) -> Tensor:
    """A zero map, which predicts no change; its infidelity is the mean squared change of the logit."""
    return images[:, :1] * 0


@takes_folder
def per_model(records: pd.DataFrame) -> pd.DataFrame:
    """Return means over images from records of both protocols.

    Args:
        records: of :func:`idsds.evaluate` with either protocol, with ``dataset``, ``protocol`` and the model's ``name``.

    Returns:
        One row per data set, model ``name`` and method: ``raw`` and ``normalised`` infidelity, and those of the map times ten, ``raw_x10``
        and ``normalised_x10``; ``change``, the infidelity of a map of zeros; ``forecast``, the mean square of what the map predicts
        (solved from the raw ones image by image, then averaged); all in squared logits; ``relative`` = ``normalised`` / ``change``, both
        summed over the images; ``sensitivity``; ``_low`` and ``_high`` of raw, relative and sensitivity; ``images`` with a score, ``nan``
        without, and of max-sensitivity ``sensitivity_images`` and ``sensitivity_nan``; ``family`` of the method; ``interval``, what is
        covered.
    """
    rows = []
    for (dataset, name), part in records.groupby(["dataset", "name"], sort=False):
        infidelity = part[part["protocol"] == "infidelity"]
        methods = [method for method in dict.fromkeys(infidelity["method"]) if method != ZERO and not method.endswith(TENFOLD)]
        raw, normalised = (infidelity.pivot(index="image_id", columns="method", values=kind) for kind in ("raw", "normalised"))
        sensitive = part[part["protocol"] == "max_sensitivity"].pivot(index="image_id", columns="method", values="score")
        columns = _means(*_readings(raw, normalised, sensitive, methods))
        families = infidelity.drop_duplicates("method").set_index("method")["family"]
        finite = np.isfinite(raw[methods])
        facts = {"dataset": dataset, "name": name, "method": methods, "images": finite.sum().to_numpy(), "nan": (~finite).sum().to_numpy()}
        known = np.isfinite(sensitive.reindex(columns=methods))
        facts |= {"sensitivity_images": known.sum().to_numpy(), "sensitivity_nan": (~known).sum().to_numpy()}
        rows.append(pd.DataFrame({**facts, "family": families[methods].to_numpy(), **columns}))
    return pd.concat(rows, ignore_index=True).assign(interval="95 % BCa bootstrap over images")


def _readings(
    raw: pd.DataFrame, normalised: pd.DataFrame, sensitive: pd.DataFrame, methods: list[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return, by column name, the numbers of each image and method (images, methods), and the squared change of the logit (images, 1)."""
    tenfold = [f"{method}{TENFOLD}" for method in methods]
    once, times_ten, change = raw[methods].to_numpy(float), raw[tenfold].to_numpy(float), raw[[ZERO]].to_numpy(float)
    # raw = F - 2 A + C and raw_x10 = 100 F - 20 A + C, with the forecast's square F, the product A and the change's square C.
    forecast = np.maximum((times_ten - 10 * once + 9 * change) / 90, 0)
    found = {"raw": once, "normalised": normalised[methods].to_numpy(float), "raw_x10": times_ten}
    found |= {"normalised_x10": normalised[tenfold].to_numpy(float), "forecast": forecast}
    return found | {"sensitivity": sensitive.reindex(columns=methods).to_numpy(float)}, change


def _means(readings: dict[str, np.ndarray], change: np.ndarray) -> dict[str, np.ndarray | float]:
    """Return the columns of one model: means over images, with intervals for those that are drawn in the figure."""
    columns = {name: finite_means(values) for name, values in readings.items()} | {"change": finite_means(change)[0]}
    for name in ("raw", "sensitivity"):
        images = len(readings[name])
        ends = mean_interval(readings[name], np.arange(images), *DRAWN, rng_for(0, name, images)) if images else ()
        columns |= dict(zip((f"{name}_low", f"{name}_high"), ends, strict=bool(images)))
    both = np.isfinite(readings["normalised"]) & np.isfinite(change)
    sums = np.concatenate([np.where(both, readings["normalised"], 0), np.where(both, change, 0)], axis=1)  # (images, 2 methods)
    methods = both.shape[1]

    def ratio(sums: np.ndarray) -> np.ndarray:
        return sums[..., :methods] / sums[..., methods:]

    with np.errstate(divide="ignore", invalid="ignore"):
        columns["relative"] = ratio(sums.sum(axis=0))
        columns["relative_low"], columns["relative_high"] = bca(sums, ratio, *DRAWN, rng_for(0, "relative", len(sums)))
    return columns


class InfidelitySensitivity(MethodSettings, ManyModels):
    """Compare infidelity and max-sensitivity with the quality of models.

    ``images`` images are explained; quality is measured on all test images. ``other_sigmas`` are further noise levels, for which only the
    spread of infidelity between methods is measured. ``target`` is the class explained: the image's ``label``, or the model's
    ``prediction``, as in the study. ``method_settings`` are options of methods, by name.
    The models are those of :mod:`idsds.studies.train_fractions`.
    """

    PLAN_BY = ("label",)

    methods: Annotated[list[MethodName], Field(min_length=1)]
    images: PositiveInt
    perturbation: Perturbation = "gaussian"
    sigma: Annotated[float, Field(gt=0)] = 0.1
    radius: Annotated[float, Field(gt=0)] = 0.02
    samples: PositiveInt = 10
    target: Target = "label"
    other_sigmas: list[Positive] = []

    def runs(self) -> dict[str, dict[str, Any]]:
        """Both protocols on each data set; if that is divided anew, once for each normalisation and size that its models expect."""
        names, tenfold = self.with_settings(), self.with_settings(TENFOLD)
        noise = {"perturbation": self.perturbation, "sigma": self.sigma}
        protocols: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "infidelity": ({**names, **tenfold, ZERO: zero_map}, noise),
            "max_sensitivity": (names, {"radius": self.radius}),
        }
        runs = {}
        for place, (images, members) in self._images().items():
            models = {member.name: member.stage for member in members}
            for protocol, (methods, options) in protocols.items():
                where = {"dataset": images, "protocol": protocol, "output": f"{self.output}/{place}/{protocol}"}
                machine = {"device": self.device, "precision": self.precision, "images": self.images, "samples": self.samples}
                machine |= {"target": self.target}
                runs[f"{place}, {protocol}"] = {"models": models, "methods": methods, **where, **machine, **options}
            base = runs[f"{place}, infidelity"]
            for sigma in self.other_sigmas:
                changed = {"methods": names, "sigma": sigma, "output": f"{base['output']}_{sigma:g}"}
                runs[f"{place}{AT}{sigma:g}"] = {**base, **changed}
        return runs

    def _images(self) -> dict[str, tuple[str | ImageDataset, list[Member]]]:
        """Return the images and models of each run by its folder: the data set's, and for other inputs that of their first model."""
        groups: dict[Any, list[Member]] = {}
        for member in self.members():
            entry, divided = MODELS[member.model], self._division(member.dataset)
            groups.setdefault((member.dataset, (entry.normalisation, entry.view) if divided else None), []).append(member)
        found: dict[str, tuple[str | ImageDataset, list[Member]]] = {}
        for (dataset, inputs), members in groups.items():
            place = f"{dataset}_{paths.portable(members[0].model)}" if dataset in found else dataset
            found[place] = (members[0].stage.split("test") if inputs else dataset, members)
        return found

    def parts_of_maps(self, records: pd.DataFrame, table: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
        """Return :func:`.correlations.map_part` for every sigma and for the study, with ``models_of`` and ``sigma``."""
        found = [map_part(table).assign(models_of="ours", sigma=self.sigma)]
        found.append(map_part(study).assign(models_of="the study's", sigma=STUDY_SIGMA))
        identity = pd.DataFrame([{**member.identity, "name": member.name} for member in self.members()])
        for sigma in self.other_sigmas:
            rows = records[records["label"].str.endswith(f"{AT}{sigma:g}")].rename(columns={"model": "name"})
            means = rows.groupby(["dataset", "name", "method", "family"], sort=False)["raw"].mean().reset_index()
            found.append(map_part(identity.merge(means, on=["dataset", "name"])).assign(models_of="ours", sigma=sigma))
        return pd.concat(found, ignore_index=True)

    def judge(self, progress: bool = True) -> pd.DataFrame:
        """Measure infidelity, max-sensitivity and quality of every model and method; models that are not cached are trained first.

        Returns:
            One row per model and method: what identifies the model; the columns of :func:`per_model`, among which ``interval`` names what
            all intervals of the table cover; those of :meth:`ManyModels.quality`; ``samples`` of the settings and ``chance``, 1 / classes.
        """
        # First, since it trains missing models on the devices of the settings.
        qualities = self.quality(progress=progress)
        return self._judged(self.records(progress), qualities)

    def _judged(self, records: pd.DataFrame, qualities: pd.DataFrame) -> pd.DataFrame:
        main = records[~records["label"].str.contains(AT, regex=False)]
        table = per_model(main.rename(columns={"model": "name"}))
        members = self.members()
        chances = {member.dataset: 1 / member.stage.split("test").num_classes for member in members}
        identity = pd.DataFrame([{**member.identity, "name": member.name} for member in members])
        covered = f"{table['interval'].iloc[0]}; of the quality {qualities['interval'].iloc[0]}"
        table = identity.merge(table, on=["dataset", "name"]).merge(qualities.drop(columns="interval"), on=list(IDENTITY))
        table = table.drop(columns="name")
        return table.assign(samples=self.samples, chance=table["dataset"].map(chances), interval=covered)

    def _run(self, progress: bool) -> Result:
        qualities = self.quality(progress=progress)
        records, study = self.records(progress), study_table()
        table = self._judged(records, qualities)
        ours, theirs = correlations(table), correlations(study)
        draw = partial(plots.infidelity_sensitivity, table, ours, study, theirs, columns=self.columns)
        judged = claims(table, ours, theirs)
        tables = {"": table, "correlations": ours, "controls": beside_random(table), "study": theirs, "claims": judged}
        tables["map_part"] = self.parts_of_maps(records, table, study)
        return Result(self.stem, tables, findings(judged, tables["map_part"]), draw)
