"""The explorer: the orders, the maps made again, what it says where they cannot be, and its controls."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.utils.data import TensorDataset

import idsds
from idsds.common.registry import UnknownNameError
from idsds.statistics.agreement import disagreement
from idsds.studies.explore.source import ORDERS
from tests.evaluation.linear import Linear

METHODS = ["IxG", "IG abs", "Saliency", "Random"]


def own(images, targets):
    """A method of the user's, with markup in its name: the gradient of the linear net, times a ramp."""
    return (images * torch.linspace(0, 1, images.shape[-1])).sum(1, keepdim=True)


def data():
    return TensorDataset(torch.rand(12, 3, 8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linear"
    methods = {**dict.fromkeys(METHODS), "<b>own": own}
    settings = {"protocol": "single_deletion", "images": 12, "device": "cpu"}
    return idsds.evaluate({"net": Linear()}, methods, data(), output=folder, progress=False, **settings), folder


def explorer(records, **given):
    return idsds.explore(records, **{"models": {"net": Linear()}, "methods": {"<b>own": own}, "dataset": data(), **given})


@pytest.mark.parametrize("kind", [0, 1], ids=["frame", "folder"])
def test_maps_are_those_that_were_scored(run, kind):
    view = explorer(run[kind])
    example, notes = view.example()
    assert notes == []
    assert set(example.maps) == {*METHODS, "<b>own"}
    index = int(view.image)
    image = data()[index][0]
    assert np.allclose(example.picture, image.movedim(0, -1), atol=1e-6)
    weight = Linear().fc.weight[data()[index][1]].detach().view(3, 8, 16)
    assert np.allclose(example.maps["IxG"], (weight * image).sum(0), atol=1e-5)
    assert example.maps["IxG"].shape == (8, 16)


def test_another_net_or_method_is_never_taken_for_the_one_that_was_scored(run):
    torch.manual_seed(1)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(384, 4))
    example, notes = explorer(run[1], models={"net": other}).example()
    assert example.maps["IxG"].shape == (4, 4)  # the recorded patch sums
    assert "cannot be made again as scored" in notes[0]
    assert "IxG" in notes[0]
    assert "Random" not in notes[0]  # does not depend on the net
    example, notes = explorer(run[1], methods={"<b>own": lambda images, targets: own(images, targets) ** 2}).example()
    assert "<b>own" in notes[0]
    assert example.maps["<b>own"].shape == (4, 4)
    assert example.maps["IxG"].shape == (8, 16)


def test_without_net_or_images_it_says_what_to_pass_and_shows_the_records(run):
    view = idsds.explore(run[1])
    example, notes = view.example()
    assert "pass" in notes[0].lower()
    assert any("dataset=" in note for note in notes)
    assert np.allclose(example.maps["IxG"].ravel(), example.records.loc["IxG", "patch_sums"])
    assert view.figure().axes
    with pytest.raises(UnknownNameError, match="model of the records"):
        explorer(run[1], models={"another": Linear()})
    with pytest.raises(UnknownNameError, match="method of the records"):
        explorer(run[1], methods={"another": own})


def test_orders_are_those_of_the_scores(run):
    records = run[0].copy()
    records.loc[(records["method"] == "IxG") & (records["image_id"] == "3"), "score"] = np.nan
    view = explorer(records).select(method="IxG")
    scores = records[records["method"] == "IxG"].set_index("image_id")["score"]
    worst = view.select(order=ORDERS[0]).images
    assert worst[:-1] == list(scores.dropna().sort_values(kind="stable").index)
    assert worst[-1] == "3"
    assert scores[view.select(order=ORDERS[1]).images[0]] == scores.max()
    assert view.select(order="most undefined").images[0] == "3"
    assert view.select(order="as evaluated").images == list(scores.index)
    low, high = view.source.extremes(view.case, "IxG")
    assert low == worst[:4]
    assert high == worst[:-1][::-1][:4]
    lower = explorer(records.assign(direction="lower is better")).select(method="IxG", order=ORDERS[0])
    assert scores[lower.images[0]] == scores.max()
    with pytest.raises(UnknownNameError, match="worst score first"):
        view.select(order="wurst score first")


def test_disagreement_is_one_minus_the_mean_rank_correlation_of_pairs(run):
    records, folder = run
    found = disagreement(records)
    assert disagreement(folder).sort_index().tolist() == found.sort_index().tolist()
    for image_id, rows in records[records["family"] != "control"].groupby("image_id"):
        pairs = [spearmanr(a, b).statistic for a, b in combinations(rows["patch_sums"], 2)]
        assert found[image_id] == pytest.approx(1 - np.mean(pairs))
    flat = records.copy()
    flat.loc[flat["method"] == "IxG", "patch_sums"] = flat["patch_sums"].map(np.zeros_like)
    assert np.allclose(disagreement(flat), disagreement(records[records["method"] != "IxG"]))
    assert disagreement(records[records["method"] == "IxG"]).isna().all()
    scores = records.drop(columns="patch_sums")
    assert disagreement(scores)["0"] == pytest.approx(scores[(scores["image_id"] == "0") & (scores["family"] != "control")]["score"].std())


def test_controls_choose_and_markup_of_a_name_stays_text(run, tmp_path):
    pytest.importorskip("ipywidgets")
    view = explorer(run[1])
    widget = view.widget
    shown = widget.card.value
    widget.image.value = view.images[5]
    assert widget.card.value != shown
    assert view.images[5] in widget.card.value
    widget.method.value = "<b>own"
    assert view.method == "<b>own"
    assert "&lt;b&gt;own" in widget.card.value
    assert "<b>own" not in widget.card.value
    worst = widget.strips[0][1][0]
    worst.click()
    assert view.image == worst.tooltip == view.source.extremes(view.case, "<b>own")[0][0]
    assert widget.image.value == view.image
    widget.order.value = "methods disagree most"
    assert [value for _, value in widget.image.options] == view.images
    widget.shown.value = ["IxG"]
    assert list(view.example()[0].maps) == ["<b>own", "IxG"]
    widget.png.click()
    assert "saved: " in widget.said.value
    assert view.save(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_kernel_without_browser_shows_the_figure(run, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.instance()
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    with capture_output() as captured:
        explorer(run[1])._ipython_display_()
    (picture,) = captured.outputs
    assert list(picture.data) == ["image/png", "text/plain"]
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    with capture_output() as captured:
        explorer(run[1])._ipython_display_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= captured.outputs[0].data.keys()


def test_records_of_two_settings_are_refused(run):
    twice = run[0].assign(baseline=["zeros", "blur"] * (len(run[0]) // 2))
    with pytest.raises(ValueError, match="2 values of 'baseline'"):
        idsds.explore(twice)
    with pytest.raises(ValueError, match="lack the column"):
        idsds.explore(run[0].drop(columns="protocol"))
    with pytest.raises(ValueError, match="empty"):
        idsds.explore(run[0].head(0))
