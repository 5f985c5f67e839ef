"""FunnyBirds' protocols on a net that counts parts, where each answer is known."""

from __future__ import annotations

import pytest
import torch

from idsds import evaluate
from idsds.methods import OwnMethod
from idsds.protocols import PROTOCOLS, Batch
from idsds.protocols.parts import THRESHOLDS, part_table, top5
from tests.protocols.creatures import WEIGHTS, Counting, creatures

#: By map: what each protocol must say of an image of class 0 with two objects; the weights 1 to 5 make shares of 1/15 to 5/15.
ANSWERS = {
    # At .05 all parts are important: kept, they keep the prediction; without them class 3 is predicted.
    ("exact", 0.05): {"controlled_synthetic_data_check": 1, "preservation_check": 1, "deletion_check": 1, "distractibility": 1},
    # At .3 only part 4 is (5/15): half of a sufficient pair; alone it scores 5 for class 0, but 5.5 for class 3; the rest keeps class 0.
    ("exact", 0.3): {"controlled_synthetic_data_check": 0.5, "preservation_check": 0, "deletion_check": 0, "distractibility": 1},
    # At .4 nothing is.
    ("exact", 0.4): {"controlled_synthetic_data_check": 0, "preservation_check": 0, "deletion_check": 0, "distractibility": 1},
    # Its sum is 2, all of it on the two objects, which are 1 each.
    ("objects", 0.3): {"controlled_synthetic_data_check": 0, "preservation_check": 0, "deletion_check": 0, "distractibility": 0},
}
RANKED = {
    "exact": {"part_single_deletion": 1, "part_shapley_correlation": 1, "target_sensitivity": 1},
    "minus": {"part_single_deletion": 0, "part_shapley_correlation": -1, "target_sensitivity": 0},
}


def score(protocol: str, explain, net, batch: Batch, **settings):
    entry = PROTOCOLS[protocol]
    return entry.function(net, [OwnMethod("mine", explain, net)], batch, entry.prepare(net, batch), **settings)["mine"]


def maps_of(name: str, net, batch: Batch):
    def objects(images, targets):
        regions = torch.stack([batch.parts.regions("a")[5:].any(dim=0)] * len(images))
        return regions[:, None].double() / 4

    return {"exact": net.exact, "minus": lambda *given: -net.exact(*given), "objects": objects}[name]


@pytest.mark.parametrize(("name", "threshold"), ANSWERS)
def test_answers_at_a_threshold(name, threshold):
    net, batch = Counting(), creatures([0, 0], [2, 2])
    for protocol, expected in ANSWERS[name, threshold].items():
        found = score(protocol, maps_of(name, net, batch), net, batch, threshold=threshold)["score"]
        assert found.tolist() == [expected] * 2, protocol


@pytest.mark.parametrize("name", RANKED)
def test_answers_without_a_threshold(name):
    net, batch = Counting(), creatures([0, 0], [2, 2])
    for protocol, expected in RANKED[name].items():
        assert score(protocol, maps_of(name, net, batch), net, batch)["score"].tolist() == pytest.approx([expected] * 2), protocol


def test_what_cannot_be_asked_is_undefined():
    net = Counting()
    batch = creatures([0, 1], [0, 1])
    # Without objects nothing is irrelevant; class 1 has no rivals.
    assert score("distractibility", net.exact, net, batch)["score"].isnan().tolist() == [True, False]
    assert score("target_sensitivity", net.exact, net, batch)["score"].isnan().tolist() == [False, True]
    wrong = Batch(batch.images, torch.tensor([2, 1]), batch.image_ids, batch.normalisation, parts=batch.parts)
    assert score("controlled_synthetic_data_check", net.exact, net, wrong)["score"].isnan().tolist() == [True, False]
    # The checks of the prediction explain the prediction, whatever the label is.
    assert score("preservation_check", net.exact, net, wrong)["score"].tolist() == [1, 1]


