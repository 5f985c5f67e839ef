import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from idsds import evaluate
from idsds.methods import create_method
from idsds.models import HALF, create_model
from idsds.protocols import Batch
from idsds.protocols.hyperparameters import (
    SWEEPS,
    cam_layers,
    hyperparameter_sensitivity,
    settings_of,
    spread,
    sweeps_of,
    with_options,
)
from idsds.protocols.similarity import structural_similarity
from tests.methods.nets import Linear, images_of, mini, seeded


@pytest.fixture
def batch(three):
    return three


def test_spread_by_hand():
    """Three maps of two values each, spread over half an image: the deviation of (1, 1, -1) and of (0.5, -1, 1), averaged."""
    maps = torch.zeros(3, 1, 1, 12, 14, dtype=torch.float64)
    for number, (left, right) in enumerate([(4.0, 2.0), (0.1, -0.1), (-1.0, 1.0)]):
        maps[number, ..., :7], maps[number, ..., 7:] = left, right
    found = spread(maps)
    assert found["deviation"].item() == pytest.approx((np.std([1, 1, -1]) + np.std([0.5, -1, 1])) / 2)
    assert found["spearman"].item() == pytest.approx((1 - 1 - 1) / 3)  # the order of left and right: the same, reversed, reversed


def test_spread_is_that_of_scipy_and_numpy():
    maps = images_of(4 * 2, 30, 34)[:, :1].unflatten(0, (4, 2))
    maps[:, :, :, ::2] = 0.3  # ties
    found = spread(maps)
    scaled = (maps / maps.amax(dim=(2, 3, 4), keepdim=True)).numpy()
    pairs = [(i, j) for i in range(4) for j in range(i)]
    for b in range(2):
        correlation = np.mean([spearmanr(scaled[i, b].ravel(), scaled[j, b].ravel())[0] for i, j in pairs])
        assert found["spearman"][b].item() == pytest.approx(correlation)
        assert found["deviation"][b].item() == pytest.approx(scaled[:, b].std(axis=0).mean())
        # SSIM of a pair has its oracle in test_similarity.py; here, that the pairs and the scale are right.
        likeness = [structural_similarity(*(torch.from_numpy(scaled[k, b : b + 1]) for k in pair)).item() for pair in pairs]
        assert found["ssim"][b].item() == pytest.approx(np.mean(likeness))


def test_ssim_of_three_channels_beside_the_correlation_of_their_sum():
    maps = images_of(2 * 2, 12, 14).unflatten(0, (2, 2))
    found, summed = spread(maps, data_range=0.5), spread(maps.sum(2, keepdim=True))
    scaled = maps / maps.abs().amax(dim=(2, 3, 4), keepdim=True)
    torch.testing.assert_close(found["ssim"], structural_similarity(scaled[0], scaled[1], 0.5))
    for name in ("spearman", "deviation"):
        torch.testing.assert_close(found[name], summed[name])


def test_scale_does_not_matter_and_nan_stays_with_its_image():
    maps = images_of(2, 12, 14)[:, :1]
    found = spread(torch.stack([maps, 100 * maps, 1e-3 * maps]))
    for name, wanted in (("spearman", 1), ("ssim", 1), ("deviation", 0)):
        np.testing.assert_allclose(found[name], wanted, atol=1e-12)
    spoilt = torch.stack([maps, maps])
    spoilt[1, 0, 0, 3, 3] = torch.nan
    assert all(values.isnan().tolist() == [True, False] for values in spread(spoilt).values())
    alone = spread(maps[None])
    assert alone["deviation"].tolist() == [0, 0]
    np.testing.assert_allclose(alone["spearman"], 1)
    constant = spread(torch.zeros(2, 1, 1, 12, 14))
    assert constant["spearman"].isnan().item()


def test_a_linear_model_has_no_spread_over_the_steps_of_ig():
    """Its gradient is the same everywhere on the path: integrated gradients are input times gradient, however many the steps."""
    net, images = seeded(Linear, 12, 14), images_of(2, 12, 14)
    batch = Batch(images, torch.tensor([2, 0]), ["a", "b"], HALF)
    found = hyperparameter_sensitivity(net, [create_method("IG", net)], batch, {}, sweep={"steps": [1, 3, 10]})["IG"]
    for name, wanted in (("score", 1), ("ssim", 1), ("deviation", 0)):
        np.testing.assert_allclose(found[name], wanted, atol=1e-9)
    moved = hyperparameter_sensitivity(net, [create_method("IG", net)], batch, {}, sweep={"baseline": SWEEPS["baseline"]})["IG"]
    assert (moved["score"] < 0.99).all()  # the baseline does matter


def test_the_score_is_the_mean_over_the_hyperparameters(net, batch):
    method = create_method("Gradient-SG", net)
    assert list(sweeps_of(method)) == ["samples", "sigma"]
    one = [
        hyperparameter_sensitivity(net, [method], batch, {}, sweep={option: SWEEPS[option]})["Gradient-SG"]
        for option in ("samples", "sigma")
    ]
    both = hyperparameter_sensitivity(net, [method], batch, {})["Gradient-SG"]
    for name in ("score", "ssim", "deviation"):
        torch.testing.assert_close(both[name], (one[0][name] + one[1][name]) / 2)


