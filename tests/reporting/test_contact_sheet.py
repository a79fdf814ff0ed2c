"""`data inspect --html`: what a page shows of clients' rows, and that it is a page of its own."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from conftest import Command
from pages import ReportPage
from PIL import Image

from blossom_ray import from_arrays, write_table
from blossom_ray.studies.reports.contact_sheet import MOST_CLIENTS, MOST_SHOWN

SCENARIO = """
name: seen
rounds: 1
data: {dataset: table, path: rows.parquet, partition: {kind: given}}
clients: from-data
model: {encoders: {image: {kind: mlp}, acc: {kind: mlp}}}
execution: {runtime: local}
"""
EVIL = "<script>\x1b[31mA"


class Shown(HTMLParser):
    """The pictures of a page with the words below them, and whatever it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pictures: list[tuple[np.ndarray, str]] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        source = next((value or "" for name, value in attrs if name in ("src", "href")), "")
        head, _, content = source.partition(",")
        if tag == "img" and head == "data:image/png;base64":
            image = Image.open(io.BytesIO(base64.b64decode(content)))
            self.pictures.append((np.asarray(image), ""))
        elif source and not source.startswith("#"):
            self.loaded.append(source)

    def handle_data(self, data: str) -> None:
        if self.pictures and not self.pictures[-1][1]:
            self.pictures[-1] = (self.pictures[-1][0], data)


@pytest.fixture
def pictures(tmp_path: Path, command: Command) -> np.ndarray:
    """Grey pictures of two clients, of which the second lacks one, and the numbers beside them."""
    rows = np.arange(12)
    values = (rows[:, None, None, None] * 20 + np.arange(6).reshape(2, 3)[None, None]) / 255
    table = {
        "image": [None if row == 7 else values[row].tolist() for row in rows],
        "acc": rows / 10,
        "label": np.where(rows % 2, EVIL, "B"),
        "client": np.where(rows < 6, "a<i>", "b"),
    }
    pl.DataFrame(table).write_parquet("rows.parquet")
    Path("rows.yaml").write_text(SCENARIO, encoding="utf-8")
    return np.rint(values * 255).astype(np.uint8)


def test_a_page_shows_pictures_and_counts_of_clients(pictures: np.ndarray, command: Command) -> None:
    outcome = command("data", "inspect", "rows.yaml", "--html", "sub/page.html")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "sub/page.html"
    text = Path("sub/page.html").read_text(encoding="utf-8")
    shown, page = Shown(text), ReportPage(text)
    assert shown.loaded == []
    assert page.tags.isdisjoint({"script", "b", "i", "link"})
    # Six pictures of client a, five of b, which lacks one; each of them with its label.
    found = sorted((int(image[0, 0]) // 20, caption) for image, caption in shown.pictures)
    assert found == [(row, "<script>\\x1b[31mA" if row % 2 else "B") for row in range(12) if row != 7]
    assert all((image == pictures[image[0, 0] // 20, 0]).all() for image, _ in shown.pictures)
    first, second = (page.sections[f"Client {client} ({name}): acc+image"] for client, name in ((0, "a<i>"), (1, "b")))
    assert first.tables[0].header == ["split", "rows", "with image", "<script>\\x1b[31mA", "B"]
    counts = {(row[0], *map(int, row[1:])) for row in second.tables[0].rows}
    assert [sum(own[place] for own in counts) for place in range(1, 5)] == [6, 5, 3, 3]
    assert {row[0] for row in counts} == {"train", "test"}


def test_clients_and_pictures_are_bounded_and_any_range_is_seen(command: Command) -> None:
    """Of 14 clients the first 12; of a client's 25 pictures 24; the darkest number is black, the brightest white."""
    draw = np.random.default_rng(0)
    values = draw.uniform(-5, 7, (14 * 25, 3, 20, 200)).astype(np.float32)
    write_table(from_arrays({"image": values}, np.arange(350) % 2, clients=np.arange(350) // 25), "rows.arrow")
    own = SCENARIO.replace("rows.parquet", "rows.arrow")
    Path("rows.yaml").write_text(own.replace(", acc: {kind: mlp}", ""), encoding="utf-8")
    outcome = command("data", "inspect", "rows.yaml", "--html", "page.html")
    assert (outcome.exit_code, outcome.err) == (0, "")
    text = Path("page.html").read_text(encoding="utf-8")
    page, shown = ReportPage(text), Shown(text).pictures
    assert sum(title.startswith("Client") for title in page.sections) == MOST_CLIENTS
    assert "and 2 more clients" in text
    assert len(shown) == MOST_CLIENTS * MOST_SHOWN
    assert {image.shape for image, _ in shown} == {(10, 96, 3)}


def test_sounds_and_texts_are_told_as_the_table_has_them(command: Command) -> None:
    """Of a client that trains and of one whose rows are held out."""
    columns: dict[str, list[object]] = {"sound": [], "text": [], "subject": [], "split": [], "label": []}
    for row in range(16):
        wav = io.BytesIO()
        soundfile.write(wav, np.zeros(800 + 80 * row), 8000, format="WAV")
        columns["sound"].append({"bytes": wav.getvalue(), "path": None})
        columns["text"].append(f"{'word ' * row}<b>\x1b[1m {row}")
        columns["subject"].append("ann" if row < 8 else "bob")
        columns["split"].append("train" if row < 8 else "test")
        columns["label"].append("xy"[row % 2])
    pl.DataFrame(columns).write_parquet("rows.parquet")
    Path("rows.yaml").write_text(
        """
rounds: 1
data:
  dataset: table
  path: rows.parquet
  modalities: {sound: {kind: audio, rate: 8000, seconds: 0.1}, text: {kind: text, max_length: 6}}
  partition: {kind: subject}
clients:
  - {count: 1, modalities: [sound, text]}
  - {count: 1, modalities: [sound, text], role: unseen, rows: held-out}
model: {encoders: {sound: {kind: gru}, text: {kind: embedding}}}
execution: {runtime: local}
""",
        encoding="utf-8",
    )
    outcome = command("data", "inspect", "rows.yaml", "--html", "page.html")
    assert (outcome.exit_code, outcome.err) == (0, "")
    page = ReportPage(Path("page.html").read_text(encoding="utf-8"))
    assert page.tags.isdisjoint({"b", "i", "img"})
    _, ann, bob, *_ = page.sections.values()
    assert (ann.title, bob.title) == ("Client 0 (ann): sound+text", "Client 1 (1): sound+text, never trains")
    lengths, texts = ([section.tables[number].rows for section in (ann, bob)] for number in (1, 2))
    assert lengths == [[["sound", "0.1", "0.135", "0.17"]], [["sound", "0.18", "0.215", "0.25"]]]
    assert ["x", "6 or more", "word word <b>\\x1b[1m 2"] in texts[0]
    assert ["y", "6 or more", f"{'word ' * 15}<b>\\x1b[1m 15"] in texts[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("synthetic", "--html", "x.html"), "--html is for a scenario, whose clients it shows"),
        (("rows.yaml", "--html", "."), "--html is '.', which is a folder; expected a file"),
        (("rows.yaml", "--html", "s3://a/b"), "--html is 's3://a/b', which is a URI"),
    ],
)
def test_what_cannot_be_a_page_is_refused(
    words: tuple[str, ...], message: str, pictures: np.ndarray, command: Command
) -> None:
    outcome = command("data", "inspect", *words)
    assert outcome.exit_code != 0
    assert message in outcome.err
