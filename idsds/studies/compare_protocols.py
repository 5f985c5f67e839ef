"""Comparison of protocols: do they rank methods alike, and what are their properties?

IDSDS and SDS are the same computation on two nets, after and before in-domain fine-tuning. Incremental deletion (ID) runs on the net
before fine-tuning, deletes the least or the most attributed pixels first, and may explain the image again after each step (``updated``).

Sources: Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910); Samek et al., TNNLS 2017 (arXiv 1509.06321); Hooker et al., NeurIPS
2019 (ROAR, arXiv 1806.10758); Rong et al., ICML 2022 (ROAD, arXiv 2202.00449).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt, model_validator

from idsds import plots
from idsds.common.devices import one_of
from idsds.common.registry import check_names
from idsds.datasets.base import DATASETS, first
from idsds.evaluation.evaluate import evaluate
from idsds.models import MODELS
from idsds.protocols import PROTOCOLS
from idsds.statistics.rankings import rank_agreement, rank_each
from idsds.statistics.verdicts import verdicts
from idsds.studies.base import EvaluationStudy, Findings, Result, named_score, resolve
from idsds.studies.finetune import measure
from idsds.studies.rank_methods import drops_said, with_drops
from idsds.training.checkpoints import PRETRAINED, check_starts
from idsds.training.recipes import Deletion

#: By label, the protocol's name in the registry and its settings.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "IDSDS": ("idsds", {}),
    "SDS": ("single_deletion", {}),
    "ID least first": ("incremental_deletion", {"update": False}),
    "ID most first": ("incremental_deletion_descending", {"update": False}),
    "ID least first, updated": ("incremental_deletion", {"update": True}),
    "ID most first, updated": ("incremental_deletion_descending", {"update": True}),
}
#: The labels that share a column of the table of properties.
GROUPS = {"IDSDS": ["IDSDS"], "SDS": ["SDS"], "ID": list(RULES)[2:4], "ID updated": list(RULES)[4:]}
_NO_CONTROL = "no control was run"
#: The control that depends neither on the model nor on the image.
CONTROL = "Random"
HERE, PAPER = "computed here", "Hesse et al., NeurIPS 2024"
ROAR, ROAD, SAMEK = "Hooker et al., NeurIPS 2019", "Rong et al., ICML 2022", "Samek et al., TNNLS 2017"
BIRDS = "Hesse et al., ICCV 2023"
#: The poster's four properties; the other rows of the table are added here.
POSTER = ("in-domain", "comparable between models", "no class information in what is deleted", "natural data")
#: Where the poster's table has N/A.
NOT_APPLICABLE = {("SDS", POSTER[2]), ("ID", POSTER[2]), ("ID updated", POSTER[2])}
#: Cells that are cited: protocol, property, answer, evidence, source.
CITED = [
    ("ROAR", "natural data", "yes", "any data set; theirs are ImageNet, Birdsnap and Food-101", ROAR),
    ("ROAR", "in-domain", "yes", "a net is retrained on the deleted images", ROAR),
    ("ROAR", "comparable between models", "no", "each score is the accuracy of retrained nets", ROAR),
    ("ROAR", POSTER[2], "no", "the shape of the mask alone can tell the class to the net trained on it", ROAD),
    ("ROAR", "resolution", "pixel", "a fraction of the pixels", ROAR),
    ("ROAR", "cost in passes", "training", "one training per method, fraction of pixels and repetition", ROAR),
    ("FunnyBirds", "in-domain", "yes", "scenes are rendered without a part, and nets are trained on such scenes", BIRDS),
    ("FunnyBirds", "comparable between models", "yes", "the same rendered interventions for every model", BIRDS),
    ("FunnyBirds", POSTER[2], "yes", "the parts are the same for all maps", BIRDS),
    ("FunnyBirds", "natural data", "no", "rendered birds of 50 classes", BIRDS),
    ("FunnyBirds", "resolution", "part", "one of five parts of a bird", BIRDS),
]


def agreement(records: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Return :func:`idsds.statistics.rank_agreement` between protocols, without the controls, whose last rank agrees trivially."""
    ordered = records[records["family"] != "control"].sort_values("label", key=lambda labels: labels != "IDSDS", kind="stable")
    return rank_agreement(ordered, "label", nested=True, **options)  # IDSDS first


