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
import idsds.evaluation.evaluate
from idsds.common.registry import UnknownNameError
from idsds.datasets import create_dataset, fixed_order
from idsds.evaluation.manifest import read_manifest
from idsds.methods.base import MethodError

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


def stamps(folder):
    """When each file of records was written."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.parquet"))}


def files(folder, kind):
    return [folder / entry["path"] for entry in read_manifest(folder)["files"] if entry["kind"] == kind]


def taken(folder):
    """By method, the seconds that its records took when they were computed."""
    parts = [part for entry in read_manifest(folder)["files"] for part in entry["parts"]]
    return {part["method"]: part["seconds"] for part in parts if "method" in part}


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
    before = stamps(tmp_path / "r")
    assert sorted(path.parent.name for path in before) == ["deletions", "r", "r", "scores"]  # images and ledger; blocks are gone
    pd.testing.assert_frame_equal(run(output=tmp_path / "r"), records)
    assert stamps(tmp_path / "r") == before


def test_the_passes_counted_are_those_announced(run, tmp_path):
    plan = run(dry_run=True)
    run(output=tmp_path / "r", shard=10)
    passes = json.loads((tmp_path / "r" / "manifest.json").read_text())["passes"]
    assert passes["counted"] == passes["announced"] == {"forward": int(plan.forward.sum()), "backward": int(plan.backward.sum())}
    # 17 for the deletions; Gradient, IxG and IxG abs share one pass, IxG-SG takes 4, Grad-CAM 1, Random none.
    assert passes["announced"] == {"forward": 24 * (17 + 1 + 4 + 1), "backward": 24 * (1 + 4 + 1)}


def test_a_method_added_later_costs_its_own_passes_only(run, tmp_path):
    first = run(output=tmp_path / "r", methods=["IxG", "Random"])
    drops, before = files(tmp_path / "r", "deletions"), taken(tmp_path / "r")
    both = run(output=tmp_path / "r", methods=["IxG", "Random", "Grad-CAM"])
    assert files(tmp_path / "r", "deletions") == drops
    after = taken(tmp_path / "r")
    assert after.keys() - before.keys() == {"Grad-CAM"}
    assert {name: after[name] for name in before} == before  # to the millisecond: they are the records that were there
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
    *constant, broken = (str(index) for index in fixed_order(list(map(str, range(len(own_data())))))[:3])

    def some_constant(images, targets, image_ids):
        maps = images.clone()
        maps[[image_id in constant for image_id in image_ids]] = 0
        maps[[image_id == broken for image_id in image_ids]] = float("nan")
        return maps

    with pytest.warns(RuntimeWarning, match="method 'broken' gave a NaN or an infinity for 1 of 8 images"):
        records = idsds.evaluate(
            {"linear": Linear()}, {"broken": some_constant, "IxG": None}, own_data(), images=8, progress=False, output=tmp_path
        )
    table = idsds.rank(records).set_index("method")
    assert (table.loc["broken", "count"], table.loc["broken", "nan"]) == (5, 3)
    assert (table.loc["IxG", "count"], table.loc["IxG", "nan"]) == (8, 0)
    (path,) = files(tmp_path, "undefined")
    ledger = pd.read_parquet(path)
    assert sorted(ledger.why) == ["attributions that are equal for all patches"] * 2 + ["attributions that are not finite"]
    assert set(ledger.method) == {"broken"}
    assert set(ledger.image_id) == set(records.image_id[records.score.isna()])
    assert read_manifest(tmp_path)["undefined"] == 3


def test_a_damaged_file_is_named_and_it_alone_computed_again(tmp_path):
    def evaluate():
        return idsds.evaluate({"a": Linear(), "b": Linear()}, ["IxG", "Random"], own_data(), images=8, progress=False, output=tmp_path)

    records = evaluate()
    before = stamps(tmp_path)
    victim = files(tmp_path, "scores")[1]
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(ValueError, match=victim.name):
        idsds.load_records(tmp_path)
    with pytest.warns(UserWarning, match=f"{victim.name}.*computed again"):
        same(records, evaluate())
    assert {path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp} == {victim}


@pytest.mark.parametrize("damaged", [0, 1, 2, "footer"])
def test_of_a_damaged_file_only_the_damaged_block_is_computed_again(tmp_path, monkeypatch, damaged):
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "0")
    methods = ["Random", "IxG", "Gradient"]

    def evaluate():
        return idsds.evaluate({"a": Linear()}, methods, own_data(), images=8, progress=False, output=tmp_path)

    records, before = evaluate(), taken(tmp_path)
    (entry,) = (entry for entry in read_manifest(tmp_path)["files"] if entry["kind"] == "scores")
    content = bytearray((tmp_path / entry["path"]).read_bytes())
    ends = {number: part["end"] for number, part in enumerate(entry["parts"])} | {"footer": len(content)}
    content[ends[damaged] - 20] ^= 1
    (tmp_path / entry["path"]).write_bytes(content)
    lost = {"footer": {*methods}}.get(damaged) or {entry["parts"][damaged]["method"]}
    message = "what was in it" if damaged == "footer" else f"2 intact parts are kept, {min(lost)}"
    with pytest.warns(UserWarning, match=f"{message}.*computed again"):
        same(records, evaluate())
    shared = {"IxG", "Gradient"} if lost & {"IxG", "Gradient"} else set()  # one pass gives both
    after = taken(tmp_path)
    assert {name for name in methods if after[name] == before[name] != 0} >= {"Random"} - lost, "kept as it was"
    assert damaged == "footer" or {name for name in methods if after[name] != before[name]} <= lost | shared
    same(records, idsds.load_records(tmp_path))


@pytest.mark.parametrize("fault", ["damaged", "gone"])
def test_a_damaged_file_of_drops_is_computed_again_and_no_record_with_it(run, tmp_path, fault):
    records = run(output=tmp_path, shard=12, methods=["IxG"])
    before = stamps(tmp_path)
    (victim,) = files(tmp_path, "deletions")
    if fault == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(ValueError, match=victim.name):
        idsds.load_records(tmp_path)
    with pytest.warns(UserWarning, match=f"{victim.name}.*computed again"):
        same(records, run(output=tmp_path, shard=12, methods=["IxG"]))
    assert {path for path, stamp in before.items() if path.stat().st_mtime_ns != stamp} == {victim}
    passes = read_manifest(tmp_path)["passes"]
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
    assert sorted(tmp_path.rglob("*.parquet")) == sorted(written)  # no half file among them
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(FileNotFoundError, match="is not complete; start it again"):
        idsds.load_records(tmp_path)
    same(expected, run(methods=["IxG", "Random"], shard=6, output=tmp_path))


@pytest.fixture
def shared_records(monkeypatch, tmp_path):
    """A cache of records, which runs share."""
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("shared_records")
def test_killed_while_it_writes_it_ends_with_the_same_records(run, tmp_path, checkpoint):
    """The process dies between the bytes of a file and its name, and once more with half of the bytes."""
    expected = run(methods=["IxG", "Random"], images=12, shard=4)
    script = f"""
