"""The exact map over known parts."""

import torch

from idsds.datasets import create_dataset
from idsds.models import create_model
from idsds.protocols.base import Batch
from idsds.studies.metric_sanity.known_parts import PartMap, exact_values
from tests.methods.nets import seeded


def test_the_exact_map_sums_to_the_shapley_values_over_the_parts():
    data = create_dataset("sprites", "test")
    images, targets, ids = zip(*[data[index] for index in (0, 5)], strict=True)
    batch = Batch(torch.stack(images), torch.tensor(targets), list(ids), data.normalisation, parts=data.parts)
    net = seeded(create_model, "mini_resnet8", dtype=torch.float32)
    values = exact_values(net, batch)
    with torch.inference_mode():
        whole = net(batch.images).gather(1, batch.targets[:, None])[:, 0]
        bare = torch.stack([(data.parts.draw(image_id, 0) - 0.51) / 0.165 for image_id in ids])
        none = net(bare).gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(values.sum(dim=1).float(), whole - none, rtol=1e-3, atol=1e-3)
    exact, noise = (PartMap(net, batch, values, level, 0)(batch.images, batch.targets, ids) for level in (0.0, torch.inf))
    for maps, image_id, value in zip(exact, ids, values, strict=True):
        regions = data.parts.regions(image_id)[:5]
        sums = (maps * regions).sum(dim=(1, 2))
        seen = regions.any(dim=(1, 2))
        torch.testing.assert_close(sums[seen].double(), value[seen].double(), rtol=1e-3, atol=1e-4)
        assert (maps[0][~regions.any(dim=0)] == 0).all()
    assert not torch.allclose(exact, noise)
