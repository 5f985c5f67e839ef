"""What is read is what was written: everything else is an error that names the file."""

import hashlib
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.files import PARQUET, DamagedFileError
from idsds.evaluation import records
from idsds.evaluation.manifest import read_manifest, write_manifest
from idsds.statistics import paired_differences, ranking_with_ties
from idsds.statistics.scores import LOWER


def entry(folder, kind):
    return next(entry for entry in read_manifest(folder)["files"] if entry["kind"] == kind)


def resealed(folder, change):
    """As one would who knows how the manifest is sealed."""
    manifest = read_manifest(folder)
    change(manifest)
    write_manifest(folder, {name: value for name, value in manifest.items() if name not in ("seal", "format")})


@pytest.mark.parametrize("path", ["/etc/passwd", "../other.parquet", "scores/../../other.parquet", "C:\\x.parquet", "scores\\x.parquet"])
def test_a_path_out_of_the_folder_is_not_followed(run, path):
    shutil.copy(run / entry(run, "scores")["path"], run.parent / "other.parquet")
    resealed(run, lambda manifest: next(entry for entry in manifest["files"] if entry["kind"] == "scores").update(path=path))
    with pytest.raises(DamagedFileError, match="names a file outside its folder"):
        idsds.load_records(run)


def test_a_link_out_of_the_folder_shows_nothing_but_what_was_written(run):
    victim = run / entry(run, "scores")["path"]
    other = pq.read_table(victim).slice(0, 3)
    pq.write_table(other, run.parent / "other.parquet")
    victim.unlink()
    victim.symlink_to(run.parent / "other.parquet")
    with pytest.raises(DamagedFileError, match="its content is not what was written"):
        idsds.load_records(run)


def rewritten(path, change):
    table = change(pq.read_table(path))
    os.chmod(path, 0o644)
    pq.write_table(table, path, **PARQUET)


CHANGES = {
    "renamed": lambda table: table.rename_columns(["points" if name == "score" else name for name in table.column_names]),
    "dropped": lambda table: table.drop_columns("score"),
    "cast": lambda table: table.set_column(table.column_names.index("score"), "score", table["score"].cast(pa.float64())),
    "twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "fewer": lambda table: table.slice(1),
    "other": lambda table: table.set_column(table.column_names.index("score"), "score", pa.array(np.ones(len(table), np.float32))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_written_again_is_named(run, change):
    victim = run / entry(run, "scores")["path"]
    rewritten(victim, CHANGES[change])
    with pytest.raises(DamagedFileError, match=rf"{victim.name}.*its content is not what was written"):
        idsds.load_records(run)


@pytest.mark.parametrize("change", ["renamed", "dropped", "cast", "twice", "fewer"])
def test_and_where_its_hash_is_changed_too_by_its_columns_and_rows(run, change):
    victim = run / entry(run, "scores")["path"]
    rewritten(victim, CHANGES[change])
    found = hashlib.sha256(victim.read_bytes()).hexdigest()
    resealed(run, lambda manifest: next(entry for entry in manifest["files"] if entry["kind"] == "scores").update(sha256=found))
    with pytest.raises(DamagedFileError, match=rf"{victim.name}.*its columns or rows are not those"):
        idsds.load_records(run)


@pytest.mark.parametrize("kind", ["images", "deletions", "scores", "undefined"])
def test_every_bit_of_every_file_counts(run, kind):
    path = run / entry(run, kind)["path"]
    content, generator = path.read_bytes(), np.random.default_rng(0)
    os.chmod(path, 0o644)
    for place in [0, len(content) - 1, *generator.integers(len(content), size=30)]:
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(spoiled)
        records._known.clear()
        with pytest.raises(DamagedFileError, match=path.name):
            records.Run.open(run).check(entry(run, kind))
    path.write_bytes(content)
    records.Run.open(run).check(entry(run, kind))


def test_a_folder_that_was_copied_reads_the_same(made, run):
    pd.testing.assert_frame_equal(idsds.load_records(made), idsds.load_records(run))


CPU = {"device": "cpu", "progress": False, "images": 12}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 5)).eval()


@pytest.fixture
def images():
    return TensorDataset(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 5)


def test_the_best_comes_first_by_infidelity(net, images, tmp_path):
    records = idsds.evaluate({"n": net}, ["IxG", "Random", "IG"], images, protocol="infidelity", output=tmp_path / "x", **CPU)
    assert set(records["direction"]) == {LOWER}
    table = idsds.rank(records)
    assert table["method"].iloc[-1] == "Random"
    assert table["mean"].is_monotonic_increasing
    assert ranking_with_ties(records)["method"].tolist() == table["method"].tolist()
    pair = paired_differences(records, pairs=[("IG", "Random")]).iloc[0]
    assert pair["difference"] < 0
    assert pair["a_beats_b"] > 0.5
    pd.testing.assert_frame_equal(idsds.load_records(tmp_path / "x"), records)


def test_images_of_a_group_are_drawn_together(net, images, tmp_path):
    alone = idsds.evaluate({"n": net}, ["IxG"], images, protocol="single_deletion", **CPU)
    assert "group" not in alone
    images.groups = [f"photo {index // 3}" for index in range(12)]
    records = idsds.evaluate({"n": net}, ["IxG"], images, protocol="single_deletion", output=tmp_path / "x", **CPU)
    assert dict(zip(records["image_id"], records["group"], strict=True)) == {str(i): f"photo {i // 3}" for i in range(12)}
    assert idsds.rank(records)["interval"].item().endswith("over groups of images")
    pd.testing.assert_frame_equal(records.drop(columns="group"), alone)
    pd.testing.assert_frame_equal(idsds.load_records(tmp_path / "x"), records)
    images.groups = ["one"] * 3
    with pytest.raises(ValueError, match="3 groups for 12 images"):
        idsds.evaluate({"n": net}, ["IxG"], images, protocol="single_deletion", **CPU)


def test_a_setting_of_augmentations_is_no_group(net, images):
    """The protocol's setting was called ``group`` once, so that all images were one group and no interval was known."""
    images.normalisation = ((0.5,) * 3, (0.25,) * 3)
    records = idsds.evaluate({"n": net}, ["Random"], images, protocol="augmentation_robustness", **CPU)
    assert "group" not in records
    assert idsds.rank(records)["interval"].item().endswith("over images")
