import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.datasets import create_dataset, fixed_order
from idsds.registry import UnknownNameError

METHODS = ["Gradient", "IxG", "IxG abs", "IxG-SG", "Grad-CAM", "Random"]


class Linear(nn.Module):
    """Logits that are linear in the image: every gradient method is exact, and IxG is the drop itself."""

    def __init__(self, size=(3, 8, 16), classes=5):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.fc = nn.Linear(int(np.prod(size)), classes)

    def forward(self, images):
        return self.fc(images.flatten(1))


def own_data(n=12):
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(n, 3, 8, 16, generator=generator), torch.randint(5, (n,), generator=generator))


@pytest.fixture
def run(checkpoint):
    def evaluate(**changes):
        arguments = {"models": ["mini_resnet8"], "methods": METHODS, "dataset": "digits", "images": 24, "progress": False}
        return idsds.evaluate(**{**arguments, "checkpoints": {"mini_resnet8": checkpoint}, **changes})

    return evaluate


def same(first: pd.DataFrame, second: pd.DataFrame, tolerance: float = 0) -> None:
    keys = ["model", "method", "seed", "image_id"]
    first, second = (frame.sort_values(keys).reset_index(drop=True) for frame in (first, second))
    assert first[keys].equals(second[keys])
    for column in ("score", "target", "prediction"):
        np.testing.assert_allclose(first[column], second[column], atol=tolerance, rtol=0)
    for column in ("drops", "patch_sums"):
        np.testing.assert_allclose(np.stack(first[column]), np.stack(second[column]), atol=tolerance, rtol=0)


def test_records_equal_a_plain_evaluation_one_image_at_a_time(run, checkpoint):
    records = run(methods=["IxG", "Grad-CAM"], images=5, grid=4)
    model = idsds.create_model("mini_resnet8", checkpoint=checkpoint)
    data = create_dataset("digits", "test")
    for number, index in enumerate(fixed_order(data.image_ids)[:5]):
        image, target, image_id = data[index]
        with torch.no_grad():
            full = model(image[None])[0]
            drops = []
            for row in range(4):
                for column in range(4):
                    deleted = image.clone()
                    deleted[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
                    drops.append(float(full[target] - model(deleted[None])[0, target]))
        leaf = image[None].clone().requires_grad_()
        model(leaf)[0, target].backward()
        sums = (leaf * leaf.grad).detach().sum(1)[0].view(4, 8, 4, 8).sum((1, 3)).flatten()
        mine = records[(records.method == "IxG") & (records.image_id == image_id)].iloc[0]
        assert records.image_id.iloc[number] == image_id
        # float32 logits near 1 in batches of another size
        np.testing.assert_allclose(mine.drops, drops, atol=1e-5)
        np.testing.assert_allclose(mine.patch_sums, sums, atol=1e-5)
        assert mine.target == target
        assert mine.prediction == int(full.argmax())
        assert mine.score == pytest.approx(spearmanr(mine.patch_sums, mine.drops).statistic, abs=1e-9)


def test_a_linear_model_is_ranked_perfectly_by_input_times_gradient_and_own_things_are_taken():
    methods = {"IxG": None, "mine": lambda images, targets: -images, "Random": None}
    records = idsds.evaluate({"linear": Linear()}, methods, own_data(), images=12, grid=4, progress=False)
    table = idsds.rank(records).set_index("method")
    assert table.loc["IxG", "mean"] == pytest.approx(1)
    assert table.loc["IxG", "count"] == 12
    assert abs(table.loc["Random", "mean"]) < 3 * idsds.null_band(16, 12)
    assert set(records.family) == {"gradient", "own", "control"}
    assert sorted(records.image_id.unique(), key=int) == [str(i) for i in range(12)]


def test_records_on_disk_are_those_returned_and_a_second_run_computes_nothing(run, tmp_path):
    records = run(output=tmp_path / "r")
    pd.testing.assert_frame_equal(records, idsds.load_records(tmp_path / "r"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "r" / "records").iterdir()}
    pd.testing.assert_frame_equal(run(output=tmp_path / "r"), records)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "r" / "records").iterdir()}


def test_the_passes_counted_are_those_announced(run, tmp_path):
    plan = run(dry_run=True)
    run(output=tmp_path / "r", shard=10)
    passes = json.loads((tmp_path / "r" / "manifest.json").read_text())["passes"]
    assert passes["counted"] == passes["announced"] == {"forward": int(plan.forward.sum()), "backward": int(plan.backward.sum())}
    # 17 for the deletions; Gradient, IxG and IxG abs share one pass, IxG-SG takes 4, Grad-CAM 1, Random none.
    assert passes["announced"] == {"forward": 24 * (17 + 1 + 4 + 1), "backward": 24 * (1 + 4 + 1)}


