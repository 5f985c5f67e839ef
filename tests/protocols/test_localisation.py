"""Games that ask whether a map points at the cell that the net looked at: mosaics, and nets that are taken apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from idsds.datasets import create_dataset
from idsds.datasets.synthetic import PatchModel
from idsds.methods import create_method
from idsds.models import create_model
from idsds.protocols import PROTOCOLS, Batch
from idsds.protocols.localisation import cell_share, disconnected, mosaics
from idsds.studies.metric_sanity.known_maps import KnownMap
from tests.methods.nets import ConvNet, images_of, mini, seeded
from tests.protocols.scoring import IDS, TARGETS, methods_of, score


class TestGridPointingGame:
    def test_mosaics_hold_the_image_and_others_of_other_classes(self, batch):
        others, classes = images_of(9, 12, 16, seed=5), torch.arange(9) % 3
        found, cells = mosaics(replace(batch, companions=lambda: (others, classes)), 2, seed=0)
        assert found.shape == (3, 3, 24, 32)
        for mosaic, cell, image, target in zip(found, cells.tolist(), batch.images, TARGETS, strict=True):
            parts = [mosaic[:, 12 * row : 12 * row + 12, 16 * column : 16 * column + 16] for row in (0, 1) for column in (0, 1)]
            assert torch.equal(parts.pop(cell), image)
            numbers = [next(number for number, other in enumerate(others) if torch.equal(part, other)) for part in parts]
            assert len(set(numbers)) == 3
            assert all(classes[number] != target for number in numbers)

    def test_share_of_the_cell(self):
        maps = torch.zeros(3, 1, 4, 6)
        maps[0, 0, 0, 4], maps[0, 0, 3, 0], maps[0, 0, 2, 1] = 3.0, 1.0, -5.0  # only the positive counts
        maps[1] = 1.0
        share = cell_share(maps, torch.tensor([1, 2, 0]), 2)
        torch.testing.assert_close(share, torch.tensor([0.75, 0.25, torch.nan], dtype=torch.float64), equal_nan=True)

    def test_shrunk_mosaics_are_as_large_as_the_image(self, linear, batch):
        batch = replace(batch, companions=lambda: (images_of(9, 12, 16), torch.arange(9) % 3))
        assert score("grid_pointing_game", linear, methods_of(linear, "IxG"), batch, size="shrunk")["IxG"]["score"].isfinite().all()
        with pytest.raises(ValueError, match=r"unknown size of a mosaic 'shrink'\. Did you mean 'shrunk'"):
            score("grid_pointing_game", linear, methods_of(linear, "IxG"), batch, size="shrink")

    def test_without_companions_it_says_so(self, linear, batch):
        with pytest.raises(ValueError, match="a mosaic needs images of other classes"):
            score("grid_pointing_game", linear, methods_of(linear, "IxG"), batch)
        with pytest.raises(ValueError, match="needs 3 images of other classes than 0, not 1"):
            mosaics(replace(batch, companions=lambda: (images_of(2, 12, 16), torch.tensor([0, 1]))), 2, 0)


class TestDiFull:
    @pytest.fixture
    def net(self):
        return mini("mini_resnet8")

    @pytest.fixture
    def batch(self):
        others = images_of(9, 32, 32, seed=5) - 0.4
        return Batch(images_of(3, 32, 32) - 0.4, TARGETS, IDS, companions=lambda: (others, torch.arange(9) % 3))

    @pytest.mark.parametrize("name", ["mini_resnet8", "mini_vgg11_bn"])
    def test_the_net_says_of_a_mosaic_what_it_says_of_a_cell(self, name, batch):
        net = mini(name)
        found, cells = mosaics(batch, 2, seed=0)
        for image, mosaic, cell in zip(batch.images, found, cells.tolist(), strict=True):
            pixels = mosaic[None].requires_grad_()
            logits = disconnected(net, 2, cell)(pixels)
            torch.testing.assert_close(logits, net(image[None]))
            (gradient,) = torch.autograd.grad(logits[0, 0], pixels)
            rows, columns = (slice(32 * place, 32 * place + 32) for place in divmod(cell, 2))
            assert gradient[..., rows, columns].abs().sum() > 0
            gradient[..., rows, columns] = 0
            assert not gradient.any()

    def test_gradients_are_right_and_grad_cam_is_not(self, net, batch):
        """Weights of Grad-CAM are those of the own cell, and they are applied to the features of all cells: by hand."""
        net.fc.weight.data.abs_()  # so that Grad-CAM is positive somewhere
        columns = score("difull", net, methods_of(net, "IxG", "Grad-CAM"), batch)
        assert (columns["IxG"]["score"] == 1).all()
        found, cells = mosaics(batch, 2, seed=0)
        assert torch.equal(columns["IxG"]["cell"], cells)
        seen = []
        net.layer3.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
        for image, (mosaic, cell) in enumerate(zip(found, cells.tolist(), strict=True)):
            seen.clear()
            for place in range(4):
                rows, places = (slice(32 * number, 32 * number + 32) for number in divmod(place, 2))
                net(mosaic[None, :, rows, places])
            features = torch.cat([torch.cat(seen[:2], dim=3), torch.cat(seen[2:], dim=3)], dim=2)  # (1, 64, 8, 8)
            cam = (net.fc.weight[TARGETS[image]].detach()[None, :, None, None] * features).sum(dim=1, keepdim=True).relu()
            cam = torch.nn.functional.interpolate(cam, size=(64, 64), mode="bilinear")
            rows, places = (slice(32 * number, 32 * number + 32) for number in divmod(cell, 2))
            share = cam[..., rows, places].sum() / cam.sum()
            torch.testing.assert_close(columns["Grad-CAM"]["score"][image], share)
            assert share < 0.9

    def test_nets_that_mix_positions_are_refused(self, batch):
        net = seeded(ConvNet, classes=3)
        with pytest.raises(ValueError, match="ConvNet cannot be disconnected for DiFull"):
            score("difull", net, methods_of(net, "IxG"), batch)

    def test_the_exact_map_of_a_closed_form_has_all_of_it(self):
        model = PatchModel(interaction=1.5, saturation=4.0).double()
        data = create_dataset("synthetic", "test")
        images, targets = (torch.stack([torch.as_tensor(data[index][place]) for index in range(16)]) for place in (0, 1))
        batch = Batch(images[:3].double(), targets[:3], IDS, companions=lambda: (images.double(), targets))
        columns = score("difull", model, [KnownMap(model), KnownMap(model, torch.inf)], batch)
        assert (columns["exact"]["score"] == 1).all()
        assert (columns["noise"]["score"] < 0.6).all()


@pytest.mark.parametrize("kind", ["mini_bcos", "blur"])
def test_a_net_that_reads_a_little_of_other_cells_is_refused(kind):
    """Its logits are all but those of the single images: the images end in black."""
    torch.manual_seed(0)
    if kind == "blur":

        class Blurred(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.pool = nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1)

            def forward(self, images):
                return self.pool(self.conv(nn.functional.avg_pool2d(images, 9, 1, 4)).relu()).flatten(1)

        net = Blurred().eval()
    else:
        net = create_model("mini_bcos", num_classes=5)
    images = nn.functional.pad(torch.rand(8, 3, 24, 24), (4, 4, 4, 4))
    ours = Batch(images[:4], torch.arange(4), list("abcd"), companions=lambda: (images[4:], (torch.arange(4) + 1) % 5))
    with pytest.raises(ValueError, match="cannot be disconnected for DiFull"):
        PROTOCOLS["difull"].function(net, [create_method("IxG", net)], ours, {})
