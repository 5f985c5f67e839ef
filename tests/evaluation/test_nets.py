"""Where the weights of a net come from."""

from idsds.evaluation.nets import source_of
from idsds.protocols import PROTOCOLS


def source(name, dataset, protocol="single_deletion", checkpoints=None):
    settings = {"grid": (4, 2), "baseline": "zeros"}
    return source_of(name, None, dataset, PROTOCOLS[protocol], 0, checkpoints or {}, "cpu", "32-true", settings)


def test_packaged_weights_are_used_as_they_are_or_fine_tuned_without_labels():
    plain, in_domain = source("squeezenet1_1", "photos20"), source("squeezenet1_1", "photos20", "idsds")
    assert (plain.recipe, plain.deletion, plain.missing) == (None, None, [])
    assert in_domain.recipe.loss == "distill"
    assert in_domain.deletion.grid == 4, "of several grids the first"
    assert in_domain.key != plain.key
    as_it_is = source("squeezenet1_1", "photos20", "idsds", {"squeezenet1_1": "pretrained"})
    assert as_it_is == plain, "on the user's word a net is judged as it is"