def test_a_method_added_later_costs_its_own_passes_only(run, tmp_path):
    first = run(output=tmp_path / "r", methods=["IxG", "Random"])
    before = set((tmp_path / "r" / "records").iterdir())
    both = run(output=tmp_path / "r", methods=["IxG", "Random", "Grad-CAM"])
    assert len(set((tmp_path / "r" / "records").iterdir()) - before) == 1
    same(first, both[both.method != "Grad-CAM"])


@pytest.mark.parametrize("changes", [{"batch_size": 5}, {"shard": 7}, {"batch_size": 1, "shard": 100}])
def test_batch_and_shard_size_change_nothing_but_rounding(run, changes):
    # Sums of 64 float32 gradients of size 1e-2 differ by 1e-6 between batch sizes; scores are compared where no rank is near a tie.
    first, second = run(methods=["IxG", "IxG-SG", "Random"]), run(methods=["IxG", "IxG-SG", "Random"], **changes)
    np.testing.assert_allclose(np.stack(first.patch_sums), np.stack(second.patch_sums), atol=1e-4)
    assert (first.score - second.score).abs().max() < 0.02


def test_the_first_images_are_the_same_however_many_are_asked_for(run):
    few, many = run(methods=["Random"], images=6), run(methods=["Random"], images=20)
    assert few.image_id.tolist() == many.image_id.tolist()[:6]
    np.testing.assert_array_equal(few.score, many.score[:6])


def test_undefined_scores_are_kept_and_the_ledger_says_why(tmp_path):
    def some_constant(images, targets):
        maps = images.clone()
        maps[:2] = 0
        maps[2] = float("nan")
        return maps

    with pytest.warns(RuntimeWarning, match="method 'broken' gave a NaN or an infinity for 1 of 8 images"):
        records = idsds.evaluate(
            {"linear": Linear()}, {"broken": some_constant, "IxG": None}, own_data(), images=8, progress=False, output=tmp_path
        )
    table = idsds.rank(records).set_index("method")
    assert (table.loc["broken", "count"], table.loc["broken", "nan"]) == (5, 3)
    assert (table.loc["IxG", "count"], table.loc["IxG", "nan"]) == (8, 0)
    ledger = json.loads((tmp_path / "manifest.json").read_text())["undefined"]
    assert sorted(entry["why"] for entry in ledger) == ["attributions that are equal for all patches"] * 2 + [
        "attributions that are not finite"
    ]
    assert {entry["method"] for entry in ledger} == {"broken"}


def test_a_damaged_file_is_named_and_it_alone_computed_again(run, tmp_path):
    records = run(output=tmp_path, shard=8)
    victim = [path for path in sorted((tmp_path / "records").iterdir()) if "score" in pd.read_parquet(path)][3]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(ValueError, match=victim.name):
        idsds.load_records(tmp_path)
    with pytest.warns(UserWarning, match=f"{victim.name}.*computed again"):
        same(records, run(output=tmp_path, shard=8))
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {victim}


@pytest.mark.parametrize("fault", ["damaged", "gone"])
def test_a_damaged_file_of_drops_is_computed_again_and_no_record_with_it(run, tmp_path, fault):
    records = run(output=tmp_path, shard=12, methods=["IxG"])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    victim = next(path for path in stamps if "score" not in pd.read_parquet(path))
    if fault == "gone":
        victim.unlink()
        same(records, run(output=tmp_path, shard=12, methods=["IxG"]))
    else:
        victim.write_bytes(victim.read_bytes()[:-50])
        with pytest.warns(UserWarning, match=f"{victim.name}.*computed again"):
            same(records, run(output=tmp_path, shard=12, methods=["IxG"]))
    assert {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp} == {victim}
    passes = json.loads((tmp_path / "manifest.json").read_text())["passes"]
    assert passes["counted"] == passes["announced"]


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system"), (errno.EDQUOT, "quota")]
)
def test_a_disk_that_is_full_or_becomes_read_only_is_named_and_the_run_goes_on_later(run, tmp_path, monkeypatch, number, reason):
    expected = run(methods=["IxG", "Random"], shard=6)
    replace, written = os.replace, []

    def fails_in_the_middle(source, target):
        if str(target).endswith(".parquet"):
            if len(written) == 4:
                raise OSError(number, os.strerror(number))
            written.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails_in_the_middle)
        with pytest.raises(OSError, match=rf"cannot write '.*\.parquet': .*{reason}"):
            run(methods=["IxG", "Random"], shard=6, output=tmp_path)
    assert sorted((tmp_path / "records").iterdir()) == sorted(written)  # no half file among them
    with pytest.raises(FileNotFoundError, match="is not complete; start it again"):
        idsds.load_records(tmp_path)
    same(expected, run(methods=["IxG", "Random"], shard=6, output=tmp_path))


