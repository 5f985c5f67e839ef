"""Sanity checks by randomising the model: a map that explains what the model has learned must change when that is destroyed.

Layers are randomised from the output to the input, one after another (``cascading``) or one group at a time (``independent``), and the
maps are compared with those of the intact model at each depth. Lower is better: a map that stays the same shows the image, not the
model. Compare with the controls: ``Edges`` and ``Center`` do not depend on the model and fail with similarity 1.

Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from idsds.common.numbers import as_whole
from idsds.common.randomness import generator
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Method, shared_maps, shared_passes
from idsds.models.base import frozen
from idsds.protocols.base import Batch, on_model, register_protocol
from idsds.protocols.similarity import spearman, structural_similarity
from idsds.protocols.single_deletion import centred_ranks, correlated

Mode = Literal["cascading", "independent"]
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spearman": spearman,
    "absolute": lambda first, second: spearman(first.abs(), second.abs()),
    "ssim": structural_similarity,
}


def layers_from_the_top(model: nn.Module) -> list[str]:
    """Return the names of the modules with parameters of their own, in reverse order of definition: the output layer comes first."""
    return [name for name, module in model.named_modules() if list(module.parameters(recurse=False))][::-1]


def randomise(model: nn.Module, layers: Sequence[str], seed: int = 0, share: bool = False) -> nn.Module:
    """Return a copy of the model with new random parameters in ``layers``.

    Each tensor gets normal numbers with its previous mean and standard deviation, keyed by seed and name, so that the signal keeps its
    magnitude; a tensor of equal values (a norm that was never trained) stays unchanged, and so do running statistics.

    Args:
        model: the intact net.
        layers: names of modules.
        seed: of the new parameters.
        share: whether the tensors of other layers are those of ``model`` itself, and not copies.
    """
    drawn = {id(p) for layer in layers for p in model.get_submodule(layer).parameters(recurse=False)}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if share and id(tensor) not in drawn}
    changed = copy.deepcopy(model, shared)
    with torch.no_grad():
        for layer in layers:
            for name, parameter in changed.get_submodule(layer).named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator(seed, "sanity check", layer, name)).to(parameter)
                deviation = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
                parameter.copy_(parameter.mean() + deviation * noise)
    return changed


def randomised_models(model: nn.Module, mode: Mode = "cascading", depths: int = 4, seed: int = 0) -> Iterator[nn.Module]:
    """Yield the model with more and more of its layers randomised, or with one group of layers after another.

    They share the tensors of the other layers with the model, and are for evaluation alone.

    Args:
        model: the intact net, which is not changed.
        mode: ``cascading``: the top 1/depths of the layers, then 2/depths, to all; ``independent``: each of these groups alone.
        depths: number of groups that the layers are divided into; if there are more groups than layers, some change nothing.
        seed: of the new parameters.

    Raises:
        UnknownNameError: for an unknown mode.
        ValueError: if ``depths`` is below 1, or the model has no parameters.
    """
    if mode not in get_args(Mode):
        raise UnknownNameError("mode", mode, get_args(Mode))
    as_whole("depths", depths)
    layers = layers_from_the_top(model)
    if not layers:
        raise ValueError("the model has no parameters to randomise")
    bounds = [depth * len(layers) // depths for depth in range(depths + 1)]
    for start, end in pairwise(bounds):
        yield randomise(model, layers[:end] if mode == "cascading" else layers[start:end], seed, share=True)


@register_protocol(
    "sanity_check",
    in_domain=False,
    higher_is_better=False,
    range=(0, 1),
    passes=lambda methods, *, depths=4, **_: shared_passes(methods).times(1 + depths),
    source="Adebayo et al., NeurIPS 2018",
)
def sanity_check(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: dict[str, Tensor],
    *,
    mode: Mode = "cascading",
    depths: int = 4,
    absolute: bool = False,
    ssim: bool = True,
) -> dict[str, dict[str, Tensor]]:
    """Score the similarity between maps of the intact and of randomised models, in [0, 1]; lower is better.

    ``score = mean over depths of |Spearman correlation over pixels|``: a map that only flips its sign still shows the same.
    Columns ``spearman_by_depth``, signed; ``absolute_by_depth`` (Spearman of absolute values) and ``ssim_by_depth``, (B, depths) each;
    SSIM takes the range of each pair of maps. A score is NaN if one of its correlations is. A method's own noise stays the same.

    Args:
        model: the intact net.
        methods: methods of the registry; a user's own method cannot be moved to another net.
        batch: images (B, 3, H, W), targets, ids.
        prepared: not used.
        mode, depths: see :func:`randomised_models`.
        absolute: compare absolute values, so that the sign of each pixel, and not only of the whole map, is ignored.
        ssim: whether to compute SSIM, which takes most of the time on small nets.

    Raises:
        ValueError: for a user's own method; and see :func:`randomised_models`.
    """
    kinds = [name for name in SIMILARITIES if ssim or name != "ssim"]
    found: dict[str, dict[str, list[Tensor]]] = {method.name: {name: [] for name in kinds} for method in methods}
    with frozen(model):
        intact = {name: _Compared(maps) for name, maps in maps_on(model, methods, batch, absolute).items()}
        for other in randomised_models(model, mode, depths, methods[0].seed):
            for name, maps in maps_on(other, methods, batch, absolute).items():
                for kind in kinds:
                    found[name][kind].append(intact[name].similarity(kind, maps))
    columns = {}
    for name, values in found.items():
        by_depth = {f"{kind}_by_depth": torch.stack(each, dim=1) for kind, each in values.items()}  # (B, depths)
        columns[name] = {"score": by_depth["spearman_by_depth"].abs().mean(dim=1), **by_depth}
    return columns


class _Compared:
    """Maps (B, 1, H, W) that others are compared with one after the other: their pixels are ranked once."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        self.ranks: dict[str, Tensor] = {}

    def similarity(self, kind: str, others: Tensor) -> Tensor:
        """Return what :data:`SIMILARITIES` would, (B,)."""
        if kind == "ssim":
            return SIMILARITIES[kind](self.maps, others)
        first, second = (maps.flatten(1).abs() if kind == "absolute" else maps.flatten(1) for maps in (self.maps, others))
        if kind not in self.ranks:
            self.ranks[kind] = centred_ranks(first)
        return correlated(self.ranks[kind], centred_ranks(second))