import os, signal, sys
import idsds, idsds.common.files
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
               checkpoints={{"mini_resnet8": {str(checkpoint)!r}}}, output={str(tmp_path / "r")!r})
"""
    for number, how in (("4", "whole"), ("3", "half")):
        assert subprocess.run([sys.executable, "-c", script, number, how]).returncode == -signal.SIGKILL
    for folder in ("r", "another"):
        same(expected, run(methods=["IxG", "Random"], images=12, shard=4, output=tmp_path / folder))


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


def test_a_method_asked_for_again_finds_its_records_although_others_of_its_computation_came_between(run, tmp_path, monkeypatch):
    run(output=tmp_path, methods=["IxG abs"])
    run(output=tmp_path, methods=["Gradient", "IxG"])
    monkeypatch.setattr(idsds.evaluation.evaluate, "run_task", None)  # nothing is left to do
    found = run(output=tmp_path, methods=["IxG abs"])
    monkeypatch.undo()
    same(run(methods=["IxG abs"]), found)


def test_a_damaged_manifest_is_written_again(run, tmp_path):
    records = run(output=tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        idsds.load_records(tmp_path)
    with pytest.warns(UserWarning, match=r"manifest\.json"):
        run(output=tmp_path)
    same(records, idsds.load_records(tmp_path))


@pytest.mark.usefixtures("shared_records")
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


@pytest.mark.usefixtures("shared_records")
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


@pytest.mark.parametrize("shard", [5, 256])
def test_the_class_explained_is_the_label_or_what_the_net_takes_the_image_for(tmp_path, shard):
    """Labels that are no classes at all: with predictions, records are those of a data set that has the predictions as its labels."""
    net, images = Linear(), own_data().tensors[0]
    with torch.no_grad():
        taken_for = net(images).argmax(dim=1)
    methods, shared = ["Gradient", "IxG", "Random"], {"images": 12, "shard": shard, "progress": False}
    unlabelled = TensorDataset(images, torch.full((12,), -1))
    with pytest.raises(ValueError, match=r"the target of image '\d+' is -1, but 'net' has 5 classes"):
        idsds.evaluate({"net": net}, methods, unlabelled, **shared)
    for protocol, grid, forward in (("idsds", [2, 4], 2 + 5 + 17 + 1), ("max_sensitivity", 4, 1 + 11)):
        asked = {**shared, "protocol": protocol, "grid": grid}
        expected = idsds.evaluate({"net": net}, methods, TensorDataset(images, taken_for), **asked)
        folder = tmp_path / protocol
        records = idsds.evaluate({"net": net}, methods, unlabelled, **asked, output=folder, target="prediction")
        assert (records.pop("explained") == "prediction").all()
        pd.testing.assert_frame_equal(records, expected)
        assert dict(zip(records.image_id, records.target, strict=True)) == {str(i): int(k) for i, k in enumerate(taken_for)}
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["target"] == "prediction"
        assert manifest["passes"]["counted"] == manifest["passes"]["announced"]
        assert manifest["passes"]["counted"]["forward"] == 12 * forward
        # A method that comes later explains the same classes, which are on disk.
        more = idsds.evaluate({"net": net}, [*methods, "Saliency"], unlabelled, **asked, output=folder, target="prediction")
        assert set(more.target[more.method == "Saliency"]) == set(taken_for.tolist())
        table = idsds.evaluate({"net": net}, methods, unlabelled, **asked, target="prediction", dry_run="measure")
        assert table["images_per_second"].notna().all()
    with pytest.raises(UnknownNameError, match=r"unknown target 'predicted'\. Did you mean 'prediction'"):
        idsds.evaluate({"net": net}, methods, unlabelled, **shared, target="predicted")


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
        ({"models": None}, TypeError, "models must be a list of names or a mapping from name to model, not None"),
        ({"methods": 3}, TypeError, "methods must be a list of names or a mapping from name to method, not 3"),
        ({"models": {}}, ValueError, "models is empty"),
        ({"seed": []}, ValueError, "seed is empty"),
        ({"seed": True}, TypeError, "seed must be a whole number or a list of them, not True"),
        ({"seed": [0, False]}, TypeError, r"not \[0, False\]"),
        ({"seed": [1, 1]}, ValueError, "seed lists 1 more than once"),
        ({"output": ""}, ValueError, "output must name a folder, not ''"),
        ({"precision": "16-mixed", "device": "cpu"}, ValueError, "'16-mixed' needs a CUDA device, not 'cpu'"),
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
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").iterdir())


def test_a_checkpoint_of_another_net_is_named_before_any_work(tmp_path, checkpoint):
    with pytest.raises(ValueError, match=rf"'{checkpoint}' does not fit the model\. .*missing keys"):
        idsds.evaluate(
            ["mini_resnet8", "mini_vgg11"],
            ["IxG"],
            "digits",
            images=2,
            checkpoints=dict.fromkeys(["mini_resnet8", "mini_vgg11"], checkpoint),
            output=tmp_path,
            progress=False,
        )
    assert not list(tmp_path.iterdir())


class Named(TensorDataset):
    """Images with ids of their own: pairs of them share one."""

    def __getitem__(self, index):
        return *super().__getitem__(index), f"image {index // 2}"


class Pair(Linear):
    def forward(self, images):
        return super().forward(images), 0


@pytest.mark.parametrize(
    ("net", "data", "message"),
    [
        (Linear(classes=3), own_data(), r"the target of image '\d+' is [34], but 'net' has 3 classes"),
        (Linear(), TensorDataset(own_data().tensors[0], -torch.ones(12, dtype=torch.long)), "is -1, but 'net' has 5 classes"),
        (Linear(), Named(*own_data().tensors), r"6 image id\(s\) occur more than once in the data set, the first is 'image \d'"),
        (Pair(), own_data(), r"(?s)'net' must return logits \(B, K\); .* returns a tuple of 2.*self.net\(images\)\[0\]"),
    ],
)
def test_images_and_nets_that_do_not_fit_are_named_before_any_work(net, data, message, tmp_path):
    for output in (None, tmp_path / "r"):
        with pytest.raises(ValueError, match=message):
            idsds.evaluate({"net": net}, ["IxG"], data, images=12, output=output, progress=False)
    assert not list(tmp_path.glob("r/*"))


@pytest.mark.parametrize("dry_run", [True, "measure"])
def test_a_dry_run_writes_nothing(dry_run, tmp_path):
    idsds.evaluate({"net": Linear()}, ["Random"], own_data(), images=2, output=tmp_path / "r", dry_run=dry_run, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_complete_run_stays_readable_until_the_next_is_complete(tmp_path):
    def fails(images, targets):
        assert idsds.load_records(tmp_path).method.unique().tolist() == ["Random"]
        raise RuntimeError("out of ideas")

    arguments = {"dataset": own_data(), "images": 6, "output": tmp_path, "progress": False}
    first = idsds.evaluate({"net": Linear()}, ["Random"], **arguments)
    with pytest.raises(RuntimeError, match="out of ideas"):
        idsds.evaluate({"net": Linear()}, {"Random": None, "fails": fails}, **arguments)
    pd.testing.assert_frame_equal(idsds.load_records(tmp_path), first)


def test_a_net_is_given_back_as_it_came():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

        def forward(self, images):
            return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))

    net = Conv()
    net.norm.eval()
    net.conv.requires_grad_(False)
    tensors = {name: (value, value.data_ptr(), value.stride(), value.clone()) for name, value in net.state_dict(keep_vars=True).items()}
    idsds.evaluate({"net": net}, ["IxG", "Random"], own_data(), images=6, progress=False)
    idsds.evaluate({"net": net}, ["IxG"], own_data(), images=6, progress=False, dry_run="measure")
    for name, value in net.state_dict(keep_vars=True).items():
        same_one, place, strides, values = tensors[name]
        assert value is same_one
        assert (value.data_ptr(), value.stride()) == (place, strides)
        assert torch.equal(value, values)
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert [parameter.requires_grad for parameter in net.parameters()] == [False, False, True, True, True, True]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_method_of_a_class_is_made_once_for_each_model():
    made = []

    class Mine:
        def __init__(self, model):
            made.append(model)

        def __call__(self, images, targets):
            return images

    idsds.register_method(Mine)
    try:
        idsds.evaluate({"net": Linear()}, ["Mine"], own_data(), images=12, batch_size=2, progress=False)
        assert len(made) == 1
    finally:
        from idsds.methods import METHODS

        METHODS.remove("Mine")


def test_images_that_cannot_be_read_are_listed_and_tried_again(tmp_path):
    from idsds.common.normalisation import UNIT
    from idsds.datasets.base import ImageDataset, ImageReadError

    pixels, broken = own_data().tensors[0].sigmoid(), {"3", "7"}

    def read(index):
        if str(index) in broken:
            raise ImageReadError("truncated")
        return pixels[index]

    def evaluate():
        data = ImageDataset("own", "test", list(map(str, range(12))), [0] * 12, read, list("abcde"), UNIT, on_error="skip")
        return idsds.evaluate({"net": Linear()}, ["IxG"], data, images=12, batch_size=1, output=tmp_path, progress=False)

    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 12 records are missing: images that could not be read were skipped: "):
            records = evaluate()
        assert set(records.image_id) == {str(i) for i in range(12)} - broken
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert set(manifest["skipped"]) == broken
        assert manifest["passes"]["counted"] == {"forward": 10 * 18, "backward": 10}
    broken.remove("7")
    with pytest.warns(UserWarning, match="1 of 12 records are missing"):
        assert len(evaluate()) == 11
    broken.clear()
    everything = evaluate()
    assert everything.image_id.tolist() == idsds.load_records(tmp_path).image_id.tolist()
    assert everything.image_id.tolist() == [str(index) for index in fixed_order(list(map(str, range(12))))]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["skipped"] == []
    assert manifest["passes"]["counted"] == manifest["passes"]["announced"]


def test_the_manifest_says_what_each_part_took(run, tmp_path):
    run(output=tmp_path, shard=12, methods=["IxG", "Random"])
    manifest = read_manifest(tmp_path)
    assert {tmp_path / entry["path"] for entry in manifest["files"]} == set(stamps(tmp_path))
    parts = [part for entry in manifest["files"] if entry["kind"] in ("scores", "deletions") for part in entry["parts"]]
    assert all(part["rows"] == 24 and part["seconds"] > 0 for part in parts)
    assert sorted((part["forward"], part["backward"]) for part in parts) == sorted([(24 * 17, 0), (24, 24), (0, 0)])
    assert manifest["seconds"]["passes"] == pytest.approx(sum(part["seconds"] for part in parts), abs=0.01)
    assert manifest["seconds"]["this_call"] >= manifest["seconds"]["passes"] - 0.01
    assert manifest["records"] == 48


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


@pytest.mark.parametrize(("fails_at", "batches"), [(5, 4), (2, 1)])
def test_a_method_that_raises_is_named_and_what_was_computed_before_is_kept(tmp_path, fails_at, batches):
    net, calls = Linear(), []  # the first three calls are the trial's

    def fragile(images, targets):
        calls.append(len(images))
        if len(calls) == fails_at + 2:
            raise IndexError("on purpose")
        return images

    arguments = {"dataset": own_data(), "images": 12, "grid": 2, "batch_size": 2, "progress": False, "output": tmp_path / "r"}
    methods = {"IxG": None, "fragile": fragile}
    with pytest.raises(MethodError, match=r"method 'fragile' on 'my net' raised IndexError for the images \d+, \d+: on purpose"):
        idsds.evaluate({"my net": net}, methods, **arguments)
    plan = idsds.evaluate({"my net": net}, ["IxG"], **arguments, dry_run="measure")
    left = plan[plan.work == "deletions"].images_left.item()
    assert left == 12 - 2 * batches  # the drops of the batch in which it raised are there as well
    assert len(idsds.evaluate({"my net": net}, {"IxG": None, "fragile": lambda images, targets: images}, **arguments)) == 24


def test_manifest_has_costs_and_images_that_are_right(run, tmp_path):
    """Per method and image: counted passes, milliseconds, megabytes; of methods that share a computation each has its whole cost."""
    records = run(methods=["IxG", "IxG abs", "IxG-SG", "Random"], grid=[4, 2], output=tmp_path / "run")
    costs = idsds.load_costs(tmp_path / "run").set_index("method")
    assert costs["forward"].to_dict() == {"IxG": 1, "IxG abs": 1, "IxG-SG": 4, "Random": 0}
    assert costs.loc["IxG", "milliseconds"] == costs.loc["IxG abs", "milliseconds"] > 0
    assert costs.loc["IxG", "together"] == 2
    assert costs.loc["IxG-SG", "milliseconds"] > costs.loc["Random", "milliseconds"]
    assert (costs["images"] == 24).all()
    assert costs["megabytes"].isna().all() or costs.loc["IxG-SG", "megabytes"] > 0
    right = read_manifest(tmp_path / "run")["right"]
    images = records[(records["method"] == "IxG") & (records["grid"] == 4)]
    good = images["prediction"] == images["target"]
    assert [entry["images"] for entry in right["models"]] == [good.sum()] * 2  # for either grid
    assert right["common"] <= good.sum()
    assert right["defined"] == 24 - records.loc[records["score"].isna(), "image_id"].nunique()


@pytest.mark.parametrize("stored", [False, True])
def test_a_prediction_that_is_explained_is_not_taken_for_a_right_one(run, tmp_path, stored):
    """It equals itself on every image; the column `target` then holds it, and not the label."""
    records = run(methods=["IxG", "Random"], target="prediction", output=tmp_path / "run" if stored else None)
    assert (records["explained"] == "prediction").all()
    with pytest.raises(ValueError, match="needs the labels"):
        idsds.select_images(records, only="correct")
    assert len(idsds.select_images(records, common=True)) > 0
    if stored:
        assert read_manifest(tmp_path / "run")["right"]["models"] == []
    assert "explained" not in run(methods=["IxG", "Random"])


def test_judged_by_a_moved_grid_occlusion_is_a_rival(run):
    """On the grid that it queried it scores 1 and is marked; on a moved one it is marked no more, and is judged by what it has not seen."""
    same = run(methods=["Occlusion"]).set_index("image_id")
    moved = run(methods=["Occlusion"], offset=4).set_index("image_id")
    assert same["ceiling"].all()
    assert not moved["ceiling"].any()
    assert same["score"].min() > 0.999
    assert moved["score"].max() < 1
    assert {len(drops) for drops in moved["drops"]} == {9}
    assert set(moved["offset"]) == {4}
    with pytest.raises(ValueError, match="offset must be below the side of a patch"):
        run(methods=["IxG"], offset=8)
    with pytest.raises(UnknownNameError, match="unknown setting of protocol 'infidelity' 'offset'"):
        run(methods=["IxG"], protocol="infidelity", offset=2)


def test_images_that_a_model_gets_right_are_a_setting(run, tmp_path):
    """The frame has them alone and says so; the folder keeps all, and its manifest counts them."""
    everything = run(methods=["IxG", "Random"], output=tmp_path / "run")
    kept = run(methods=["IxG", "Random"], output=tmp_path / "run", only="correct", common=True)
    assert kept.equals(idsds.select_images(everything, "correct", True))
    assert 0 < len(kept) < len(everything)
    assert len(idsds.load_records(tmp_path / "run")) == len(everything)
    count = read_manifest(tmp_path / "run")["right"]["common"]
    assert kept["image_id"].nunique() == count
    assert kept.attrs["images"].startswith(f"the {count} of {everything['image_id'].nunique()} images on which every method is defined")
    assert "images" not in everything.attrs
    for settings, error, message in (
        ({"only": "corect"}, UnknownNameError, "Did you mean 'correct'"),
        ({"only": "correct", "target": "prediction"}, ValueError, "needs the labels"),
        ({"only": "correct", "protocol": "incremental_deletion"}, ValueError, "'incremental_deletion' does not record"),
    ):
        with pytest.raises(error, match=message):
            run(methods=["IxG"], **settings)
