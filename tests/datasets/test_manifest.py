"""Manifests: the same images for everyone."""

import pandas as pd
import pytest
import torch

from idsds.common.normalisation import UNIT
from idsds.datasets import create_dataset, fingerprint, fixed_order, manifest, read_manifest, write_manifest
from idsds.datasets.base import first


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_manifest_names_the_same_subset_for_everyone(tmp_path, ending):
    found = create_dataset("digits", "test")
    path = write_manifest(found, tmp_path / f"subset{ending}", images=17)
    table = read_manifest(path)
    assert table["image_id"].tolist() == [found.image_ids[i] for i in fixed_order(found.image_ids)[:17]]
    chosen = create_dataset("digits", "test", UNIT, manifest=path)
    assert chosen.image_ids == first(found, 17).image_ids == table["image_id"].tolist()
    assert chosen.targets == table["target"].tolist()
    assert [chosen.classes[t] for t in chosen.targets] == table["class"].astype(str).tolist()
    assert torch.equal(chosen[4][0], create_dataset("digits", "test", UNIT)[found.image_ids.index(chosen.image_ids[4])][0])
    assert fingerprint(chosen) != fingerprint(found)


def test_manifest_errors(tmp_path):
    found = create_dataset("digits")
    with pytest.raises(ValueError, match=rf"1\.\.{len(found)}"):
        manifest(found, len(found) + 1)
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        write_manifest(found, tmp_path / "a.txt")
    path = write_manifest(found, tmp_path / "a.csv", images=4)
    table = pd.read_csv(path)
    table.assign(target=(table["target"] + 1) % 10).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"a\.csv.*has target"):
        create_dataset("digits", manifest=path)
    with pytest.raises(ValueError, match=r"a\.csv.*4 images"):
        create_dataset("digits", "train", manifest=path)
    table.drop(columns="target").to_csv(path, index=False)
    with pytest.raises(ValueError, match="target"):
        read_manifest(path)