def compare_models(model: nn.Module, other: nn.Module, methods: Sequence[Method], batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Compare the maps of two nets, such as one trained on true and one on permuted labels, per image; lower is better.

    The label randomisation test: a net that has memorised permuted labels has learned nothing that explains a class. A map that
    stays the same for it does not show what the other net has learned.

    Args:
        model: the net of the methods.
        other: the net to compare with.
        methods: methods of the registry on ``model``; a user's own method cannot be moved to another net.
        batch: images (B, 3, H, W), targets, ids.

    Returns:
        For each method's name the columns ``spearman``, ``absolute`` (Spearman of absolute values) and ``ssim``, (B,) each.
    """
    with frozen(model), frozen(other):
        first, second = maps_on(model, methods, batch), maps_on(other, methods, batch)
    return {name: {kind: similarity(maps, second[name]) for kind, similarity in SIMILARITIES.items()} for name, maps in first.items()}


def maps_on(net: nn.Module, methods: Sequence[Method], batch: Batch, absolute: bool = False) -> dict[str, Tensor]:
    """Return the maps of the methods moved to ``net``, (B, 1, H, W) each, or their absolute values."""
    maps = shared_maps([on_model(method, net) for method in methods], batch.images, batch.targets, batch.image_ids)
    return {name: found.abs() for name, found in maps.items()} if absolute else maps
