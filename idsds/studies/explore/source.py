"""What an explorer shows: a run's records, and the maps of their images, computed again.

Records hold no maps. They are recomputed when an image is selected, with the records' net, method, seed and image, and their patch sums
are compared with the recorded ones, so that another net's or method's map is never mistaken for the one scored.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from idsds.common.registry import check_name, check_names
from idsds.datasets.base import DATASETS
from idsds.evaluation.arguments import protocol_settings
from idsds.evaluation.job import Job, named_dataset
from idsds.evaluation.plan import Plan
from idsds.evaluation.records import Run
from idsds.evaluation.run import autocast, on_plan
from idsds.methods.base import MethodError, shared_maps, split_name
from idsds.models.isolation import on_loan
from idsds.models.quantity import explaining
from idsds.plots.gallery import Example
from idsds.protocols import PROTOCOLS
from idsds.protocols.single_deletion import patch_sums
from idsds.statistics import rank
from idsds.statistics.agreement import disagreement
from idsds.statistics.scores import LOWER
from idsds.studies.base import resolve
from idsds.studies.gallery import attribute_of, picture_of
from idsds.studies.rank_methods import SCORES

#: Orders of the images.
ORDERS = ("worst score first", "best score first", "methods disagree most", "most undefined", "as evaluated")
#: Largest difference of a patch sum due to rounding, as a fraction of the map's sum of |attribution|.
ROUNDING = 1e-3
#: Number of images whose maps are kept.
KEPT = 64
NO_METHOD = "none of the methods is in the registry; pass methods={name: method}"
ENGINE = ("target", "device", "precision", "channels_last", "compiled")


class UnavailableError(RuntimeError):
    """Maps or images that cannot be computed again; the message says why, and what to pass."""


@dataclass(frozen=True)
class Case:
    """What the images of one view have in common: a model, a training seed and, if the protocol has one, a grid."""

    model: str
    seed: int
    grid: int | None


class Source:
    """Records, and what is needed to explain their images again.

    Args:
        records, models, methods, dataset, arguments: see :func:`idsds.explore`.
    """

    def __init__(
        self,
        records: pd.DataFrame | str | Path,
        models: Mapping[str, nn.Module],
        methods: Mapping[str, Any],
        dataset: Any,
        **arguments: Any,
    ) -> None:
        self.run = None if isinstance(records, pd.DataFrame) else Run.open(records)
        self.records = records if isinstance(records, pd.DataFrame) else None
        self.models, self.methods, self.given, self.arguments = dict(models), dict(methods), dataset, arguments
        self.facts = _facts(self.records) if self.run is None else _facts_of(self.run.manifest)
        self._frames: dict[str, pd.DataFrame] = {}
        self._plans: dict[Case, Plan | UnavailableError] = {}
        self._nets: dict[Case, tuple[nn.Module, dict[str, Any]]] = {}
        self._maps: OrderedDict[tuple[Case, str], dict[str, np.ndarray]] = OrderedDict()
        self._tables: dict[tuple[str, Case], Any] = {}
        known = self.run.models if self.run is not None else list(dict.fromkeys(self.records["model"]))
        check_names("model of the records", self.models, known)
        every = self.run.manifest["methods"] if self.run is not None else list(dict.fromkeys(self.records["method"]))
        check_names("method of the records", self.methods, every)

    @cached_property
    def cases(self) -> dict[str, Case]:
        """The available cases, by label."""
        if self.run is not None:
            grids = {entry["grid"] for entry in self.run.files("scores")}
            found = [Case(entry["model"], entry["seed"], grid) for entry in self.run.manifest["models"] for grid in sorted(grids, key=str)]
        else:
            keys = [name for name in ("model", "seed", "grid") if name in self.records]
            rows = self.records[keys].drop_duplicates().to_dict("records")
            found = [Case(row["model"], int(row.get("seed", 0)), None if pd.isna(row.get("grid")) else int(row["grid"])) for row in rows]
        label = "{0.model}"
        label += ", training seed {0.seed}" if len({case.seed for case in found}) > 1 else ""
        label += ", {0.grid} x {0.grid} patches" if len({case.grid for case in found}) > 1 else ""
        return {label.format(case): case for case in found}

    def frame(self, case: Case) -> pd.DataFrame:
        """The records of a case."""
        if case.model not in self._frames:
            if self.run is not None:
                self._frames = {case.model: self.run.content([case.model]).frame()}  # one model at a time
            else:
                self._frames[case.model] = self.records[self.records["model"] == case.model]
        rows = self._frames[case.model]
        for name in ("seed", "grid"):
            if name in rows and getattr(case, name) is not None:
                rows = rows[rows[name] == getattr(case, name)]
        return rows

    def _once(self, what: str, case: Case, make: Any) -> Any:
        if (what, case) not in self._tables:
            self._tables[what, case] = make()
        return self._tables[what, case]

    def ranking(self, case: Case) -> pd.DataFrame:
        """The methods, best first, from :func:`idsds.rank`."""
        return self._once("ranking", case, lambda: rank(self.frame(case)))

    def scores(self, case: Case) -> pd.DataFrame:
        """The scores: a row per image in the order of the records, a column per method."""

        def make() -> pd.DataFrame:
            rows = self.frame(case)
            table = rows.pivot(index="image_id", columns="method", values="score")
            return table.loc[list(dict.fromkeys(rows["image_id"])), list(self.ranking(case)["method"])]

        return self._once("scores", case, make)

    def order(self, case: Case, how: str, method: str) -> list[str]:
        """Return the images in one of :data:`ORDERS`, those without a value last. Raises UnknownNameError."""
        check_name("order of images", how, ORDERS)
        scores = self.scores(case)
        if how == ORDERS[-1]:
            return list(scores.index)
        if how == "methods disagree most":
            values = self._once("disagreement", case, lambda: disagreement(self.frame(case)))
            return list(values.reindex(scores.index).sort_values(ascending=False, kind="stable").index)
        if how == "most undefined":
            return list(scores.isna().sum(axis=1).sort_values(ascending=False, kind="stable").index)
        worst_is_low = self.facts["direction"] != LOWER
        return list(scores[method].sort_values(ascending=worst_is_low == (how == ORDERS[0]), kind="stable", na_position="last").index)

    def extremes(self, case: Case, method: str, count: int = 4) -> tuple[list[str], list[str]]:
        """Return the images with a method's worst and best scores, ignoring images without a score."""
        defined = self.scores(case)[method].notna()
        worst = [image for image in self.order(case, ORDERS[0], method) if defined[image]]
        return worst[:count], worst[::-1][: min(count, max(0, len(worst) - count))]

    def example(self, case: Case, image_id: str, methods: Sequence[str]) -> tuple[Example, list[str]]:
        """Return an image with the maps of some methods, and notes on them."""
        rows = self._once("rows", case, lambda: self.frame(case).groupby("image_id", sort=False).indices)[image_id]
        records = self.frame(case).iloc[rows].set_index("method")
        first, notes = records.iloc[0], []
        drops = np.asarray(first["drops"], dtype=float) if "drops" in records else np.empty(0)
        drops = drops.reshape(2 * [round(drops.size**0.5)])
        try:
            maps = self.maps(case, image_id, int(first["target"]), methods, records)
        except UnavailableError as error:
            maps = {}
            notes.append(f"Patch sums in place of maps: {error}")
        if lost := [name for name in methods if name not in maps and "patch_sums" in records]:
            if maps:
                named = f"Patch sums in place of the maps of {', '.join(lost)}"
                notes.append(f"{named}, which cannot be made again as scored: pass methods={{name: method}}.")
            maps |= {name: np.asarray(records.loc[name, "patch_sums"], dtype=float).reshape(drops.shape) for name in lost}
        if not maps:
            raise UnavailableError(notes[0].removeprefix("Patch sums in place of maps: ") if notes else "these records hold no maps")
        if "patch_sums" not in records:
            notes.append("These records hold no patch sums: the maps cannot be compared with those that were scored.")
        picture, data = self.picture(case, image_id), self.dataset(case)
        if picture is None:
            notes.append(f"The image is not there: pass dataset= ({self.facts['dataset']!r}).")
            picture = np.full((8, 8, 3), 0.9)
        names = attribute_of(data, "classes") if data is not None else None
        target, prediction = int(first["target"]), int(first.get("prediction", first["target"]))
        logit, score = float(first.get("intact", np.nan)), SCORES.get(self.facts["protocol"], self.facts["protocol"])
        shown = {name: maps[name] for name in methods if name in maps}
        distilled = bool(first.get("distilled", False))
        classes = [names[each] if names else str(each) for each in (target, prediction)]
        decision = *classes, logit, logit if prediction == target else np.nan
        score += " (distilled)" * distilled
        where = case.model, case.seed, str(self.facts["dataset"]), image_id
        return Example(*where, *decision, picture, drops, records, shown, score), notes

    def maps(self, case: Case, image_id: str, target: int, methods: Sequence[str], records: pd.DataFrame) -> dict[str, np.ndarray]:
        """Return the maps (H, W) of the methods that can be recomputed as scored; cached.

        Raises:
            UnavailableError: if none can be made.
        """
        kept = self._maps.setdefault((case, image_id), {})
        self._maps.move_to_end((case, image_id))
        while len(self._maps) > KEPT:
            self._maps.popitem(last=False)
        plan = self.plan(case)
        (job,) = plan.jobs
        missing = [name for name in methods if name not in kept and name in job.methods]
        if missing:
            net, made = self._net(case, job)
            index = self._place(case, job).get(image_id)
            if index is None:
                raise UnavailableError(f"image {image_id!r} is not in the data set; pass the one that was evaluated as dataset=")
            batch = on_plan(plan, job, job.dataset[index][0][None], torch.tensor([target]), [image_id])
            with on_loan(net, plan.device, plan.layout_of(job)) as model, explaining(model, plan.quantity), autocast(plan):
                if set(missing) - made.keys():
                    made |= {method.name: method for method in job.create_methods(model, [name for name in missing if name not in made])}
                try:
                    found = shared_maps([made[name] for name in missing], batch.images, batch.targets, batch.image_ids)
                except MethodError as error:
                    raise UnavailableError(str(error)) from error
            found = {name: values.float() for name, values in found.items()}
            kept |= {name: values[0, 0].cpu().numpy() for name, values in found.items() if _as_recorded(values, records, name)}
        if not kept and not set(methods) & job.methods.keys():
            raise UnavailableError(NO_METHOD)
        return {name: kept[name] for name in methods if name in kept}

    def plan(self, case: Case) -> Plan:
        """Return the case as an evaluation. Raises UnavailableError, which says what to pass, if the net is missing."""
        if case not in self._plans:
            try:
                self._plans[case] = self._plan(case)
            except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
                text = f"{error.args[0] if isinstance(error, KeyError) and error.args else error}"
                self._plans[case] = UnavailableError(f"{text}. Pass models={{{case.model!r}: net}}, or what it names")
        if isinstance(found := self._plans[case], UnavailableError):
            raise found
        return found

    def _plan(self, case: Case) -> Plan:
        methods = {name: self.methods.get(name) for name in self.frame(case)["method"].unique() if name in self.methods or _known(name)}
        if not methods:
            raise UnavailableError(NO_METHOD)
        arguments = {name: self.facts[name] for name in ENGINE if name in self.facts} | self.facts["settings"]
        if arguments.get("device") not in (None, "cpu") and not torch.cuda.is_available():
            arguments["device"] = "auto"
        if case.grid is not None:
            arguments["grid"] = case.grid
        plan = resolve(
            models={case.model: self.models[case.model]} if case.model in self.models else [case.model],
            methods=methods,
            dataset=self.facts["dataset"] if self.given is None else self.given,
            protocol=self.facts["protocol"],
            images=self.scores(case).shape[0] if self.given is not None else 1,
            seed=case.seed,
            **(arguments | self.arguments),
        )
        if not plan.jobs[0].is_ready:
            raise UnavailableError(f"the checkpoint of {case.model!r} is not in the cache: start the same run again, which trains it")
        return plan

    def _net(self, case: Case, job: Job) -> tuple[nn.Module, dict[str, Any]]:
        if case not in self._nets:
            self._nets = {case: (job.load(), {})}  # one net at a time
        return self._nets[case]

    def _place(self, case: Case, job: Job) -> dict[str, int]:
        """Return the index of each image by id; for a user's data set, of the evaluated images."""
        ids = getattr(job.dataset, "image_ids", None) if job.own_images is None else None
        indices = range(len(ids)) if ids is not None else job.indices
        return self._once("place", case, lambda: dict(zip(ids if ids is not None else job.ids(indices), indices, strict=True)))

    def dataset(self, case: Case) -> Any:
        """Return the images as preprocessed for the net or, without the net, those of the named data set; None if there are none."""
        try:
            return self.plan(case).jobs[0].dataset
        except UnavailableError:
            if self.given is not None or self.facts["dataset"] not in DATASETS:
                return self.given
        try:
            return self._once("data", Case("", 0, None), lambda: named_dataset(self.facts["dataset"], "test", None))
        except (OSError, ValueError, ImportError):
            return None

    def picture(self, case: Case, image_id: str) -> np.ndarray | None:
        """Return the image, (H, W, 3) in [0, 1]; None if it is missing."""
        data = self.dataset(case)
        try:
            plan = self.plan(case)
            index, job = self._place(case, plan.jobs[0]).get(image_id), plan.jobs[0]
            return None if index is None else picture_of(job, data[index][0], self.arguments.get("normalisation"))
        except UnavailableError:
            ids = getattr(data, "image_ids", None)
            if ids is None or image_id not in ids:
                return None
            return data.pixels(ids.index(image_id)).movedim(0, -1).numpy() if hasattr(data, "pixels") else None


