import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.common.settings import SettingsError
from idsds.studies.how_idsds_works import HowIdsdsWorks, delete_each, patch_table, sentences, spearman


def settings(output, **changes):
    fields = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": ["IxG", "IxG abs"], "images": 2, "output": str(output)}
    return HowIdsdsWorks(**{**fields, **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory, checkpoint):
    return settings(tmp_path_factory.mktemp("walk"), checkpoints={"mini_resnet8": str(checkpoint)}, grid=2)


@pytest.fixture(scope="module")
def walked(study):
    return study.run(progress=False)


def test_it_takes_the_last_image_and_agrees_with_the_engine(walked):
    example, scores = walked.records, walked.tables["scores"].set_index("method")
    np.testing.assert_allclose(walked.table["drop"], example.drops.ravel(), atol=1e-5)  # float32 logits of about 1
    for method, table in (("IxG", walked.table), ("IxG abs", walked.tables["IxG_abs"])):
        assert len(table) == 4
        assert spearman(table) == pytest.approx(example.records.loc[method, "score"], abs=1e-9)
        assert spearman(table) == pytest.approx(stats.spearmanr(table["drop"], table["patch sum"]).statistic)
        assert (table["square"] == table["difference"] ** 2).all()
        rho = 1 - 6 * table["square"].sum() / (4 * 15)
        assert scores.loc[method, ["by_hand", "recorded"]].tolist() == pytest.approx([rho, rho])
        assert scores.loc[method, "squares"] == table["square"].sum()
        assert f"{method} {rho:+.3f}" in walked.findings.sentences[2]


def test_each_picture_lacks_its_own_patch_and_nothing_else(study, walked):
    picture, (deleted, logits) = walked.records.picture, delete_each(study.arguments())
    assert deleted.shape == (4, 32, 32, 3)
    np.testing.assert_allclose(logits, walked.table["logit"])
    for patch, shown in enumerate(deleted):
        rows, columns = slice(patch // 2 * 16, patch // 2 * 16 + 16), slice(patch % 2 * 16, patch % 2 * 16 + 16)
        kept = np.ones((32, 32), bool)
        kept[rows, columns] = False
        np.testing.assert_allclose(shown[kept], picture[kept], atol=1e-6)
        np.testing.assert_allclose(shown[rows, columns], 0.1, atol=1e-6)  # zero in normalised space is the data's mean


def test_the_sentences_hold_the_numbers():
    table = patch_table(2.0, np.array([1.0, 2.5, -1.0, 1.5]), [1.0, 0.0, 3.0, 2.0])
    scores = pd.DataFrame({"method": ["IG"], "by_hand": [spearman(table)]})
    first, second, third = sentences("7", table, scores)
    assert first == "The patch in row 2, column 1 matters most: without it the logit of '7' falls by 3.00 to -1.00."
    assert second == "The logit rises without 1 of the 4 patches."
    assert third.endswith("IG +0.800.")


def test_a_constant_map_has_no_correlation(walked):
    assert np.isnan(spearman(walked.table.assign(**{"rank of sum": 2.5})))


@pytest.mark.parametrize("columns", [1, 2])
def test_the_figure_shows_all_deletions_and_a_row_per_method(study, walked, columns):
    figure = study.model_copy(update={"columns": columns}).run(progress=False).plot() if columns == 1 else walked.plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert sum(title.startswith("4. attribution") for title in titles) == 2
    for rho in walked.tables["scores"]["by_hand"]:
        assert f"6. rank correlation (1 is best): {rho:+.2f}" in titles
    logits = [axes.get_xlabel() for axes in figure.axes]
    assert all(f"{logit:.2f}" in logits for logit in walked.table["logit"])


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(SettingsError, match="seeds"):
        settings(tmp_path, seeds=[0, 1])
    with pytest.raises(SettingsError, match=r"Did you mean 'mini_resnet8'"):
        settings(tmp_path, models=["mini_resnet9"])
