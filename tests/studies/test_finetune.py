"""In-domain fine-tuning from settings to the table, with a net that trains in a second."""

import json
import os
import signal
import socket
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats
from torch import nn

from idsds import plots
from idsds.__main__ import main
from idsds.common.interventions import baseline_images, delete_patches
from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset
from idsds.models import MODELS, create_model, register_model
from idsds.models.weights import CheckpointError, save_checkpoint
from idsds.studies.base import read_params, run_file
from idsds.studies.finetune import Finetune, costs
from idsds.training.checkpoints import obtain, plan_training
from idsds.training.launch import is_main, started_outside
from idsds.training.loop import TrainingState
from idsds.training.recipes import PAPER, Recipe

from ..datasets.conftest import write_classes

PARAMS = Path(__file__).resolve().parents[2] / "params"


COSTS = ("before", "after", "intact_change")


class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.Linear(8 * 49, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache, and a model that the registry forgets again."""
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    register_model("small_test", family="test", num_classes=10, input_size=32, training={"epochs": 2})(Small)
    yield tmp_path
    MODELS.remove("small_test")


def settings(**changes):
    return Finetune(
        **{"dataset": "digits", "models": ["small_test"], "images": 60, "device": "cpu", "output": "runs/x/finetune", **changes}
    )


def test_from_settings_to_the_table(home):
    table = settings(seeds=[0, 1]).train(progress=False)
    assert len(table) == 2 * 2 * 2
    assert (table["count"] == 60).all()
    assert table["accuracy"].between(table["low"], table["high"]).all()
    assert table["accuracy"].min() > 0.3  # guessing gives 0.1
    saved = pd.read_csv(home / "runs/x/finetune/accuracy.csv")
    assert saved["accuracy"].tolist() == pytest.approx(table["accuracy"].tolist())
    for row in table[table["stage"] == "after"].itertuples():
        model = create_model("small_test", checkpoint=row.checkpoint)
        data = create_dataset("digits").subset([create_dataset("digits").image_ids.index(i) for i in _first_ids(60)])
        images = torch.stack([data[i][0] for i in range(60)])
        if row.images == "intact":
            with torch.no_grad():
                right = (model(images).argmax(1) == torch.tensor(data.targets)).float().mean().item()
            assert row.accuracy == pytest.approx(right)
        wilson = stats.binomtest(round(row.accuracy * 60), 60).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((wilson.low, wilson.high))
    facts = json.loads(Path(table["checkpoint"].iloc[-1]).with_suffix(".json").read_text())
    assert facts["stage"]["deletion"] == {"grid": 4, "baseline": "zeros"}
    assert len(facts["epochs"]) == 2
    assert not list(home.rglob("*.resume.pt"))
    figure = plots.finetune(table)
    assert len(figure.axes[0].containers) == 2 * 2  # two kinds of images, two seeds


def _first_ids(images):
    from idsds.datasets import fixed_order

    data = create_dataset("digits")
    return [data.image_ids[i] for i in fixed_order(data.image_ids)[:images]]


def test_what_is_cached_is_not_done_again(home):
    first = settings().train(progress=False)
    files = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    assert len(files) == 2
    again = settings().train(progress=False)
    pd.testing.assert_frame_equal(first, again)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")} == files
    assert settings().plan_table()["cached"].all()
    # Another baseline needs another fine-tuning, of the same trained model.
    planned = settings(baseline="blur").plan_table()
    assert planned["cached"].tolist() == [True, False]


def test_dry_run_measures_and_writes_nothing(home):
    table = settings(dry_run=True, epochs=3, batch_size=100).plan_table()
    tuned = table.iloc[-1]
    train = len(create_dataset("digits", "train"))
    assert tuned["steps"] == 3 * -(-train // 100)
    assert tuned["images_per_second"] > 0
    assert tuned["hours"] * 3600 > 3 * train / tuned["images_per_second"] * 0.99
    assert tuned["memory_gb"] > 0.05
    assert not list(home.rglob("*.safetensors"))
    assert not list(home.rglob("*.pt"))


@pytest.mark.parametrize("kind", ["pth.tar", "safetensors"])
def test_weights_of_ones_own_are_the_start(home, kind):
    """From a file, with the paper's recipe as far as it is not changed; ``before`` is the file's model."""
    model = create_model("small_test")
    path = home / f"start.{kind}"
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, path) if kind == "pth.tar" else save_checkpoint(model, path)
    chosen = settings(checkpoints={"small_test": str(path)}, epochs=1, grid=2, baseline="blur")
    stage = chosen.stages()[0]
    assert stage.recipe == Recipe(**{**PAPER.model_dump(), "epochs": 1})
    assert stage.start is None
    table = chosen.train(progress=False)
    data = create_dataset("digits")
    data = data.subset([data.image_ids.index(i) for i in _first_ids(60)])
    images = torch.stack([data[i][0] for i in range(60)])
    with torch.no_grad():
        right = (model(images).argmax(1) == torch.tensor(data.targets)).float().mean().item()
    assert table["accuracy"].iloc[0] == pytest.approx(right)
    # Other bytes are another start.
    for value in model.state_dict().values():
        value.add_(1)
    save_checkpoint(model, home / "other.safetensors")
    assert settings(checkpoints={"small_test": str(home / "other.safetensors")}).stages()[0].key != stage.key


def test_deleted_accuracy_is_that_of_images_with_one_hole(home):
    """Recomputed here from the stage's model: one patch of each image, drawn from its id, the same before and after."""
    table = settings(images=40).train(progress=False)
    deleted = table[(table["stage"] == "after") & (table["images"] == "one patch deleted")].iloc[0]
    model = create_model("small_test", checkpoint=deleted["checkpoint"])
    data = create_dataset("digits")
    data = data.subset([data.image_ids.index(i) for i in _first_ids(40)])
    images, targets = torch.stack([data[i][0] for i in range(40)]), torch.tensor(data.targets)
    shares = []
    with torch.no_grad():
        for patch in range(16):
            holes = delete_patches(images, baseline_images(images, "zeros"), torch.full((40,), patch), 4)
            shares.append((model(holes).argmax(1) == targets).float().mean().item())
    # A mean over all patches; one random patch per image scatters around it with at most sqrt(.25 / 40) = .08.
    assert deleted["accuracy"] == pytest.approx(np.mean(shares), abs=0.2)


def _killed(changes):
    torch.set_num_threads(1)
    import idsds.training.loop

    finish, calls = idsds.training.loop.Run.finish_epoch, []

    def kill(*arguments):
        calls.append(1)
        if len(calls) == 4:  # the second epoch of the second stage
            os.kill(os.getpid(), signal.SIGKILL)
        return finish(*arguments)

    idsds.training.loop.Run.finish_epoch = kill
    settings(**changes).train(progress=False)


def test_a_killed_call_goes_on_when_it_is_made_again(home):
    process = get_context("fork").Process(target=_killed, args=({},))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (resume,) = home.rglob("*.resume.pt")
    state = TrainingState(**torch.load(resume, weights_only=True)["state"])
    assert (state.epoch, len(state.results)) == (1, 1)
    table = settings().train(progress=False)
    found = create_model("small_test", checkpoint=table["checkpoint"].iloc[-1]).state_dict()
    for path in home.rglob("*.safetensors"):
        path.unlink()
    whole = settings().train(progress=False)
    pd.testing.assert_frame_equal(table, whole)
    wanted = create_model("small_test", checkpoint=whole["checkpoint"].iloc[-1]).state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_two_devices(home):
    """Batch statistics are those of each device, so the weights differ a little; the table is of the same images."""
    table = settings(devices=2, images=61, seeds=[3]).train(progress=False)
    assert (table["count"] == 61).all()
    assert table["accuracy"].min() > 0.3
    one = settings(images=61, seeds=[3]).train(progress=False)
    assert one["accuracy"].tolist() == pytest.approx(table["accuracy"].tolist())


@pytest.fixture
def photos(home):
    """Settings for a folder of photos, one test image of which is damaged and skipped."""
    write_classes(home / "photos" / "train", {"a": 12, "b": 12})
    write_classes(home / "photos" / "val", {"a": 6, "b": 6})
    (home / "photos" / "val" / "a" / "a_002.jpg").write_bytes(b"")
    weights = save_checkpoint(create_model("mini_resnet8", num_classes=2), home / "start.safetensors")
    return settings(
        dataset="image_folder",
        models=["mini_resnet8"],
        checkpoints={"mini_resnet8": str(weights)},
        root=str(home / "photos"),
        held_out=0.25,
        on_error="skip",
        epochs=1,
        batch_size=6,
        grid=2,
    )


def test_images_on_disk(photos):
    table = photos.train(progress=False)
    assert table["count"].tolist() == [11] * 4
    assert table["skipped"].tolist() == [1] * 4


def _started_outside(rank, port, chosen, home):
    torch.set_num_threads(1)
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    address = {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in {**world, **address}.items()})
    (home / f"{rank}.yaml").write_text(yaml.safe_dump(chosen.model_dump()))
    run_file("finetune", home / f"{rank}.yaml")  # what `python -m idsds finetune FILE` does: every process plans, trains and measures
    chosen.train(progress=False).to_pickle(home / f"{rank}.pkl")


