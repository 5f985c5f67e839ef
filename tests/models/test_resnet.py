"""Residual and other nets have the layers that their names say."""

from torch import nn

from idsds.models import create_model, list_models

MINI = [name for name in list_models() if name.startswith("mini_")]


def test_depth_and_width_are_what_the_names_say():
    def layers(name):
        """Weighted layers on the longest way; a shortcut's projection is none."""
        modules = create_model(name).named_modules()
        return sum(isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in key for key, module in modules)

    for name in MINI:
        digits = "".join(filter(str.isdigit, name))
        if digits:
            assert layers(name) == int(digits), name
    assert create_model("mini_wide_resnet8").fc.in_features == 2 * create_model("mini_resnet8").fc.in_features
