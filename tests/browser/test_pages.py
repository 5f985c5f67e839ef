"""The report and the documentation in a browser: nothing overflows, text is legible, tables sort, every link leads somewhere."""

import os
from collections import deque
from urllib.parse import urldefrag, urlsplit

import pytest
import torch
from torch.utils.data import TensorDataset

import idsds
from idsds.studies.report import report
from tests.browser.conftest import PICTURES
from tests.evaluation.linear import Linear

pytestmark = pytest.mark.browser
#: Pairs of colour and ground of every visible text whose contrast is below 4.5 (WCAG 2.1, 1.4.3).
FAINT = """() => {
  const luminance = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const parts = text => { const c = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number); return c.length < 4 ? [...c, 1] : c; };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]);
  const ground = one => { const c = parts(getComputedStyle(one).backgroundColor);
    return over(c, c[3] < 1 && one.parentElement ? ground(one.parentElement) : [255, 255, 255]); };
  return [...document.querySelectorAll('p, li, td, th, th button, h1, h2, h3, summary, a')]
    .filter(one => one.checkVisibility({checkOpacity: true}) && one.innerText?.trim()).map(one => {
      const below = ground(one), [a, b] = [over(parts(getComputedStyle(one).color), below), below].map(luminance);
      return [one.innerText.slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]; }).filter(([, contrast]) => contrast < 4.5);
}"""
WIDE = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.mark.parametrize("width", [1280, 800])
def test_the_report(page, picture, tmp_path, width):
    data = TensorDataset(torch.rand(6, 3, 8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
    folder = tmp_path / "a-run"
    settings = {"protocol": "single_deletion", "images": 6, "device": "cpu", "progress": False}
    idsds.evaluate({"net": Linear()}, ["IxG", "IG abs", "Saliency", "Random"], data, output=folder, **settings)
    faults = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report([folder]).as_uri())
    picture(f"report-{width}", full_page=True)
    assert page.locator("img").first.evaluate("image => image.naturalWidth > 300")
    head = page.locator("th", has_text="mean").first
    column = head.evaluate("one => one.cellIndex")
    keys = "([at]) => [...document.querySelector('tbody').rows].map(row => Number(row.cells[at].dataset.key))"
    for wanted in ("ascending", "descending"):
        head.locator("button").press("Enter")
        values = page.evaluate(keys, [column])
        assert head.get_attribute("aria-sort") == wanted
        assert values == sorted(values, reverse=wanted == "descending")
    page.locator("summary").last.scroll_into_view_if_needed()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert not page.evaluate(WIDE)
    assert page.evaluate(FAINT) == []
    assert faults == []


def test_every_page_of_the_documentation(browser, page, picture, site):
    start = (site / "index.html").as_uri()
    asked, faults, outside = [], [], []
    page.on("request", lambda request: outside.append(request.url) if urlsplit(request.url).scheme.startswith("http") else None)
    waiting, seen, anchors, places = deque([start]), {start}, {}, set()
    while waiting:
        address = waiting.popleft()
        page.goto(address)
        asked.append(address)
        anchors[address] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)"))
        for link in page.evaluate("[...document.querySelectorAll('a[href]')].map(one => one.href)"):
            plain, anchor = urldefrag(link)
            if not plain.startswith("file:"):
                continue
            faults += [] if os.path.exists(urlsplit(plain).path) else [f"{address}: {link} leads nowhere"]
            if plain.endswith(".html") and plain not in seen:
                seen.add(plain)
                waiting.append(plain)
            places |= {(plain, anchor, address)} if anchor not in ("", "__toc", "__drawer") else set()
        for width in (1280, 800):
            page.set_viewport_size({"width": width, "height": 800})
            faults += [f"{address} overflows at {width} pixels"] if page.evaluate(WIDE) else []
        page.add_style_tag(content="* {transition: none !important}")
        for scheme in ("default", "slate"):
            page.evaluate("scheme => document.body.setAttribute('data-md-color-scheme', scheme)", scheme)
            faults += [f"{address}, {scheme}: {text!r} has a contrast of {contrast:.1f}" for text, contrast in page.evaluate(FAINT)]
    faults += [
        f"{address}: no {anchor!r} in {plain}" for plain, anchor, address in sorted(places) if anchor not in anchors.get(plain, [anchor])
    ]
    assert len(asked) > 12
    assert any("/api/" in address for address in asked)
    assert faults == []
    assert outside == []
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(start)
    picture("docs")
    visit = browser.new_context(color_scheme="dark", viewport={"width": 1280, "height": 800}).new_page()  # a first visit: nothing is stored
    visit.goto((site / "findings.html").as_uri())
    visit.wait_for_function("document.body.dataset.mdColorScheme === 'slate'")
    visit.screenshot(path=PICTURES / "docs-dark.png")
    visit.context.close()
