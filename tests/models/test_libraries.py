"""Nets of timm and torchvision by name: their configuration, size and CAM layer (the methods: tests/test_families.py)."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

import idsds
from idsds.common.registry import UnknownNameError
from idsds.methods import create_method, list_methods
from idsds.models import MODELS, create_model, describe, list_models

# name, CAM layer, where its channels are
FAMILIES = [
    ("timm/resnet18", "layer4", "first"),
    ("timm/resnetv2_50x1_bit.goog_in21k", "norm", "first"),
    ("timm/convnext_atto", "stages", "first"),
    ("timm/efficientnet_b0", "bn2", "first"),
    ("timm/mobilenetv3_small_050", "blocks", "first"),
    ("timm/regnetx_002", "s4", "first"),
    ("timm/swin_tiny_patch4_window7_224", "norm", "last"),
    ("timm/vit_tiny_patch16_224", None, "first"),
    ("timm/vit_tiny_patch16_dinov3", None, "first"),
    ("torchvision/squeezenet1_1", "classifier.2", "first"),
    ("torchvision/shufflenet_v2_x0_5", "conv5", "first"),
    ("torchvision/mnasnet0_5", "layers", "first"),
]
NAMES = [family[0] for family in FAMILIES if family[0] in MODELS]


@pytest.mark.parametrize(("name", "layer", "channels"), [f for f in FAMILIES if f[0] in NAMES])
def test_the_last_feature_maps_are_the_cam_layer(name: str, layer: str | None, channels: str) -> None:
    assert (MODELS[name].cam_layer, MODELS[name].cam_channels) == (layer, channels)


def test_the_configuration_is_the_librarys() -> None:
    entry = MODELS["timm/vit_small_patch14_reg4_dinov2"]
    found = timm.get_pretrained_cfg("vit_small_patch14_reg4_dinov2")
    assert (entry.input_size, entry.crop, entry.normalisation.mean) == (found.input_size[1], found.crop_pct, tuple(found.mean))
    assert entry.interpolation == found.interpolation == "bicubic"
    assert MODELS["torchvision/efficientnet_b0"].interpolation == "bicubic"
    assert MODELS["torchvision/resnet18"].interpolation == "bilinear"
    assert MODELS["timm/convnext_tiny.fb_in1k"].family == "convnext"
    weights = torchvision.models.get_model_weights("inception_v3").DEFAULT
    assert MODELS["torchvision/inception_v3"].input_size == weights.transforms().crop_size[0] == 299
    net = create_model("timm/resnet18", num_classes=7)
    assert describe(net) is MODELS["timm/resnet18"]
    assert not net.training


def test_names_are_those_of_the_libraries() -> None:
    assert {"timm/resnet18", "timm/resnet18.a1_in1k"} <= set(list_models("timm"))
    assert "torchvision/swin_t" in list_models("torchvision")
    assert not [name for name in list_models() if "/" in name]
    with pytest.raises(UnknownNameError, match="Did you mean 'timm/resnet18'"):
        create_model("timm/resnet19")
    with pytest.raises(UnknownNameError, match="option of model"):
        create_model("timm/resnet18", pretraind=True)


def test_weights_come_from_a_file_or_on_the_users_word_alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from idsds.models import save_checkpoint

    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_args, **_options: pytest.fail("nobody asked for weights"))
    first = create_model("timm/mobilenetv3_small_050", num_classes=3)
    path = save_checkpoint(first, tmp_path / "net.safetensors")
    again = create_model("timm/mobilenetv3_small_050", num_classes=3, checkpoint=path)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(first(images), again(images))
    asked = []
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_args, **_options: asked.append(1))
    create_model("timm/mobilenetv3_small_050", num_classes=3, pretrained=True)
    assert asked


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_base_patch16_clip_224", "deit3_small_patch16_224"])
def test_attention_methods_take_registers_layer_scale_and_a_norm_before_the_blocks(name: str) -> None:
    with torch.device("meta"):
        methods = list_methods(create_model(f"timm/{name}", num_classes=5))
    assert {"Rollout", "CheferLRP", "Grad-CAM"} <= set(methods)
    assert "only Grad-CAM is defined on attention" in methods.excluded["Layer-CAM"]


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_attention_methods_refuse_other_transformers_with_a_reason(name: str) -> None:
    with torch.device("meta"):
        excluded = list_methods(create_model(f"timm/{name}", num_classes=5)).excluded
    assert "class token" in excluded["Rollout"]
    assert "class token" in excluded["CheferLRP"]


def test_evaluate_takes_them_by_name_with_a_checkpoint(tmp_path) -> None:
    from idsds.models import save_checkpoint

    path = save_checkpoint(create_model("timm/resnet18", num_classes=10), tmp_path / "net.safetensors")
    records = idsds.evaluate(
        ["timm/resnet18"],
        ["IxG", "Grad-CAM"],
        "digits",
        images=2,
        checkpoints={"timm/resnet18": path},
        device="cpu",
        progress=False,
        output=tmp_path / "run",
    )
    assert set(records["model"]) == {"timm/resnet18"}
    assert len(records) == 4


def test_a_net_sees_the_size_and_crop_of_its_configuration(tmp_path, monkeypatch) -> None:
    """Files are read at the size and with the crop of the library's configuration, in evaluations and in training."""
    from PIL import Image
    from torchvision.transforms import v2

    from idsds.evaluation.arguments import Arguments, make_plan
    from idsds.models import save_checkpoint
    from idsds.training.checkpoints import plan_training

    rng = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "image_folder" / split / label).mkdir(parents=True)
            for number in range(8):
                pixels = torch.randint(256, (300, 400, 3), generator=rng, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "image_folder" / split / label / f"{number}.png")
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path))
    entry = MODELS["timm/efficientnet_b1"]
    config = timm.get_pretrained_cfg("efficientnet_b1")
    size, share = config.input_size[1], config.crop_pct
    assert entry.view == (size, share, "bicubic")
    path = save_checkpoint(create_model("timm/efficientnet_b1", num_classes=2), tmp_path / "net.safetensors")
    given = Arguments(
        ["timm/efficientnet_b1"], {"IxG": None}, "image_folder", checkpoints={"timm/efficientnet_b1": path}, settings={"grid": 4}
    )
    job = make_plan(given).jobs[0]
    image, _, image_id = job.dataset[0]
    picture = Image.open(tmp_path / image_id).convert("RGB")
    wanted = v2.Compose(
        [
            v2.Resize(int(size / share), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )(picture)
    torch.testing.assert_close(image, entry.normalisation(wanted))
    other = make_plan(Arguments(["resnet18"], {"IxG": None}, "image_folder", checkpoints={"resnet18": path}, settings={"grid": 4})).jobs[0]
    assert other.dataset[0][0].shape[-1] == 224
    assert other.data_key != job.data_key
    windows = {"mine": ("captum/Occlusion", {"sliding_window_shapes": (3, size // 4, size // 4), "strides": size // 4})}
    both, files = ["timm/efficientnet_b1", "resnet18"], {**given.checkpoints, "resnet18": path}
    plan = make_plan(Arguments(both, windows, "image_folder", checkpoints=files, settings={"grid": 4}))
    assert [job.queried["mine"] is not None for job in plan.jobs] == [True, False]  # a patch at the first one's input size only
    stage = plan_training("timm/efficientnet_b1", "image_folder", weights=str(path))
    assert stage.split("val")[0][0].shape[-1] == stage.split("train").augmented(0, 0)[0][0].shape[-1] == size
    with pytest.raises(
        ValueError, match=rf"grid 7 does not divide images of {size} x {size}.*'timm/efficientnet_b1@238' or 'timm/eff.*@245'"
    ):
        make_plan(Arguments(given.models, given.methods, "image_folder", checkpoints=given.checkpoints, settings={"grid": 7}))


def test_in_domain_fine_tuning_of_any_net_from_params_is_cached(tmp_path, monkeypatch) -> None:
    from idsds.models import save_checkpoint
    from idsds.studies.finetune import Finetune

    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    path = save_checkpoint(create_model("timm/resnet10t", num_classes=10), tmp_path / "net.safetensors")
    values = {"dataset": "digits", "models": ["timm/resnet10t"], "checkpoints": {"timm/resnet10t": str(path)}, "images": 20, "epochs": 1}
    table = Finetune(output="runs/once", **values).run(progress=False).table
    assert set(table["model"]) == {"timm/resnet10t"}
    (file,) = (tmp_path / "cache" / "checkpoints").rglob("resnet10t-in_domain*.safetensors")
    made = file.stat().st_mtime_ns
    again = Finetune(output="runs/again", **values)
    assert not again.plan().table["steps"].sum()
    again.run(progress=False)
    assert file.stat().st_mtime_ns == made


def test_another_size_has_position_embeddings_by_timm(tmp_path, monkeypatch) -> None:
    """DINOv2 wants 518 pixels, which four patches do not divide."""
    from idsds.models import save_checkpoint

    name = "timm/vit_small_patch14_reg4_dinov2"
    entry = MODELS[f"{name}@56"]
    assert (entry.input_size, entry.patch, entry.view[:2]) == (56, 14, (56, MODELS[name].crop))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        large = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=3, img_size=84, depth=2)
        wanted = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=3, img_size=56, depth=2).eval()
    wanted.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(large.state_dict(), wanted))
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *given, **options: make(*given, depth=2, **options))
    path = save_checkpoint(large, tmp_path / "net.safetensors")
    net = create_model(f"{name}@56", num_classes=3, checkpoint=path)
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(images), wanted(images))
    assert net.pos_embed.shape[1] == 16
    maps = create_method("Rollout", net)(images, torch.tensor([0, 2]))
    assert maps.shape == (2, 1, 56, 56)


def test_a_size_that_cannot_be_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ValueError, match="60 pixels are no multiple of its patches of 14; nearest: 56 and 70"):
        MODELS["timm/vit_small_patch14_reg4_dinov2@60"]
    with pytest.raises(UnknownNameError, match="Did you mean 'timm/resnet18'"):
        MODELS["timm/resnet18@big"]
    assert (MODELS["timm/resnet18@128"].input_size, MODELS["torchvision/vit_b_16@160"].input_size) == (128, 160)
    with torch.device("meta"):
        assert MODELS["torchvision/vit_b_16@160"].build(10).image_size == 160


