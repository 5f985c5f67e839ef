"""What the site adds to the pages: the README as its front page, files that pages link to, tables from CSV files, the API reference.

On GitHub the pages read without any of it: a link leads to the file itself.
"""

from __future__ import annotations

import pkgutil
import posixpath
import re
from pathlib import Path

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import idsds

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
#: A link to a CSV file with the columns to show: ``[the table](../figures/x.csv){.table columns="a, b"}``.
TABLE = re.compile(r'\[([^\]]*)\]\((?:\.\./)*(\S+\.csv)\)\{\.table columns="([^"]*)"\}')

PACKAGES = ["idsds", *(f"idsds.{room.name}" for room in pkgutil.iter_modules(idsds.__path__) if room.ispkg)]
#: A role of Sphinx, as the docstrings write references, once it is HTML.
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):<code>(~?)([\w.]+)</code>")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API reference into the navigation."""
    config.nav = [*(config.nav or []), {"API reference": [{name: f"api/{name}.md"} for name in PACKAGES]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, the API reference, and the files outside docs/ that pages link to, those of added pages included."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for name in PACKAGES:
        modules = _modules(name) if name != "idsds" else []
        # What a package only passes on is described where it is defined.
        package = f"::: {name}\n    options: {{members: {'false' if modules else 'null'}}}"
        files.append(File.generated(config, f"api/{name}.md", content="\n\n".join([f"# {name}", package, *(f"::: {m}" for m in modules)])))
    pages = list(files.documentation_pages())
    while pages:
        page = pages.pop()
        for link in LINK.findall(_anchored(page.content_string, page.src_uri)):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), link))
            if (ROOT / path).is_file() and files.get_file_from_path(path) is None:
                file = File(path, str(ROOT), config.site_dir, use_directory_urls=False)
                files.append(file)
                pages += [file] if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show tables in place of links to them, and let links out of docs/ lead to the copies."""
    return _anchored(TABLE.sub(_folded, markdown), page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the references of docstrings into links, if what they name is documented."""

    def link(match: re.Match) -> str:
        name = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref optional identifier="{match[2]}"><code>{name}</code></autoref>' if "." in match[2] else f"<code>{name}</code>"

    return ROLE.sub(link, html)


def as_markdown(path: Path, columns: list[str]) -> str:
    """Return columns of a CSV file as a Markdown table, numbers with two decimals. Raises KeyError for a column that is not there."""
    table = pd.read_csv(path)[columns]
    rows = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def _folded(match: re.Match) -> str:
    """A table that opens with a click on the text of its link."""
    table = as_markdown(ROOT / match[2], match[3].split(", "))
    return f"<details markdown><summary>{match[1]}</summary>\n\n{table}\n\n</details>"


def _modules(package: str) -> list[str]:
    """The public modules below a package, by name."""
    path = str(ROOT.joinpath(*package.split(".")))
    return sorted(module.name for module in pkgutil.walk_packages([path], f"{package}.") if "._" not in module.name)


def _anchored(markdown: str, page: str) -> str:
    """Links of a page of docs/ as seen from the site's root, which is the repository's for the files that are added."""
    return markdown if "/" in page else markdown.replace("](../", "](")
