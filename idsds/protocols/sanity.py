"""Sanity checks by model randomisation: a map that explains what the model has learned must change when that is destroyed.

Layers are randomised from output to input, cumulatively (``cascading``) or one group at a time (``independent``), and at each depth the
maps are compared with the intact model's. Lower is better: a map that stays the same shows the image, not the model. Compare with the
controls: ``Edges`` and ``Center`` do not depend on the model and fail with similarity 1.

Variants: the smooth and the efficient check, and comparison with another class's map.

Sources: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292); Hedström, Weber, Lapuschkin, Höhne, "Sanity
Checks Revisited: An Exploration to Repair the Model Parameter Randomisation Test", 2023 (arXiv 2401.06465); Sixt, Granz, Landgraf, "When
Explanations Lie: Why Many Modified BP Attributions Fail", ICML 2020 (arXiv 1912.09818).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.common.numbers import as_whole
from idsds.common.randomness import Draws, generator
from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_passes
from idsds.methods.maps import Channels
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, on_model, register_protocol
from idsds.protocols.similarity import DataRange, maps_to_compare, range_of, structural_similarity
from idsds.protocols.single_deletion import centred_ranks, correlated

Mode = Literal["cascading", "independent"]
SIMILARITIES = ("spearman", "absolute", "ssim")  # absolute: Spearman of absolute values


def layers_from_the_top(model: nn.Module) -> list[str]:
    """Return the names of modules with parameters of their own in reverse order of definition, output layer first."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))][::-1]


def randomise(model: nn.Module, layers: Sequence[str], seed: int = 0) -> nn.Module:
    """Return a copy of the model with new random parameters in ``layers``, which shares the other layers' tensors; for evaluation only.

    Each tensor is redrawn from a normal distribution with its own mean and standard deviation, keyed by seed and name, so that
    activations keep their magnitude. Constant tensors (an untrained norm) and running statistics stay unchanged.
    """
    drawn = {id(p) for layer in layers for p in model.get_submodule(layer).parameters(recurse=False)}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in drawn}
    changed = copy.deepcopy(model, shared)
    with torch.no_grad():
        for layer in layers:
            for name, parameter in changed.get_submodule(layer).named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator(seed, "sanity check", layer, name)).to(parameter)
                deviation = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
                parameter.copy_(parameter.mean() + deviation * noise)
    return changed


