"""Retraining on known maps: nets side by side, curves and areas."""

from dataclasses import replace

import torch

from idsds.datasets.synthetic import PatchModel
from idsds.protocols import PROTOCOLS
from idsds.protocols.roar import kar_score, roar_score
from idsds.studies.metric_sanity.retraining import RETRAINING, _logits, _patches, _trained, known_areas, known_curves
from tests.datasets.test_synthetic import batch_of

FEW = replace(RETRAINING, repetitions=3, train=120, test=80)


def test_nets_that_are_trained_side_by_side_are_those_trained_alone():
    model, how = PatchModel(interaction=1.0, saturation=2.0), replace(FEW, epochs=2, batch_size=16)
    images, targets, _ = batch_of(40)
    patches = torch.stack([_patches(images), _patches(images.flip(3))])
    together = _trained(model, patches, targets, 3, how)
    alone = torch.cat([_trained(model, one[None], targets, 3, how) for one in patches])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    # And each is the model itself with other weights.
    net = PatchModel(interaction=1.0, saturation=2.0)
    net.evidence.weight.data = together[0].view(net.evidence.weight.shape)
    torch.testing.assert_close(_logits(model, together, patches)[0], net(images), atol=1e-5, rtol=1e-4)


def test_known_curves_begin_at_the_untouched_images_and_make_the_areas():
    model = PatchModel().double()
    curves = {kind: known_curves(kind, model, (0.0, 1.0), 0, "deletion", FEW) for kind in ("remove", "keep")}
    for found in curves.values():
        assert found.shape == (3, len(FEW.shares))
        assert (found[:, 0] == found[0, 0]).all()
        assert found[0, 0] > 0.95, "the net learns the untouched images"
    assert curves["keep"][0].min() > 0.95, "evidence that is kept is all that it takes"
    shares = torch.tensor(FEW.shares, dtype=torch.float64)
    for kind, score in (("remove", roar_score), ("keep", kar_score)):
        areas = known_areas(kind, model, (0.0, 1.0), 0, "deletion", replace(FEW, repetitions=1))
        wanted = [score(curve, curves[kind][-1], shares) for curve in curves[kind]]
        torch.testing.assert_close(areas, torch.stack(wanted)[None])
        assert areas[0, -1] == 0, "noise alone is the control"


def test_what_is_left_tells_the_class():
    """With all six patches of the class's stripes gone, its absence names the class: ROAR then gives the exact map the worse score."""
    how = replace(FEW, shares=(0.0, 0.375), train=300, repetitions=1)
    exact, noisy, _ = known_curves("remove", PatchModel().double(), (0.0, 0.5), 0, "deletion", how)[:, 1]
    assert exact > noisy + 0.2
    assert PROTOCOLS["roar"].higher_is_better
