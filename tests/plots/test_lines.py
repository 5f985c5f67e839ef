"""Lines of several methods in one panel."""

from idsds.plots.lines import DASHES, line_handles, line_looks

FAMILIES = {"IG": "gradient", "IxG": "gradient", "Grad-CAM": "CAM", "Gradient": "gradient", "Random": "control"}


def test_methods_of_a_family_share_its_colour_and_differ_by_dashes():
    looks = line_looks(FAMILIES)
    assert list(looks) == list(FAMILIES)
    gradient = [looks[name] for name in ("IG", "IxG", "Gradient")]
    assert len({look["color"] for look in gradient}) == 1
    assert [look["linestyle"] for look in gradient] == list(DASHES[:3])
    assert looks["Grad-CAM"]["linestyle"] == DASHES[0], "each family begins anew"
    assert looks["Grad-CAM"]["color"] != gradient[0]["color"]
    handles = line_handles(looks)
    assert [handle.get_label() for handle in handles] == list(FAMILIES)
    assert [handle.get_color() for handle in handles] == [look["color"] for look in looks.values()]
