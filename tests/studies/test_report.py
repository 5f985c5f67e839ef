"""The report: everything in one file, markup in names stays text, and what is undefined is listed."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import TensorDataset

import idsds
from idsds.__main__ import main
from idsds.common import paths
from idsds.studies.base import Findings, Result
from idsds.studies.report import report
from tests.evaluation.linear import Linear

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linear"
    data = TensorDataset(torch.rand(6, 3, 8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
    methods = {"IxG": None, EVIL: lambda images, targets: torch.zeros_like(images[:, :1]), "Random": None}
    settings = {"protocol": "single_deletion", "images": 6, "device": "cpu", "progress": False}
    idsds.evaluate({"net & co": Linear()}, methods, data, output=folder, **settings)
    return folder


def test_it_is_whole_in_itself_and_names_stay_text(run, capsys):
    assert main(["report", str(run)]) == 0
    path = run / "report.html"
    assert str(path) in capsys.readouterr().out
    text = path.read_text()
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert not re.search(r"""(src|href)="(?!data:image/|#)""", text)
    assert "net &amp; co" in text
    drops = np.stack(idsds.load_records(run).drop_duplicates("image_id")["drops"].to_list())
    share = (drops > 0.05 * np.abs(drops).max(axis=1, keepdims=True)).mean()
    assert re.search(rf'share_above_noise.*data-key="{share}"', text, re.DOTALL), "beside the ranking"
    assert "data:image/svg+xml;base64," in text
    assert "attributions that are equal for all patches" in text
    assert "6 scores undefined" in text
    for what in ("Settings", "Versions", "torch", "2407.11910", "zeros"):
        assert what in text
    assert f'data-key="{float(idsds.rank(run).set_index("method").loc["IxG", "mean"])!r}"' in text


def test_a_profile_has_a_section_for_each_run_with_the_files_of_its_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    for name in ("one", "one_more"):
        (tmp_path / "runs" / "p" / name).mkdir(parents=True)
        stem = paths.figures_of(f"runs/p/{name}") / name
        assert paths.run_of(stem) == tmp_path / "runs" / "p" / name
        table = pd.DataFrame({"a": [1.5, np.nan], "b": ["x|y", "<i>"]})
        Result(stem, {"": table, "rest": table}, Findings(["One & all."], table), Figure).save(Figure())
    assert paths.run_of(paths.figures_of(tmp_path / "own") / "own") == tmp_path / "own"
    text = report(["runs/p"]).read_text()
    assert text.count("<section") == 2
    assert text.count("One &amp; all.") == 2
    assert text.count('<td data-key="x|y">x|y</td>') == 6  # two tables and the findings of each
    assert text.count('src="data:image/svg+xml') == 2
    (tmp_path / "runs" / "p" / "one" / "one.svg").unlink()
    assert report(["runs/p"], tmp_path / "r.html").read_text().count('src="data:image/png') == 1


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no run in"):
        report([tmp_path])
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "no run in" in capsys.readouterr().err
