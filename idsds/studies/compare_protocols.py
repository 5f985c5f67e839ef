"""The protocols against one another: do they rank the same methods alike, and on what ground does each of them stand?

IDSDS and SDS are one computation on two nets: after in-domain fine-tuning, and before. Incremental deletion (ID) runs on the net as it was
before, deletes the least or the most attributed pixels first, and may explain the image anew after each step (``updated``).

Sources: Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910); Samek et al., TNNLS 2017 (arXiv 1509.06321); Hooker et al., NeurIPS
2019 (ROAR, arXiv 1806.10758); Rong et al., ICML 2022 (ROAD, arXiv 2202.00449).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, PositiveInt, model_validator
from scipy import stats

from idsds.common import paths
from idsds.common.registry import UnknownNameError
from idsds.evaluation.arguments import make_plan
from idsds.evaluation.evaluate import evaluate
from idsds.evaluation.plan import Plan
from idsds.models import MODELS, create_model
from idsds.models.weights import save_checkpoint
from idsds.protocols import PROTOCOLS
from idsds.statistics.rankings import rank_agreement
from idsds.studies.base import RunSettings
from idsds.training.checkpoints import PRETRAINED
from idsds.training.predict import accuracy
from idsds.training.recipes import Deletion
from idsds.training.steps import loader_of

#: What a protocol is called here: its name in the registry, and the settings that make the difference.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "IDSDS": ("idsds", {}),
    "SDS": ("single_deletion", {}),
    "ID least first": ("incremental_deletion", {"update": False}),
    "ID most first": ("incremental_deletion_descending", {"update": False}),
    "ID least first, updated": ("incremental_deletion", {"update": True}),
    "ID most first, updated": ("incremental_deletion_descending", {"update": True}),
}
_NO_CONTROL = "no control was run"
#: The control that knows nothing of the model or the image.
CONTROL = "Random"


class CompareSettings(RunSettings):
    """What ``params/*/compare_protocols.yaml`` may say.

    ``checkpoints`` are weights after in-domain fine-tuning, ``plain_checkpoints`` those before: a file, or ``pretrained``, which downloads
    published ones. The small nets on embedded data need neither. An update explains each image ``steps`` - 1 times, hence
    ``update_images``, the first so many of the images.
    """

    columns: Literal[1, 2] = 2  # width of the figure in columns of a paper
    protocols: Annotated[list[str], Field(min_length=2)] = list(RULES)
    steps: PositiveInt = 32
    update_images: PositiveInt
    accuracy_images: PositiveInt
    plain_checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for label in self.protocols:
            if label not in RULES:
                raise UnknownNameError("protocol", label, RULES)
        if twice := sorted({label for label in self.protocols if self.protocols.count(label) > 1}):
            raise ValueError(f"protocols lists {', '.join(twice)} more than once")
        for name, start in self.plain_checkpoints.items():
            if name not in self.models:
                raise UnknownNameError("model with a plain checkpoint", name, self.models)
            if start == PRETRAINED and PRETRAINED not in MODELS[name].options:
                raise ValueError(f"no weights of {name!r} are published where they can be fetched: give a file instead of 'pretrained'")
        return self

    def arguments(self, label: str) -> dict[str, Any]:
        """The keyword arguments of :func:`idsds.evaluate` for one of :data:`RULES`."""
        protocol, settings = RULES[label]
        values = {name: value for name, value in self.evaluate().items() if name in {*RunSettings.model_fields, "seed"}}
        values |= {"protocol": protocol, "output": f"{self.output}/{label.replace(', ', '_').replace(' ', '_')}"}
        if not PROTOCOLS[protocol].in_domain:
            values["checkpoints"] = dict(self.plain_checkpoints)
        if "update" in settings:
            values |= {**settings, "steps": self.steps}
        if settings.get("update"):
            values["images"] = min(self.images, self.update_images)
        return values


def compare(settings: CompareSettings, *, progress: bool = True) -> pd.DataFrame:
    """Judge the methods by every protocol.

    Returns:
        The records of :func:`idsds.evaluate`, with ``label``, one of :data:`RULES`, and ``raw``, the protocol's own score. ``score`` has
        its sign changed where lower is better, so that higher is better in all of them.
    """
    parts = []
    for label in settings.protocols:
        found = evaluate(**_with_weights(settings.arguments(label)), progress=progress)
        sign = 1 if PROTOCOLS[RULES[label][0]].higher_is_better else -1
        parts.append(found.assign(label=label, raw=found["score"], score=sign * found["score"]))
    return pd.concat(parts, ignore_index=True)


def cost(settings: CompareSettings) -> pd.DataFrame:
    """What :func:`compare` will do: :func:`idsds.evaluate`'s plan for every protocol, with its ``label``. Nothing is downloaded."""
    parts = []
    for label in settings.protocols:
        values = settings.arguments(label)
        fetched = [name for name, start in values["checkpoints"].items() if start == PRETRAINED]
        values["checkpoints"] = {name: start for name, start in values["checkpoints"].items() if name not in fetched}
        nets = {name: create_model(name) if name in fetched else None for name in values["models"]}  # passes do not depend on weights
        parts.append(evaluate(**{**values, "models": nets}, dry_run=settings.planning, progress=False).assign(label=label))
    table = pd.concat(parts, ignore_index=True)
    return table[["label", *(name for name in table.columns if name != "label")]]


def agreement(records: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """:func:`idsds.statistics.rank_agreement` between the protocols, without the controls, whose last place agrees for free."""
    methods = [m for m, rows in records.groupby("method", sort=False) if rows["family"].iloc[0] != "control"]
    ordered = records.sort_values("label", key=lambda labels: labels != "IDSDS", kind="stable")  # IDSDS first
    return rank_agreement(ordered, "label", methods, **options)


def accuracies(settings: CompareSettings) -> pd.DataFrame:
    """Accuracy of the nets that the protocols judge on, on intact images and on the same ones with one patch deleted.

    Returns:
        One row per model, seed, stage (``before``, ``after`` in-domain fine-tuning) and kind of images (``intact``, ``one patch deleted``):
        accuracy (share in [0, 1], higher is better), low and high (95 % Wilson interval over images), count; the columns of
        :func:`idsds.studies.finetune.finetune`, so that :func:`idsds.plots.finetune` draws it too.
    """
    rows = []
    deletion = Deletion(grid=settings.grid, baseline=settings.baseline)
    for stage, label in (("before", "SDS"), ("after", "IDSDS")):
        plan = _plan(settings, label)
        for job in plan.jobs:
            model = job.load().to(plan.device)
            chosen = [job.indices[start : start + 64] for start in range(0, len(job.indices), 64)]
            for kind, deleted in (("intact", None), ("one patch deleted", deletion)):
                share, _ = accuracy(model, loader_of(job.dataset, chosen), deleted)
                count = len(job.indices)
                interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
                facts = {"model": job.model, "seed": job.seed, "stage": stage, "images": kind, "accuracy": share}
                rows.append({**facts, "low": interval.low, "high": interval.high, "count": count})
    return pd.DataFrame(rows)


def repeatability(settings: CompareSettings, records: pd.DataFrame, images: int = 4) -> pd.Series:
    """By label the largest difference between recorded scores and the same ones computed anew, in batches of another size."""
    found = {}
    for label in settings.protocols:
        values = {**_with_weights(settings.arguments(label)), "output": None, "images": min(images, settings.images), "batch_size": 3}
        again = evaluate(**values, progress=False)
        keys = ["model", "method", "seed", "image_id"]
        both = again.merge(records[records["label"] == label], on=keys, suffixes=("", "_recorded"))
        found[label] = float((both["score"] - both["raw"]).abs().max())
    return pd.Series(found, name="largest difference")


def _with_weights(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments with files in place of ``pretrained``: published weights are kept in the cache."""
    files = {}
    for name, start in values["checkpoints"].items():
        if start == PRETRAINED:
            start = paths.cache() / "checkpoints" / f"{name}-pretrained.safetensors"
            if not start.is_file():
                with torch.random.fork_rng(devices=[]):
                    save_checkpoint(create_model(name, pretrained=True), start)
        files[name] = start
    return {**values, "checkpoints": files}


def _plan(settings: CompareSettings, label: str) -> Plan:
    """The nets of a protocol and the images on which accuracies are measured."""
    values = _with_weights(settings.arguments(label))
    shared = {name: values[name] for name in ("checkpoints", "device", "precision")}
    deletion = {"grid": settings.grid, "baseline": settings.baseline}
    where = (values["dataset"], values["protocol"], settings.accuracy_images, values["seed"])
    return make_plan(values["models"], values["methods"], *where, batch_size=None, shard=256, settings=deletion, **shared)


def sentences(records: pd.DataFrame, agreed: pd.DataFrame, shares: pd.DataFrame) -> list[str]:
    """What the numbers say, one sentence per model and question; each number is computed."""
    lines = []
    for model, rows in agreed.groupby("model", sort=False):
        others = rows[(rows["first"] == "IDSDS") & (rows["second"] != "IDSDS")]
        for row in others.itertuples():
            verdict = "agree beyond chance" if row.tau_low > 0 else "disagree" if row.tau_high < 0 else "are not shown to agree"
            interval = f"[{row.tau_low:+.2f}, {row.tau_high:+.2f}]"
            lines.append(
                f"{model}: the rankings of {row.methods} methods by IDSDS and by {row.second} {verdict}: Kendall's tau {row.tau:+.2f}"
                f" {interval} (95 % over {row.count} images)."
            )
    for model, rows in shares.groupby("model", sort=False):
        loss = _losses(rows)
        lines.append(
            f"{model}: one deleted patch costs {100 * loss['before']:.1f} points of accuracy before in-domain fine-tuning and "
            f"{100 * loss['after']:.1f} after it (n = {rows['count'].max()} images)."
        )
    lines += [f"{label}: {text}." for label, text in _between_models(records).items()]
    return lines


def headline(records: pd.DataFrame, agreed: pd.DataFrame, shares: pd.DataFrame) -> str:
    """What the figure shows, in a few sentences of computed numbers."""
    loss = _losses(shares)
    random = records[records["method"] == CONTROL].groupby(["label", "model"], sort=False)["raw"].mean()
    control = [f"{_span(random[label], '.2f')} by {label}" for label in ("IDSDS", "ID least first") if label in random]
    known = f" The control that knows nothing scores {' and '.join(control)}, depending on the model." if control else ""
    others = agreed[(agreed["first"] == "IDSDS") & (agreed["second"] != "IDSDS")].rename(columns={"count": "images"})
    listed = "; ".join(
        f"{row.second} on {row.model} {row.tau:+.2f} [{row.tau_low:+.2f}, {row.tau_high:+.2f}] (n = {row.images})"
        for row in others.itertuples()
    )
    return (
        f"Kendall's tau with the ranking by IDSDS [95 % over images]: {listed}. One deleted patch costs {100 * loss['before']:.1f} points"
        f" of accuracy before in-domain fine-tuning and {100 * loss['after']:.1f} after it (n = {shares['count'].max()} images a net; the"
        f" intervals of the four accuracies stand in the figure).{known}"
    )


def _losses(shares: pd.DataFrame) -> pd.Series:
    """By stage, the share of images that one deleted patch costs, averaged over models and seeds."""
    mean = shares.groupby(["stage", "images"])["accuracy"].mean()
    return mean[:, "intact"] - mean[:, "one patch deleted"]


def _between_models(records: pd.DataFrame) -> dict[str, str]:
    """By label, how far the score of the control that knows nothing depends on the model."""
    random = records[records["method"] == CONTROL]
    found = {}
    for label, rows in random.groupby("label", sort=False):
        means = rows.groupby("model", sort=False)["raw"].mean()
        listed = ", ".join(f"{value:.2f} on {model}" for model, value in means.items())
        found[str(label)] = f"the control that knows nothing scores {listed}"
    return found


def properties(
    settings: CompareSettings, records: pd.DataFrame, agreed: pd.DataFrame, shares: pd.DataFrame, repeated: pd.Series
) -> pd.DataFrame:
    """The poster's comparison of protocols, each cell with what it rests on.

    Returns:
        One row per property and protocol (incremental deletion's two orders share theirs; ROAR's cells are cited): ``property``,
        ``protocol``, ``answer``, ``evidence`` (numbers computed here, or what holds by construction), ``source``.
    """
    loss, control, table = _losses(shares), _between_models(records), cost(settings)
    here, paper = "computed here", "Hesse et al., NeurIPS 2024"
    roar, road, samek = "Hooker et al., NeurIPS 2019", "Rong et al., ICML 2022", "Samek et al., TNNLS 2017"
    first_of = {"IDSDS": ["IDSDS"], "SDS": ["SDS"], "ID": list(RULES)[2:4], "ID updated": list(RULES)[4:]}
    rows: list[dict[str, str]] = []

    def add(name: str, protocol: str, answer: str, evidence: str, source: str = here) -> None:
        rows.append({"property": name, "protocol": protocol, "answer": answer, "evidence": evidence, "source": source})

    size = _side(settings) // settings.grid
    for protocol, labels in first_of.items():
        asked = [label for label in labels if label in settings.protocols]
        if not asked:
            continue
        rows_of = records[records["label"] == asked[0]]
        single = protocol in ("IDSDS", "SDS")
        stage = "after" if protocol == "IDSDS" else "before"
        domain = f"one deleted patch costs {100 * loss[stage]:.1f} points of accuracy {stage} fine-tuning" if single else _fall(rows_of)
        add("in-domain", protocol, "yes" if protocol == "IDSDS" else "no", domain, f"answer: {paper}; number: {here}")
        add(
            "comparable between models",
            protocol,
            "yes" if single else "no",
            control.get(asked[0], _NO_CONTROL),
            f"answer: {paper}; number: {here}",
        )
        add("sign of the attribution counts", protocol, "yes", _negative(rows_of), here)
        leak = _same_deletions(rows_of) if single else "which pixels go is read off the map"
        add("no class information in what is deleted", protocol, "yes" if single else "no", leak, here if single else f"{samek}; {road}")
        pixels = f"a patch of {size} x {size} pixels" if single else f"a pixel, {_side(settings) ** 2 // settings.steps} of them a step"
        add("resolution", protocol, "patch" if single else "pixel", pixels, "by construction")
        passes = table[(table["label"] == asked[0]) & table["forward"].notna()]
        images = passes["images"].max()
        each = [round(float(passes[kind].sum()) / images / len(settings.models) / len(settings.seeds)) for kind in ("forward", "backward")]
        tuned = ", and fine-tuning once per model" if protocol == "IDSDS" else ""
        evidence = f"per image and model for all {len(settings.methods)} methods: {each[0]} forward, {each[1]} backward{tuned}"
        add("cost in passes", protocol, str(sum(each)), evidence)
        worst = max(repeated[label] for label in asked)
        evidence = f"in batches of another size, single scores differ by {worst:.1g} at the most, where rounding turns neighbours"
        add("repeatable", protocol, "yes" if worst < 0.05 else "no", evidence if worst > 1e-4 else f"single scores differ by {worst:.1g}")
        taus = agreed[(agreed["first"] == "IDSDS") & agreed["second"].isin(asked) & (agreed["second"] != "IDSDS")]
        if len(taus):
            evidence = "; ".join(f"{row.model}, {row.second}: [{row.tau_low:.2f}, {row.tau_high:.2f}]" for row in taus.itertuples())
            add("agrees with IDSDS (Kendall's tau)", protocol, _span(taus["tau"]), evidence)
    add("in-domain", "ROAR", "yes", "a net is trained anew on the deleted images", roar)
    add("comparable between models", "ROAR", "no", "each score is the accuracy of nets that were trained anew", roar)
    add(
        "no class information in what is deleted",
        "ROAR",
        "no",
        "the mask's shape alone can tell the class to the net trained on it",
        road,
    )
    add("resolution", "ROAR", "pixel", "a share of the pixels", roar)
    add("cost in passes", "ROAR", "training", "one training per method, share of pixels and repetition", roar)
    return pd.DataFrame(rows)


def _span(values: pd.Series, form: str = "+.2f") -> str:
    low, high = format(values.min(), form), format(values.max(), form)
    return low if low == high else f"{low} to {high}"


def _side(settings: CompareSettings) -> int:
    return MODELS[settings.models[0]].input_size


def _fall(rows: pd.DataFrame) -> str:
    """How the target's probability falls when a quarter of the pixels goes at random."""
    random = rows[rows["method"] == "Random"]
    if random.empty:
        return _NO_CONTROL
    curves = np.stack(random["curve"].to_list())  # (images of all models, steps)
    quarter = curves[:, curves.shape[1] // 4].mean()
    return f"a random quarter of the pixels takes the target's probability from {curves[:, 0].mean():.2f} to {quarter:.2f}, untrained for"


def _negative(rows: pd.DataFrame) -> str:
    """How often deleting raises the target's output, which a negative attribution has to foretell."""
    if rows["protocol"].iloc[0] in ("idsds", "single_deletion"):
        drops = np.stack(rows.drop_duplicates(["model", "seed", "image_id"])["drops"].to_list())
        return f"deleting raises the target's logit for {100 * (drops < 0).mean():.0f} % of the patches, which are to come last"
    curves = np.stack(rows["curve"].to_list())
    above = 100 * (curves[:, 1:] > curves[:, :1]).mean()
    return f"the order is that of signed values; {above:.0f} % of the curves' points lie above their start"


def _same_deletions(rows: pd.DataFrame) -> str:
    """Whether every method met the same deletions."""
    distinct = (
        rows.assign(key=[np.asarray(drops).tobytes() for drops in rows["drops"]]).groupby(["model", "seed", "image_id"])["key"].nunique()
    )
    return f"all methods met the same deletions on {int((distinct == 1).sum())} of {len(distinct)} images"