def findings(records: pd.DataFrame, agreed: pd.DataFrame, shares: pd.DataFrame) -> Findings:
    """Test for each model and protocol whether it ranks the methods as IDSDS does, and state what a deleted patch costs.

    Args:
        records: with ``label`` and ``raw``, the protocol's own score.
        shares: accuracies by ``stage`` and ``images``.
    """
    loss, near = losses(shares), losses(shares, "top5") if "top5" in shares else None
    beside = "" if near is None else f"; top-5 {100 * near['before']:.1f} and {100 * near['after']:.1f}"
    sentences = [
        f"One deleted patch costs {100 * loss['before']:.1f} points of accuracy before in-domain fine-tuning and {100 * loss['after']:.1f}"
        f" after it{beside} (n = {shares['count'].max()} images per net)."
    ]
    random = records[records["method"] == CONTROL].groupby(["label", "model"], sort=False)["raw"].mean()
    scores = [f"{_span(random[label], '.2f')} by {label}" for label in ("IDSDS", "ID least first") if label in random]
    if scores:
        sentences.append(f"The mean score of a random map is {' and '.join(scores)}, depending on the model.")
    others = agreed[(agreed["first"] == "IDSDS") & (agreed["second"] != "IDSDS")]
    others = others.rename(columns={"second": "ranks as IDSDS does", "tau_low": "low", "tau_high": "high", "count": "images"})
    others = others.assign(verdict=verdicts(others["low"], others["high"]))
    return Findings(sentences, others[["model", "ranks as IDSDS does", "tau", "low", "high", "images", "verdict"]])


def losses(shares: pd.DataFrame, of: str = "accuracy") -> pd.Series:
    """Return by stage the accuracy (or ``top5``) that one deleted patch costs, averaged over models and seeds."""
    mean = shares.groupby(["stage", "images"])[of].mean()
    return mean[:, "intact"] - mean[:, "one patch deleted"]


