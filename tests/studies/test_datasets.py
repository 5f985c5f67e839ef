"""Overviews of data sets: counted by hand on a folder of three classes and files of known sizes."""

import pytest
from PIL import Image

from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset
from idsds.studies.datasets import Datasets, counts, overview, sizes


@pytest.fixture
def folder(tmp_path):
    for name, (number, size) in {"a": (10, (30, 20)), "b": (5, (40, 50)), "c": (1, (10, 90))}.items():
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", size).save(tmp_path / "test" / name / f"{index}.png")
        Image.new("RGB", size).save(tmp_path / "train" / name / "0.png")
    return create_dataset("image_folder", "test", root=tmp_path)


def test_classes_and_sizes_are_those_of_the_files(folder):
    classes, measured = counts(folder), sizes(folder, 100)
    assert classes["images"].tolist() == [10, 5, 1]
    assert len(measured) == 16
    assert set(zip(measured["height"], measured["width"], strict=True)) == {(20, 30), (50, 40), (90, 10)}
    (row,) = overview(classes, measured).to_dict("records")
    assert (row["classes"], row["images"], row["least"], row["most"], row["imbalance"]) == (3, 16, 1, 10, 10)
    assert (row["median_height"], row["smallest"], row["largest"]) == (20, 10, 90)


def test_the_study_of_embedded_data(tmp_path):
    study = Datasets(datasets=["digits"], images=7, output=str(tmp_path))
    assert study.plan_table()["files"].tolist() == [7, 7, 7]
    result = study.run(progress=False)
    assert result.table["images"].sum() == 1797
    assert set(result.table["median_height"]) == {32}
    first, second = result.plot()
    assert first.axes[0].get_title() == "digits, 10 classes"
    titles = [axes.get_title(loc="left") for axes in second.axes]
    assert len(set(titles)) == 6, "samples of six classes"


def test_a_name_that_is_none():
    with pytest.raises(SettingsError, match="Did you mean 'digits'"):
        Datasets(datasets=["digit"], output="x")
