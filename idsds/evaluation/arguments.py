"""Turn the arguments of ``evaluate`` into a plan: look up every name and check every number before any work."""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from idsds.common.devices import PRECISIONS, check_precision, chosen_device
from idsds.common.hashing import OwnImages, own_digest
from idsds.common.interventions import BASELINES, on_grid, shifted
from idsds.common.normalisation import as_normalisation
from idsds.common.numbers import as_whole, plain
from idsds.common.registry import UnknownNameError, check_name, check_names
from idsds.datasets import DATASETS, as_image_dataset, fixed_order
from idsds.datasets.base import SPLITS, ImageDataset
from idsds.datasets.decoded import Decoded
from idsds.evaluation.checks import doubt, missed, not_in_domain, unexplained, unfit
from idsds.evaluation.job import Job, Methods, make_method, named_dataset, registered
from idsds.evaluation.nets import skeleton, source_of
from idsds.evaluation.plan import Plan, Target
from idsds.methods import METHODS, Method, Passes, split_name
from idsds.methods.binding import bound_elsewhere
from idsds.methods.own import as_stored
from idsds.models import MODELS
from idsds.models.inspection import Facts, as_net, examined, two_images
from idsds.models.quantity import as_quantity
from idsds.protocols import PROTOCOLS, ProtocolEntry
from idsds.training.checkpoints import Stage

#: Number of images if none is set.
DEFAULT_IMAGES = 200
SAME_NET = (
    "model {!r} is one net, the same for every seed: the seeds change random numbers alone, and an interval over training seeds does not "
    "cover its training"
)


@dataclass(frozen=True)
class Arguments:
    """The arguments of :func:`idsds.evaluate` that a plan depends on; they are documented there.

    Args:
        settings: the protocol's settings, including grid and baseline.
        elsewhere: whether the work is done on a cluster, whose device is not known yet.
    """

    models: Sequence[str] | Mapping[str, nn.Module | Stage]
    methods: Sequence[str] | Methods
    dataset: str | Dataset = "mnist5k"
    protocol: str = "idsds"
    images: int | None = None
    seeds: Sequence[int] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Mapping[str, str | Path] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "32-true"
    batch_size: int | None = None
    shard: int = 256
    split: str = "test"
    channels_last: bool = True
    compiled: bool = False
    workers: int | None = None
    target: Target = "label"
    quantity: Any = None
    elsewhere: bool = False
    normalisation: Any = None


def make_plan(arguments: Arguments) -> Plan:
    """Resolve and check the arguments of ``evaluate``. Raises before any work is done; see :func:`idsds.evaluate`."""
    entry = PROTOCOLS[arguments.protocol]
    if entry.level != "image":
        raise ValueError(f"protocol {arguments.protocol!r} scores a method over a whole data set, not image by image: call {entry.call}")
    check_name("target", arguments.target, get_args(Target))
    quantity = None if arguments.quantity is None else as_quantity(arguments.quantity)
    check_name("precision", arguments.precision, PRECISIONS)
    as_normalisation(arguments.normalisation)
    if isinstance(arguments.dataset, str):
        DATASETS[arguments.dataset]
        check_name(f"split of {arguments.dataset!r}", arguments.split, SPLITS)
    settings = protocol_settings(entry, arguments.settings)
    if quantity is not None and "quantity" in settings:
        settings["quantity"] = "logit"  # the net already returns the quantity
    numbers = {name: getattr(arguments, name) for name in ("images", "batch_size", "shard")}
    numbers = {name: number if number is None else as_whole(name, number) for name, number in numbers.items()}
    arguments = replace(arguments, quantity=quantity, device=chosen_device(arguments.device).type, **numbers)
    if not arguments.elsewhere:
        check_precision(arguments.precision, arguments.device)
    nets = {name: as_net(name, net) for name, net in _as_mapping("models", arguments.models, MODELS).items()}
    methods = {name: as_stored(name, thing) for name, thing in _as_mapping("methods", arguments.methods, None).items()}
    dataset, own_images, size = _data(arguments, nets)
    arguments = replace(arguments, dataset=dataset)
    if "grid" in settings:
        settings["grid"] = _checked_grid(entry, settings, size[1:])
    check_names("model with a checkpoint", arguments.checkpoints, nets)
    look = _Look(replace(arguments, models=nets, methods=methods, settings=settings), entry, size, own_images)
    jobs = tuple(look.job(name, net, seed) for seed in arguments.seeds for name, net in nets.items())
    if left_out := [name for name in methods if not any(name in job.methods for job in jobs)]:
        raise ValueError(f"method {left_out[0]!r} applies to none of the models: {jobs[0].excluded[left_out[0]]}")
    if entry.parts and any(getattr(job.dataset, "parts", None) is None for job in jobs):
        raise ValueError(f"protocol {entry.name!r} removes known parts, which this data set lacks: use 'funnybirds' or 'sprites'")
    if arguments.images is not None and arguments.images > (available := max(len(job.dataset) for job in jobs)):
        raise ValueError(f"images={arguments.images}, but this split has {available}")
    return Plan(
        jobs=jobs,
        protocol=entry,
        settings=settings,
        dataset=arguments.dataset if isinstance(arguments.dataset, str) else getattr(arguments.dataset, "name", "own"),
        device=arguments.device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        shard=arguments.shard,
        channels_last=arguments.channels_last,
        compiled=arguments.compiled,
        workers=_workers(arguments),
        target=arguments.target,
        quantity=None if quantity is None or quantity.kind == "logit" else quantity,
        notes=tuple(look.notes),
    )