def test_each_setting_is_the_method_with_that_option(net, batch):
    """Computed apart, with methods made anew."""
    found = hyperparameter_sensitivity(net, [create_method("IxG-SG", net, seed=3)], batch, {}, sweep={"sigma": [0.1, 0.5]})["IxG-SG"]
    maps = [create_method("IxG-SG", net, seed=3, sigma=sigma)(batch.images, batch.targets, batch.image_ids) for sigma in (0.1, 0.5)]
    torch.testing.assert_close(found["score"], spread(torch.stack(maps))["spearman"])
    absolute = hyperparameter_sensitivity(net, [create_method("IxG-SG abs", net, seed=3)], batch, {}, sweep={"sigma": [0.1, 0.5]})
    torch.testing.assert_close(absolute["IxG-SG abs"]["score"], spread(torch.stack(maps).abs())["spearman"])


def test_what_is_swept(net):
    model = create_model("mini_resnet8")
    assert sweeps_of(create_method("Grad-CAM", model)) == {"layer": ["layer1", "layer2", "layer3"]}
    assert set(sweeps_of(create_method("RISE", model))) == {"samples", "probability", "baseline"}
    assert sweeps_of(create_method("Center", model)) == {}
    assert set(sweeps_of(create_method("IG", model))) == {"steps", "baseline"}
    assert all(len(values) > 1 for values in SWEEPS.values())
    vgg = create_model("mini_vgg11")
    layers = cam_layers(vgg)
    assert len(layers) > 1
    modules = dict(vgg.named_modules())
    assert all(name in modules for name in layers)


@pytest.mark.parametrize("name", ["Grad-CAM", "Layer-CAM"])
@pytest.mark.parametrize("model", ["mini_vgg11", "mini_resnet8"])
def test_cams_of_every_layer_can_be_made(name, model):
    net = seeded(create_model, model, dtype=torch.float32)
    method = create_method(name, net)
    images = images_of(2, 32, 32, dtype=torch.float32)
    maps = [with_options(method, layer=layer)(images, torch.tensor([1, 2])) for layer in cam_layers(net)]
    assert all(found.shape == (2, 1, 32, 32) for found in maps)
    assert not torch.equal(maps[0], maps[-1])


def test_passes_are_those_of_all_settings(net):
    from idsds.protocols import PROTOCOLS

    passes = PROTOCOLS["hyperparameter_sensitivity"].passes
    methods = [create_method("IG", net), create_method("IG abs", net)]
    assert passes(methods, sweep={"steps": [5, 10]}) == (15, 15)  # both methods fall out of one computation
    assert passes([create_method("Random", net)]) == (0, 0)


@pytest.mark.parametrize("values", [[], [5], [5, 5], "5, 10"])
def test_a_sweep_lists_at_least_two_different_values(net, values):
    with pytest.raises(ValueError, match="must list at least two different values"):
        settings_of(create_method("IG", net), {"steps": values})


def test_mistakes_are_named(net):
    method = create_method("IG", net)
    with pytest.raises(ValueError, match=r"unknown option of method 'IG' 'step'. Did you mean 'steps'"):
        settings_of(method, {"step": [1, 2]})
    with pytest.raises(ValueError, match=r"must be \(S, B, C, H, W\)"):
        spread(torch.ones(3, 1, 12, 12))


def test_the_engine_scores_methods_with_options(tmp_path):
    """The same numbers as by hand; records that are kept; a method at its defaults is one computation with the plain one."""
    net = {"net": mini("mini_resnet8", torch.float32)}  # with biases: without, the steps of IG would not matter
    methods = {"IG": None, "3 steps": ("IG", {"steps": 3}), "50 steps": ("IG", {"steps": 50}), "abs": ("IG abs", {"steps": 3})}
    given = {"models": net, "dataset": "digits", "images": 3, "progress": False, "output": tmp_path}
    records = evaluate(methods=methods, **given)
    sums = {name: np.stack(rows["patch_sums"]) for name, rows in records.groupby("method")}
    np.testing.assert_allclose(sums["IG"], sums["50 steps"])
    assert not np.allclose(sums["IG"], sums["3 steps"], rtol=1e-3)
    assert set(records["family"]) == {"gradient"}
    plan = evaluate(methods=methods, dry_run=True, **given)
    assert set(plan["work"]) == {"deletions", "IG, 50 steps", "3 steps, abs"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert evaluate(methods=methods, **given).equals(records)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    changed = evaluate(methods={"3 steps": ("IG", {"steps": 4})}, **given)
    assert not np.allclose(np.stack(changed["patch_sums"]), sums["3 steps"], rtol=1e-3)  # other options are not taken for the old ones


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("IG", {"step": 3}), r"unknown option of method 'IG' 'step'"),
        (("IGG", {}), r"unknown method 'IGG'"),
        (("IG", 3), r"a method with options is a pair such as"),
        (("IG",), r"a method with options is a pair such as"),
    ],
)
def test_wrong_options_end_a_run_before_any_work(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate({"net": create_model("mini_resnet8")}, {"mine": given}, "digits", images=2, progress=False)
