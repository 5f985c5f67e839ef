import pytest
import torch

from idsds.common.randomness import Draws, content_ids, generator


def test_same_key_same_numbers_other_key_other_numbers():
    first, again = (torch.rand(5, generator=generator(0, "a", "b")) for _ in range(2))
    assert torch.equal(first, again)
    for other in (generator(1, "a", "b"), generator(0, "a", "c"), generator(0, "ab")):
        assert not torch.equal(first, torch.rand(5, generator=other))


def test_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    images = torch.zeros(2, 3, 4, 6)
    noise = Draws(0, "x", images, ["a", "b"]).normal(2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    assert torch.equal(noise, Draws(0, "x", images, ["a", "b"]).normal(2))


@pytest.mark.parametrize("ids", [["a", "b", "c"], None])
def test_an_image_gets_its_noise_whatever_its_neighbours(ids):
    images = torch.randn(3, 3, 4, 6, generator=generator(0, "images"))
    together = Draws(7, "x", images, ids).normal(2)
    assert together.shape == (3, 2, 3, 4, 6)
    for index in (2, 0):
        alone = Draws(7, "x", images[index : index + 1], ids and [ids[index]]).normal(2)
        assert torch.equal(together[index : index + 1], alone)
    assert not torch.equal(together[0], together[1])


def test_noise_has_the_distribution_it_claims():
    images = torch.zeros(1, 3, 64, 64)
    normal, uniform = Draws(0, "x", images, ["a"]).normal(4), Draws(0, "x", images, ["a"]).uniform(4)
    # 49,152 numbers: the standard error of the mean is .0045 and .0013, of the standard deviation .0032; five of each are allowed.
    assert abs(normal.mean()) < 0.0225
    assert abs(normal.std() - 1) < 0.016
    assert abs(uniform.mean() - 0.5) < 0.0065
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_content_ids_follow_the_content():
    images = torch.randn(3, 3, 4, 6)
    assert content_ids(images) == content_ids(images.clone())
    assert content_ids(images.flip(0)) == content_ids(images)[::-1]
    assert len(set(content_ids(images))) == 3


def test_noise_handed_in_is_used_and_its_shape_checked():
    images = torch.zeros(2, 3, 4, 6)
    given = torch.randn(2, 5, 3, 4, 6)
    assert torch.equal(Draws(0, "x", images, given=given).normal(5), given)
    with pytest.raises(ValueError, match=r"\(2, 5, 3, 4, 6\).*not \(2, 4, 3, 4, 6\)"):
        Draws(0, "x", images, given=given).normal(4)
