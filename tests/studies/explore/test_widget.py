"""The controls of the explorer."""

import pytest

from tests.studies.explore.conftest import explorer


def test_controls_choose_and_markup_of_a_name_stays_text(run, tmp_path):
    pytest.importorskip("ipywidgets")
    view = explorer(run[1])
    widget = view.widget
    shown = widget.card.value
    widget.image.value = view.images[5]
    assert widget.card.value != shown
    assert view.images[5] in widget.card.value
    widget.method.value = "<b>own"
    assert view.method == "<b>own"
    assert "&lt;b&gt;own" in widget.card.value
    assert "<b>own" not in widget.card.value
    worst = widget.strips[0][1][0]
    worst.click()
    assert view.image == worst.tooltip == view.source.extremes(view.case, "<b>own")[0][0]
    assert widget.image.value == view.image
    widget.order.value = "methods disagree most"
    assert [value for _, value in widget.image.options] == view.images
    widget.shown.value = ["IxG"]
    assert list(view.example()[0].maps) == ["<b>own", "IxG"]
    widget.png.click()
    assert "saved: " in widget.said.value
    assert view.save(tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_a_kernel_without_browser_shows_the_figure(run, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.instance()
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    with capture_output() as captured:
        explorer(run[1])._ipython_display_()
    (picture,) = captured.outputs
    assert list(picture.data) == ["image/png", "text/plain"]
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    with capture_output() as captured:
        explorer(run[1])._ipython_display_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= captured.outputs[0].data.keys()
