"""The README and the pages under docs/ say what the code does: links lead somewhere, names and columns exist."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
from doc_pages import DOCS, PAGES, REPOSITORY, page_name, prose

from blossom_ray import Scenario, simulate
from blossom_ray.core.blocks import SCHEME_NAMES, Scope
from blossom_ray.core.scores import SCORES, TASKS, Task
from blossom_ray.runs.tables import TABLES


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and most renderers make them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / link).resolve() for link in links if ":" not in link]
    own = {page.resolve() for page in PAGES if (DOCS / "results") not in page.parents}
    assert own - {page.resolve() for page in reached} == set()


def test_the_index_links_to_every_page() -> None:
    links = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+)", prose(DOCS / "index.md"))}
    assert [page_name(page) for page in PAGES if page.name != "index.md" and page.resolve() not in links] == []


def test_the_architecture_names_every_module() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(DOCS / "tools" / "rooms.py"))["with_rooms"](page) == page
    package = REPOSITORY / "blossom_ray"
    named = {name for name in re.findall(r"`([\w/]+\.py)`", page) if not (REPOSITORY / name).exists()}
    assert {name for name in named if not (package / name).exists()} == set()


def test_the_layers_are_those_of_the_import_contract() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in project["tool"]["importlinter"]["contracts"] if c["name"] == "Rooms")
    layers = "\n".join(contract["layers"]).replace("blossom_ray.", "")
    assert f"```text\n{layers}\n```" in page


def test_semantics_explains_every_column_scope_and_scheme() -> None:
    page = (DOCS / "semantics.md").read_text(encoding="utf-8")
    for table, columns in TABLES.items():
        section = page.split(f"### `{table}`")[1].split("\n### ")[0]
        assert [column for column in columns if f"`{column}`" not in section] == [], table
    names = [*(str(scope) for scope in Scope), *SCHEME_NAMES]
    assert [name for name in names if f"`{name}`" not in page] == []


@pytest.mark.parametrize("task", TASKS)
def test_semantics_explains_every_summary_column(small_scenario: Scenario, task: Task) -> None:
    run = simulate(small_scenario.override({"rounds": 1, "task": task}))
    page = (DOCS / "semantics.md").read_text(encoding="utf-8")
    scores = ["loss", *(score.name for score in SCORES[task])]
    assert [name for name in scores if f"`{name}`" not in page.split("### Scores")[1].split("\n## ")[0]] == []
    sets = {group.modalities for group in small_scenario.clients}
    for column in set(run.rounds.columns) - set(TABLES["rounds"]):
        pattern = column
        for name in sorted(scores, key=len, reverse=True):
            pattern = re.sub(rf"(^|/){name}(?=$|/|_p)", r"\1<score>", pattern)
        for owned in sorted(sets, key=len, reverse=True):
            pattern = re.sub(rf"/{re.escape('+'.join(sorted(owned)))}$", "/<modality set>", pattern)
        assert f"`{pattern}`" in page, column
