"""The FunnyBirds protocols: does a map show which parts of a creature matter to the net?

Each protocol's check is a function of :mod:`idsds.protocols.parts`.

Differences from the authors' code, which ``reference=True`` removes: a part or object without a visible pixel is never important (theirs
is if the map's sum is negative); importances and sum come from one map (theirs explains the image twice, so a random method is
inconsistent with itself); a class without two suitable rivals has no target sensitivity (theirs uses the last pair examined).

Source: Hesse, Schaub-Meyer, Roth, "FunnyBirds", ICCV 2023 (arXiv 2308.06248).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from idsds.methods.base import Method, Passes, shared_maps, shared_passes
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol
from idsds.protocols.parts import (
    THRESHOLDS,
    accuracy,
    background_independence,
    completeness,
    controlled_data,
    deletion,
    deletion_correlation,
    distraction,
    important,
    irrelevant,
    known_parts,
    part_importance,
    part_shapley,
    part_table,
    preservation,
    rivals,
    rivals_differ,
    sensitivity,
    target_logits,
    top5,
)
from idsds.protocols.single_deletion import rank_correlation


class _Explained:
    """A batch's table, and the methods' maps as importances of parts.

    Args:
        prepared: what :func:`part_table` returned; rows may be flat.
        reference: see this module's docstring.
    """

    def __init__(self, methods: Sequence[Method], batch: Batch, prepared: Mapping[str, Tensor], reference: bool) -> None:
        self.methods, self.batch, self.parts, self.reference = methods, batch, known_parts(batch), reference
        self.number = len(self.parts.names)
        self.logits = prepared["part_logits"].reshape(len(batch.images), self.parts.whole + 1, -1)
        self.objects = prepared["object_logits"].reshape(len(batch.images), self.parts.objects)
        self.targets, self.predictions = batch.targets, self.logits[:, -1].argmax(dim=1)
        self.variants = self.parts.variants.to(self.logits.device)
        self.known: dict[str, dict[str, tuple[Tensor, Tensor, Tensor]]] = {}

    def of(self, kind: str, classes: Tensor, rows: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return by method importances (B, P + O), sums of the maps (B,), and which parts and objects are visible, bool (B, P + O).

        Args:
            kind: the kind of classes, the key of cached results.
            classes: the classes to explain, (B,).
            rows: which images to explain, bool (B,); the others get NaN. None for all.
        """
        if kind not in self.known:
            self.known[kind] = self._explain(classes, torch.ones_like(classes, dtype=torch.bool) if rows is None else rows)
        return self.known[kind]

    def predicted(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return the same for the predicted classes, reusing maps where prediction and target agree."""
        differs = self.predictions != self.targets
        own, other = self.of("target", self.targets), self.of("predicted", self.predictions, differs)
        return {
            name: tuple(torch.where(differs.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(own[name], other[name], strict=True))
            for name in own
        }  # type: ignore[misc]

    def _explain(self, classes: Tensor, rows: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        places, batch, count = rows.nonzero().flatten(), self.batch, self.number + self.parts.objects
        empty = torch.full((len(rows), count), torch.nan, dtype=torch.float64, device=rows.device)
        found = {method.name: (empty.clone(), empty[:, 0].clone(), torch.zeros_like(empty, dtype=torch.bool)) for method in self.methods}
        if not len(places):
            return found
        image_ids = [batch.image_ids[place] for place in places.tolist()]
        asked = (batch.images[places], classes[places], image_ids)
        maps = shared_maps(self.methods, *asked)
        again = shared_maps([method.changed(seed=method.seed + 1) for method in self.methods], *asked) if self.reference else maps
        for number, (place, image_id) in enumerate(zip(places.tolist(), image_ids, strict=True)):
            regions = self.parts.regions(image_id).to(rows.device)
            stack = torch.stack([maps[method.name][number, 0] for method in self.methods]).double()
            sums = part_importance(stack, regions, self.parts.owners, count)
            seen = sums.new_zeros(count).index_add(0, torch.tensor(self.parts.owners, device=rows.device), regions.sum(dim=(1, 2)).double())
            for method, row in zip(self.methods, sums, strict=True):
                total = again[method.name][number].double().sum()
                for into, value in zip(found[method.name], (row, total, (seen > 0) | self.reference), strict=True):
                    into[place] = value
        return found

    def checks(self, names: Sequence[str], threshold: float, others: Sequence[float] = ()) -> Columns:
        """Return by method the named checks at ``others`` and last at ``threshold``, (B, T); NaN where the map is not finite."""
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), not {threshold}")
        thresholds, parts = torch.tensor([*others, threshold], dtype=torch.float64), slice(0, self.number)
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "csdc": lambda chosen: controlled_data(self.logits, self.targets, chosen[..., parts], self.variants),
            "pc": lambda chosen: preservation(self.logits, chosen[..., parts]),
            "dc": lambda chosen: deletion(self.logits, chosen[..., parts]),
            "distractibility": lambda chosen: distraction(irrelevant(self.logits, self.targets, self.objects), chosen),
        }
        columns: Columns = {method.name: {} for method in self.methods}
        for check in names:
            explained = self.predicted() if check in ("pc", "dc") else self.of("target", self.targets)
            for name, (importance, totals, visible) in explained.items():
                found = functions[check](important(importance, totals, thresholds, visible))
                columns[name][check] = found + 0 * (importance.sum(dim=1) + totals)[:, None]
        return columns

    def deletions(self) -> dict[str, Tensor]:
        """Return by method the single deletion score, (B,)."""
        explained = self.of("target", self.targets)
        return {name: deletion_correlation(self.logits, self.targets, found[0][:, : self.number]) for name, found in explained.items()}

    def shapley(self) -> dict[str, Tensor]:
        """Return by method the correlation of importances with the exact Shapley values, (B,)."""
        exact = part_shapley(target_logits(self.logits, self.targets))
        return {name: rank_correlation(found[0][:, : self.number], exact) for name, found in self.of("target", self.targets).items()}

    def sensitivities(self) -> dict[str, Tensor]:
        pairs = rivals(self.parts.variants, self.reference).to(self.targets.device)[self.targets]  # (B, 2)
        shared = self.variants[self.targets][:, None] == self.variants[pairs.clamp(min=0)]  # (B, 2, P)
        usable = rivals_differ(self.logits, shared, pairs)
        first, second = (self.of(f"rival {number}", pairs[:, number], usable) for number in range(2))
        return {name: sensitivity(torch.stack([first[name][0], second[name][0]], 1)[..., : self.number], shared) for name in first}


def _entry(maps: int, **changes: Any) -> dict[str, Any]:
    """Return the entry of a protocol that explains at most ``maps`` classes per image."""
    return {
        "higher_is_better": True,
        "range": (0, 1),
        "parts": True,
        "prepare": part_table,
        "prepare_passes": lambda **_: Passes(32),
        "passes": lambda methods, *, reference=False, **_: shared_passes(methods).times(maps * (1 + reference)),
        "source": "Hesse, Schaub-Meyer, Roth, ICCV 2023",
    } | changes


def _register_check(name: str, check: str, maps: int, what: str) -> None:
    @register_protocol(name, **_entry(maps))
    def protocol(
        model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, threshold: float = 0.05, reference: bool = False
    ) -> Columns:
        columns = _Explained(methods, batch, prepared, reference).checks([check], threshold)
        return {method: {"score": found[check][:, 0]} for method, found in columns.items()}

    protocol.__doc__ = f"Score {what}."


_register_check(
    "controlled_synthetic_data_check",
    "csdc",
    1,
    "the fraction of a minimal class-identifying set of parts that is important, see :func:`controlled_data`",
)
_register_check("preservation_check", "pc", 2, "whether the important parts alone keep the prediction, 0 or 1, see :func:`preservation`")
_register_check("deletion_check", "dc", 2, "whether the prediction changes without the important parts, 0 or 1, see :func:`deletion`")
_register_check(
    "distractibility",
    "distractibility",
    1,
    "one minus the fraction of parts and objects without influence that are important, see :func:`distraction`",
)


@register_protocol(**_entry(1))
def part_single_deletion(model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared) -> Columns:
    """Score the rank correlation between importances and the logit drops when each part is removed, see :func:`deletion_correlation`."""
    return {name: {"score": score} for name, score in _Explained(methods, batch, prepared, False).deletions().items()}


@register_protocol(**_entry(2))
def target_sensitivity(
    model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, reference: bool = False
) -> Columns:
    """Score whether the maps of two similar classes highlight the parts that each shares with the target, see :func:`sensitivity`."""
    return {name: {"score": score} for name, score in _Explained(methods, batch, prepared, reference).sensitivities().items()}


@register_protocol(**_entry(1, range=(-1, 1), source="Shapley, 1953; the parts of Hesse, Schaub-Meyer, Roth, ICCV 2023"))
def part_shapley_correlation(model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared) -> Columns:
    """Score Spearman's correlation between the importances and the exact Shapley values of the parts, see :func:`part_shapley`."""
    return {name: {"score": score} for name, score in _Explained(methods, batch, prepared, False).shapley().items()}


@register_protocol(**_entry(4))
def funnybirds(
    model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, threshold: float = 0.05, reference: bool = False
) -> Columns:
    """Score all FunnyBirds protocols at once; ``score`` is an image's mean of completeness, correctness and contrastivity.

    It is NaN if any term is undefined. For means over a data set, average the other columns term by term.

    Returns:
        By method name, with T = 80 thresholds:

        | column | shape | |
        |---|---|---|
        | ``score`` | (B,) | at ``threshold`` |
        | ``csdc``, ``pc``, ``dc``, ``distractibility`` | (B, T) | at each of :data:`THRESHOLDS` |
        | ``single_deletion``, ``target_sensitivity`` | (B,) | correctness, contrastivity |
        | ``shapley`` | (B,) | see :func:`part_shapley_correlation` |
        | ``importance`` | (B, P) | of the parts, for the target |
        | ``correct``, ``top5``, ``background_independence`` | (B,) | of the net; ``top5``: with five guesses |
        | ``objects`` | (B,) | number of background objects |
    """
    explained = _Explained(methods, batch, prepared, reference)
    names = ("csdc", "pc", "dc", "distractibility")
    checks = explained.checks(names, threshold, THRESHOLDS.tolist())
    deletions, shapley, sensitivities = explained.deletions(), explained.shapley(), explained.sensitivities()
    intact = target_logits(explained.logits, batch.targets)[:, -1]
    of_net = {
        "correct": accuracy(explained.logits, batch.targets),
        "top5": top5(explained.logits, batch.targets),
        "background_independence": background_independence(intact, explained.objects),
        "objects": (~explained.objects.isnan()).sum(dim=1),
    }
    columns = {}
    for name, found in checks.items():
        complete = completeness(*(found[check][:, -1] for check in names))
        columns[name] = {
            "score": (complete + deletions[name] + sensitivities[name]) / 3,
            **{check: found[check][:, :-1].float() for check in names},
            "single_deletion": deletions[name],
            "target_sensitivity": sensitivities[name],
            "shapley": shapley[name],
            "importance": explained.of("target", batch.targets)[name][0][:, : explained.number],
            **of_net,
        }
    return columns
