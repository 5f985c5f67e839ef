"""A small net, images and a recipe for tests of training, and runs with the machine's settings beside the plan's."""

from dataclasses import fields

import torch
from torch import nn

from idsds.common.normalisation import UNIT
from idsds.datasets.base import ImageDataset
from idsds.datasets.images import TensorImages
from idsds.training import loop
from idsds.training.launch import Machine
from idsds.training.recipes import Recipe

SGD = Recipe(epochs=3, batch_size=10, optimizer="sgd", lr=0.05, schedule="step", step_epochs=2, clip=0.0)


class Tiny(nn.Module):
    """No normalisation over the batch and no dropout: the gradient of a batch is the mean of its images' gradients."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class TinyNormed(Tiny):
    """With running statistics and dropout, which a resume must restore and redraw."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.3)

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def toy(count: int, name: str = "toy", augment: bool = True) -> ImageDataset:
    """8 x 8 images whose class is the brightest channel."""
    rng = torch.Generator().manual_seed(count)
    pixels, targets = torch.rand(count, 3, 8, 8, generator=rng), [n % 3 for n in range(count)]
    for image, target in zip(pixels, targets, strict=True):
        image[target] += 0.5
    images = TensorImages(pixels / 1.5, shift=1)
    ids = [f"{name}/{n}" for n in range(count)]
    return ImageDataset(name, "train", ids, targets, images.read, list("rgb"), UNIT, images.augment if augment else None)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def plan_of(train, val, recipe, **options):
    """A plan; each option is a field of the plan or of its machine."""
    machine = {field.name: options.pop(field.name) for field in fields(Machine) if field.name in options}
    return loop.Plan(train, val, recipe, machine=Machine(**machine), **options)


def fit(model, *data, **options):
    return loop.fit(model, plan_of(*data, **options))


def rehearse(model, *data, **options):
    return loop.rehearse(model, plan_of(*data, **options))