def _known(name: str) -> bool:
    try:
        split_name(name)
    except ValueError:
        return False
    return True


def _as_recorded(values: torch.Tensor, records: pd.DataFrame, name: str) -> bool:
    """Return whether a map's (1, 1, H, W) patch sums match the records up to rounding; True if there are none to compare with."""
    if "patch_sums" not in records:
        return True
    recorded = np.asarray(records.loc[name, "patch_sums"], dtype=float)
    mine = patch_sums(values.cpu(), round(len(recorded) ** 0.5))[0].numpy()
    if not np.array_equal(np.isfinite(mine), np.isfinite(recorded)):
        return False
    finite = np.isfinite(mine)
    size = float(values[torch.isfinite(values)].abs().sum())
    return bool(np.abs(mine - recorded)[finite].max(initial=0.0) <= ROUNDING * max(size, 1e-30))


def _facts_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: manifest[name] for name in ("dataset", "protocol", "direction", *ENGINE) if name in manifest}
    return {**facts, "settings": _settings(manifest["protocol"], manifest["settings"])}


def _facts(records: pd.DataFrame) -> dict[str, Any]:
    """Return what a frame's rows have in common. Raises ValueError if a column is missing or does not hold a single value."""
    needed = ("model", "method", "image_id", "target", "dataset", "protocol", "score")
    if missing := [name for name in needed if name not in records]:
        raise ValueError(f"records lack the column(s) {', '.join(missing)}: pass what idsds.evaluate returned, or its folder")
    if not len(records):
        raise ValueError("records are empty")
    entry = PROTOCOLS[str(records["protocol"].iloc[0])]
    names = [name for name in (*protocol_settings(entry, {}), "quantity") if name in records and name != "grid"]
    for name in ("dataset", "protocol", *names):
        if len(values := records[name].drop_duplicates()) > 1:
            raise ValueError(
                f"records hold {len(values)} values of {name!r} ({values.iloc[0]}, {values.iloc[1]}, ...): choose the rows of one"
            )
    first = records.iloc[0]
    explained = {"target": "prediction"} if "explained" in records else {}
    facts = {"dataset": first["dataset"], "protocol": first["protocol"], "direction": first.get("direction", "")}
    return {**facts, **explained, "settings": _settings(entry.name, first[names])}


def _settings(protocol: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings as arguments of ``evaluate``: JSON is parsed, and the quantity gets its argument's form."""
    known, found = protocol_settings(PROTOCOLS[protocol], {}), {}
    for name, value in stored.items():
        if name == "quantity":
            against = re.fullmatch(r"contrast with class (\d+)", value)
            found[name] = ("contrast", int(against[1])) if against else value.split()[0]
        elif name in known:
            text = isinstance(value, str) and not isinstance(known[name], str) and value[:1] in "[{"
            found[name] = json.loads(value) if text else value.item() if isinstance(value, np.generic) else value
    return found
