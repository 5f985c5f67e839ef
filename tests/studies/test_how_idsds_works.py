import numpy as np
import pytest
from scipy import stats

from idsds import plots
from idsds.common.settings import SettingsError
from idsds.studies import how_idsds_works as walkthrough
from idsds.studies.how_idsds_works import WalkthroughSettings


def settings(output, **changes):
    fields = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": ["IxG", "IxG abs"], "images": 2, "output": str(output)}
    return WalkthroughSettings(**{**fields, **changes})


@pytest.fixture(scope="module")
def walked(tmp_path_factory, checkpoint):
    return walkthrough.walk(
        settings(tmp_path_factory.mktemp("walk"), checkpoints={"mini_resnet8": str(checkpoint)}, grid=2), progress=False
    )


def test_it_takes_the_last_image_and_agrees_with_the_engine(walked):
    np.testing.assert_allclose(walked.drops, walked.example.drops.ravel(), atol=1e-5)  # float32 logits of about 1
    assert len(walked.logits) == 4
    for method in ("IxG", "IxG abs"):
        table = walkthrough.patch_table(walked, method)
        assert walkthrough.spearman(table) == pytest.approx(walked.example.records.loc[method, "score"], abs=1e-9)
        assert walkthrough.spearman(table) == pytest.approx(stats.spearmanr(table["drop"], table["patch sum"]).statistic)
        assert (table["square"] == table["difference"] ** 2).all()
        rho = 1 - 6 * table["square"].sum() / (4 * 15)
        assert f"= {rho:+.3f}" in "\n".join(walkthrough.sentences(walked))


def test_each_picture_lacks_its_own_patch_and_nothing_else(walked):
    picture = walked.example.picture
    assert walked.deleted.shape == (4, 32, 32, 3)
    for patch, shown in enumerate(walked.deleted):
        rows, columns = slice(patch // 2 * 16, patch // 2 * 16 + 16), slice(patch % 2 * 16, patch % 2 * 16 + 16)
        kept = np.ones((32, 32), bool)
        kept[rows, columns] = False
        np.testing.assert_allclose(shown[kept], picture[kept], atol=1e-6)
        np.testing.assert_allclose(shown[rows, columns], 0.1, atol=1e-6)  # zero in normalised space is the data's mean


def test_the_sentences_hold_the_numbers(walked):
    lines = walkthrough.sentences(walked)
    most = int(walked.drops.argmax())
    assert len(lines) == 3 + 2
    assert f"row {most // 2 + 1}, column {most % 2 + 1} matters most" in lines[2]
    assert f"falls by {walked.drops.max():.2f}. Without {(walked.drops < 0).sum()} of" in lines[2]
    assert walked.example.target in walkthrough.headline(walked)


def test_a_constant_map_has_no_correlation(walked):
    table = walkthrough.patch_table(walked, "IxG").assign(**{"rank of sum": 2.5})
    assert np.isnan(walkthrough.spearman(table))


def test_the_figure_shows_all_deletions_and_a_row_per_method(walked):
    figure = plots.how_idsds_works(walked)
    titles = [axes.get_title() for axes in figure.axes]
    assert sum(title.startswith("4. attribution") for title in titles) == 2
    for method in ("IxG", "IxG abs"):
        rho = walkthrough.spearman(walkthrough.patch_table(walked, method))
        assert f"6. rank correlation (1 is best): {rho:+.2f}" in titles
    logits = [axes.get_xlabel() for axes in figure.axes]
    assert all(f"{logit:.2f}" in logits for logit in walked.logits)


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(SettingsError, match="seeds"):
        settings(tmp_path, seeds=[0, 1])
    with pytest.raises(SettingsError, match=r"Did you mean 'mini_resnet8'"):
        settings(tmp_path, models=["mini_resnet9"])
