"""The form of every study: its settings, costs, run and findings.

A study is the notebook of its name without the notebook::

    study = RankMethods(dataset="mnist5k", models=["mini_resnet8"], methods=["IG", "Random"], images=64, output="runs/x")
    study.plan()                 # what it will do, and what that costs
    result = study.run()         # tables and findings
    result.save(result.plot())   # the figure, with the tables and findings beside it

Every name is checked against its registry and every number against its range on construction, so that a mistake stops a run before any
work.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pandas as pd
import yaml
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from idsds.common import paths
from idsds.common.devices import Device, Precision, check_precision, chosen_device, one_of
from idsds.common.interventions import patch_size
from idsds.common.registry import check_name, check_names
from idsds.common.settings import Settings, SettingsError, check_keys, read_values
from idsds.datasets.base import DATASETS
from idsds.evaluation import plan as engine
from idsds.evaluation.arguments import Arguments, as_seeds, make_plan
from idsds.evaluation.evaluate import evaluate
from idsds.evaluation.records import Run
from idsds.methods.base import split_name
from idsds.models.base import MODELS
from idsds.models.quantity import as_quantity
from idsds.statistics.scores import Records
from idsds.studies.result import Findings, Plan, Result
from idsds.studies.shown import short_warnings
from idsds.training.checkpoints import PRETRAINED, Stage, check_starts, plan_training, trains_from_scratch
from idsds.training.launch import Machine, check_machine, is_main
from idsds.training.recipes import BaselineName

#: Every study, by the name of its notebook, in a profile's order: studies that train nets for others come first.
STUDIES = (
    "finetune",
    "rank_methods",
    "leaderboard",
    "gallery",
    "how_idsds_works",
    "design_choice",
    "accuracy_tradeoff",
    "compare_protocols",
    "stability",
    "datasets",
    "train_fractions",
    "infidelity_sensitivity",
    "score_vs_metrics",
    "how_infidelity_works",
    "augmentation_robustness",
    "sanity_checks",
    "hyperparameter_sensitivity",
    "roar",
    "funnybirds",
    "metric_sanity",
)
#: Arguments of ``evaluate`` that control where and how records are computed, not what they contain.
LATER = ("output", "scheduler", "dry_run", "progress", "only", "common")
#: The settings that change the recipe.
RECIPE = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "step_epochs", "step_factor")


def _is_method(value: str) -> str:
    split_name(value)
    return value


def _is_quantity(value: str | list) -> str | list:
    as_quantity(value)
    return value


ModelName = Annotated[str, one_of("model", MODELS)]
MethodName = Annotated[str, AfterValidator(_is_method)]
Positive = Annotated[float, Field(gt=0)]
#: As for :func:`idsds.evaluate`; in a params file a contrast with a class is ``[contrast, 3]``.
QuantityName = Annotated[str | list, AfterValidator(_is_quantity)]
DatasetName = Annotated[str, one_of("data set", DATASETS)]


def check_grids(dataset: str, *grids: int) -> None:
    """Raise ValueError for a grid that does not divide the images of a data set."""
    side = DATASETS[dataset].image_size
    for grid in grids:
        patch_size(side, side, grid)


class Study(Settings):
    """Base of all studies: the fields are the notebook's parameters and the keys of a params file."""

    #: The columns whose groups get a row in the plan's summary.
    PLAN_BY: ClassVar[tuple[str, ...]] = ("model",)

    output: str
    columns: Literal[1, 2] = 2
    dry_run: bool = False

    @model_validator(mode="after")
    def _output_is_writable_and_lists_have_no_duplicates(self) -> Self:
        try:
            paths.check_creatable(self.output)
        except OSError as error:
            raise ValueError(str(error)) from error
        for name, values in self:
            if isinstance(values, list) and (twice := sorted({str(value) for value in values if values.count(value) > 1})):
                raise ValueError(f"{name} lists {', '.join(twice)} more than once")
        return self

    @property
    def stem(self) -> Path:
        """Where figures and tables go: named like the folder of the run, which is named like the params file."""
        return paths.figures_of(self.output) / Path(self.output).name

    def runs(self) -> dict[str, dict[str, Any]]:
        """The keyword arguments of :func:`idsds.evaluate` by label, one entry per run; none where a study only trains."""
        return {}

    def plan(self) -> Plan:
        """Return what remains to be done and what that costs; a dry run measures it on a few batches. Nothing is computed."""
        with short_warnings():
            return Plan(self.plan_table(), self.PLAN_BY)

    def plan_table(self) -> pd.DataFrame:
        """One row per piece of work: the dry runs of :meth:`runs`, with the run's ``label`` and ``protocol``."""
        mode: Any = "measure" if self.dry_run else True
        plans = [
            evaluate(**run, dry_run=mode, progress=False).assign(label=label, protocol=run.get("protocol", "idsds"))
            for label, run in self.runs().items()
        ]
        return pd.concat(plans, ignore_index=True)

    def records(self, progress: bool = True) -> pd.DataFrame:
        """Evaluate all :meth:`runs`: their records one below the other, with the run's ``label``."""
        parts = [in_memory(evaluate(**run, progress=progress)).assign(label=label) for label, run in self.runs().items()]
        return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]

    def run(self, progress: bool = True) -> Result:
        """Run the study. Cached results are not computed again.

        Raises:
            SystemExit: with code 0 in a dry run. It ends a notebook without an error: papermill stops at the cell and reports none, and
                JupyterLab's kernel keeps running.
        """
        if self.dry_run:
            if is_main():
                print("A dry run ends here; nothing was computed.", flush=True)
            raise SystemExit(0)
        with short_warnings():
            return self._run(progress)

    def _run(self, progress: bool) -> Result:
        raise TypeError(f"{type(self).__name__} must define _run")