def test_a_grid_that_does_not_divide_the_size_names_sizes_that_do(tmp_path, monkeypatch) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "image_folder" / "val" / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (80, 60), (number, 40, 90)).save(tmp_path / "image_folder" / "val" / label / f"{number}.png")
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path))
    name = "timm/vit_small_patch14_reg4_dinov2"
    given = {"methods": ["IxG"], "dataset": "image_folder", "dry_run": True, "split": "val", "images": 2, "progress": False}
    with pytest.raises(ValueError, match=rf"518 x 518.*patches of 14 pixels: '{name}@504' or '{name}@532'"):
        idsds.evaluate([name], grid=4, checkpoints={name: "pretrained"}, **given)
    assert len(idsds.evaluate([f"{name}@504"], grid=4, checkpoints={f"{name}@504": "pretrained"}, **given))


def test_files_are_read_as_timm_reads_them(tmp_path) -> None:
    """With the crop, interpolation and proportions of the net's configuration."""
    from PIL import Image

    from idsds.datasets.images import FileImages

    pixels = torch.randint(256, (90, 130, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("convnext_base.fb_in22k_ft_in1k_384", "resnet18.tv_in1k", "vit_tiny_patch16_224"):
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        wanted = timm.data.create_transform(**config)(Image.open(tmp_path / "a.png"))
        entry = MODELS[f"timm/{name}"]
        found = entry.normalisation(FileImages([tmp_path / "a.png"], 224).viewed(*entry.view).read(0))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
