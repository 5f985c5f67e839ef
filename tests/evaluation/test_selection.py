"""The images that are compared: what is kept is what a loop over the records keeps, and it is said."""

import itertools

import numpy as np
import pandas as pd
import pytest

from idsds.common.registry import UnknownNameError
from idsds.evaluation.selection import images_said, select_images


def records():
    """Of 6 images model a is wrong on image 1, b on 2; image 4 is undefined for one method of b."""
    rows = []
    for model, method, image in itertools.product("ab", ("IG", "Random"), range(6)):
        wrong = (model, image) in (("a", 1), ("b", 2))
        score = np.nan if (model, method, image) == ("b", "IG", 4) else 0.1 * image
        rows.append(
            {"model": model, "method": method, "image_id": str(image), "target": 3, "prediction": 7 if wrong else 3, "score": score}
        )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("only", "common", "of_a", "of_b", "said"),
    [
        (None, False, "012345", "012345", ""),
        ("correct", False, "02345", "01345", "5 to 5 of 6 images, on which its model is right"),
        (None, True, "01235", "01235", "the 5 of 6 images on which every method of every model is defined"),
        ("correct", True, "035", "035", "the 3 of 6 images on which every method is defined and every model right"),
    ],
)
def test_images_that_are_kept(only, common, of_a, of_b, said):
    data = records()
    kept = select_images(data, only, common)
    for model, images in (("a", of_a), ("b", of_b)):
        for method in ("IG", "Random"):
            assert "".join(kept[(kept["model"] == model) & (kept["method"] == method)]["image_id"]) == images
    assert images_said(data, kept, only, common) == said


def test_what_cannot_be_chosen():
    with pytest.raises(UnknownNameError, match=r"unknown choice of images 'corect'\. Did you mean 'correct'"):
        select_images(records(), "corect")
    with pytest.raises(ValueError, match="needs the models' predictions"):
        select_images(records().drop(columns="prediction"), "correct")
    with pytest.raises(ValueError, match="no image is left of 6: the 0 of 6 images on which every method is defined and every model right"):
        select_images(records().assign(prediction=9), "correct", common=True)
