import pytest
import torch
from scipy import stats

from idsds.common.hashing import own_digest
from idsds.training.recipes import Deletion
from idsds.training.steps import deleted_at_random, drawn_patches, loss_of
from tests.methods.nets import images_of
from tests.protocols.scoring import IDS


def test_the_loss_is_the_divergence_of_the_probabilities():
    logits, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64).softmax(1)
    by_hand = sum(float((p * (p / q).log()).sum()) for p, q in zip(teacher, logits.softmax(1), strict=True)) / 3
    assert loss_of(logits, teacher, "distill").item() == pytest.approx(by_hand, rel=1e-12)


class TestFineTuningOnMasks:
    def test_numbers_of_patches_are_uniform_and_keyed(self):
        images, ids = torch.ones(400, 3, 8, 8), [str(number) for number in range(400)]
        deletion = Deletion(share=1.0)
        found = deleted_at_random(images, ids, deletion, seed=0, epoch=1)
        lost = 16 - found[:, 0, ::2, ::2].flatten(1).sum(dim=1)
        assert 0.4 < (lost == 0).float().mean() < 0.6
        counts = torch.bincount(lost[lost > 0].long(), minlength=17)[1:]
        assert len(counts) == 16
        assert stats.chisquare(counts).pvalue > 0.001
        assert torch.equal(found[7:9], deleted_at_random(images[7:9], ids[7:9], deletion, seed=0, epoch=1))
        assert not torch.equal(found, deleted_at_random(images, ids, deletion, seed=0, epoch=2))
        few = 16 - deleted_at_random(images, ids, Deletion(share=0.1), seed=0, epoch=1)[:, 0, ::2, ::2].flatten(1).sum(dim=1)
        assert few.unique().tolist() == [0, 1, 2]

    def test_one_patch_is_what_it_was(self):
        images = images_of(3, 8, 8)
        found = deleted_at_random(images, IDS, Deletion(), seed=0, epoch=0)
        for image, changed, patch in zip(images, found, drawn_patches(IDS, 4, seed=0, epoch=0).tolist(), strict=True):
            assert int((image != changed).any(dim=0).sum()) == (0 if patch < 0 else 4)

    def test_the_address_of_one_patch_stays(self):
        assert Deletion().model_dump() == {"grid": 4, "baseline": "zeros"}
        assert own_digest(Deletion(share=0.1).model_dump()) != own_digest(Deletion().model_dump())