def in_memory(records: Records) -> pd.DataFrame:
    """Return a frame unchanged; of a run's folder read all columns except the patch sums, with text as categories."""
    if isinstance(records, pd.DataFrame):
        return records
    content = Run.open(records).content()
    return content.frame([name for name in content.columns if name != "patch_sums"], categorical=True)


def need_columns(records: pd.DataFrame, *names: str) -> None:
    """Raise ValueError for columns that records of an earlier checkout lack."""
    if missing := [name for name in names if name not in records]:
        raise ValueError(f"the records lack {', '.join(map(repr, missing))}: an earlier version wrote them; run the study again")


def takes_folder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of records, its first argument, take the folder of a run as well."""

    @wraps(function)
    def reading(records: Records, *more: Any, **options: Any) -> Any:
        return function(in_memory(records), *more, **options)

    return reading


class EvaluationStudy(Study):
    """A study that scores methods on models: the parameters shared by all notebooks that rank or compare."""

    #: Whether the findings end with :attr:`scope`; False where the study says itself what its claims are about.
    SCOPED: ClassVar[bool] = True

    dataset: DatasetName
    models: Annotated[list[ModelName], Field(min_length=1)]
    methods: Annotated[list[MethodName], Field(min_length=1)]
    images: PositiveInt
    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    device: Device = "auto"
    precision: Precision = "32-true"
    checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_grids(self.dataset, self.grid)
        check_precision(self.precision, chosen_device(self.device).type)
        check_names("model with a checkpoint", self.checkpoints, self.models)
        return self

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Return the keyword arguments of :func:`idsds.evaluate`, with ``changes``; ``output`` may be a folder below the study's."""
        names = ("dataset", "models", "methods", "images", "grid", "baseline", "device", "precision", "output", "checkpoints")
        values = {name: getattr(self, name) for name in names} | {"seed": self.seeds}
        return values | changes

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run, of the settings as they are."""
        return {"": self.arguments()}

    @property
    def scope(self) -> str:
        """What the claims are about: these very nets, or nets trained alike."""
        if len(self.seeds) == 1:
            return "One net per model: the claims are about these nets, and other training seeds may contradict them."
        return f"Intervals are over {len(self.seeds)} training seeds and images."

    def run(self, progress: bool = True) -> Result:
        """Do the study, and say what its claims are about (:attr:`scope`)."""
        result = super().run(progress)
        if not self.SCOPED:
            return result
        return replace(result, findings=Findings(result.findings.sentences, result.findings.verdicts, self.scope))


class TrainingStudy(Study):
    """A study that trains models; None leaves a value of the recipe as it is.

    ``checkpoints`` names per model what it starts from: a file, or ``pretrained`` for published weights; the small nets on small images
    need none. ``batch_size`` is that of all devices together.
    """

    models: Annotated[list[ModelName], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    device: Device = "auto"
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    checkpoints: dict[str, str] = {}
    workers: Annotated[int, Field(ge=0)] = 0
    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    lr: Positive | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    step_epochs: PositiveInt | None = None
    step_factor: Positive | None = None

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        check_machine(self.device, self.devices, self.precision)
        check_starts(self.checkpoints, self.models)
        for name, dataset in itertools.product(self.models, self.trained_on):
            if name not in self.checkpoints and not trains_from_scratch(name, dataset):
                raise ValueError(
                    f"checkpoints: {name!r} needs weights to start from on {dataset!r}, a file or 'pretrained'; "
                    "only mini_* models on images of 32 x 32 are trained from scratch"
                )
        return self

    @property
    def trained_on(self) -> list[str]:
        """The data sets."""
        raise TypeError(f"{type(self).__name__} must define trained_on")

    @property
    def machine(self) -> Machine:
        """What the models are trained on."""
        return Machine(self.devices, self.workers)

    def stage(self, model: str, dataset: str, seed: int, **options: Any) -> Stage:
        """The stage of training of one model; ``options`` are those of :func:`idsds.training.checkpoints.plan_training`."""
        start = self.checkpoints.get(model)
        weights = start if start in (None, PRETRAINED) else str(paths.resolve(start))
        changes = {name: value for name in RECIPE if (value := getattr(self, name)) is not None}
        machine = {"device": self.device, "precision": self.precision}
        return plan_training(model, dataset, seed=seed, weights=weights, changes=changes, **machine, **options)


def named_score(records: pd.DataFrame, score: str) -> str:
    """The name of a score, with "(distilled)" where a net of the records was fine-tuned in-domain without labels."""
    return f"{score} (distilled)" if "distilled" in records and records["distilled"].any() else score


def resolve(**arguments: Any) -> engine.Plan:
    """Resolve the keyword arguments of :func:`idsds.evaluate` into its nets, methods and images, for what its records do not hold."""
    bound = inspect.signature(evaluate).bind(**arguments)
    bound.apply_defaults()
    values = {name: value for name, value in bound.arguments.items() if name not in LATER}
    settings = {name: values.pop(name) for name in ("grid", "baseline")} | values.pop("settings")
    seeds, checkpoints = as_seeds(values.pop("seed")), values.pop("checkpoints") or {}
    return make_plan(Arguments(**values, seeds=seeds, checkpoints=checkpoints, settings=settings))


def study_class(name: str) -> type[Study]:
    """Return the study of a notebook: ``rank_methods`` is :class:`idsds.studies.rank_methods.RankMethods`.

    Raises:
        UnknownNameError: for a name that is not in :data:`STUDIES`.
    """
    check_name("study", name, STUDIES)
    return getattr(importlib.import_module(f"idsds.studies.{name}"), name.title().replace("_", ""))


def read_params(path: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Read the values of a params file, with ``key=value`` changes (values as in YAML).

    Raises:
        SettingsError: if the file does not hold settings, or a change is not of that form.
    """
    values = read_values(path)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f"a change is key=value, not {change!r}")
        values[key] = yaml.safe_load(value)
    check_keys(values, "changes")
    return values


def run_file(name: str, path: str | Path, changes: Sequence[str] = ()) -> int:
    """Run a study from a params file without its notebook: print the plan, the table and the findings, and save the figure."""
    study = study_class(name)(**read_params(path, changes))
    plan = study.plan()  # in every process: a plan of training measures batches on all devices
    if is_main():
        print(plan, flush=True)
    result = study.run()
    if is_main():
        files = result.save(result.plot())
        print(result.table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
        print(f"\n{result.findings.markdown()}\n\nfigure: {files[0]}")
    return 0
