"""The leaderboard: which methods are chosen, who is as good as the best, and the front of quality and cost, on records that are known."""

import numpy as np
import pandas as pd
import pytest

from idsds.common.registry import UnknownNameError
from idsds.common.settings import SettingsError
from idsds.studies import leaderboard as boards
from idsds.studies.leaderboard import Leaderboard

GIVEN = {"dataset": "mnist5k", "models": ["mini_resnet8"], "images": 4, "output": "runs/smoke/test_leaderboard"}


def records(means, n=60, ceiling=("Occlusion",)):
    """Records of method: mean, on the same images, whose own difficulty is shared."""
    rng = np.random.default_rng(0)
    image, frames = 0.2 * rng.standard_normal(n), []
    for method, mean in means.items():
        family = "control" if method == "Random" else "gradient"
        score = mean + image + 0.05 * rng.standard_normal(n)
        facts = {"model": "net", "method": method, "family": family, "seed": 0, "ceiling": method in ceiling}
        frames.append(pd.DataFrame({**facts, "image_id": np.arange(n), "score": score}))
    return pd.concat(frames, ignore_index=True)


MEANS = {"Occlusion": 1.0, "IG": 0.5, "DeepLIFT": 0.499, "IxG": 0.3, "Grad-CAM": 0.2, "Random": 0.0}
MILLISECONDS = {"Occlusion": 17.0, "IG": 50.0, "DeepLIFT": 4.0, "IxG": 2.0, "Grad-CAM": 3.0, "Random": 0.1}


@pytest.fixture
def table():
    costs = pd.DataFrame([{"model": "net", "method": name, "milliseconds": ms} for name, ms in MILLISECONDS.items()])
    return boards.with_costs(boards.standing(records(MEANS)), costs.assign(forward=1, backward=1, megabytes=2.0)).set_index("method")


def test_as_good_is_what_is_not_told_apart_from_the_best_rival(table):
    assert (table["best"] == table.loc[~table["ceiling"], "mean"].idxmax()).all()
    assert table["as_good"].to_dict() == {**dict.fromkeys(MEANS, False), "IG": True, "DeepLIFT": True}
    wide = records(MEANS).pivot(index="image_id", columns="method", values="score")
    best = table["best"].iloc[0]
    assert table.loc["IxG", "behind"] == pytest.approx((wide[best] - wide["IxG"]).mean())
    assert np.isnan(table.loc["Occlusion", "p_holm"])
    assert np.isnan(table.loc["Random", "p_holm"])


def test_front_has_no_rival_that_is_cheaper_and_as_good(table):
    """Neither the ceiling nor the control is on it; what is better by a hair for twelve times the cost is, if its mean is higher."""
    expected = {"IxG", "DeepLIFT"} | ({"IG"} if table.loc["IG", "mean"] > table.loc["DeepLIFT", "mean"] else set())
    assert set(table.index[table["front"]]) == expected
    found = boards.findings(table.reset_index())
    (row,) = found.verdicts.to_dict("records")
    assert row["worth their cost"].startswith("IxG (2 ms), DeepLIFT (4 ms)")
    assert row["ceilings"] == "Occlusion"
    assert (row["as good"], row["rivals"]) == (1, 4)


def test_methods_are_chosen_by_what_they_need():
    study = Leaderboard(passes=17, also=["Score-CAM"], **GIVEN)
    chosen, why = study.chosen, study.left_out.set_index("method")["why"]
    assert {"IxG", "DeepLIFT", "Occlusion", "Score-CAM", "Random"} <= set(chosen)
    assert why["IG"] == "it takes 100 passes per image, more than 17"
    assert why["SS-CAM"] == "its number of passes is not known beforehand; name it in 'also'"
    assert "BagNet models" in why["BagNet"]
    assert not set(chosen) & set(why.index)
    assert chosen["Occlusion"] == ("Occlusion", {"grid": 4, "baselines": "zeros"})  # equal settings
    rival = Leaderboard(methods=["Occlusion"], queried_grid=8, queried_baseline="blur", offset=4, **GIVEN)
    assert rival.chosen == {"Occlusion": ("Occlusion", {"grid": 8, "baselines": "blur"})}
    assert rival.runs()[""]["offset"] == 4
    softmax = Leaderboard(quantity="probability", passes=17, **GIVEN)
    assert softmax.left_out.set_index("method")["why"]["DeepLIFT"].startswith("its layer rules do not reach beyond the logits")
    assert softmax.score == "IDSDS of the probability"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"also": ["IG"], "methods": ["IxG"]}, SettingsError, "leave it empty if methods are named"),
        ({"offset": 8}, SettingsError, "offset must be below the side of a patch"),
        ({"queried_grid": 3}, SettingsError, "grid 3 does not divide images of 32 x 32"),
        ({"quantity": "probabilty"}, UnknownNameError, "Did you mean 'probability'"),
        ({"only": "wrong"}, SettingsError, "correct"),
    ],
)
def test_bad_settings_are_refused(changes, error, message):
    with pytest.raises((error, SettingsError), match=message):
        Leaderboard(**{**GIVEN, **changes})