def test_killed_while_it_writes_it_ends_with_the_same_records(run, tmp_path, checkpoint):
    """The process dies between the bytes of a file and its name, and once more with half of the bytes."""
    expected = run(methods=["IxG", "Random"], images=12, shard=4)
    script = f"""
import os, signal, sys
import idsds, idsds.store
replace, count = os.replace, [0]
def dies(source, target):
    count[0] += 1
    if count[0] == int(sys.argv[1]):
        if sys.argv[2] == "half":
            os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = dies
idsds.evaluate(["mini_resnet8"], ["IxG", "Random"], "digits", images=12, shard=4, progress=False,
               checkpoints={{"mini_resnet8": {str(checkpoint)!r}}}, output={str(tmp_path)!r})
"""
    for number, how in (("4", "whole"), ("3", "half")):
        assert subprocess.run([sys.executable, "-c", script, number, how]).returncode == -signal.SIGKILL
    same(expected, run(methods=["IxG", "Random"], images=12, shard=4, output=tmp_path))


def test_the_order_of_models_and_methods_changes_nothing(checkpoint):
    def net(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Linear()

    nets = {"a": net(1), "b": net(2)}
    methods = ["IxG", "IxG-SG", "Random"]
    first = idsds.evaluate(nets, methods, own_data(), images=6, progress=False)
    second = idsds.evaluate(dict(reversed(nets.items())), methods[::-1], own_data(), images=6, progress=False)
    same(first, second)
    assert second.model.iloc[0] == "b"
    assert second.method.iloc[0] == "Random"


def test_a_method_asked_for_again_finds_its_records_although_others_of_its_computation_came_between(run, tmp_path):
    run(output=tmp_path, methods=["IxG abs"])
    run(output=tmp_path, methods=["Gradient", "IxG"])
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    same(run(methods=["IxG abs"]), run(output=tmp_path, methods=["IxG abs"]))
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_a_damaged_manifest_is_written_again(run, tmp_path):
    records = run(output=tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        idsds.load_records(tmp_path)
    run(output=tmp_path)
    same(records, idsds.load_records(tmp_path))


def test_killed_at_random_moments_it_ends_with_the_same_records(run, tmp_path, checkpoint):
    expected = run(methods=["IxG", "IxG-SG", "Random"], images=40, shard=4)
    script = f"""
import torch; torch.set_num_threads(1)
import idsds
print("ready", flush=True)
idsds.evaluate(["mini_resnet8"], ["IxG", "IxG-SG", "Random"], "digits", images=40, shard=4, progress=False,
               checkpoints={{"mini_resnet8": {str(checkpoint)!r}}}, output={str(tmp_path / "r")!r})
"""
    chance = random.Random(0)
    kills = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(chance.uniform(0.02, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    same(expected, run(methods=["IxG", "IxG-SG", "Random"], images=40, shard=4, output=tmp_path / "r"))
    same(expected, idsds.load_records(tmp_path / "r"))


def test_two_processes_on_one_run_do_not_corrupt_it(run, tmp_path, checkpoint):
    expected = run(methods=["IxG", "Random"], images=30, shard=5)
    script = f"""
import idsds
idsds.evaluate(["mini_resnet8"], ["IxG", "Random"], "digits", images=30, shard=5, progress=False,
               checkpoints={{"mini_resnet8": {str(checkpoint)!r}}}, output={str(tmp_path / "r")!r})
"""
    both = [subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    same(expected, idsds.load_records(tmp_path / "r"))


def test_seeds_are_rows_of_their_own(run):
    records = run(methods=["Random", "IxG"], images=6, seed=[0, 1])
    assert sorted(records.seed.unique()) == [0, 1]
    random_scores = records[records.method == "Random"].pivot(index="image_id", columns="seed", values="score")
    assert (random_scores[0] != random_scores[1]).any()


def test_several_grids_and_baselines_are_settings(run):
    eight = run(methods=["IxG"], images=3, grid=8, baseline="blur")
    assert np.stack(eight.drops).shape == (3, 64)
    assert set(eight.grid) == {8}
    assert set(eight.baseline) == {"blur"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"models": ["mini_resnet9"]}, UnknownNameError, "Did you mean 'mini_resnet8'"),
        ({"methods": ["IGG"]}, UnknownNameError, "Did you mean 'IG'"),
        ({"dataset": "digit"}, UnknownNameError, "Did you mean 'digits'"),
        ({"protocol": "idsd"}, UnknownNameError, "Did you mean 'idsds'"),
        ({"baseline": "black"}, UnknownNameError, "Allowed: blur, uniform, zeros"),
        ({"precision": "16"}, UnknownNameError, "Allowed: 16-mixed, 32-true, bf16-mixed"),
        ({"grid": 5}, ValueError, "grid 5 does not divide"),
        ({"images": 0}, ValueError, "images must be"),
        ({"images": 10_000}, ValueError, "images=10000, but this split has"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"models": "mini_resnet8"}, TypeError, "models must be a list of names"),
        ({"models": {"net": 3}}, TypeError, "'net' must be a torch.nn.Module, not int"),
        ({"methods": []}, ValueError, "methods is empty"),
        ({"methods": ["IG", "IG"]}, ValueError, "more than once"),
        ({"methods": ["BagNet"]}, ValueError, "'BagNet' applies to none of the models: it is the intrinsic"),
        ({"checkpoints": {"mini_resnet8": "nowhere.pth"}}, FileNotFoundError, r"nowhere\.pth"),
        ({"checkpoints": {"resnet50": "x"}}, UnknownNameError, "model with a checkpoint 'resnet50'"),
        ({"steps": 3}, UnknownNameError, "unknown setting of protocol 'idsds' 'steps'"),
        ({"models": ["resnet50"], "checkpoints": {}}, ValueError, "there is no checkpoint of 'resnet50'"),
    ],
)
def test_bad_input_is_named_before_any_work(run, changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run(**{"output": tmp_path / "r", **changes})
    assert not (tmp_path / "r" / "records").exists()


def test_an_unwritable_output_is_named_before_any_work(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        run(output=tmp_path / "file" / "r")


def test_load_records_names_a_folder_without_any(tmp_path):
    with pytest.raises(FileNotFoundError, match="no records in"):
        idsds.load_records(tmp_path)


def test_mixed_precision_runs_and_stays_near(run):
    full, half = run(methods=["IxG"], images=6), run(methods=["IxG"], images=6, precision="bf16-mixed")
    # bfloat16 has 8 bits: drops of about 0.1 out of logits near 1 keep one digit or two.
    assert np.abs(np.stack(full.drops) - np.stack(half.drops)).max() < 0.1
    assert not np.array_equal(np.stack(full.drops), np.stack(half.drops))


def test_out_of_memory_shrinks_the_batch_and_changes_nothing(checkpoint):
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.largest = idsds.create_model("mini_resnet8", checkpoint=checkpoint), 0

        def forward(self, images):
            if len(images) > 4:
                raise torch.OutOfMemoryError("simulated")
            self.largest = max(self.largest, len(images))
            return self.net(images)

    data = create_dataset("digits", "test")
    greedy = Greedy()
    tight = idsds.evaluate({"net": greedy}, ["IxG", "Random"], data, images=6, progress=False)
    assert greedy.largest <= 4
    wide = idsds.evaluate({"net": greedy.net}, ["IxG", "Random"], data, images=6, progress=False)
    np.testing.assert_allclose(np.stack(tight.drops), np.stack(wide.drops), atol=1e-5)
    np.testing.assert_allclose(np.stack(tight.patch_sums), np.stack(wide.patch_sums), atol=1e-5)


def test_trained_twice_from_an_empty_cache_the_records_are_identical(monkeypatch, tmp_path):
    found = []
    for name in ("a", "b"):
        monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / name))
        found.append(idsds.evaluate(["mini_resnet8"], ["IxG-SG", "Random"], "digits", images=20, progress=False))
        assert len(list((tmp_path / name / "checkpoints").glob("*.safetensors"))) == 2  # trained, then fine-tuned in-domain
    pd.testing.assert_frame_equal(*found)


def test_a_relative_checkpoint_lies_below_the_repository_root_whatever_the_working_folder(run, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("IDSDS_HOME", str(checkpoint.parent))
    monkeypatch.chdir(tmp_path)
    records = run(methods=["Random"], images=2, checkpoints={"mini_resnet8": checkpoint.name})
    assert len(records) == 2


def test_one_thing_under_two_names_has_records_under_both(tmp_path):
    def mine(images, targets):
        return -images

    nets = {"a": Linear(), "b": Linear()}
    for output in (None, tmp_path):
        records = idsds.evaluate(nets, {"one": mine, "two": mine}, own_data(), images=6, output=output, progress=False)
        assert records.groupby(["model", "method"]).size().to_dict() == {(m, n): 6 for m in "ab" for n in ("one", "two")}
