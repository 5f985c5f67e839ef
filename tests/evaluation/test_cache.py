"""Records that are computed once, in whatever run they are asked for."""

import json
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

import idsds
import idsds.evaluation.evaluate
from idsds.common.files import facts_of
from tests.evaluation.linear import Linear

METHODS = ["Gradient", "IxG", "IxG-SG", "Random"]


def own_data(n=40, changed=()):
    images = torch.randn(n, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    for index in changed:
        images[index] += 1
    return TensorDataset(images, torch.arange(n) % 4)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Evaluate into a folder of its own; how many images went through the net for records, and these."""
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    seen, compute = [], idsds.evaluation.evaluate.run_task

    def counted(*arguments):
        outcome = compute(*arguments)
        seen.extend(block.forward for block in outcome.blocks)
        return outcome

    monkeypatch.setattr(idsds.evaluation.evaluate, "run_task", counted)

    def evaluate(output, methods=METHODS, images=12, dataset=None, name="net", **changes):
        output = None if output is None else tmp_path / output
        arguments = {"models": {name: Linear()}, "methods": methods, "dataset": dataset or own_data(), "images": images, **changes}
        seen.clear()
        records = idsds.evaluate(**arguments, output=output, progress=False)
        if output is not None:
            pd.testing.assert_frame_equal(records, idsds.load_records(output))
        return sum(seen), records

    evaluate.seen = seen
    return evaluate


def alike(first, second):
    """The same records: images that are computed in other batches differ by rounding."""
    assert first[["model", "method", "image_id"]].equals(second[["model", "method", "image_id"]])
    # logits of about 20 in float32
    np.testing.assert_allclose(np.stack(first.patch_sums), np.stack(second.patch_sums), atol=1e-4)
    np.testing.assert_allclose(np.stack(first.drops), np.stack(second.drops), atol=1e-4)


def files(folder):
    """The files of a run, and of a cache, by what they are called there."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))


def blocks(tmp_path, method):
    """The blocks of the cache that hold a method."""
    return [path for path in sorted(tmp_path.glob("cache/records/*/*")) if method in facts_of(pq.read_schema(path))["methods"]]


def passes(folder):
    return json.loads((folder / "manifest.json").read_text())["passes"]


def test_another_run_of_the_same_computes_nothing_and_its_folder_is_complete(run, tmp_path):
    _, first = run("a")
    seen, second = run("b")
    assert seen == 0
    pd.testing.assert_frame_equal(first, second)
    assert files(tmp_path / "a") == files(tmp_path / "b") != []
    assert all(path.stat().st_nlink == 1 for path in tmp_path.rglob("*.parquet"))  # no file of one is a file of the other
    assert passes(tmp_path / "b")["counted"] == passes(tmp_path / "b")["announced"] == passes(tmp_path / "a")["counted"]
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(idsds.load_records(tmp_path / "elsewhere"), second)


@pytest.mark.parametrize("shard", [5, 256])
def test_fewer_images_cost_nothing_and_more_cost_themselves(run, tmp_path, shard):
    everything = run(None, images=20, shard=shard)[1]
    run("a", images=12, shard=shard)
    seen, few = run("b", images=7, shard=shard)
    assert seen == 0
    seen, many = run("c", images=20, shard=shard)
    assert seen == 8 * (17 + 1 + 4)
    alike(everything, many)
    alike(everything[everything.image_id.isin(few.image_id)].reset_index(drop=True), few)
    for folder, images in (("b", 7), ("c", 20)):
        assert (
            passes(tmp_path / folder)["counted"]
            == passes(tmp_path / folder)["announced"]
            == {"forward": images * 22, "backward": images * 5}
        )


def test_fewer_methods_cost_nothing_and_more_their_own_computation(run, tmp_path):
    run("a", ["Gradient", "IxG", "Random"])
    assert run("b", ["IxG"])[0] == 0
    assert run("c", ["IxG", "IxG-SG"])[0] == 12 * 4
    assert run("d", ["IxG abs"])[0] == 12 * 1  # the drops are there
    assert run("e", ["Gradient", "IxG abs", "IxG", "IxG-SG", "Random"])[0] == 0
    assert passes(tmp_path / "e")["counted"] == passes(tmp_path / "e")["announced"]


def test_drops_are_shared_with_another_protocol(run):
    run("a")
    assert run("b", ["IxG"], protocol="single_deletion")[0] == 12  # its own gradient


def test_a_net_under_another_name_has_records_under_that_name(run, tmp_path):
    run("a")
    for name in ("other", "../a/b", "a b", "ä/\x00"):
        records = run("b", name=name)[1]
        assert set(records.model) == {name}
    assert {path.parent.name for path in (tmp_path / "b").glob("*/*.parquet")} == {"deletions", "scores"}
    assert not list(tmp_path.parent.glob("*.parquet"))


def test_only_the_images_that_changed_are_computed_again(run):
    run("a")
    ids = run(None, ["Random"])[1].image_id
    changed = int(ids.iloc[5])
    seen, records = run("b", dataset=own_data(changed=[changed]))
    assert seen == 22
    alike(run(None, dataset=own_data(changed=[changed]))[1], records)
    assert run("a")[0] == 0  # which has its own


@pytest.mark.parametrize("fault", ["truncated", "one byte"])
def test_a_damaged_file_of_the_cache_is_named_and_it_alone_computed_again(run, tmp_path, fault):
    _, first = run("a")
    victim = blocks(tmp_path, "IxG")[0]
    content = bytearray(victim.read_bytes())
    victim.unlink()  # it is read-only
    if fault == "truncated":
        content = content[:-40]
    else:
        content[len(content) // 8] ^= 255
    victim.write_bytes(content)
    with pytest.warns(UserWarning, match=f"cannot read the records in .*cache.*{victim.name}.*computed again"):
        seen, second = run("b")
    assert seen == 12
    pd.testing.assert_frame_equal(first, second)
    assert run("c")[0] == 0  # mended


def test_a_file_that_is_damaged_in_the_folder_is_taken_from_the_cache(run, tmp_path):
    _, first = run("a")
    (victim,) = (tmp_path / "a" / "scores").iterdir()
    victim.write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=victim.name):
        seen, second = run("a")
    assert seen == 0
    pd.testing.assert_frame_equal(first, second)


def test_the_cache_can_be_turned_off_and_is_not_asked_without_a_folder(run, tmp_path, monkeypatch):
    run("a")
    assert run(None)[0] == 12 * 22
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "0")
    assert run("b")[0] == 12 * 22
    shutil.rmtree(tmp_path / "cache")
    run("c", images=13)
    assert not (tmp_path / "cache").exists()


