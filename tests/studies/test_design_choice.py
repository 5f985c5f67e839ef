"""Verdicts on design choices, on records whose differences are known."""

import numpy as np
import pandas as pd
import pytest

from idsds.common.settings import SettingsError
from idsds.statistics import holm
from idsds.studies import design_choice as designs
from idsds.studies.design_choice import CHOICES, DesignChoice

GIVEN = {"dataset": "mnist5k", "methods": ["IG"], "images": 4}


def records(means, n=80):
    """Records of (model, method): mean, on the same images, whose own difficulty is shared."""
    rng = np.random.default_rng(0)
    image = 0.2 * rng.standard_normal(n)
    frames = []
    for (model, method), mean in means.items():
        family = "control" if method == "Random" else "gradient"
        score = mean + image + 0.05 * rng.standard_normal(n)
        frames.append(
            pd.DataFrame({"model": model, "method": method, "family": family, "seed": 0, "image_id": np.arange(n), "score": score})
        )
    return pd.concat(frames, ignore_index=True)


MEANS = {
    **{("shallow", name): value for name, value in {"IG": 0.5, "IxG": 0.3, "RISE": 0.1, "Random": 0.4}.items()},
    **{("deep", name): value for name, value in {"IG": 0.3, "IxG": 0.4, "RISE": 0.1, "Random": 0.0}.items()},
    ("deeper", "IG"): 0.1,
}


def test_verdicts_and_their_counts():
    table = designs.differences(records(MEANS), [["shallow", "deep", "deeper"]])
    found = {(row.higher, row.lower, row.method): row.verdict for row in table.itertuples()}
    assert found == {
        ("shallow", "deep", "IG"): "supported",
        ("shallow", "deep", "IxG"): "contradicted",
        ("shallow", "deep", "RISE"): "not supported",
        ("shallow", "deeper", "IG"): "supported",
        ("deep", "deeper", "IG"): "supported",
    }
    found = designs.findings("depth", table)
    assert found.sentences[0].startswith("deeper is lower: supported by 3 of 5 comparisons, contradicted by 1")
    counts = found.verdicts.set_index(["higher", "lower"]).loc[("shallow", "deep")]
    assert counts.to_dict() == {"comparisons": 3, "supported": 1, "not supported": 1, "contradicted": 1}


def test_differences_are_paired_and_corrected_for_all_of_them():
    data = records(MEANS)
    table = designs.differences(data, [["shallow", "deep", "deeper"]])
    wide = data[data["method"] == "IG"].pivot(index="image_id", columns="model", values="score")
    row = table.iloc[0]
    assert row["difference"] == pytest.approx((wide["shallow"] - wide["deep"]).mean())
    # Pairing takes the images' own difficulty away: the interval is as narrow as the noise alone, 2 * 1.96 * 0.05 * sqrt(2 / 80).
    assert row["high"] - row["low"] == pytest.approx(0.031, rel=0.35)
    assert (table["p_holm"].to_numpy() >= 0).all()
    alone = designs.differences(data[data["method"] == "RISE"], [["shallow", "deep"]])
    assert table.loc[table["method"] == "RISE", "p_holm"].item() == pytest.approx(holm(alone["p_holm"].to_numpy())[0])


def test_published_differences_of_a_chain():
    found = designs.published_differences([["resnet18", "resnet50"]]).set_index("method")
    assert found.loc["IG", "difference"] == pytest.approx(0.279 - 0.196)
    assert found.loc["Layer-CAM", "inferred"]
    assert not found.loc["IG", "inferred"]
    assert designs.published_differences([["mini_resnet8", "mini_resnet20"]]).empty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice": "deep"}, "unknown design choice 'deep'. Did you mean 'depth'"),
        ({"choice": "depth", "models": ["mini_resnet8"]}, "'depth' compares models and needs at least two"),
        ({"choice": "softmax", "chains": [["mini_resnet8", "mini_vgg11"]]}, "leave chains empty"),
        ({"choice": "depth", "chains": [["mini_resnet8", "mini_resnet20"]]}, "unknown model of a chain 'mini_resnet20'"),
        ({"choice": "depth", "chains": [["mini_resnet8", "mini_resnet8"]]}, "'mini_resnet8' is listed more than once"),
        (
            {"choice": "depth", "models": ["mini_resnet8", "mini_resnet20", "mini_vit"], "chains": [["mini_resnet8", "mini_resnet20"]]},
            "mini_vit",
        ),
        ({"choice": "depth", "columns": 3}, "columns"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, tmp_path):
    given = {**GIVEN, "models": ["mini_resnet8", "mini_vgg11"], "output": str(tmp_path), **changes}
    with pytest.raises(SettingsError, match=message):
        DesignChoice(**given)


def test_the_softmax_compares_each_model_with_itself(tmp_path, checkpoint):
    settings = DesignChoice(
        **{**GIVEN, "methods": ["IxG", "Random"]},
        choice="softmax",
        models=["mini_resnet8"],
        output=str(tmp_path),
        checkpoints={"mini_resnet8": str(checkpoint)},
    )
    assert settings.axes == [["mini_resnet8, logit", "mini_resnet8, probability"]]
    found = settings.records(progress=False)
    assert designs.ranked(found, settings.axes)["model"].unique().tolist() == settings.axes[0]
    drops = found[found["method"] == "IxG"].groupby("model", sort=False)["drops"].agg(list)
    assert np.abs(np.array(drops.iloc[1][0])).max() <= 1, "drops of a probability"
    assert not np.allclose(drops.iloc[0][0], drops.iloc[1][0])
    sums = found[found["method"] == "IxG"].groupby("model", sort=False)["patch_sums"].agg(list)
    assert not np.allclose(sums.iloc[0][0], sums.iloc[1][0]), "the method explains what is judged"
    assert set(designs.differences(found, settings.axes)["method"]) == {"IxG"}


def test_every_choice_says_its_claim_and_source():
    assert set(CHOICES) == {"depth", "width", "batchnorm_bias", "backbone", "softmax"}
    assert all(choice.claim and choice.source for choice in CHOICES.values())
