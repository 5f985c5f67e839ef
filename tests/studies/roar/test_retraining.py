"""Retraining: what is counted."""

import torch
from torch import nn

from idsds.datasets import create_dataset
from idsds.studies.roar import retraining as retrained


def test_top_5_is_counted_over_five_of_ten_classes():
    data = create_dataset("digits").subset(range(30))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    found = retrained.predictions(net, data, 16)
    logits = torch.stack([net(data[index][0][None])[0] for index in range(30)])
    order = logits.argsort(dim=1, descending=True).tolist()
    assert found["predicted"] == [classes[0] for classes in order]
    assert found["top5"] == [int(target in classes[:5]) for target, classes in zip(data.targets, order, strict=True)]
    assert 0 < sum(found["top5"]) < 30
