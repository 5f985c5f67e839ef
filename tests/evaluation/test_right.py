"""Nets that are right no more often than by guessing."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.evaluation.test_trial import NET, scores


def test_labels_that_fit_no_better_than_guesses_are_doubted():
    pixels = torch.randn(60, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    labels = NET(pixels).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores({"IxG": None}, data=torch.utils.data.TensorDataset(pixels, labels), images=60)
    with pytest.warns(UserWarning, match="model 'net' predicts the label of 0 of 60 images, no better than guessing among its 4 classes"):
        scores({"IxG": None}, data=torch.utils.data.TensorDataset(pixels, (labels + 1) % 4), images=60)
