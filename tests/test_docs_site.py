"""The site of docs/ builds strictly and needs no network; its generated parts are current; the notebook runs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from doc_pages import CLI_REFERENCE, DOCS, PAGES, REPOSITORY, page_name, prose
from nbclient import NotebookClient

import blossom_ray

NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


class Loaded(HTMLParser):
    """What a browser fetches for a page by itself: scripts, styles, pictures, fonts, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(values.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does: any warning is an error."""
    pytest.importorskip("material", reason="the site is built with the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def page_of(site: Path, source: str) -> str:
    return (site / source).with_suffix(".html").read_text(encoding="utf-8")


@pytest.mark.long
def test_every_page_is_in_the_site(site: Path) -> None:
    for page in PAGES[1:]:
        assert (site / page.relative_to(DOCS)).with_suffix(".html").exists(), page


@pytest.mark.long
def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.addresses
        assert [address for address in loaded.addresses if "//" in address] == [], page


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paragraphs_of_a_list_item_stand_four_spaces_in(page: Path) -> None:
    """Code hosts take three for part of the item, and need no empty line behind it; the site does."""
    assert re.findall(r"\n *\n {1,3}\S.*", prose(page)) == []
    assert re.findall(r"\n *\n {4}\S.*(?:\n {4}.*)*\n(?:- |\d+\. ).*", prose(page)) == []


@pytest.mark.long
def test_links_out_of_docs_lead_to_pages_that_show_the_file(site: Path) -> None:
    assert 'href="repository/scenarios/baselines/fedprox.yaml.html"' in page_of(site, "baselines.md")
    assert "proximal_mu" in (site / "repository/scenarios/baselines/fedprox.yaml.html").read_text(encoding="utf-8")
    readme = (site / "repository" / "index.html").read_text(encoding="utf-8")
    assert 'href="../semantics.html"' in readme
    assert 'href="CHANGELOG.html"' in readme


@pytest.mark.long
def test_the_python_reference_has_every_exported_name_with_its_docstring(site: Path) -> None:
    page = page_of(site, "api.md")
    for name in blossom_ray.__all__:
        if name != "__version__":
            assert f'id="blossom_ray.{name}"' in page, f"docs/api.md lacks ::: blossom_ray.{name}"
    assert "Folder under which the run folder is made" in page


def test_the_reference_of_the_command_line_is_current() -> None:
    printed = runpy.run_path(str(DOCS / "tools" / "cli_reference.py"))["cli_reference"]()
    assert (REPOSITORY / CLI_REFERENCE).read_text(encoding="utf-8") == f"{printed}\n", "renew it: make docs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_is_stored_without_outputs(path: Path, tmp_path: Path, warm_processes: None) -> None:
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count is not None] == []
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [output for output in outputs if output["output_type"] == "display_data"]
    assert len(pictures) == 1
    assert "image/png" in pictures[0]["data"]
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert printed.startswith("accuracy 0."), printed


def test_there_is_a_notebook_and_a_page_links_to_it() -> None:
    assert [path.name for path in NOTEBOOKS] == ["notebook.ipynb"]
    assert "](notebook.ipynb)" in (DOCS / "watching.md").read_text(encoding="utf-8")
