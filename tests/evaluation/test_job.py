"""Jobs: data sets by name, as their files are now."""

import os

import numpy as np
import torch
from PIL import Image

import idsds
from idsds.evaluation.job import named_dataset


def test_a_folder_by_name_whose_file_was_replaced_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    files = [tmp_path / "image_folder" / kind / f"{i}.png" for kind in "ab" for i in range(12)]

    def write(seconds):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
            os.utime(file, (seconds, seconds))

    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 2)).eval()

    def score(output):
        named_dataset.cache_clear()
        given = {"protocol": "single_deletion", "device": "cpu", "progress": False, "output": output and tmp_path / output}
        return idsds.evaluate({"n": net}, ["IxG"], "image_folder", **given).drops.map(tuple).tolist()

    write(1_000)
    before = score("a")
    assert score("b") == before
    write(2_000)
    assert score("a") == score("c") == score(None) != before