def test_where_there_are_no_links_files_are_copied(run, tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    _, first = run("a")
    seen, second = run("b")
    assert seen == 0
    pd.testing.assert_frame_equal(first, second)
    assert len(files(tmp_path / "cache")) == 4


def test_a_cache_that_cannot_be_written_is_named_and_stops_nothing(run, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "records").write_text("a file in the way")
    with pytest.warns(UserWarning, match=r"records are not shared with other runs: .*IDSDS_RECORD_CACHE=0"):
        seen, _ = run("a")
    assert seen == 12 * 22


def test_what_is_reused_is_announced(run, tmp_path, capsys):
    run("a")
    capsys.readouterr()
    arguments = {"models": {"net": Linear()}, "methods": METHODS, "dataset": own_data()}
    run.seen.clear()  # it is within reach of what is patched here, and so a part of every address
    idsds.evaluate(**arguments, images=12, output=tmp_path / "b")
    said = capsys.readouterr().out
    assert "3 of 3 sets of records already exist; 4 blocks are reused from other runs" in said
    assert str(tmp_path / "cache" / "records") in said
    assert "; 0 passes left" in said
    run.seen.clear()
    idsds.evaluate(**arguments, images=20, output=tmp_path / "c")
    said = capsys.readouterr().out
    assert "0 of 3 sets of records already exist; 4 blocks are reused from other runs" in said
    assert f"; {8 * 27} passes left" in said


def test_old_files_of_a_run_are_left_in_the_cache_when_it_is_started_again(run, tmp_path):
    run("a")
    shutil.rmtree(tmp_path / "cache")
    assert run("a")[0] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "model 'net' is judged by 'idsds', but is not known to be fine-tuned")
        assert run("b")[0] == 0


def test_workers_share_what_they_compute(run, tmp_path):
    from idsds.evaluation import cluster

    with cluster.local(1) as workers:
        _, first = run("a", scheduler=workers, shard=5)
        seen, more = run("b", images=20, scheduler=workers, shard=5)
    assert seen == 0  # by this process, which looks at the net but once
    assert len(files(tmp_path / "cache")) == 4 * (3 + 2)  # the columns and three computations, of 5, 5 and 2 images, then of 3 and 5
    assert passes(tmp_path / "b")["counted"] == passes(tmp_path / "b")["announced"]
    alike(first, more[more.image_id.isin(first.image_id)].reset_index(drop=True))
    alike(run(None, images=20, shard=5)[1], more)


def test_an_edited_block_carries_over_to_nobody(run, tmp_path):
    """A link, an edit in place: the hash in the name tells."""
    _, first = run("a")
    victim = blocks(tmp_path, "Random")[0]
    os.link(victim, tmp_path / "link")
    os.chmod(tmp_path / "link", 0o644)
    table = pq.read_table(victim)
    scores = pa.array([1.0] * len(table))
    pq.write_table(table.set_column(table.column_names.index("score"), "score", scores), tmp_path / "link")
    with pytest.warns(UserWarning, match="its content does not match its name; what was in it is computed again"):
        seen, second = run("b")
    assert seen == 0  # Random takes no pass
    pd.testing.assert_frame_equal(first, second)


def test_what_another_call_has_left_in_the_folder_is_kept(run, tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "0")
    run("a", ["IxG", "IxG-SG"], images=12)
    run("a", ["Random"], images=5, grid=2)
    run("a", ["Gradient"], images=7)
    assert run("a", ["IxG", "IxG-SG"], images=12)[0] == 0
    assert run("a", ["Random"], images=5, grid=2)[0] == 0