def _data(arguments: Arguments, nets: Mapping[str, Any]) -> tuple[str | Dataset, OwnImages | None, Sequence[int]]:
    """Return the data set, what is known of its images if it is the user's, and the images' C, H and W."""
    if isinstance(arguments.dataset, str):
        if arguments.normalisation is not None and (named := [name for name, net in nets.items() if not isinstance(net, nn.Module)]):
            raise ValueError(f"normalisation={arguments.normalisation!r} contradicts model {named[0]!r}, which has one of its own")
        return arguments.dataset, None, (3, *(DATASETS[arguments.dataset].image_size,) * 2)
    labels = arguments.target == "label"
    dataset = as_image_dataset(arguments.dataset, labels=labels, normalisation=arguments.normalisation, fixed=True)
    decoded = Decoded(dataset)
    size = two_images(dataset, range(len(dataset))).shape[-3:]
    # The package's own data sets give ids and targets without loading images.
    return dataset if isinstance(dataset, ImageDataset) else decoded, OwnImages(decoded), size


def _workers(arguments: Arguments) -> int:
    """Return the number of loader processes. A user's data set may not work in another process, so there the default is none."""
    if arguments.workers is not None:
        return as_whole("workers", arguments.workers, least=0)
    return min(8, os.cpu_count() or 1) if arguments.device == "cuda" and isinstance(arguments.dataset, str) else 0


