"""A run is complete when every record that was asked for is there; two writers lose nothing."""

import multiprocessing
import os
import shutil
import stat
import time
import warnings

import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

import idsds
import idsds.evaluation.evaluate as engine
from idsds.common import files
from idsds.common.files import DamagedFileError, locked
from idsds.evaluation.cache import Store
from idsds.evaluation.evaluate import MissingRecordsError
from idsds.evaluation.manifest import read_manifest
from idsds.models.weights import CheckpointError, read_state_dict, save_checkpoint, written_hash
from idsds.training.checkpoints import obtain, plan_training
from tests.evaluation.linear import Linear

METHODS = ["IxG", "IxG-SG", "Random", "Gradient"]


def evaluate(output=None, methods=METHODS, **changes):
    data = TensorDataset(torch.randn(12, 3, 8, 16, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "model 'net' is judged by 'idsds', but is not known to be fine-tuned")
        return idsds.evaluate({"net": Linear()}, methods, data, output=output, **{"progress": False, "shard": 4, **changes})


def same(found, expected, methods=METHODS):
    expected = expected[expected.method.isin(methods)].reset_index(drop=True)
    found = found.sort_values(["method", "image_id"], ignore_index=True)
    expected = expected.sort_values(["method", "image_id"], ignore_index=True)
    pd.testing.assert_frame_equal(found[["method", "image_id", "score"]], expected[["method", "image_id", "score"]])


def _write(folder, methods, answers):
    answers.put((methods, evaluate(folder, methods)))


@pytest.mark.parametrize("wishes", [(["IxG"], ["IxG-SG", "Random"]), (["IxG", "Gradient"], ["Random"], ["IxG-SG", "IxG"])])
def test_writers_with_different_wishes_lose_nothing(tmp_path, wishes, capfd):
    expected, spawned = evaluate(), multiprocessing.get_context("fork")
    answers = spawned.Queue()
    writers = [spawned.Process(target=_write, args=(tmp_path / "run", wish, answers)) for wish in wishes]
    with locked(tmp_path / "run"):  # so that all of them have seen an empty folder before the first begins
        for writer in writers:
            writer.start()
        said, until = "", time.monotonic() + 60
        while said.count(f"this run waits for process {os.getpid()} on ") < len(writers):
            assert time.monotonic() < until, said
            time.sleep(0.02)
            said += capfd.readouterr().out
    for _ in writers:
        methods, found = answers.get(timeout=60)
        same(found, expected, methods)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    left = idsds.load_records(tmp_path / "run")
    assert set(left.method) in [set(wish) for wish in wishes]  # of the last
    every = [method for method in METHODS if any(method in wish for wish in wishes)]
    same(evaluate(tmp_path / "run", every, progress=True), expected, every)
    assert "0 passes left" in capfd.readouterr().out  # all that any of them has computed is still there


@pytest.mark.parametrize("where", ["block", "blocks", "folder"])
def test_what_vanishes_in_the_middle_is_missed_by_name(tmp_path, monkeypatch, where):
    folder, done, run_task = tmp_path / "run", [], engine.run_task

    def spoil(*arguments):
        outcome = run_task(*arguments)
        done.append(outcome)
        if len(done) == 2:
            victim = {"block": sorted(folder.glob("blocks/*/*.parquet"))[0], "blocks": folder / "blocks", "folder": folder}[where]
            victim.unlink() if victim.is_file() else shutil.rmtree(victim)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_task", spoil)
        with pytest.raises(MissingRecordsError, match=r"blocks/.*parquet' is missing, although this process has written it"):
            evaluate(folder)
    with pytest.raises(FileNotFoundError):
        idsds.load_records(folder)
    same(evaluate(folder), evaluate())


def test_a_block_that_vanishes_while_files_are_written_is_named(tmp_path, monkeypatch):
    folder, commit = tmp_path / "run", engine.commit

    def spoil(state, *rest):
        next(folder.glob("blocks/*/*.parquet")).unlink()
        return commit(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "commit", spoil)
        with pytest.raises((DamagedFileError, OSError), match=r"blocks/.*\.parquet"):
            evaluate(folder)
    with pytest.raises(FileNotFoundError):
        idsds.load_records(folder)
    same(evaluate(folder), evaluate())


def test_a_worker_that_computes_too_little_is_missed(tmp_path, monkeypatch):
    """Only what the reader itself has named counts as unreadable."""
    run_task = engine.run_task
    monkeypatch.setattr(engine, "run_task", lambda *a: (out := run_task(*a)) and engine.Outcome(out.blocks[:0], (), "x"))
    with pytest.raises(
        MissingRecordsError, match=r"the records of 'net' under deletions lack 12 images that were not reported as unreadable"
    ):
        evaluate(tmp_path / "run")


def test_what_is_shared_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    evaluate(tmp_path / "run")
    shared = list((tmp_path / "cache" / "records").rglob("*.parquet"))
    assert shared
    assert not any(path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) for path in shared)
    inodes = {path.stat().st_ino for path in shared}
    assert not inodes & {path.stat().st_ino for path in (tmp_path / "run").rglob("*.parquet")}  # the files of a run are its own


