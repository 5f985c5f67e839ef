"""The leaderboard: all methods that apply to a net, with equal settings, by quality and cost.

By default these are all registered methods that apply to a model and take at most ``passes`` passes per image. Methods that query the
patches of a grid use the protocol's grid and baseline, and their scores are then upper bounds; with other settings, or scored on a
shifted grid, they compete fairly.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Self

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, PositiveInt, model_validator

from idsds import plots
from idsds.common.interventions import shifted
from idsds.datasets import DATASETS
from idsds.evaluation.costs import load_costs
from idsds.evaluation.nets import skeleton
from idsds.evaluation.selection import images_said, select_images
from idsds.methods import METHODS, split_name
from idsds.methods.base import reason_against
from idsds.models.quantity import as_quantity
from idsds.statistics import holm, paired_differences, rank
from idsds.statistics.means import rivals
from idsds.studies.base import Findings, MethodName, Result, named_score, takes_folder
from idsds.studies.rank_methods import RankingStudy, drops_said, with_drops
from idsds.studies.result import listed
from idsds.training.recipes import BaselineName


class Leaderboard(RankingStudy):
    """Rank all methods that apply to a net, and show which are worth their passes.

    ``methods`` names them; if empty, they are all that apply and need at most ``passes`` passes per image, plus those in ``also``.
    """

    methods: list[MethodName] = []
    also: list[MethodName] = []
    passes: PositiveInt = 1000
    offset: Annotated[int, Field(ge=0)] = 0
    queried_grid: PositiveInt | None = None
    queried_baseline: BaselineName | None = None

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if self.also and self.methods:
            raise ValueError("also: it adds to the methods that apply; leave it empty if methods are named")
        size = DATASETS[self.dataset].image_size
        shifted(size, size, self.grid, self.offset)
        if self.queried_grid is not None:
            shifted(size, size, self.queried_grid, 0)
        return self

    @cached_property
    def left_out(self) -> pd.DataFrame:
        """The methods left out automatically: model, method, why."""
        rows = [(model, name, why) for model in self.models for name, why in self._looked_at(model).items() if why]
        return pd.DataFrame(rows, columns=["model", "method", "why"])

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The methods, as :func:`idsds.evaluate` takes them."""
        names = self.methods
        if not names:
            fitting = [name for model in self.models for name, why in self._looked_at(model).items() if not why]
            names = [name for name in {**METHODS, **METHODS.unlisted} if name in fitting]
            names += [name for name in self.also if name not in names]
        return {name: self._with_options(name) for name in names}

    def _looked_at(self, model: str) -> dict[str, str]:
        """Return by method why it is left out for a model, or an empty string."""
        net, kind, found = skeleton(model), as_quantity(self.quantity).kind, {}
        for name, entry in ({**METHODS, **METHODS.unlisted} if not self.methods else {}).items():
            why = reason_against(entry, net) or entry.explains_not.get(kind)
            if not why and name not in self.also:
                passes = entry.passes(net, **entry.settings()) if callable(entry.passes) else entry.passes
                if passes is None:
                    why = "its number of passes is not known beforehand; name it in 'also'"
                elif sum(passes) > self.passes:
                    why = f"it takes {sum(passes)} passes per image, more than {self.passes}"
            found[name] = why or ""
        return found

    def _with_options(self, name: str) -> tuple[str, dict[str, Any]] | None:
        entry = METHODS[split_name(name)[0]]
        if entry.queries(**entry.settings()) is None:
            return None
        return name, {"grid": self.queried_grid or self.grid, "baselines": self.queried_baseline or self.baseline}

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run of the protocol."""
        settings = {"protocol": self.protocol, "quantity": self.quantity, "offset": self.offset}
        return {"": self.arguments(methods=self.chosen, **settings)}

    def _run(self, progress: bool) -> Result:
        records = self.records(progress)
        kept = select_images(records, self.only, self.common)
        score = named_score(records, self.score)
        table = with_drops(with_costs(standing(kept), load_costs(self.output)), kept)
        compared = self.published(table.head(0) if self.offset else table)
        families = dict(zip(records["method"], records["family"], strict=True))

        def draw() -> Figure:
            where = images_said(records, kept, self.only, self.common)
            options = {"n_patches": len(records["drops"].iloc[0]), "score": score, "where": where, "columns": self.columns}
            return plots.leaderboard(table, families, published=compared, **options)

        tables = {"": table, "left_out": self.left_out, "published": compared}
        found = findings(table, score)
        return Result(self.stem, tables, Findings([*found.sentences, drops_said(table)], found.verdicts), draw, records)


@takes_folder
def standing(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return :func:`idsds.rank` with each method compared with the best of its model on the same images.

    Returns:
        The columns of the ranking, with ``control`` (whether it explains nothing), ``best`` (the rival with the highest mean), ``behind``
        (the mean difference to it), ``p_holm`` (of :func:`idsds.paired_differences`, nested, corrected by Holm for all methods of all
        models) and ``as_good`` (not significantly below the best); upper bounds and controls are not compared.
    """
    table = rank(records, confidence, nested=True)
    families = dict(zip(records["method"], records["family"], strict=True))
    table["control"] = [families[name] == "control" for name in table["method"]]
    compared = []
    for model, rows in rivals(table[table["mean"].notna() & ~table["control"]]).groupby("model", sort=False):
        best, *others = rows["method"]
        table.loc[table["model"] == model, "best"] = best
        if others:
            of_model = records[records["model"] == model]
            compared.append(paired_differences(of_model, "method", [(best, other) for other in others], confidence, 9_999, nested=True))
    if not compared:
        return table.assign(best=table.get("best"), behind=float("nan"), p_holm=float("nan"), as_good=False)
    found = pd.concat(compared).rename(columns={"b": "method", "difference": "behind"})
    found["p_holm"] = holm(found["p"].to_numpy())
    table = table.merge(found[["model", "method", "behind", "p_holm"]], on=["model", "method"], how="left")
    return table.assign(as_good=(table["method"] == table["best"]) | (table["p_holm"] > 1 - confidence))


