"""Every model of the registry, and what its entry says of it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from idsds.common.registry import UnknownNameError
from idsds.models import HALF, IMAGENET, UNIT, create_model, describe, frozen, list_models, save_checkpoint
from idsds.models.base import MODELS, register_model
from tests.models.golden import filled

MINI = [name for name in list_models() if name.startswith("mini_")]
LARGE = [name for name in list_models() if not name.startswith("mini_")]
FIXED_SIZE = {"mini_vit", "vit_base_patch16_224"}
STUDY = (
    "resnet18 resnet50 resnet101 resnet152 wide_resnet50_2 fixup_resnet50 x_resnet50 vgg11 vgg13 vgg16 vgg19 vgg16_bn x_vgg16 "
    "vit_base_patch16_224 bcos_resnet50 bagnet33 efficientnet_b0 densenet121"
)


@pytest.fixture(scope="module", params=MINI)
def mini(request):
    """With deterministic weights and running statistics that are not the identity."""
    model = create_model(request.param, num_classes=7)
    model.load_state_dict(filled(model.state_dict(), "bcos_resnet50" if "bcos" in request.param else ""))
    return model


def images_for(model, batch=3, shape=None):
    size = describe(model).input_size
    images = torch.rand(batch, 3, *(shape or (size, size)), generator=torch.Generator().manual_seed(1))
    return images if describe(model).normalisation == UNIT else images * 2 - 1


def test_the_registry_holds_the_models_of_the_study():
    assert {name for name in LARGE if not MODELS[name].packaged} == {*STUDY.split(), "bcos_resnet18"}


def test_mini_gives_logits(mini):
    assert not mini.training
    with torch.inference_mode():
        logits = mini(images_for(mini))
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.std(dim=1).min() > 1e-3  # neither a constant
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # nor blind to the image
    assert {parameter.dtype for parameter in mini.parameters()} == {torch.float32}


def test_mini_batch_is_one_by_one(mini):
    images = images_for(mini)
    with torch.inference_mode():
        alone = torch.cat([mini(image[None]) for image in images])
        torch.testing.assert_close(mini(images), alone, rtol=1e-4, atol=1e-5)  # float32, another order of sums


def test_gradient_reaches_every_part_of_the_input(mini):
    images = images_for(mini, batch=2).requires_grad_()
    with frozen(mini):
        mini(images)[:, 3].sum().backward()
    assert images.grad.isfinite().all()
    # Valid convolutions and strides may leave the last rows and columns unseen, as in the large BagNet.
    assert (images.grad.abs().amax(dim=1)[:, :-8, :-8] > 0).float().mean() > 0.9


def test_mini_takes_other_sizes(mini):
    if mini.entry.name in FIXED_SIZE:
        with pytest.raises(AssertionError, match="Input height"):
            mini(images_for(mini, shape=(40, 52)))
    else:
        assert mini(images_for(mini, shape=(40, 52))).shape == (3, 7)


def test_mini_roundtrip_through_a_file_copy_and_pickle(mini, tmp_path):
    path = save_checkpoint(mini, tmp_path / "weights.safetensors")
    again = create_model(mini.entry.name, num_classes=7, checkpoint=path)
    images = images_for(mini)
    with torch.inference_mode():
        for other in (again, copy.deepcopy(mini), pickle.loads(pickle.dumps(mini))):
            torch.testing.assert_close(other(images), mini(images), rtol=0, atol=0)
            assert describe(other) is MODELS[mini.entry.name]


def test_mini_takes_a_training_step(mini):
    net = copy.deepcopy(mini).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    nn.functional.cross_entropy(net(images_for(net, batch=4)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", LARGE)
def test_large_shapes(name):
    """On torch's meta device: shapes without numbers, and without a second of work."""
    with torch.device("meta"):
        model = create_model(name, num_classes=13)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 13)


@pytest.mark.parametrize("name", list_models())
def test_entry(name):
    with torch.device("meta"):
        model = create_model(name)
    entry = describe(model)
    assert entry is MODELS[name]
    assert entry.source
    assert entry.num_classes == (10 if name in MINI else 1000)
    assert entry.input_size == (32 if name in MINI else 224)
    assert (entry.loss, entry.intrinsic) == {
        "bcos": ("binary_cross_entropy", "B-cos"),
        "bagnet": ("cross_entropy", "BagNet"),
    }.get(entry.family, ("cross_entropy", None))
    if entry.family == "bcos":
        assert entry.normalisation == UNIT
    elif name in MINI:
        assert entry.normalisation is None
    else:
        assert entry.normalisation == (HALF if entry.family == "vit" or entry.packaged else IMAGENET)


@pytest.mark.parametrize("name", list_models())
def test_cam_layer_gives_feature_maps(name):
    entry = MODELS[name]
    if entry.family in ("vit", "bcos", "bagnet"):
        assert entry.cam_layer is None
        return
    shapes = []
    with torch.device("meta"):
        model = create_model(name)
        model.get_submodule(entry.cam_layer).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
        model(torch.empty(2, 3, entry.input_size, entry.input_size))
    (shape,) = shapes
    assert len(shape) == 4
    assert shape[2:] == ((13, 13) if name == "squeezenet1_1" else (7, 7) if name in LARGE else (shape[2], shape[2]))
    assert shape[2] >= 4


@pytest.mark.parametrize("num_classes", [0, -3])
def test_no_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, not {num_classes}"):
        create_model("mini_resnet8", num_classes=num_classes)


def test_unknown_names_list_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown model 'resnet51'\. Did you mean 'resnet50'"):
        create_model("resnet51")
    with pytest.raises(UnknownNameError, match=r"option of model 'resnet18' 'pretrain'\. Did you mean 'pretrained'"):
        create_model("resnet18", pretrain=True)
    with pytest.raises(ValueError, match="either a checkpoint or pretrained=True"):
        create_model("resnet18", pretrained=True, checkpoint="a.pth")


def test_building_for_a_checkpoint_draws_no_random_numbers(tmp_path):
    path = save_checkpoint(create_model("mini_vgg11"), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    create_model("mini_vgg11", checkpoint=path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_models_own_registration():
    @register_model(family="own", num_classes=4)
    def tiny(num_classes: int, width: int = 2) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

    try:
        model = create_model("tiny", width=5)
        assert model(torch.rand(2, 3, 4, 6)).shape == (2, 4)
        assert describe(model).options == ["width"]
        with pytest.raises(ValueError, match="'tiny' is already registered"):
            register_model(family="own")(tiny)
    finally:
        MODELS.remove("tiny")