def test_the_folder_reaches_the_disk_after_the_name(tmp_path, monkeypatch):
    """Or a power cut takes the name back: the content, the rename, the folder, in this order."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda one: done.append("folder" if stat.S_ISDIR(os.fstat(one).st_mode) else "file") or fsync(one)
    )
    monkeypatch.setattr(files.os, "replace", lambda *paths: done.append("name") or replace(*paths))
    files.write_json(tmp_path / "manifest.json", {})
    assert done == ["file", "name", "folder"]


def test_files_that_killed_processes_have_left_are_removed(tmp_path):
    folder = tmp_path / "run"
    (folder / "scores").mkdir(parents=True)
    left = [folder / ".manifest.json.1.abc.part", folder / "scores" / ".net.parquet.2.abc.part"]
    for path in left:
        path.write_text("half")
    evaluate(folder)
    assert not any(path.exists() for path in left)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Evaluate a net of the package with a cached checkpoint into a folder by name; whether it was trained."""
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    stage = plan_training("mini_resnet8", "digits", deletion=None, changes={"epochs": 1}, device="cpu")

    def run(output, methods=("IxG",)):
        before = written()
        found = idsds.evaluate({"net": stage}, list(methods), "digits", images=4, output=tmp_path / output, progress=False)
        return written() not in (None, before), found

    def written():
        """Which file it is, and of when: a new file may get the number of one that was removed."""
        return (stage.path.stat().st_ino, stage.path.stat().st_mtime_ns) if stage.path.is_file() else None

    run.path = stage.path
    return run


def scores(records, method="IxG"):
    return records[records.method == method].set_index("image_id").score.to_dict()


def test_a_checkpoints_content_is_a_part_of_the_address(trained, tmp_path):
    fitted, first = trained("a")
    assert fitted
    assert list(read_manifest(tmp_path / "a")["checkpoints"].values()) == [written_hash(trained.path)]
    # One bit of a weight, as a disk does it: the time of the file stays.
    content, times = bytearray(trained.path.read_bytes()), trained.path.stat()
    content[-100] ^= 64
    trained.path.write_bytes(content)
    os.utime(trained.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    fitted, found = trained("b")
    assert not fitted  # nothing is to be computed, and the records are those of the true weights
    assert scores(found) == scores(first)
    with pytest.warns(UserWarning, match=rf"{trained.path.name}' is not what was written: its sha256 is .*; it is made again"):
        fitted, found = trained("b", ["IxG", "Gradient"])
    assert fitted
    assert scores(found) == scores(first)
    # Other weights under the same name, hash and all, are other weights: no record is taken for theirs.
    state = read_state_dict(trained.path)
    save_checkpoint({key: value.flip(0) if value.is_floating_point() else value for key, value in state.items()}, trained.path)
    fitted, other = trained("c")
    assert not fitted
    assert scores(other) != scores(first)
    assert scores(trained("a")[1]) == scores(other)


def test_an_emptied_cache_costs_nothing_where_the_folder_is_complete(trained, tmp_path):
    _, first = trained("a")
    shutil.rmtree(tmp_path / "cache")
    fitted, again = trained("a")
    assert not fitted
    pd.testing.assert_frame_equal(first, again)


def test_a_checkpoint_that_is_replaced_while_it_is_in_use_is_named(trained, monkeypatch):
    trained("a")

    def late(stage, **options):
        model = obtain(stage, **options)
        save_checkpoint({key: value + 1 for key, value in model.state_dict().items()}, stage.path)
        return model

    monkeypatch.setattr("idsds.evaluation.job.obtain", late)
    with pytest.raises(CheckpointError, match=rf"{trained.path.name}' was replaced while it was in use"):
        trained("a", ["IxG", "Gradient"])


def test_a_state_to_go_on_from_that_nobody_has_touched_for_a_month_is_removed(trained):
    old, young = trained.path.with_name("old.resume.pt"), trained.path.with_name("young.resume.pt")
    trained.path.parent.mkdir(parents=True)
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 31 * 86400,) * 2)
    trained("a")
    assert not old.exists()
    assert young.exists()
    assert not list(trained.path.parent.glob(f"{trained.path.stem}*.resume.pt"))


def test_a_store_leaves_no_half_block(tmp_path, monkeypatch):
    """A cache on a disk that becomes full."""
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))

    def full(self, path, address):
        raise OSError(28, f"cannot write {str(self.folder / address)!r}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", full)
        with pytest.warns(UserWarning, match="records are not shared with other runs: .*No space left"):
            found = evaluate(tmp_path / "run")
    same(found, evaluate())


def test_the_ledger_takes_a_few_bytes_for_each_undefined_score(tmp_path):
    data = TensorDataset(torch.zeros(300, 3, 8, 16), torch.arange(300) % 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        idsds.evaluate({"net": Linear()}, ["IxG", "Random"], data, images=300, output=tmp_path / "run", progress=False)
    (ledger,) = (tmp_path / "run").glob("undefined-*.parquet")
    assert read_manifest(tmp_path / "run")["undefined"] == 600
    assert ledger.stat().st_size < 20 * 600
