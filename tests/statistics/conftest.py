import numpy as np
import pandas as pd
import pytest


def _make_records(scores, model="net", methods=None, **columns):
    """Records of one model from a matrix (images, methods)."""
    scores = np.asarray(scores, dtype=float)
    methods = methods or [f"m{j:02d}" for j in range(scores.shape[1])]
    image, method = np.meshgrid(np.arange(scores.shape[0]), np.arange(scores.shape[1]), indexing="ij")
    named = {"model": model, "method": np.array(methods)[method.ravel()], "image_id": image.ravel(), "score": scores.ravel()}
    return pd.DataFrame({**named, **columns})


@pytest.fixture
def make_records():
    return _make_records


@pytest.fixture
def records():
    """Two models, three methods, 40 images; the score of one image under ``IG`` of ``wide`` is undefined."""
    rng = np.random.default_rng(3)
    names = ["IG", "IxG", "Random"]
    narrow = rng.gamma(2.0, size=(40, 3)) * 0.1 + [0.3, 0.1, -0.2]
    wide = rng.gamma(2.0, size=(40, 3)) * 0.1 + [0.4, 0.1, -0.2]
    wide[7, 0] = np.nan
    return pd.concat([_make_records(narrow, "narrow", names), _make_records(wide, "wide", names)], ignore_index=True)
