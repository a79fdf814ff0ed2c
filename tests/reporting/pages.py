"""A report's page, read back as its sections and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class PageTable:
    """A table: what stands above it, whether one has to open it, its cells."""

    title: str
    is_folded: bool
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def column(self, heading: str) -> list[str]:
        """The cells below a heading."""
        place = self.header.index(heading)
        return [row[place] for row in self.rows if len(row) > place]


@dataclass
class PageSection:
    """A section: its paragraphs, its tables, its notes."""

    title: str = ""
    text: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)


class ReportPage(HTMLParser):
    """The sections of a page by their title, in order, and all of its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, PageSection] = {}
        self.tags: set[str] = set()
        self._section = PageSection()
        self._open: list[tuple[str, str]] = []
        self._text = self._title = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        kind = dict(attrs).get("class") or ""
        if tag in ("h2", "h3", "summary", "th", "td", "p"):
            self._text = ""
        if tag in ("h3", "summary", "h2", "th", "td", "p", "details", "thead", "table", "tr", "svg"):
            self._open.append((tag, kind))
        if tag == "table":
            self._section.tables.append(PageTable(self._title, any(name == "details" for name, _ in self._open)))
            self._title = ""
        if tag == "tr" and not any(name == "thead" for name, _ in self._open):
            self._section.tables[-1].rows.append([])

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1][0] != tag:
            return
        _, kind = self._open.pop()
        if tag == "h2":
            self._section = self.sections.setdefault(self._text, PageSection(self._text))
        elif tag in ("h3", "summary"):
            self._title = self._text
        elif tag == "p":
            (self._section.notes if kind == "note" else self._section.text).append(self._text)
        elif tag in ("th", "td"):
            table = self._section.tables[-1]
            cells = table.header if any(name == "thead" for name, _ in self._open) else table.rows[-1]
            if kind == "i":  # an interval, which belongs to the number before
                cells[-1] = f"{cells[-1]} {self._text}".strip()
            else:
                cells.append(self._text)

    def handle_data(self, data: str) -> None:
        if not any(name == "svg" for name, _ in self._open):
            self._text += data
