"""The page: self-contained, escaped, in the page's colours."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from blossom_ray.studies.reports.charts import INK, SERIES, Curve, curves, figure_style
from blossom_ray.studies.reports.page import ReportFigure, ReportSection, inline_svg, render_page
from blossom_ray.studies.tables import TextTable

EVIL = "<script>alert(1)</script>&\"'"


class Tags(HTMLParser):
    """Counts tags, collects text and what is linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in {"href", "src", "xlink:href"} and value]

    def handle_data(self, data: str) -> None:
        self.text += data

    @classmethod
    def read(cls, page: str) -> Tags:
        tags = cls()
        tags.feed(page)
        return tags


def page_with(text: str) -> str:
    with figure_style():
        figure = curves(
            {text: [Curve(text, [0, 1], [1, 2]), Curve("other", [0, 1], [2, 1])]}, x_label="x", y_label=text
        )
        tables = [
            TextTable([text, text], [[text, text], [f"  {text}", f"1.0 [{text}"]], text, shares={(0, 1): 0.5}),
            TextTable([text], [[text]], text, is_folded=True),
        ]
        section = ReportSection(text, [ReportFigure("curve", figure, text)], tables, [text], [text])
        return render_page(title=text, lead=text, facts={text: text}, sections=[section], scenarios={text: text})


def test_names_cannot_become_markup() -> None:
    tags = Tags.read(page_with(EVIL))
    assert "script" not in tags.names
    assert tags.text.count("<script>alert(1)</script>") >= 24
    assert "onload" not in Tags.read(page_with('x" onload="alert(1)')).attributes


@pytest.mark.parametrize("text", [SERIES[0].color, 'href="#a" id="b"', 'a  x="1.23456"', "font-family: 'a',"])
def test_names_in_figures_stay_as_they_are(text: str) -> None:
    with figure_style():
        figure = curves({"": [Curve("a", [0, 1], [1, 2])]}, x_label=text, y_label="y")
        svg = inline_svg(figure, name="f", description="")
    assert f">{text}</text>" in svg


def test_the_page_loads_nothing() -> None:
    page = page_with("plain")
    tags = Tags.read(page)
    assert [link for link in tags.links if not link.startswith("#")] == []
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_figures_take_the_colours_of_the_page() -> None:
    with figure_style():
        svg = inline_svg(
            curves({"a": [Curve("a", [0, 1], [1, 2])]}, x_label="x", y_label="y"), name="f", description="d"
        )
    assert "var(--series-0)" in svg
    assert "var(--ink)" in svg
    assert SERIES[0].color not in svg
    assert INK not in svg
    page = page_with("plain")
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= set(re.findall(r"(--[\w-]+):", page))


def test_numbers_with_an_interval_stand_below_each_other() -> None:
    table = TextTable(["name", "score", "p"], [["a", "1.0 ± 2.5 *", ".1"], ["  b", "-", ""], ["c", "9.0 [1, 2] %"]])
    with figure_style():
        page = render_page(title="", lead="", facts={}, sections=[ReportSection("s", (), [table])], scenarios={})
    assert '<th scope="col" colspan="2">score</th><th scope="col">p</th>' in page
    assert '<th scope="row">a</th><td>1.0</td><td class="i">± 2.5 *</td><td>.1</td>' in page
    assert '<tr class="below"><th scope="row">  b</th><td>-</td><td class="i"></td><td></td>' in page
    assert '<th scope="row">c</th><td>9.0</td><td class="i">[1, 2] %</td></tr>' in page


def test_figures_of_one_page_share_no_id() -> None:
    with figure_style():
        drawn = [curves({"a": [Curve("a", [0, 1], [1, 2])]}, x_label="x", y_label="y") for _ in range(2)]
        ids = [
            set(re.findall(r'id="([^"]+)"', inline_svg(figure, name=name, description="")))
            for figure, name in zip(drawn, "pq", strict=True)
        ]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_the_same_figure_gives_the_same_bytes() -> None:
    def draw() -> str:
        with figure_style():
            return inline_svg(
                curves({"a": [Curve("a", [0, 1], [1, 2])]}, x_label="x", y_label="y"), name="f", description=""
            )

    assert draw() == draw()
