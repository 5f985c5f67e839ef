"""What a params file may hold: plain names of settings, with values of the right kind."""

from typing import Literal

import pytest

from idsds.common.paths import check_creatable
from idsds.common.settings import Settings, SettingsError, parameters_of, read_values


class Wide(Settings):
    columns: Literal[1, 2] = 2


@pytest.mark.parametrize("value", [True, 2.0, "2", 3])
def test_a_choice_of_numbers_takes_these_numbers_alone(value):
    assert Wide(columns=1).columns == 1
    with pytest.raises(SettingsError, match=r"columns: must be 1 or 2 \(given"):
        Wide(columns=value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold settings .*not a list"),
        ("text", "not a str"),
        ("a: [", "is not YAML"),
        ("'x = 1; import os': 1\n", "the key 'x = 1; import os' is not a valid name of a setting"),
        ("1: 2\n", "the key 1 is not a valid name"),
        ("class: 2\n", "the key 'class' is not a valid name"),
        ("__name__: 2\n", "the key '__name__' is not a valid name"),
        ("imags: 2\n", "unknown key 'imags'. Did you mean 'images'"),
    ],
)
def test_a_params_file_holds_names_and_values(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_values(path, {"images", "output"})
    assert "params.yaml" in str(caught.value)
    path.write_text("")
    assert read_values(path) == {}


def test_the_names_of_a_parameters_cell():
    assert parameters_of("a: int = 1  # one\nb = 2\nc: str") == {"a", "b", "c"}


def test_a_folder_is_checked_and_not_made(tmp_path):
    assert check_creatable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    for wrong, reason in ((tmp_path / "file" / "a", "is not a folder"), ("", "has no name"), ("  ", "has no name")):
        with pytest.raises(OSError, match=reason):
            check_creatable(wrong)