class CompareProtocols(EvaluationStudy):
    """Score the same methods by several protocols.

    ``checkpoints`` are weights after in-domain fine-tuning, ``plain_checkpoints`` those before: a file, or ``pretrained`` for the
    published ones. The small nets on embedded data need neither. Updated maps explain each image ``steps`` - 1 times, so they use only
    ``update_images`` images.
    """

    PLAN_BY = ("label",)

    protocols: Annotated[list[Annotated[str, one_of("protocol", RULES)]], Field(min_length=2)] = list(RULES)
    steps: PositiveInt = 32
    update_images: PositiveInt
    accuracy_images: PositiveInt
    plain_checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        check_names("model with a plain checkpoint", self.plain_checkpoints, self.models)
        check_starts({name: start for name, start in self.plain_checkpoints.items() if start == PRETRAINED}, self.models)
        return self

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run per protocol."""
        return {label: self._judged_by(label) for label in self.protocols}

    def _judged_by(self, label: str) -> dict[str, Any]:
        protocol, settings = RULES[label]
        changes: dict[str, Any] = {"protocol": protocol, "output": f"{self.output}/{label.replace(', ', '_').replace(' ', '_')}"}
        if not PROTOCOLS[protocol].in_domain:
            changes["checkpoints"] = dict(self.plain_checkpoints)
        if "update" in settings:
            changes |= {**settings, "steps": self.steps}
        if settings.get("update"):
            changes["images"] = min(self.images, self.update_images)
        return self.arguments(**changes)

    def records(self, progress: bool = True) -> pd.DataFrame:
        """Score the methods by every protocol.

        Returns:
            The records of :func:`idsds.evaluate`, with ``label``, one of :data:`RULES`, and ``raw``, the protocol's own score. ``score``
            has its sign changed where lower is better, so that higher is better in all of them.
        """
        records = super().records(progress)
        signs = {label: 1 if PROTOCOLS[RULES[label][0]].higher_is_better else -1 for label in self.protocols}
        score = records["score"] * records["label"].map(signs)
        return records.assign(raw=records["score"], score=score, direction="higher is better")

    def accuracies(self) -> pd.DataFrame:
        """Measure the protocols' nets on intact images and on the same images with one patch deleted.

        Returns:
            One row per model, seed, stage (``before``, ``after`` in-domain fine-tuning) and kind of images: the columns of
            :func:`idsds.studies.finetune.measure`.
        """
        rows: list[dict[str, Any]] = []
        for stage, label in (("before", "SDS"), ("after", "IDSDS")):
            for job in resolve(**self._judged_by(label) | {"images": self.accuracy_images}).jobs:
                test, deletion = first(job.dataset, self.accuracy_images), Deletion(grid=self.grid, baseline=self.baseline)
                facts = {"model": job.model, "seed": job.seed, "stage": stage}
                measured = measure(job.load(), test, deletion, device=self.device, precision=self.precision)
                rows += [{**facts, **row} for row in measured]
        return pd.DataFrame(rows).drop(columns="skipped")

    def repeatability(self, records: pd.DataFrame, images: int = 4) -> pd.DataFrame:
        """Return by label the largest difference between recorded scores and recomputed ones, in batches of another size."""
        rows, keys = [], ["model", "method", "seed", "image_id"]
        for label, run in self.runs().items():
            again = evaluate(**run | {"output": None, "images": min(images, self.images), "batch_size": 3}, progress=False)
            both = again.merge(records[records["label"] == label], on=keys, suffixes=("", "_recorded"))
            rows.append({"label": label, "largest difference": float((both["score"] - both["raw"]).abs().max())})
        return pd.DataFrame(rows)

    def properties(self, records: pd.DataFrame, agreed: pd.DataFrame, shares: pd.DataFrame, repeated: pd.DataFrame) -> pd.DataFrame:
        """Return the poster's comparison of protocols, with the evidence for each cell.

        Returns:
            One row per property and protocol (incremental deletion's two orders share theirs; the cells of ROAR and FunnyBirds are cited):
            ``property``, ``protocol``, ``answer``, ``evidence`` (numbers computed here, or what holds by construction), ``source``,
            ``poster`` (``asked`` of its four properties, ``N/A`` where it says so, ``not asked`` of what is added here).
        """
        plan, differ = self.plan_table(), repeated.set_index("label")["largest difference"]
        rows: list[tuple[str, ...]] = []
        for protocol, labels in GROUPS.items():
            if asked := [label for label in labels if label in self.protocols]:
                worst = differ[asked].max()
                evidence = f"in batches of another size, single scores differ by at most {worst:.1g}"
                cells = [*self._nature(protocol, records[records["label"] == asked[0]], shares), self._cost(plan, asked[0])]
                cells += [("repeatable", "yes" if worst < 0.05 else "no", evidence, HERE), *_agrees(agreed, asked)]
                rows += [(protocol, *cell) for cell in cells]
        table = pd.DataFrame([*rows, *CITED], columns=["protocol", "property", "answer", "evidence", "source"])
        applies = [pair not in NOT_APPLICABLE for pair in zip(table["protocol"], table["property"], strict=True)]
        asked_of = np.where(~table["property"].isin(POSTER), "not asked", np.where(applies, "asked", "N/A"))
        return table[["property", "protocol", "answer", "evidence", "source"]].assign(poster=asked_of)

    def _nature(self, protocol: str, records: pd.DataFrame, shares: pd.DataFrame) -> list[tuple[str, str, str, str]]:
        """Property, answer, evidence and source of what a protocol deletes and judges on."""
        single, stage, side = protocol in ("IDSDS", "SDS"), "after" if protocol == "IDSDS" else "before", MODELS[self.models[0]].input_size
        lost = f"one deleted patch costs {100 * losses(shares)[stage]:.1f} points of accuracy {stage} fine-tuning"
        size, source = side // self.grid, f"answer: {PAPER}; number: {HERE}"
        if single:
            leak = ("yes", _same_deletions(records), HERE)
            resolution = ("patch", f"a patch of {size} x {size} pixels")
        else:
            leak = ("no", "the map itself determines which pixels are deleted", f"{SAMEK}; {ROAD}")
            resolution = ("pixel", f"a pixel, {side**2 // self.steps} of them a step")
        return [
            ("in-domain", "yes" if protocol == "IDSDS" else "no", lost if single else _fall(records), source),
            ("comparable between models", "yes" if single else "no", _control(records), source),
            ("natural data", "no" if self.dataset == "synthetic" else "yes", DATASETS[self.dataset].source, "the data set's source"),
            ("sign of the attribution counts", "yes", _negative(records), HERE),
            (POSTER[2], *leak),
            ("resolution", *resolution, "by construction"),
        ]

    def _cost(self, plan: pd.DataFrame, label: str) -> tuple[str, str, str, str]:
        passes = plan[(plan["label"] == label) & plan["forward"].notna()]
        nets = passes["images"].max() * len(self.models) * len(self.seeds)
        forward, backward = (round(float(passes[kind].sum()) / nets) for kind in ("forward", "backward"))
        tuned = ", and fine-tuning once per model" if label == "IDSDS" else ""
        evidence = f"per image and model for all {len(self.methods)} methods: {forward} forward, {backward} backward{tuned}"
        return "cost in passes", str(forward + backward), evidence, HERE

    def _run(self, progress: bool) -> Result:
        records = self.records(progress)
        places = with_drops(rank_each(records, "label", nested=True), records, ["label"])
        agreed, shares = agreement(records), self.accuracies()
        repeated = self.repeatability(records)
        said = findings(records, agreed, shares)
        if len(single := places[places["share_above_noise"].notna()]):
            said = Findings([*said.sentences, drops_said(single)], said.verdicts)
        families = dict(zip(records["method"], records["family"], strict=True))
        tables = {"": places, "agreement": agreed, "accuracy": shares, "repeatability": repeated}
        tables["properties"] = self.properties(records, agreed, shares, repeated)
        if (score := named_score(records, "IDSDS")) != "IDSDS":  # by every protocol's label
            tables = {name: table.replace(r"^(agrees with )?IDSDS\b", rf"\1{score}", regex=True) for name, table in tables.items()}
            named = None if said.verdicts is None else said.verdicts.rename(columns=lambda name: name.replace("IDSDS", score))
            said = Findings([text.replace("by IDSDS", f"by {score}") for text in said.sentences], named)
        draw = partial(plots.compare_protocols, tables[""], tables["agreement"], shares, families, columns=self.columns)
        return Result(self.stem, tables, said, draw, records)


def _span(values: pd.Series, form: str = "+.2f") -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def _agrees(agreed: pd.DataFrame, labels: list[str]) -> list[tuple[str, str, str, str]]:
    taus = agreed[(agreed["first"] == "IDSDS") & agreed["second"].isin(labels) & (agreed["second"] != "IDSDS")]
    evidence = "; ".join(f"{row.model}, {row.second}: [{row.tau_low:.2f}, {row.tau_high:.2f}]" for row in taus.itertuples())
    return [("agrees with IDSDS (Kendall's tau)", _span(taus["tau"]), evidence, HERE)] if len(taus) else []


def _control(rows: pd.DataFrame) -> str:
    """State how much a random map's score depends on the model."""
    means = rows[rows["method"] == CONTROL].groupby("model", sort=False)["raw"].mean()
    scores = ", ".join(f"{value:.2f} on {model}" for model, value in means.items())
    return f"a random map scores {scores}" if scores else _NO_CONTROL


def _fall(rows: pd.DataFrame) -> str:
    """State how much the target's probability falls when a quarter of the pixels is deleted at random."""
    random = rows[rows["method"] == CONTROL]
    if random.empty:
        return _NO_CONTROL
    curves = np.stack(random["curve"].to_list())  # (images of all models, steps)
    start, quarter = (curves[:, step].mean() for step in (0, curves.shape[1] // 4))
    return f"a random quarter of the pixels takes the target's probability from {start:.2f} to {quarter:.2f}, without training for it"


def _negative(rows: pd.DataFrame) -> str:
    """State how often deletion raises the target's output, which negative attribution has to predict."""
    if rows["protocol"].iloc[0] in ("idsds", "single_deletion"):
        drops = np.stack(rows.drop_duplicates(["model", "seed", "image_id"])["drops"].to_list())
        return f"deleting raises the target's logit for {100 * (drops < 0).mean():.0f} % of the patches, which should rank last"
    curves = np.stack(rows["curve"].to_list())
    above = 100 * (curves[:, 1:] > curves[:, :1]).mean()
    return f"the order is that of signed values; {above:.0f} % of the curves' points lie above their start"


def _same_deletions(rows: pd.DataFrame) -> str:
    """State whether every method was scored on the same deletions."""
    keyed = rows.assign(key=[np.asarray(drops).tobytes() for drops in rows["drops"]])
    distinct = keyed.groupby(["model", "seed", "image_id"])["key"].nunique()
    return f"all methods were judged on the same deletions on {int((distinct == 1).sum())} of {len(distinct)} images"
