"""F-Fidelity against deletions by hand."""

from __future__ import annotations

import torch

from idsds.protocols.f_fidelity import subsets
from idsds.protocols.single_deletion import patch_sums
from tests.protocols.scoring import IDS, TARGETS, methods_of, score


class TestFFidelity:
    def test_subsets_stay_within_what_the_net_knows(self):
        places = subsets(16, 6, 0, "a")
        assert (places.sum(dim=3) == 2).all()  # a tenth of 16, rounded up
        for chosen, top in zip(places, (4, 8, 12), strict=True):
            assert not chosen[0, :, top:].any()
            assert not chosen[1, :, :top].any()

    def test_it_deletes_by_hand(self, linear, batch):
        (method,) = methods_of(linear, "IxG")
        found = score("f_fidelity", linear, [method], batch, samples=3)["IxG"]
        order = patch_sums(method(batch.images, TARGETS, IDS), 4).argsort(dim=1, descending=True)
        for image in range(3):
            left = torch.zeros(2, dtype=torch.float64)
            for half, places in enumerate(subsets(16, 3, 0, IDS[image]).transpose(0, 1)):
                for chosen in places.flatten(0, 1):
                    changed = batch.images[image].clone()
                    for patch in order[image, chosen].tolist():
                        changed[:, 3 * (patch // 4) : 3 * (patch // 4) + 3, 4 * (patch % 4) : 4 * (patch % 4) + 4] = 0
                    left[half] += linear(changed[None]).softmax(dim=1)[0, TARGETS[image]].detach() / 9
            torch.testing.assert_close(found["explanation"][image], left[0])
            torch.testing.assert_close(found["score"][image], left[1] - left[0])
        assert (found["score"] > 0).all()
