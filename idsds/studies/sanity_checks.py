"""Sanity checks over a data set: layers randomised from the output down, each group of layers alone, and labels permuted in training.

The layers' checks run through the benchmark engine (:mod:`idsds.protocols.sanity`); for the label check, a net is trained from scratch on
permuted labels until it has memorised them, once, and cached like any other.

Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292).
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt, model_validator

from idsds import plots
from idsds.common.batching import default_batch
from idsds.common.devices import chosen_device
from idsds.common.files import read_json
from idsds.datasets import fixed_order
from idsds.evaluation.costs import training_rate
from idsds.evaluation.nets import skeleton
from idsds.methods.base import METHODS, Method, split_name
from idsds.protocols.base import Batch
from idsds.protocols.sanity import SIMILARITIES, Mode, compare_models, layers_from_the_top
from idsds.statistics.intervals import covers_both, nested, rng_for, seed_interval
from idsds.statistics.verdicts import CONTRADICTED, NOT_SUPPORTED, SUPPORTED
from idsds.studies.base import EvaluationStudy, Findings, Result, takes_folder
from idsds.studies.result import listed
from idsds.training.checkpoints import Stage, obtain, plan_training, trains_from_scratch
from idsds.training.loop import batches
from idsds.training.processes import processes_of, train
from idsds.training.recipes import Recipe

LABELS = "labels"
#: Of the net on its permuted labels, with one guess and with five.
LEARNING = ("train_accuracy", "train_top5")
LEARNED = 0.95  # fraction of the permuted labels that a net must have learned, by the paper
REFERENCE = "Gradient"
# What the paper found.
CLAIMED = {REFERENCE: "passes", "Grad-CAM": "passes", "Guided Backprop": "fails", "Guided Grad-CAM": "fails"}
RESAMPLES = 2_000
MARGIN = 0.1  # by how much a method's maps may stay more similar than the reference's before it fails


class SanityChecks(EvaluationStudy):
    """Compare maps with those of nets whose layers were randomised, or whose labels were permuted in training.

    ``depths`` groups of layers; ``modes`` of randomising them, ``draws`` times, each with new weights; ``label_fraction`` of the training
    images is learned with true and with permuted labels, by the model's recipe with the changes ``label_recipe``; 0 leaves that check
    out. It needs a small net on embedded data.
    """

    PLAN_BY: ClassVar[tuple[str, ...]] = ("model", "check")

    depths: PositiveInt = 4
    modes: Annotated[list[Mode], Field(min_length=1)] = ["cascading", "independent"]
    draws: PositiveInt = 1
    label_fraction: Annotated[float, Field(ge=0, le=1)] = 0.12
    label_recipe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        Recipe(**self.label_recipe)
        for name in self.models if self.label_fraction else ():
            if name in self.checkpoints or not trains_from_scratch(name, self.dataset):
                raise ValueError(
                    f"label_fraction={self.label_fraction} trains nets on permuted labels from scratch, which the package does for "
                    f"small nets on embedded data, not for {name!r} on {self.dataset!r}: set it to 0"
                )
        return self

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run per mode and training seed.

        The engine's seed is that of the new weights (and of a method's own noise): the training seed for the first draw, else keyed by
        it and by the draw's number. The net is that of the training seed in every draw.
        """
        shared: dict[str, Any] = {"deletion": None, "device": self.device, "precision": self.precision}
        made = [name for name in self.models if name not in self.checkpoints and trains_from_scratch(name, self.dataset)]
        runs = {}
        for mode in self.modes:
            for seed in self.seeds:
                nets = {name: plan_training(name, self.dataset, seed=seed, **shared) if name in made else None for name in self.models}
                facts = {"protocol": "sanity_check", "mode": mode, "depths": self.depths, "models": nets, "seed": self.draw_seeds(seed)}
                runs[f"{mode}, seed {seed}"] = self.arguments(**facts, output=f"{self.output}/{mode}/seed_{seed}")
        return runs

    def draw_seeds(self, seed: int) -> list[int]:
        """One seed per draw of new weights."""
        keys = [hashlib.blake2b(f"sanity check {seed} {draw}".encode(), digest_size=4).digest() for draw in range(1, self.draws)]
        return [seed, *(int.from_bytes(key, "big") for key in keys)]

    def by_draw(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add ``check`` and ``draw`` to a table of :meth:`runs`, and put the training seed in place of the engine's."""
        draws = {key: (seed, number) for seed in self.seeds for number, key in enumerate(self.draw_seeds(seed))}
        pairs = table["seed"].map(draws)
        return table.assign(check=table["label"].str.split(",").str[0], draw=pairs.str[1], seed=pairs.str[0])

    def stage(self, model: str, seed: int, permuted_labels: bool) -> Stage:
        """Return the training on true or on permuted labels: only the labels differ, not the images, recipe or initial weights."""
        shared: dict[str, Any] = {"deletion": None, "seed": seed, "device": self.device, "precision": self.precision}
        shared |= {"fraction": self.label_fraction, "changes": self.label_recipe}
        return plan_training(model, self.dataset, permuted_labels=permuted_labels, **shared)

    def plan_table(self) -> pd.DataFrame:
        """What remains to be done: training that is not cached, passes per check and shared computation."""
        every, rows = self.by_draw(super().plan_table()), []
        for model in self.models if self.label_fraction else ():
            for seed in self.seeds:
                facts = {"model": model, "seed": seed, "check": LABELS}
                for permuted, labels in ((False, "true"), (True, "permuted")):
                    for missing in self.stage(model, seed, permuted_labels=permuted).missing:
                        row = {"work": f"train on {labels} labels", "images": missing.train_images, "epochs": missing.recipe.epochs}
                        if self.dry_run:
                            row["side_by_side"] = processes_of(missing)
                            row["seconds_left"] = missing.train_images * missing.recipe.epochs / training_rate(missing)
                        rows.append({**facts, **row, "checkpoint": missing.path.name})
                first = (every["model"] == model) & (every["seed"] == seed) & (every["draw"] == 0) & (every["check"] == self.modes[0])
                made = every[first & every["epochs"].isna()]
                # The engine makes 1 + depths maps of each image, this check two.
                passes: dict[str, float] = {way: 2 * int(made[way].sum()) // (1 + self.depths) for way in ("forward", "backward")}
                if self.dry_run:
                    passes["seconds_left"] = 2 * float(made["seconds_left"].sum()) / (1 + self.depths)
                rows.append({**facts, "work": "maps of both nets", "images": self.images, **passes})
        return pd.concat([every, pd.DataFrame(rows)], ignore_index=True).astype({"draw": "Int64"})

    def similarities(self, progress: bool = True) -> pd.DataFrame:
        """Run every check for every model, method, seed and image, or read its stored records.

        Returns:
            One row per model, method, seed, check (``cascading``, ``independent``, ``labels``), depth, draw of the new weights, similarity
            (``spearman``, ``absolute``: Spearman of absolute values, ``ssim``) and image: ``value``, NaN where undefined (a constant map),
            lower is better. ``depth`` is the fraction of the layers that have been randomised from the output down (``cascading``), or
            where the randomised group of layers ends (``independent``); ``layers`` names the first and the last of them; 1 and ``all``
            for ``labels``. ``train_accuracy`` is that of the net on its permuted labels, ``train_top5`` with five guesses; NaN elsewhere.
        """
        frames = []
        for mode, records in self.by_draw(self.records(progress)).groupby("check", sort=False):
            names = {model: layer_groups(model, str(mode), self.depths) for model in self.models}
            for similarity in SIMILARITIES:
                values = np.stack(records[f"{similarity}_by_depth"].to_list())  # (rows, depths)
                for number in range(self.depths):
                    rows = records[["image_id", "model", "method", "family", "seed", "draw"]]
                    layers = rows["model"].map({model: groups[number] for model, groups in names.items()})
                    facts = {"check": mode, "depth": (number + 1) / self.depths, "layers": layers, "similarity": similarity}
                    frames.append(rows.assign(**facts, value=values[:, number], **dict.fromkeys(LEARNING, np.nan)))
        if self.label_fraction:
            each = itertools.product(self.models, self.seeds, (False, True))
            train([self.stage(model, seed, permuted_labels=permuted) for model, seed, permuted in each], progress=progress)
            frames += [_labels(self, model, seed, progress) for model in self.models for seed in self.seeds]
        return pd.concat(frames, ignore_index=True)

    def _run(self, progress: bool) -> Result:
        records = self.similarities(progress)
        table, claims = similarity_table(records), judged(records)

        def draw() -> list[Figure]:
            return [plots.sanity_checks(table, model, columns=self.columns) for model in self.models]

        shown = claims[["model", "check", "similarity", "method", "difference", "low", "high", "count", "claimed", "found", "verdict"]]
        return Result(self.stem, {"": table, "claims": claims}, Findings(sentences(table, claims), shown), draw, records)


def layer_groups(model: str, mode: str, depths: int) -> list[str]:
    """Return the first and the last layer that :func:`idsds.protocols.sanity.randomised_models` randomises at each depth."""
    layers = layers_from_the_top(skeleton(model))
    bounds = [depth * len(layers) // depths for depth in range(depths + 1)]
    groups = [layers[:end] if mode == "cascading" else layers[start:end] for start, end in pairwise(bounds)]
    return ["none" if not group else group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups]


def _labels(settings: SanityChecks, name: str, seed: int, progress: bool) -> pd.DataFrame:
    """Run the label randomisation test of one model and seed."""
    stages = [settings.stage(name, seed, permuted_labels) for permuted_labels in (False, True)]
    device = chosen_device(settings.device)
    model, other = (obtain(stage, progress=progress).to(device) for stage in stages)
    epochs = read_json(stages[1].path.with_suffix(".json"))["epochs"]
    learned, near = max((epoch["val_accuracy"], epoch.get("val_top5", np.nan)) for epoch in epochs)
    if learned < LEARNED:
        warnings.warn(
            f"{name} has learned {learned:.0%} of its permuted labels; the paper requires more than {LEARNED:.0%}: raise the epochs in "
            "label_recipe or lower label_fraction",
            stacklevel=3,
        )
    methods = [Method(method, model, seed=seed) for method in settings.methods]
    test = stages[0].split("test")
    chosen = fixed_order(test.image_ids)[: settings.images]
    parts = []
    for images, targets, image_ids in batches(test, chosen, default_batch(test[0][0][None].to(device))):
        batch = Batch(images.to(device), targets.to(device), image_ids, test.normalisation)
        for method, found in compare_models(model, other, methods, batch).items():
            family = METHODS[split_name(method)[0]].family
            for similarity, values in found.items():
                facts = {"image_id": image_ids, "model": name, "method": method, "family": family, "seed": seed, "draw": 0}
                facts |= {"check": LABELS, "depth": 1.0, "layers": "all", "similarity": similarity}
                parts.append(pd.DataFrame({**facts, "value": values.cpu(), **dict(zip(LEARNING, (learned, near), strict=True))}))
    return pd.concat(parts, ignore_index=True)


@takes_folder
def similarity_table(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean similarity over images, lower is better.

    Returns:
        One row per model, method, check, depth and similarity: ``layers``, ``family``, ``mean`` of the defined values, ``low`` and ``high``
        (see :func:`interval_of`), ``count`` of images with a value for every seed, ``nan`` of those without,
        ``undefined`` of the ``maps`` (images, draws and seeds), ``train_accuracy``, ``train_top5``, ``interval``, what it covers.
    """
    rows = []
    keys = ["model", "method", "check", "depth", "similarity"]
    for key, part in records.groupby(keys, sort=False):
        facts = dict(zip(keys, key, strict=True)) | {"layers": part["layers"].iloc[0], "family": part["family"].iloc[0]}
        facts |= dict(zip(("mean", "low", "high", "count", "nan"), interval_of(part, confidence), strict=True))
        facts |= {"undefined": int(part["value"].isna().sum()), "maps": len(part), **part[list(LEARNING)].mean()}
        rows.append({**facts, "interval": _covers(part, confidence)})
    return pd.DataFrame(rows)


def seed_values(part: pd.DataFrame) -> pd.DataFrame:
    """Return one number per image and training seed, (images, seeds): the mean over the defined draws, which are interchangeable."""
    return part.groupby(["image_id", "seed"])["value"].mean().unstack()


def image_values(part: pd.DataFrame) -> pd.Series:
    """Return one number per image: the mean of :func:`seed_values`; NaN if one is, since training seeds are different nets."""
    return seed_values(part).mean(axis=1, skipna=False)


def interval_of(part: pd.DataFrame, confidence: float) -> tuple[float, float, float, int, int]:
    """Return the mean of the images that have a value for every training seed, low, high, their number, and that of the others.

    The interval is Student's t over images for one training seed, and the bootstrap over seeds and images for several.
    """
    values = seed_values(part)
    defined = values.dropna().to_numpy()
    count, seeds = defined.shape
    mean, low, high = seed_interval(defined.mean(axis=1), confidence) if count else (np.nan,) * 3
    if count > 1 and seeds > 1:
        features = np.stack([defined, np.ones_like(defined)], axis=-1)
        ends = nested(
            features, lambda sums: sums[..., :1] / sums[..., 1:], confidence, RESAMPLES, rng_for(0, "seeds and images", count, seeds)
        )
        (low,), (high,) = ends
    return mean, low, high, count, len(values) - count


def _covers(part: pd.DataFrame, confidence: float) -> str:
    over = f"{100 * confidence:g} % t interval over images" if part["seed"].nunique() == 1 else covers_both(confidence)
    draws = part["draw"].nunique()
    return over + (f", {draws} draws of weights held fixed" if draws > 1 else "")


def judged(records: pd.DataFrame, margin: float = MARGIN, confidence: float = 0.95) -> pd.DataFrame:
    """Test the paper's claim with all layers randomised and with permuted labels.

    A method ``fails`` where its maps stay more alike than :data:`REFERENCE`'s, on the same images, by more than ``margin``: where the
    whole interval of the paired difference is above it. It ``passes`` where the whole interval is below, else the check is ``undecided``.
    The reference itself is compared with unrelated maps, whose Spearman correlation is 0, and passes within ``margin`` of that; the other
    similarities of unrelated maps are not known, so it is not tested by them.

    Args:
        margin: of the similarity.
        confidence: of the intervals (see :func:`interval_of`), each on its own: not corrected for their number.

    Returns:
        One row per model, check, similarity and method of :data:`CLAIMED`: ``difference``, ``low``, ``high``, ``count`` of the images
        that have both, ``nan`` of the others, ``undefined`` of the method's ``maps``, ``claimed``, ``found`` and ``verdict`` on
        the claim: ``supported`` where the two agree, ``contradicted`` where they do not, else ``not supported``;
        ``train_accuracy``, ``train_top5``, ``interval``. Empty without the reference.
    """
    columns = ["model", "check", "similarity", "method", "difference", "low", "high", "count", "nan"]
    rows = []
    last = records[(records["depth"] == 1) & (records["check"] != "independent")]
    for (model, check, similarity), part in last.groupby(["model", "check", "similarity"], sort=False):
        # Per image, draw and seed, so that a method and the reference are compared on the same new weights.
        values = part.pivot(index=["image_id", "seed", "draw"], columns="method", values="value")
        if REFERENCE not in values:
            continue
        for method, claimed in CLAIMED.items():
            if method not in values or (method == REFERENCE and similarity != "spearman"):
                continue
            difference_of = values[method] - (0 if method == REFERENCE else values[REFERENCE])
            difference, low, high, *counts = interval_of(difference_of.rename("value").reset_index(), confidence)
            found = "fails" if low > margin else "passes" if high < margin else "undecided"
            if method == REFERENCE and not low > -margin:  # a negated map shows the same pixels
                found = "fails" if high < -margin else "undecided"
            verdict = NOT_SUPPORTED if found == "undecided" else SUPPORTED if found == claimed else CONTRADICTED
            numbers = [model, check, similarity, method, difference, low, high, *counts]
            maps = part.loc[part["method"] == method, "value"]
            facts = {"undefined": int(maps.isna().sum()), "maps": len(maps), "claimed": claimed, "found": found, "verdict": verdict}
            rows.append(
                {**dict(zip(columns, numbers, strict=True)), **facts, **part[list(LEARNING)].mean(), "interval": _covers(part, confidence)}
            )
    return pd.DataFrame(rows, columns=[*columns, "undefined", "maps", "claimed", "found", "verdict", *LEARNING, "interval"])


def sentences(table: pd.DataFrame, claims: pd.DataFrame) -> list[str]:
    """Count the comparisons that agree with the claim, and list the methods' Spearman correlations with the intact maps, highest first.

    The latter is listed where the first group of layers is randomised.
    """
    told = []
    if len(claims):
        agree, differ = (int((claims["verdict"] == verdict).sum()) for verdict in (SUPPORTED, CONTRADICTED))
        told.append(
            f"Of {len(claims)} comparisons {agree} support and {differ} contradict the claim; a method fails where its maps stay more "
            f"similar than {REFERENCE}'s by over {MARGIN:g}."
        )
    learned = table[table["check"] == LABELS].groupby("model", sort=False)[list(LEARNING)].first()
    if len(learned):
        shares = listed(f"{row.train_accuracy:.0%} ({row.train_top5:.0%}) of {row.Index}" for row in learned.itertuples())
        told.append(f"Training accuracy (top-5) on permuted labels: {shares}.")
    part = table[(table["similarity"] == "spearman") & (table["check"] == "cascading") & (table["family"] != "control")]
    part = part[part["depth"] == part["depth"].min()]
    for depth, rows in part.groupby("depth"):
        means = (
            f"{row.method} {row.mean:.2f} [{row.low:.2f}, {row.high:.2f}] on {row.model}"
            for row in rows.sort_values("mean", ascending=False).itertuples()
        )
        told.append(f"Spearman correlation with the intact maps, the top {depth:.0%} of the layers randomised: {listed(means)}.")
    return told
