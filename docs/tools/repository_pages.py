"""MkDocs hook: a link that leads out of docs/ leads to a page of the site.

On a code host, pages link to files of the repository: `../scenarios/quickstart.yaml`, `../README.md`. A site holds what
lies in docs/. So each file outside that some page links to becomes a page below `repository/`, Markdown as it is and
anything else as a listing, and the links are rewritten. Nothing has to know where the repository is published.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

_DOCS = "docs"
_FOLDER = "repository"
# Code, in which nothing is a link, or the target of a link.
_CODE_OR_LINK = re.compile(
    r"^(?P<fence>`{3,}).*?^(?P=fence)$|(?P<tick>`+).+?(?P=tick)|(?<=\]\()(?P<link>[^)\s]+)(?=\))", re.M | re.S
)
_LANGUAGES = {".py": "python", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside of docs/ that can be reached by links."""
    repository = Path(config.docs_dir).parent
    waiting = [f"{_DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    done: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source in done or not (repository / source).is_file():
            continue
        done.add(source)
        text = (repository / source).read_text(encoding="utf-8")
        is_markdown = source.endswith(".md")
        if not source.startswith(f"{_DOCS}/"):
            content = text if is_markdown else _listing(source, text)
            page = File.generated(config, _page_of(source), content=content)
            page.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(page)
        if is_markdown:
            waiting += [target for target in _targets(source, text) if not target.startswith("../")]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 # the hook's interface
    """Rewrite a page's links to where the site has their targets; what the site lacks stays, and MkDocs reports it."""
    here = page.file.src_uri
    source = here.removeprefix(f"{_FOLDER}/") if here.startswith(f"{_FOLDER}/") else f"{_DOCS}/{here}"

    def rewritten(match: re.Match[str]) -> str:
        target, anchor = _target(source, match["link"] or "")
        uri = _page_of(target)
        if not target or files.get_file_from_path(uri) is None:
            return match[0]
        return posixpath.relpath(uri, posixpath.dirname(here)) + anchor

    return _CODE_OR_LINK.sub(rewritten, markdown)


def _targets(source: str, text: str) -> Iterator[str]:
    """Files of the repository that a Markdown file links to."""
    for match in _CODE_OR_LINK.finditer(text):
        target, _ = _target(source, match["link"] or "")
        if target:
            yield target


def _target(source: str, link: str) -> tuple[str, str]:
    """Where a link leads, as a path in the repository, and its anchor; "" for links to elsewhere or within the page."""
    path, hash_sign, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:|/", path):
        return "", ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), hash_sign + anchor


def _page_of(source: str) -> str:
    """Where the site has a file of the repository, as a source of MkDocs."""
    if source.startswith(f"{_DOCS}/"):
        return source.removeprefix(f"{_DOCS}/")
    return f"{_FOLDER}/{source}" if source.endswith(".md") else f"{_FOLDER}/{source}.md"


def _listing(source: str, text: str) -> str:
    """A page that shows a file; the search leaves it out."""
    fence = "````"
    language = _LANGUAGES.get(posixpath.splitext(source)[1], "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {source}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"
