"""Tables as their authors wrote them and as spreadsheets save them again: the same rows, or one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from blossom_ray.data.files.archives import open_archive
from blossom_ray.data.files.csv_tables import check_unique, read_rows, whole_number
from blossom_ray.errors import DataError

PLAIN = 'number,said,other\n1,"Well, yes",a\n2,"no;\nnever",b\n'
ROWS = [{"number": "1", "said": "Well, yes", "other": "a"}, {"number": "2", "said": "no;\nnever", "other": "b"}]


def rows(content: str | bytes, folder: Path) -> list[dict[str, str]]:
    (folder / "table.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with open_archive(folder, landmark="table.csv") as archive:
        return read_rows(archive, "table.csv", ("number", "said"))


SEMICOLONS = 'number;said;other\n1;Well, yes;a\n2;"no;\nnever";b\n'


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        SEMICOLONS,
        "\ufeff" + SEMICOLONS,
        "sep=;\r\n" + SEMICOLONS,
        SEMICOLONS.replace(";", "\t").replace("no\t", "no;"),
        PLAIN.replace("number,", " number ,"),
        PLAIN.replace("\n1", "\n\n1") + ",,\n\n",
        PLAIN.replace("other\n", "other,,\n").replace(",a\n", ",a,,\n").replace(",b\n", ",b,,\n"),
        'said,other,number\n"Well, yes",a,1\n"no;\nnever",b,2\n',
    ],
)
def test_what_spreadsheets_save_is_the_same_table(content: str, tmp_path: Path) -> None:
    assert rows(content, tmp_path) == ROWS


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends(end: str, tmp_path: Path) -> None:
    assert rows(PLAIN.replace("\n", end), tmp_path) == [ROWS[0], {**ROWS[1], "said": f"no;{end}never"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"has no column 'number' among none; expected a CSV file in UTF-8 with columns 'number', 'said'"),
        ("number,said\n", "has no rows"),
        ("number,text\n1,x\n", r"has no column 'said' among 'number', 'text'"),
        ("number,said,said\n1,x,y\n", r"has two columns 'said'"),
        ("number,said\n1,x\n2\n", r"row 2 has 1 values; expected 2, as its first line"),
        ("number,said\n1,x,y\n", r"row 1 has 3 values; expected 2"),
        (PLAIN.encode("utf-16"), r"cannot be read"),
        ("number,said\n1,caf\u00e9\n".encode("cp1252"), r"cannot be read"),
    ],
)
def test_faults(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        rows(content, tmp_path)


def test_two_rows_for_one_thing() -> None:
    check_unique("t.csv", "record", ["1", "2"])
    with pytest.raises(DataError, match=r"t.csv has two rows for record 7, 1 and 3; expected one per record"):
        check_unique("t.csv", "record", ["7", "8", "7"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        ("3.0", 3),
        ("3,0", 3),
        ("-1", -1),
        ("3.5", None),
        ("", None),
        ("x", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_whole_numbers(text: str, number: int | None) -> None:
    assert whole_number(text) == number