class _Look:
    """Makes the jobs; each of the user's nets is inspected once, whatever the number of seeds."""

    def __init__(self, arguments: Arguments, entry: ProtocolEntry, size: Sequence[int], own_images: OwnImages | None) -> None:
        self.arguments, self.entry, self.size, self.own_images = arguments, entry, size, own_images
        self.keys = {name: own_digest(thing) for name, thing in arguments.methods.items() if thing is not None}  # type: ignore[union-attr]
        self.own = {name: net for name, net in arguments.models.items() if isinstance(net, nn.Module)}  # type: ignore[union-attr]
        self.known: dict[str, tuple[Facts, dict[str, str]]] = {}
        self.notes: dict[str, None] = {}

    def _check_view(self, name: str, side: int) -> None:
        """Raise ValueError if a grid does not divide a library net's input size; the message suggests sizes that work."""
        settings = self.arguments.settings
        try:
            _checked_grid(self.entry, settings, (side, side))
        except ValueError as error:
            patch, home = MODELS[name].patch, name.partition("@")[0]
            step = math.lcm(patch, *np.atleast_1d(settings["grid"]).tolist())
            sizes = [f"'{home}@{size}'" for size in (side // step * step, (side // step + 1) * step) if size]
            fitting = f", a multiple of its patches of {patch} pixels" if patch > 1 else ""
            raise ValueError(f"{error}. {name!r} takes images of {side}; name another size{fitting}: {' or '.join(sizes)}") from None

    def job(self, name: str, net: nn.Module | Stage | None, seed: int) -> Job:
        arguments, dataset, settings = self.arguments, self.arguments.dataset, self.arguments.settings
        methods = _for_model(arguments.methods, name, list(arguments.models))
        source = source_of(name, net, dataset, self.entry, seed, arguments.checkpoints, arguments.device, arguments.precision, settings)
        trained = net is None and isinstance(source, Stage) and source.recipe
        if len(arguments.seeds) > 1 and not trained and self.entry.asks != "dependent":  # there a seed draws new weights
            self.notes |= {SAME_NET.format(name): None}
        built = net.model if isinstance(net, Stage) else name if net is None else None  # its name in the registry, if any
        space = MODELS[built].normalisation if built else as_normalisation(arguments.normalisation)
        where = (dataset, arguments.split, space, MODELS[built].view if built else None) if isinstance(dataset, str) else dataset
        data = named_dataset(*where) if isinstance(where, tuple) else where
        view = getattr(data, "view", None)  # the model's input may differ from the data set's size
        size = self.size if view is None else (3, view[0], view[0])
        if view is not None and "grid" in settings:
            self._check_view(built, view[0])
        ids = data.image_ids if isinstance(data, ImageDataset) else [str(index) for index in range(len(data))]
        indices = tuple(fixed_order(ids)[: arguments.images or DEFAULT_IMAGES])
        fitting, excluded, bound = _applicable(methods, skeleton(built) if built else net, seed, self.own.values())
        if name in self.own:
            bound |= {m: reason for m, reason in self._unfit(name, fitting, methods, data, indices).items() if m in fitting}
            fitting = {m: method for m, method in fitting.items() if m not in bound}
            self.notes |= dict.fromkeys(filter(None, (why(m, methods[m], name, net) for m in fitting for why in (doubt, missed))))
        self.notes |= dict.fromkeys(f"method {m!r} is left out for model {name!r}: {reason}" for m, reason in bound.items())
        if arguments.quantity is not None:
            excluded |= unexplained(arguments.quantity, fitting, methods)
            fitting = {m: method for m, method in fitting.items() if m not in excluded}
        groups, passes = _groups(fitting, self.entry, settings)
        return Job(
            model=name,
            seed=seed,
            source=source,
            wanted=methods,
            methods={method: methods[method] for method in fitting},
            excluded=excluded | bound,
            data=where,
            indices=indices,
            groups=groups,
            passes=passes,
            families={method: made.entry.family for method, made in fitting.items()},
            queried={method: on_grid(made.entry.queries(**made.options), size) for method, made in fitting.items()},
            own_keys=self.keys,
            own_images=self.own_images,
            facts=self.known[name][0] if name in self.own else None,
        )

    def _unfit(
        self, name: str, fitting: Mapping[str, Method], methods: Mapping[str, Any], data: Dataset, indices: Sequence[int]
    ) -> dict[str, str]:
        """Return the methods that do not apply to a user's net, with the reason, found by running two images."""
        arguments, net, settings = self.arguments, self.own[name], self.arguments.settings
        if name not in self.known:
            pair = two_images(data, indices)
            facts = examined(name, net, pair, arguments.device, arguments.channels_last)
            if facts.kind == "probabilities" and "probability" in (getattr(arguments.quantity, "kind", None), settings.get("quantity")):
                raise ValueError(f"quantity='probability' is the softmax of logits, but model {name!r} returns probabilities: leave it out")
            self.known[name] = facts, unfit(fitting, methods, facts, net, pair, arguments.device)
            self.notes |= dict.fromkeys([*facts.notes, *filter(None, [not_in_domain(name, net, self.entry, arguments.settings)])])
        return self.known[name][1]


def _for_model(methods: Mapping[str, Any], model: str, models: Sequence[str]) -> dict[str, Any]:
    """Return the methods for one model; an option ``layer`` that maps models to layers is replaced by the model's layer.

    Raises UnknownNameError for a model that is not evaluated.
    """
    resolved = dict(methods)
    for name, value in methods.items():
        options = value[1] if isinstance(value, tuple) and len(value) == 2 else None
        if isinstance(options, Mapping) and isinstance(layers := options.get("layer"), Mapping):
            check_names(f"model with a layer of {name!r}", layers, models)
            rest = {key: option for key, option in options.items() if key != "layer"}
            resolved[name] = (value[0], rest | ({"layer": layers[model]} if model in layers else {}))
    return resolved


def protocol_settings(entry: ProtocolEntry, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol's settings, completed by its defaults. Raises UnknownNameError for an unknown setting."""
    known: dict[str, Any] = {}
    for function in (entry.prepare, entry.function):
        for parameter in inspect.signature(function).parameters.values() if function else ():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "seed":
                known.setdefault(parameter.name, parameter.default)
    for name in settings:
        if name not in known and name not in ("grid", "baseline"):
            raise UnknownNameError(f"setting of protocol {entry.name!r}", name, known)
    if "baseline" in known:
        BASELINES[settings.get("baseline", known["baseline"])]
    return {**known, **{name: plain(value) for name, value in settings.items() if name in known}}


def _checked_grid(entry: ProtocolEntry, settings: Mapping[str, Any], sides: Sequence[int]) -> Any:
    """Return one grid as a number, several as a tuple.

    Raises ValueError if a grid does not divide the image, is moved by a patch or more, or if several are not allowed.
    """
    several = isinstance(settings["grid"], (list, tuple, range, np.ndarray))
    grids = [plain(each) for each in settings["grid"]] if several else [settings["grid"]]
    if several and entry.prepare is None:
        raise ValueError(f"protocol {entry.name!r} takes one grid, not {grids}: its maps depend on the grid")
    if several and len(set(grids)) < max(1, len(grids)):
        raise ValueError(f"grid must be a number or a list of different numbers, not {grids}")
    for grid in grids:
        shifted(*sides, grid, settings.get("offset", 0))
    return tuple(grids) if len(grids) > 1 else grids[0]


def _as_mapping(what: str, things: Any, registry: Any) -> dict[str, Any]:
    """Return a list of names as a mapping from name to None, and a mapping unchanged."""
    if isinstance(things, str) or not isinstance(things, Iterable):
        raise TypeError(f"{what} must be a list of names or a mapping from name to {what[:-1]}, not {things!r}")
    mapping = dict(things) if isinstance(things, Mapping) else dict.fromkeys(things)
    if not mapping:
        raise ValueError(f"{what} is empty")
    if not isinstance(things, Mapping) and len(mapping) < len(list(things)):
        raise ValueError(f"{what} lists a name more than once: {list(things)}")
    for name, thing in mapping.items():
        if not isinstance(name, str):
            raise TypeError(f"{what} must be named by strings, not by {name!r}")
        if thing is None and registry is not None:
            registry[name]
        elif what == "methods" and (known := registered(name, thing)) is not None:
            split_name(known[0])
        elif what == "models" and not isinstance(thing, (nn.Module, Stage)):
            raise TypeError(f"model {name!r} must be a torch.nn.Module, not {type(thing).__name__}")
    return mapping


def _applicable(
    methods: Methods, model: nn.Module, seed: int, judged: Iterable[nn.Module]
) -> tuple[dict[str, Method], dict[str, str], dict[str, str]]:
    """Return the methods that apply to a model, why others never apply, and why others do not with these options (worth a warning)."""
    fitting, excluded, bound = {}, {}, {}
    for name, value in methods.items():
        known = registered(name, value)
        unasked = bound_elsewhere(value, model, judged) if known is None else _no_layer(model, known[1].get("layer"))
        if known is not None and (reason := METHODS[split_name(known[0])[0]].inapplicable(model)):
            excluded[name] = reason
        elif unasked:
            bound[name] = unasked
        else:
            fitting[name] = make_method(name, value, model, seed)
    return fitting, excluded, bound


def _no_layer(model: nn.Module, layer: object) -> str | None:
    """Return why the layer named by an option cannot be read; None if it can, or if no layer is named."""
    modules = [name for name, _ in model.named_modules() if name]
    return None if layer is None or layer in modules else str(UnknownNameError("layer", layer, modules))


def _groups(
    methods: Mapping[str, Method], entry: ProtocolEntry, settings: Mapping[str, Any]
) -> tuple[tuple[tuple[str, ...], ...], tuple[Passes | None, ...]]:
    """Return the groups of methods that share a computation, and the passes per image of each (None if unknown)."""
    groups: dict[Any, list[Method]] = {}
    for method in methods.values():
        groups.setdefault(method.computation, []).append(method)
    one = {**settings, "grid": settings["grid"][0]} if isinstance(settings.get("grid"), tuple) else settings  # the maps serve all grids
    passes = [None if members[0].entry.passes is None else entry.passes(members, **one) for members in groups.values()]
    return tuple(tuple(method.name for method in members) for members in groups.values()), tuple(passes)


def as_seeds(seed: int | Sequence[int]) -> list[int]:
    """Return one or several seeds as a list. Raises TypeError or ValueError for an empty list, duplicates and non-integers."""
    seed = plain(seed)
    try:
        seeds = [as_whole("seed", each, least=None) for each in ([seed] if isinstance(seed, (int, float, str)) else seed)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"seed must be a whole number or a list of them, not {seed!r}") from error
    if not seeds:
        raise ValueError("seed is empty: name at least one")
    if twice := [each for each, count in Counter(seeds).items() if count > 1]:
        raise ValueError(f"seed lists {twice[0]} more than once")
    return seeds