def test_a_map_with_nan_has_no_score():
    net, batch = Counting(), creatures([0, 0], [2, 2])

    def spoilt(images, targets):
        maps = net.exact(images, targets)
        maps[1:] = torch.nan
        return maps

    for protocol in (*ANSWERS["exact", 0.05], *RANKED["exact"], "funnybirds"):
        with pytest.warns(RuntimeWarning, match="gave a NaN"):
            found = score(protocol, spoilt, net, batch)
        assert found["score"].isnan().tolist() == [False, True], protocol


def test_everything_at_once_is_what_each_protocol_says():
    net, batch = Counting(objects=(3.0, 0, 0, 0, 0)), creatures([0, 3, 0], [2, 1, 0])
    found = score("funnybirds", net.exact, net, batch, threshold=0.15)
    names = ("controlled_synthetic_data_check", "preservation_check", "deletion_check", "distractibility")
    for column, protocol in zip(("csdc", "pc", "dc", "distractibility"), names, strict=True):
        assert found[column].shape == (3, 80)
        for place in (0, 30, 79):
            alone = score(protocol, net.exact, net, batch, threshold=float(THRESHOLDS[place]))["score"]
            torch.testing.assert_close(found[column][:, place].double(), alone, equal_nan=True)
    checks = [score(protocol, net.exact, net, batch, threshold=0.15)["score"] for protocol in names]
    complete = (sum(checks[:3]) / 3 + checks[3]) / 2
    summary = (complete + found["single_deletion"] + found["target_sensitivity"]) / 3
    torch.testing.assert_close(found["score"], summary, equal_nan=True)
    torch.testing.assert_close(found["importance"], WEIGHTS.double().expand(3, 5))
    # The first object adds 3 of 18 (17 %); without objects there is no share.
    torch.testing.assert_close(found["background_independence"], torch.tensor([0.5, 0, torch.nan]).double(), equal_nan=True)
    assert (found["correct"].tolist(), found["objects"].tolist()) == ([1, 1, 1], [2, 1, 0])
    assert found["top5"].tolist() == [1, 1, 1]


def test_the_reference_counts_what_cannot_be_seen_as_important_where_the_sum_is_negative():
    net, batch = Counting(), creatures([0], [2], hidden=(5,))
    minus = maps_of("minus", net, batch)
    assert score("distractibility", minus, net, batch)["score"].tolist() == [0.5]  # the visible object: 0 exceeds a negative sum
    assert score("distractibility", minus, net, batch, reference=True)["score"].tolist() == [0.0]


def test_the_reference_explains_twice():
    """A method with noise gets another sum from the second map."""
    from idsds.methods import create_method

    net, batch = Counting(), creatures([0] * 6, [2] * 6)
    entry, prepared = PROTOCOLS["funnybirds"], part_table(net, batch)
    method = create_method("Random", net)
    once, twice = (entry.function(net, [method], batch, prepared, reference=flag)["Random"] for flag in (False, True))
    torch.testing.assert_close(once["importance"], twice["importance"])
    assert not torch.equal(once["pc"], twice["pc"]) or not torch.equal(once["distractibility"], twice["distractibility"])


def test_images_without_known_parts_are_refused():
    with pytest.raises(ValueError, match="removes known parts, which this data set lacks: use 'funnybirds' or 'sprites'"):
        evaluate(["mini_resnet8"], ["IxG"], "mnist5k", "deletion_check", dry_run=True)
    batch = creatures([0], [1])
    with pytest.raises(ValueError, match="the parts of these images are not known"):
        part_table(Counting(), Batch(batch.images, batch.targets, batch.image_ids, batch.normalisation))
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), not 1.5"):
        score("deletion_check", Counting().exact, Counting(), batch, threshold=1.5)


def test_top_5_is_of_the_whole_creature():
    logits = torch.randn(12, 3, 9)  # of subsets; the last is the whole creature
    targets = torch.arange(12) % 9
    order = logits[:, -1].argsort(dim=1, descending=True).tolist()
    assert top5(logits, targets).tolist() == [float(target in best[:5]) for target, best in zip(targets.tolist(), order, strict=True)]
    assert top5(logits[..., :3], targets % 3).tolist() == [1.0] * 12