def randomised_models(model: nn.Module, mode: Mode = "cascading", depths: int = 4, seed: int = 0) -> Iterator[nn.Module]:
    """Yield models with more and more layers randomised, or with one group of layers after another, see :func:`randomise`.

    Args:
        mode: ``cascading``, the top 1/depths of the layers, then 2/depths, up to all; ``independent``, each of these groups alone.
        depths: number of groups that the layers are divided into; surplus groups are empty.

    Raises:
        UnknownNameError: for an unknown mode.
        ValueError: if ``depths`` is below 1, or the model has no parameters.
    """
    check_name("mode", mode, get_args(Mode))
    as_whole("depths", depths)
    layers = layers_from_the_top(model)
    if not layers:
        raise ValueError("the model has no parameters to randomise")
    bounds = [depth * len(layers) // depths for depth in range(depths + 1)]
    for start, end in pairwise(bounds):
        yield randomise(model, layers[:end] if mode == "cascading" else layers[start:end], seed)


@register_protocol(
    higher_is_better=False,
    range=(0, 1),
    passes=lambda methods, *, depths=4, **_: shared_passes(methods).times(1 + depths),
    asks="dependent",
    source="Adebayo et al., NeurIPS 2018",
)
def sanity_check(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    mode: Mode = "cascading",
    depths: int = 4,
    absolute: bool = False,
    ssim: bool = True,
    data_range: DataRange = None,
    channels: Channels = "summed",
) -> Columns:
    """Score the similarity between maps of the intact and of randomised models, in [0, 1]; lower is better.

    ``score = mean over depths of |Spearman correlation over pixels|``: a map that only flips its sign still shows the same thing. Columns
    ``spearman_by_depth``, signed; ``absolute_by_depth`` (Spearman of absolute values) and ``ssim_by_depth``, (B, depths) each. A score is
    NaN if one of its correlations is. A method's own noise stays the same.

    Args:
        mode, depths: see :func:`randomised_models`.
        absolute: compare absolute values, which ignores each pixel's sign, not only that of the whole map.
        ssim: whether to compute SSIM, which takes most of the time on small nets.
        data_range: of SSIM: one number, one by method, or None for the range of each pair of maps.
        channels: SSIM of the maps' sum over channels, or, with ``each``, of each channel, averaged.

    Raises:
        ValueError: for a user's own method; and see :func:`randomised_models`.
    """
    kinds = [name for name in SIMILARITIES if ssim or name != "ssim"]
    others = randomised_models(model, mode, depths, methods[0].seed)
    found = _by_depth(model, lambda net: maps_on(net, methods, batch, channels), others, kinds, absolute=absolute, data_range=data_range)
    columns = {}
    for name, values in found.items():
        by_depth = {f"{kind}_by_depth": each for kind, each in values.items()}  # (B, depths)
        columns[name] = {"score": by_depth["spearman_by_depth"].abs().mean(dim=1), **by_depth}
    return columns


def _by_depth(
    model: nn.Module,
    explain: Callable[[nn.Module], dict[str, Tensor]],
    others: Iterable[nn.Module],
    kinds: Sequence[str],
    *,
    absolute: bool = False,
    data_range: DataRange = None,
) -> Columns:
    """Return by method and kind the similarity of a net's maps to those of other nets, (B, others)."""
    with frozen(model):
        intact = {name: _Compared(maps, absolute, range_of(data_range, name)) for name, maps in explain(model).items()}
        found: dict[str, dict[str, list[Tensor]]] = {name: {kind: [] for kind in kinds} for name in intact}
        for other in others:
            for name, maps in explain(other).items():
                for kind in kinds:
                    found[name][kind].append(intact[name].similarity(kind, maps))
    return {name: {kind: torch.stack(each, dim=1) for kind, each in values.items()} for name, values in found.items()}


@register_protocol(
    higher_is_better=False,
    range=(0, 1),
    passes=lambda methods, *, depths=4, samples=8, **_: shared_passes(methods).times((1 + depths) * samples),
    asks="dependent",
    source="Hedström et al., 2023 (arXiv 2401.06465)",
)
def smooth_mprt(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    mode: Mode = "cascading",
    depths: int = 4,
    samples: int = 8,
    sigma: float = 0.2,
) -> Columns:
    """Score like :func:`sanity_check`, but with maps averaged over noisy copies of the image, in [0, 1]; lower is better.

    Averaging removes noise, so a map cannot pass by being noisy (the smooth MPRT; the paper uses SSIM, here it is the rank correlation of
    ``sanity_check``). Columns ``score`` and ``spearman_by_depth`` (B, depths).

    Args:
        mode, depths: see :func:`randomised_models`.
        samples: noisy copies of each image, keyed by its id; all keep the id, so that a method's own noise is the same for them.
        sigma: standard deviation of the noise, as a fraction of the image's range.

    Raises:
        ValueError: if ``samples`` is below 1 or ``sigma`` is not above 0, and as for :func:`sanity_check`.
    """
    as_whole("samples", samples)
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, not {sigma!r}")
    images = batch.images
    span = (images.flatten(1).amax(dim=1) - images.flatten(1).amin(dim=1)).view(-1, 1, 1, 1, 1)
    noise = sigma * span * Draws(methods[0].seed, "smooth mprt", images, batch.image_ids).normal(samples)  # (B, S, C, H, W)
    ids = [image_id for image_id in batch.image_ids for _ in range(samples)]
    copies = replace(batch, images=(images[:, None] + noise).flatten(0, 1), targets=batch.targets.repeat_interleave(samples), image_ids=ids)

    def explain(net: nn.Module) -> dict[str, Tensor]:
        return {name: maps.unflatten(0, (-1, samples)).mean(dim=1) for name, maps in maps_on(net, methods, copies).items()}

    found = _by_depth(model, explain, randomised_models(model, mode, depths, methods[0].seed), ["spearman"])
    return {name: {"score": each["spearman"].abs().mean(dim=1), "spearman_by_depth": each["spearman"]} for name, each in found.items()}


@register_protocol(
    higher_is_better=True,
    range=(-1, float("inf")),
    passes=lambda methods, **_: shared_passes(methods).times(2),
    asks="dependent",
    source="Hedström et al., 2023 (arXiv 2401.06465)",
)
def efficient_mprt(model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, bins: int = 100) -> Columns:
    """Score the relative increase in complexity from the intact net's maps to a fully randomised net's; higher is better.

    ``score = (H(random) - H(intact)) / H(intact)``, H the :func:`histogram_entropy`. A map that stays the same scores 0; a map with all
    pixels in one bin scores NaN. Columns ``score``, ``intact`` and ``random``, in nats.

    Args:
        bins: number of bins of a map's histogram, over its own range; at least 2.
    """
    as_whole("bins", bins, least=2)
    columns = {}
    with frozen(model):
        first = maps_on(model, methods, batch)
        (other,) = randomised_models(model, "cascading", 1, methods[0].seed)
        for name, maps in maps_on(other, methods, batch).items():
            intact, random = histogram_entropy(first[name], bins), histogram_entropy(maps, bins)
            columns[name] = {"score": (random - intact) / intact.masked_fill(intact == 0, torch.nan), "intact": intact, "random": random}
    return columns


def histogram_entropy(maps: Tensor, bins: int) -> Tensor:
    """Return the entropy of the histogram of each map's values over its own range, (B,) in nats; NaN for values that are not finite."""
    values = maps.flatten(1).double()
    undefined = ~values.isfinite().all(dim=1)
    values = values.masked_fill(undefined[:, None], 0)
    low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    place = ((values - low) / (high - low).masked_fill(high == low, 1) * bins).long().clamp(max=bins - 1)
    share = torch.zeros(len(values), bins, dtype=values.dtype, device=values.device).scatter_add_(1, place, torch.ones_like(values))
    return torch.special.entr(share / values.shape[1]).sum(dim=1).masked_fill(undefined, torch.nan)


def other_classes(model: nn.Module, batch: Batch, *, seed: int = 0, **_: object) -> dict[str, Tensor]:
    """Draw for each image another class than its target, ``other`` (B,), keyed by its id.

    Raises:
        ValueError: if the model has a single class.
    """
    with torch.inference_mode(), frozen(model):
        classes = in_batches(model, batch.images, size=default_batch(batch.images)).shape[1]
    if classes < 2:
        raise ValueError("random_logit compares the maps of two classes, and the model has one")
    steps = [int(torch.randint(1, classes, (), generator=generator(seed, "random logit", image_id))) for image_id in batch.image_ids]
    return {"other": (batch.targets + torch.tensor(steps, device=batch.targets.device)) % classes}


@register_protocol(
    higher_is_better=False,
    range=(-1, 1),
    prepare=other_classes,
    prepare_passes=lambda **_: Passes(1),
    passes=lambda methods, **_: shared_passes(methods).times(2),
    asks="dependent",
    source="Sixt, Granz, Landgraf, ICML 2020 (arXiv 1912.09818)",
)
def random_logit(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    similarity: str = "ssim",
    data_range: DataRange = None,
    channels: Channels = "summed",
) -> Columns:
    """Score the similarity between the maps for the target and for another class, in [-1, 1]; lower is better.

    A map that is the same for every class does not explain the class.

    Args:
        similarity: ``ssim`` as in the paper, ``spearman``, or ``absolute``.
        data_range, channels: see :func:`sanity_check`.

    Raises:
        UnknownNameError: for an unknown similarity.
    """
    check_name("similarity", similarity, SIMILARITIES)
    first = maps_to_compare(methods, batch.images, batch.targets, batch.image_ids, channels)
    other = maps_to_compare(methods, batch.images, prepared["other"], batch.image_ids, channels)
    return {
        name: {"score": _Compared(maps, data_range=range_of(data_range, name)).similarity(similarity, other[name])}
        for name, maps in first.items()
    }


class _Compared:
    """Maps (B, C, H, W), or their absolute values, to compare others with; the pixels of their sum over channels are ranked once."""

    def __init__(self, maps: Tensor, absolute: bool = False, data_range: float | None = None) -> None:
        self.maps, self.absolute, self.data_range = maps, absolute, data_range
        self.ranks: dict[str, Tensor] = {}

    def similarity(self, kind: str, others: Tensor) -> Tensor:
        """Return one of :data:`SIMILARITIES`, (B,)."""
        both = self.maps, others
        if kind == "ssim":
            first, second = (maps.abs() for maps in both) if self.absolute else both
            return structural_similarity(first, second, self.data_range)
        first, second = (maps.sum(dim=1).flatten(1) for maps in both)
        first, second = (first.abs(), second.abs()) if self.absolute or kind == "absolute" else (first, second)
        if kind not in self.ranks:
            self.ranks[kind] = centred_ranks(first)
        return correlated(self.ranks[kind], centred_ranks(second))


def compare_models(model: nn.Module, other: nn.Module, methods: Sequence[Method], batch: Batch) -> Columns:
    """Compare the maps of two nets per image, for example one trained on true and one on permuted labels; lower is better.

    The label randomisation test: a net that has memorised permuted labels has learned nothing that explains a class. A map that is the
    same for both nets does not show what the first has learned.

    Args:
        model: the net of the methods.
        other: the net to compare with.
        methods: methods of the registry on ``model``; a user's own method cannot be moved to another net.

    Returns:
        For each method's name the columns ``spearman``, ``absolute`` (Spearman of absolute values) and ``ssim``, (B,) each.
    """
    found = _by_depth(model, lambda net: maps_on(net, methods, batch), [other], SIMILARITIES)
    return {name: {kind: each[:, 0] for kind, each in values.items()} for name, values in found.items()}


def maps_on(net: nn.Module, methods: Sequence[Method], batch: Batch, channels: Channels = "summed") -> dict[str, Tensor]:
    """Return the maps of the methods applied to ``net``, (B, 1, H, W) each, or with the channels that each method gives."""
    return maps_to_compare([on_model(method, net) for method in methods], batch.images, batch.targets, batch.image_ids, channels)
