"""JupyterLab as a user sees it: notebooks run to their end, the index, and the explorer by mouse and keyboard."""

import re

import pytest

from tests.browser.test_pages import FAINT

pytestmark = pytest.mark.browser
RUN = """async () => {
  const app = window.jupyterapp, panel = app.shell.currentWidget;
  await panel.context.ready; await panel.sessionContext.ready;
  await app.commands.execute('notebook:run-all-cells');
  return panel.content.model.toJSON();
}"""

#: The heights of outputs above 40 em, or for figures above another limit.
TALL = """(outputs, most) => outputs.map(one => [one.classList.contains('jp-RenderedImage') ? most : 41 * 14,
  one.getBoundingClientRect().height]).filter(([most, height]) => height > most)"""
#: What scrolls in the last cell.
SCROLLING = """outputs => outputs.filter(one => one.closest('.jp-Cell') === [...document.querySelectorAll('.jp-Cell')].at(-1))
  .filter(one => one.scrollHeight > one.clientHeight + 1 || one.scrollWidth > one.clientWidth + 1)
  .map(one => one.classList.contains('jp-RenderedImage') ? 'image' : one.querySelector('li') ? 'list' : 'text')"""
#: Whether a notebook is wider than its place.
WIDER = "(one => one.scrollWidth > one.clientWidth + 1)(document.querySelector('.jp-Notebook .jp-WindowedPanel-outer'))"
#: The corner of a figure as it is drawn: red, green, blue, opacity.
CORNER = """image => { const canvas = document.createElement('canvas'), brush = canvas.getContext('2d');
  canvas.width = canvas.height = 1; brush.drawImage(image, 0, 0); return [...brush.getImageData(0, 0, 1, 1).data]; }"""


def opened(page, lab, name, width=1280, height=6000):
    """Open a notebook, tall enough that every cell is drawn."""
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset", timeout=90_000)
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=90_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=30_000)


def outputs_of(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


@pytest.mark.parametrize(("name", "tables"), [("rank_methods", 3), ("gallery", 2), ("how_idsds_works", 2)])
def test_a_notebook_runs_to_its_end(page, lab, picture, name, tables):
    opened(page, lab, name)
    page.set_default_timeout(180_000)
    outputs = outputs_of(page.evaluate(RUN))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    page.wait_for_function(f"document.querySelectorAll('.jp-OutputArea .jp-RenderedHTMLCommon table').length >= {tables - 1}")
    assert page.locator(".jp-OutputArea-output[data-mime-type$=stderr], .jp-OutputArea-output[data-mime-type$=error]").count() == 0
    figure = page.locator(".jp-RenderedImage img").first.bounding_box()
    assert figure["width"] > 400  # CSS pixels
    assert page.locator(".jp-RenderedImage img").first.evaluate("image => image.naturalWidth") >= 1.5 * figure["width"], (
        "sharp where pixels are dense"
    )
    assert page.locator(".jp-OutputArea-output.jp-RenderedHTMLCommon li").count() > 0, "findings are rendered"
    picture(name)
    assert page.locator(".jp-OutputArea-output").evaluate_all(TALL, 0.95 * 6000) == []
    if name == "gallery":
        page.set_viewport_size({"width": 800, "height": 800})
        assert page.locator(".jp-OutputArea-output").evaluate_all(TALL, 0.95 * 800) == []
        assert page.locator(".jp-OutputArea-output").evaluate_all(SCROLLING) == ["text", "list", "image"], "the last cell's"
        assert not page.evaluate(WIDER)
        page.locator(".jp-Cell").last.scroll_into_view_if_needed()
        picture("gallery-long-800")
    if name == "rank_methods":
        assert page.locator(".idsds-table svg").count() == tables  # an interval for each of the methods
        assert "mean ↑" in page.locator(".idsds-table th").all_text_contents()
        assert page.locator(".jp-RenderedImage img").first.evaluate(CORNER) == [255, 255, 255, 255], "black on white in every theme"
        for theme, light in (("JupyterLab Dark", "false"), ("JupyterLab Light", "true")):
            page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
            page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}' && !document.querySelector('#jupyterlab-splash')")
            picture(f"{name}-{theme.split()[-1].lower()}")
            assert page.evaluate(FAINT.replace("'p, li, td, th,", "'.jp-OutputArea td, .jp-OutputArea th, .jp-OutputArea li,")) == []


def test_the_index_shows_every_card(page, lab, picture):
    opened(page, lab, "index", height=14_000)
    page.wait_for_function("document.querySelectorAll('.jp-Notebook img').length >= 19", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.jp-Notebook img')].every(image => image.complete)")
    images = page.locator(".jp-Notebook img")
    assert images.evaluate_all("images => images.every(image => image.naturalWidth > 100)")
    assert page.locator(".jp-Notebook h2").count() >= 19
    picture("index")
    page.set_viewport_size({"width": 800, "height": 800})
    assert not page.evaluate(WIDER)
    picture("index-800")


def test_the_explorer_by_mouse_and_keyboard(page, lab, picture, tree):
    if not (tree / "runs" / "smoke" / "rank_methods" / "manifest.json").is_file():
        pytest.skip("the run of the first notebook is not there")
    opened(page, lab, "view", height=1400)
    page.set_default_timeout(60_000)
    page.evaluate(RUN)
    card = page.locator(".idsds-card h4").first
    card.wait_for()
    before = card.text_content()
    page.wait_for_function("document.querySelectorAll('.idsds-explorer select[data-lm-suppress-shortcuts]').length === 5")
    lists = page.locator(".idsds-explorer select")  # model, method, maps, order, image
    methods, images = lists.nth(1), lists.nth(4)
    values = images.locator("option").all_text_contents()
    assert len(values) == 8
    images.focus()
    page.keyboard.press("ArrowDown")  # another image by the keyboard
    page.wait_for_function("text => document.querySelector('.idsds-card h4').textContent !== text", arg=before)
    assert values[1].split()[-1] in card.text_content()
    methods.select_option(index=2)  # another method, the control
    page.wait_for_function("document.querySelector('.idsds-row figure:nth-child(3)').textContent.includes('Random')")
    button = page.locator(".widget-button", has_text=re.compile(r"^-?\d\.\d\d$")).first
    text = card.text_content()
    button.click()  # its worst image
    page.wait_for_function("text => document.querySelector('.idsds-card h4').textContent !== text", arg=text)
    images.focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Save PNG":
            break
    page.keyboard.press("Enter")
    page.locator("text=saved: ").wait_for()
    assert list((tree / "figures" / "smoke").glob("explore_*.png"))
    assert page.locator(".jp-OutputArea-output[data-mime-type$=stderr]").count() == 0
    picture("explorer")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false' && !document.querySelector('#jupyterlab-splash')")
    picture("explorer-dark")
    card_colours = page.locator(".idsds-card").first.evaluate("one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor]")
    assert card_colours == ["rgb(17, 17, 17)", "rgb(255, 255, 255)"]
    page.set_viewport_size({"width": 800, "height": 1400})
    output = page.locator(".jp-OutputArea-output").filter(has=page.locator(".idsds-card")).first
    assert output.evaluate("one => one.scrollWidth <= one.clientWidth + 1"), "nothing is cut off at 800 pixels"
    picture("explorer-800")
