"""README and docs/: links lead somewhere, Python blocks run, and the pages name what the registries hold."""

import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import idsds
from idsds.methods.base import METHODS
from idsds.protocols.base import PROTOCOLS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def python_blocks(page):
    """(line, code) of a page's Python blocks."""
    text = page.read_text()
    return [(text[: found.start(1)].count("\n"), found[1]) for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)]


@pages
def test_every_link_leads_somewhere(page):
    for link in LINK.findall(without_code(page.read_text())):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if path.startswith("api/"):  # made by the site, from the docstrings
            assert re.fullmatch(r"api/idsds(\.\w+)?\.md", path)
            assert (ROOT / Path(*Path(path).stem.split("."))).is_dir()
            continue
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One cache for all pages, so that a net is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDSDS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.stem)
def test_every_python_block_runs(page, trained, tmp_path, monkeypatch):
    # The blocks of a page are read from the top, and so they run: in one namespace, where the reader's repository is.
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))  # what a page registers goes with it
    namespace = {"__name__": "__main__"}
    for line, code in python_blocks(page):
        exec(compile("\n" * line + code, page.name, "exec"), namespace)


def first_cells(page, heading="# ", cells=1):
    """The names in code marks in the first cells of the table rows below a heading."""
    text = (ROOT / "docs" / page).read_text().split(heading, 1)[1]
    rows = [line.strip("|").split("|")[:cells] for line in text.splitlines() if line.startswith("|")]
    return [name for row in rows for cell in row for name in re.findall(r"`([^`]+)`", cell)]


def test_the_methods_page_names_every_method_once():
    named = [*first_cells("methods.md", "## Gradients"), *first_cells("methods.md", "## SmoothGrad", 3)]
    assert sorted(set(named)) == sorted(idsds.list_methods())


def test_the_protocols_page_defines_every_protocol_with_its_direction_and_range():
    text = (ROOT / "docs" / "protocols.md").read_text()
    assert first_cells("protocols.md") == re.findall(r"^## (\w+)$", text, re.M)
    assert sorted(first_cells("protocols.md")) == sorted(idsds.list_protocols())
    for name, direction, low, high, in_domain in re.findall(
        r"^\| \[`(\w+)`\]\S+ \| (\w+) \| (\S+) to (\S+) \|[^|]*\| (yes|no)", text, re.M
    ):
        entry = PROTOCOLS[name]
        assert entry.higher_is_better == (direction == "higher"), name
        assert entry.range == (float(low), float(high.replace("∞", "inf"))), name
        assert entry.in_domain == (in_domain == "yes"), name


def test_the_models_page_names_every_model_and_data_set():
    text = (ROOT / "docs" / "models-and-datasets.md").read_text()
    assert not [name for name in idsds.list_models() if not re.search(rf"^\| {name} \||`{name}`", text, re.M)]
    assert set(first_cells("models-and-datasets.md", "## Data sets")) == set(idsds.list_datasets())


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_site_loads_nothing_from_outside_and_every_file_it_links_to_is_in_it(site):
    checked = 0
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]+src="?(?:https?:)?//', text), page
        assert not re.findall(r'<link[^>]+(?:stylesheet|preconnect|icon)[^>]+href="?(?:https?:)?//', text), page
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            path = unquote(urlsplit(link).path)
            if not urlsplit(link).scheme and path and page.name != "404.html":
                assert (page.parent / path).exists(), f"{page.name}: {link}"
                checked += 1
    assert checked > 500


def test_the_api_reference_documents_the_public_names(site):
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    described = {name.rpartition(".")[2] for name in re.findall(r'id="(idsds\.[\w.]+)"', text)}
    assert set(idsds.__all__) <= described


def test_a_table_with_a_column_that_is_not_there_stops_the_build(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from hooks import as_markdown
    finally:
        sys.path.remove(str(ROOT / "docs"))
    (tmp_path / "x.csv").write_text("name,value\nIG,0.123456\nRandom,\n")
    assert as_markdown(tmp_path / "x.csv", ["name", "value"]) == "| name | value |\n| --- | --- |\n| IG | 0.12 |\n| Random | nan |"
    with pytest.raises(KeyError, match="verdict"):
        as_markdown(tmp_path / "x.csv", ["verdict"])