def with_costs(table: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Add to a table of :func:`standing` what each method costs, and whether it is on the front of quality and cost.

    Args:
        table: one row per model and method.
        costs: from :func:`idsds.load_costs`; means over seeds are taken.

    Returns:
        The table with ``forward``, ``backward``, ``milliseconds``, ``megabytes`` per image and ``front``: no competitor that costs no more
        milliseconds has a mean as high. Neither upper bounds nor controls are on it.
    """
    names = ["forward", "backward", "milliseconds", "megabytes"]
    table = table.merge(costs.groupby(["model", "method"], sort=False)[names].mean().reset_index(), on=["model", "method"], how="left")
    table["front"] = False
    for _, rows in rivals(table[table["mean"].notna() & ~table["control"]]).groupby("model", sort=False):
        rows = rows.sort_values(["milliseconds", "mean"], ascending=[True, False], kind="stable")
        above = rows["mean"] > rows["mean"].cummax().shift(1, fill_value=float("-inf"))
        table.loc[rows.index[above], "front"] = True
    return table


def findings(table: pd.DataFrame, score: str = "IDSDS") -> Findings:
    """Name each model's best method, those not significantly below it, and the front of quality and cost."""
    rows = list(_verdicts(table))
    verdicts = pd.DataFrame(rows)
    firsts = [f"{row['best']} on {row['model']} ({row['mean']:.2f})" for row in rows]
    as_good = listed(f"{row['as good']} on {row['model']}" for row in rows)
    sentences = [f"Highest mean {score}: {listed(firsts)}.", f"Methods not significantly below the best (5 %, Holm): {as_good}."]
    return Findings(sentences, verdicts.drop(columns="mean") if rows else None)


def _verdicts(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for model, rows in table.groupby("model", sort=False):
        ranked = rivals(rows[rows["mean"].notna() & ~rows["control"]])
        if ranked.empty:
            continue
        front = rows[rows["front"]].sort_values("milliseconds")
        cheap = ", ".join(f"{row.method} ({row.milliseconds:.2g} ms)" for row in front.itertuples())
        facts = {"model": model, "best": ranked["method"].iloc[0], "mean": float(ranked["mean"].iloc[0])}
        facts |= {"as good": int(rows["as_good"].sum()) - 1, "rivals": len(ranked), "worth their cost": cheap}
        yield facts | {"ceilings": ", ".join(rows.loc[rows["ceiling"].astype(bool), "method"])}
