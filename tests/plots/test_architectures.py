"""Marks of architectures: a small net looks like the large one of its family, and no two others look alike."""

from idsds.plots.architectures import ARCHITECTURES, architecture_handles, looks_of

MODELS = ["mini_resnet8", "resnet50", "mini_vgg11", "mini_vgg13", "a net of mine", "vgg16"]


def test_a_small_net_looks_like_the_large_one_of_its_family():
    looks = looks_of([*MODELS, "resnet50"])
    assert list(looks) == MODELS
    assert looks["mini_resnet8"] == looks["resnet50"] == ARCHITECTURES[0]
    assert looks["vgg16"] == looks["mini_vgg11"] == ARCHITECTURES[1]
    assert len(set(looks.values())) == 4, "two small nets of one family differ"


def test_the_legend_names_those_that_look_alike_together():
    handles = architecture_handles(MODELS)
    assert [handle.get_label() for handle in handles] == ["mini_resnet8, resnet50", "mini_vgg11, vgg16", "mini_vgg13", "a net of mine"]
    assert handles[1].get_markerfacecolor() == "white", "squares are hollow, to be told from dots without colour"
    assert all(handle.get_linestyle() == "None" for handle in architecture_handles(MODELS, lines=False))
