"""The manifest of a run: what was changed in it is refused."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.files import DamagedFileError
from idsds.evaluation.manifest import FORMAT, OldRecordsError, read_manifest


@pytest.mark.parametrize(
    "change", [("dataset", "other"), ("images", 5), ("status", "complete "), ("methods", ["Random", "IxG"]), ("seal", "0")]
)
def test_a_manifest_that_was_changed_is_refused(run, change):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest[change[0]] = change[1]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedFileError, match=r"manifest\.json.*not what was written"):
        idsds.load_records(run)


@pytest.mark.parametrize("number", [3, 4, 6, None])
def test_another_format_is_refused_and_left_alone(run, number):
    manifest = json.loads((run / "manifest.json").read_text()) | {"format": number}
    if number is None:
        del manifest["format"]  # of before there was one
    (run / "manifest.json").write_text(json.dumps(manifest))
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    with pytest.raises(OldRecordsError, match=f"of format {number or 3}, and this version reads format {FORMAT} alone"):
        idsds.load_records(run)
    with pytest.raises(OldRecordsError, match="name another output folder"):
        idsds.evaluate(
            {"net": nn.Flatten()}, ["Random"], TensorDataset(torch.zeros(2, 3, 8, 16), torch.arange(2)), output=run, progress=False
        )
    assert sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file() and not path.name.startswith(".lock")) == before


def test_the_manifest_says_what_computed_the_numbers(run):
    found = read_manifest(run)["versions"]
    assert {"python", "idsds", "torch", "torchvision", "numpy", "timm", "bcos", "mlxtend", "pyarrow", "captum", "pillow"} <= found.keys()
    assert "not installed" not in found.values()