def test_processes_that_torchrun_started(home, photos):
    """Each of two meets the damaged image or not; both count it, one writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [get_context("fork").Process(target=_started_outside, args=(rank, port, photos, home)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (pd.read_pickle(home / f"{rank}.pkl") for rank in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert first["count"].tolist() == [11] * 4
    assert first["skipped"].tolist() == [1] * 4
    (made,) = home.glob("cache/checkpoints/*.safetensors")
    assert json.loads(made.with_suffix(".json").read_text())["skipped"] == []
    assert not list(home.rglob("*.part"))


@pytest.mark.parametrize("work", [Finetune.train, Finetune.plan_table])
def test_a_checkpoint_that_does_not_fit_ends_before_any_work(home, work):
    """It is the second model's: without a look ahead it would be met when the first one's training is over."""
    wrong = save_checkpoint(create_model("mini_resnet14"), home / "wrong.safetensors")
    chosen = settings(models=["small_test", "mini_resnet8"], checkpoints={"mini_resnet8": str(wrong)})
    with pytest.raises(CheckpointError, match=r"wrong\.safetensors' does not fit the model\. .*unexpected keys: layer1\.1\."):
        work(chosen)
    assert not (home / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"models": ["small_tset"]}, "small_test"),
        ({"dataset": "mnist"}, "mnist5k"),
        ({"grid": 5}, "grid 5"),
        ({"baseline": "zero"}, "zeros"),
        ({"lr": "1e-3"}, "lr.*1e-3"),
        ({"epoch": 3}, "epochs"),
        ({"seeds": [1, 1]}, "more than once"),
        ({"models": ["resnet50"], "dataset": "imagenet"}, "resnet50.*needs weights"),
        ({"checkpoints": {"small_test": "nowhere.pth"}}, r"nowhere\.pth"),
        ({"checkpoints": {"small_test": "pretrained"}}, "give a file"),
        ({"checkpoints": {"resnet50": "pretrained"}}, "resnet50"),
        ({"root": "x"}, "option of data set 'digits'"),
        ({"device": "gpu"}, "cpu"),
        ({"on_error": "skp"}, "'raise' or 'skip'.*skp"),
        ({"precision": "16-mixed"}, "'16-mixed' needs a CUDA device, this is 'cpu'"),
        ({"devices": 10**6}, r"devices must be in 1\.\."),
    ],
)
def test_mistakes_end_before_any_work(home, changes, reason):
    with pytest.raises(SettingsError, match=reason):
        settings(**changes)
    assert not (home / "cache").exists()


def test_the_papers_params_are_the_papers_recipe(monkeypatch):
    chosen = Finetune(**read_params(PARAMS / "imagenet" / "finetune.yaml"))
    changed = {key: value for key, value in PAPER.model_dump().items() if hasattr(chosen, key)}
    assert {key: getattr(chosen, key) for key in changed} == changed
    assert len(changed) == 7
    assert (chosen.grid, chosen.baseline, chosen.precision, chosen.held_out) == (4, "zeros", "32-true", 0.0)


def test_the_command_line(home, capsys):
    (home / "p.yaml").write_text(yaml.safe_dump({"dataset": "digits", "models": ["small_test"], "images": 9, "output": "runs/a/b"}))
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(home / "p.yaml"), "device=cpu", "dry_run=true", "seeds=[4]"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("images_per_second", "hours", "memory_gb", "fine-tune in-domain", "nothing was computed"))
    assert not list(home.rglob("*.safetensors"))
    assert main(["finetune", str(home / "p.yaml"), "device=cpu", "epochs=1"]) == 0
    assert "One deleted patch costs" in capsys.readouterr().out
    assert "checkpoint" not in pd.read_csv(home / "figures/a/b.csv")
    assert (home / "figures/a/b.png").is_file()
    with pytest.raises(SettingsError, match="key=value"):
        read_params(home / "p.yaml", ["device"])


def test_who_started_the_processes_is_read_from_the_environment(monkeypatch):
    assert started_outside() is None
    assert is_main()
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(key, value)
    assert started_outside() == (8, 2)
    assert not is_main()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for key, value in {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "finetune"}.items():
        monkeypatch.setenv(key, value)
    assert started_outside() == (4, 2)
    assert is_main()


def test_stages_for_other_callers(home):
    """The stage that rankings use is the one that the notebook makes."""
    stage = plan_training("small_test", "digits", device="cpu")
    assert stage.key == settings().stages()[0].key
    assert [part.deletion is None for part in stage.missing] == [True, False]
    model = obtain(stage, progress=False)
    assert not model.training
    assert stage.missing == []


def test_a_damaged_checkpoint_in_the_cache_is_named_and_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path))
    stage = plan_training("mini_resnet8", "digits", deletion=None, changes={"epochs": 1})
    before = {key: value.clone() for key, value in obtain(stage, progress=False).state_dict().items()}
    stage.path.write_bytes(stage.path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"{stage.path.name}.*made again"):
        after = obtain(stage, progress=False).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_a_deleted_patch_costs():
    kinds = [(stage, kind) for stage in ("before", "after") for kind in ("intact", "one patch deleted")]
    shares = dict(zip(kinds, (0.9, 0.7, 0.88, 0.87), strict=True))
    rows = [
        {"model": "m", "seed": 0, "stage": stage, "images": kind, "accuracy": share, "top5": share / 2}
        for (stage, kind), share in shares.items()
    ]
    (row,) = costs(pd.DataFrame(rows)).to_dict("records")
    assert costs(pd.DataFrame(rows), "top5")["before"].item() == pytest.approx(row["before"] / 2)
    assert row == {"model": "m", "seed": 0, **{key: pytest.approx(value) for key, value in zip(COSTS, (0.2, 0.01, -0.02), strict=True)}}


def test_findings_are_the_means_of_the_nets(home):
    result = settings(seeds=[0, 1]).run(progress=False)
    mean = result.tables["costs"][list(COSTS)].mean()
    assert (
        f"costs {mean['before']:.1%} of accuracy before in-domain fine-tuning and {mean['after']:.1%} after it"
        in result.findings.sentences[0]
    )
    assert f"top-5: {costs(result.records, 'top5')['before'].mean():.1%} and" in result.findings.sentences[0]
    assert result.findings.sentences[2] == "These are means of 2 nets, 60 images each."
