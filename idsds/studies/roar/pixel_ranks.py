"""The rank of each pixel in a method's map of every image of a data set, computed once, on disk and memory-mapped.

Retraining reads the map of an image thousands of times, and only the order of its pixels. So only ranks are stored: 16 bits per
pixel (32 beyond 65,536 pixels), 0.1 MB for an image of 224 x 224. A folder's name is a hash of everything that determines its content.
Each of its files, a shard of images, is complete or absent: a killed run resumes at its current shard, and several processes may
work on one data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common import paths
from idsds.common.batching import default_batch
from idsds.common.files import DamagedFileError, atomic, read_json, write_json
from idsds.common.hashing import code_digest, digest, own_digest, versions
from idsds.common.progress import Progress
from idsds.datasets.base import ImageDataset, fingerprint
from idsds.evaluation.trial import tried
from idsds.methods.base import METHODS, Method, shared_maps, shared_passes, split_name
from idsds.protocols import Batch
from idsds.protocols.roar import pixel_ranks, unordered
from idsds.training.loop import batches

Target = Literal["prediction", "label"]
SHARD = 1024  # images per file


@dataclass
class PixelRanks:
    """The ranks of one method on one data set."""

    key: str
    count: int
    height: int
    width: int
    _open: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return paths.cache() / "ranks" / self.key

    @property
    def shards(self) -> range:
        """The first image of each file."""
        return range(0, self.count, SHARD)

    def file(self, start: int) -> Path:
        """The file of the images from ``start`` on: (images, H, W)."""
        return self.folder / f"{start:08d}.npy"

    @property
    def missing(self) -> list[int]:
        """The missing shards."""
        return [start for start in self.shards if not self.file(start).is_file()]

    def write(self, start: int, ranks: Tensor, undefined: int, constant: int) -> None:
        """Store one shard: ranks (images, 1, H, W), and how many of its maps have no order."""
        kind = np.uint16 if self.height * self.width <= 2**16 else np.uint32
        # The counts first, so that they exist wherever the ranks do.
        write_json(self.file(start).with_suffix(".json"), {"undefined": undefined, "constant": constant})
        with atomic(self.file(start)) as partial, open(partial, "wb") as file:
            np.save(file, ranks[:, 0].cpu().numpy().astype(kind))

    def __getitem__(self, index: int) -> Tensor:
        """The ranks of one image, (1, H, W) int64."""
        start = index // SHARD * SHARD
        if start not in self._open:
            try:
                self._open[start] = np.load(self.file(start), mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DamagedFileError(
                    f"cannot read the ranks in {str(self.file(start))!r}: {error}; delete it and it is computed again"
                ) from error
            wanted = (min(SHARD, self.count - start), self.height, self.width)
            if self._open[start].shape != wanted:
                raise DamagedFileError(f"{str(self.file(start))!r} holds {self._open[start].shape}, not {wanted}; remove it")
        return torch.from_numpy(self._open[start][index - start].astype(np.int64))[None]

    def __getstate__(self) -> dict:
        """Return the state for loader processes, each of which opens the files itself."""
        return {**self.__dict__, "_open": {}}

    def counts(self) -> tuple[int, int]:
        """Return the numbers of maps, over all images, with a non-finite value and with a constant one."""
        found = [read_json(self.file(start).with_suffix(".json")) for start in self.shards]
        return sum(each["undefined"] for each in found), sum(each["constant"] for each in found)


def ranks_of(method: str, model_key: str, dataset: ImageDataset, *, seed: int, target: Target, device: str) -> PixelRanks:
    """Return where a method's ranks on a data set are, or will be.

    Args:
        model_key: the address of the net that is explained.
        seed: of the method's noise and of the order of equal pixels.
        target: what is explained: the net's own ``prediction``, or the ``label``, which leaks the class of a test image to a retrained net.
        device: its kind; rounding differs between them.
    """
    base, transform = split_name(method)
    entry = METHODS[base]
    found = versions()
    content = {
        "model": model_key,
        "data": fingerprint(dataset),
        "method": [code_digest(entry.function), own_digest(entry.settings()), entry.noise, entry.output or base, transform],
        "ranks": code_digest(pixel_ranks),
        "choices": [seed, target, device, SHARD],
        "versions": {name: found[name] for name in ("torch", "captum", "torchcam")},
    }
    height, width = dataset[0][0].shape[-2:]
    return PixelRanks(digest(content), len(dataset), height, width)


def store_ranks(
    model: nn.Module,
    wanted: Mapping[str, PixelRanks],
    dataset: ImageDataset,
    *,
    seed: int,
    target: Target,
    device: torch.device,
    progress: bool = True,
) -> None:
    """Compute and store the missing ranks of several methods, by name; methods that share a computation share its passes."""
    waiting = {start: names for start in range(0, len(dataset), SHARD) if (names := [n for n, r in wanted.items() if start in r.missing])}
    if not waiting:
        return
    model.to(device)
    methods, untried = {name: Method(name, model, seed=seed) for name in wanted}, True
    passes = {start: sum(shared_passes([methods[n] for n in names])) * _length(start, dataset) for start, names in waiting.items()}
    size = default_batch(dataset[0][0][None].to(device))
    facts = {"total": sum(passes.values()), "desc": f"maps of {dataset.split}", "unit": "pass", "unit_scale": True}
    with Progress(**facts, disable=not progress) as bar:
        for start, names in waiting.items():
            found: dict[str, list[Tensor]] = {name: [] for name in names}
            counts = {name: torch.zeros(2, dtype=torch.int64) for name in names}
            for images, labels, image_ids in batches(dataset, range(start, start + _length(start, dataset)), size):
                images = images.to(device)
                with torch.no_grad():
                    targets = model(images).argmax(dim=1) if target == "prediction" else labels.to(device)
                if untried:
                    methods, untried = {m.name: m for m in tried(list(methods.values()), Batch(images, targets, list(image_ids)))}, False
                for name, maps in shared_maps([methods[n] for n in names], images, targets, image_ids).items():
                    found[name].append(pixel_ranks(maps, image_ids, seed))
                    counts[name] += torch.stack([flags.sum() for flags in unordered(maps)]).cpu()
            for name in names:
                wanted[name].write(start, torch.cat(found[name]), *counts[name].tolist())
            bar.update(passes[start])


def _length(start: int, dataset: Sequence) -> int:
    return min(SHARD, len(dataset) - start)
