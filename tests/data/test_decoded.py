from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest

from blossom_ray.core.progress import listening
from blossom_ray.data.files.decoded import MOST_BYTES, FilePath, Value, decoded
from blossom_ray.data.modalities.base import Media, MediaValue, UndecodableError
from blossom_ray.errors import DataError

PART = 8
"""Values that make up a part: samples of `Digits` have 4 MiB."""


class Digits(Media):
    """Values such as b"7", which become samples full of 7."""

    kind: Literal["digits"] = "digits"
    times: int = 1
    shape: ClassVar = (2**20,)
    dtype: ClassVar = np.dtype(np.float32)
    factor: ClassVar = 1.0

    def decoder(self) -> Digits:
        return self

    def version(self) -> int:
        return 1

    def __call__(self, value: MediaValue) -> npt.NDArray[np.float32]:
        if value == b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if not value.isdigit():
            raise UndecodableError(f"is {value!r}; expected a digit")
        (Path(os.environ["DECODED"]) / f"{value.decode()}-{os.getpid()}").touch()  # type: ignore[union-attr]
        return np.full(self.shape, self.times * int(value), np.float32)


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[int]]:
    """The values that have been decoded since it was asked last."""
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setenv("DECODED", str(folder))

    def found() -> set[int]:
        numbers = {int(file.name.partition("-")[0]) for file in folder.iterdir()}
        for file in folder.iterdir():
            file.unlink()
        return numbers

    return found


def digits(*numbers: Any) -> list[Value]:
    return [str(number).encode() for number in numbers]


def load(values: Iterable[Value], folder: Path, media: Media | None = None, **more: Any) -> tuple[list[Any], Any]:
    """The first number of each sample, None where there is none, and what `decoded` gives."""
    values = list(values)
    found = decoded(media or Digits(), values, "x", len(values), folder=folder, **more)
    samples = [sample[0].item() for part in found.parts for sample in part]
    assert all((sample == sample[0]).all() for part in found.parts for sample in part)
    return [None if number in found.errors else value for number, value in enumerate(samples)], found


def test_values_are_decoded_once(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    numbers = [*range(20)]
    samples, first = load(digits(*numbers), tmp_path)
    assert samples == numbers
    assert log() == {*numbers}
    assert [len(part) for part in first.parts] == [8, 8, 4]
    assert not any(part.flags.writeable for part in first.parts)
    (kept,) = first.kept
    assert (kept.num_samples, kept.num_new) == (20, 20)
    assert kept.num_bytes == sum(file.stat().st_size for file in tmp_path.glob("digits-*/*.arrow"))

    samples, again = load(digits(*numbers), tmp_path)
    assert samples == numbers
    assert log() == set()
    assert again.kept == (kept._replace(num_new=0),)


def test_what_is_the_same_so_far_is_not_decoded_again(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    load(digits(*range(20)), tmp_path)
    log()
    assert load(digits(*range(30)), tmp_path)[0] == [*range(30)]
    assert log() == {*range(16, 30)}
    assert load(digits(*range(10), 99, *range(11, 20)), tmp_path)[0] == [*range(10), 99, *range(11, 20)]
    assert log() == {*range(8, 10), 99, *range(11, 16)}


def test_other_options_are_another_entry(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    load(digits(1, 2), tmp_path)
    log()
    assert load(digits(1, 2), tmp_path, Digits(times=3))[0] == [3, 6]
    assert log() == {1, 2}
    # Where a value stands, and what becomes of one that is none, changes no sample.
    load(digits(1, 2), tmp_path, Digits(column="y", on_error="drop"))
    assert log() == set()


def test_files_and_contents_are_one_entry(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "set" / "sub" / f"{number}.txt").write_bytes(str(number).encode())
    load(digits(*range(9)), tmp_path)
    log()
    paths = [FilePath(f"sub/{number}.txt", tmp_path / "set") for number in range(9)]
    assert load(paths, tmp_path)[0] == [*range(9)]
    assert load([FilePath(str(path.folder / path.path)) for path in paths if path.folder], tmp_path)[0] == [*range(9)]
    assert log() == set()


def test_files_whose_size_and_time_are_the_same_are_not_read_again(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    paths = [FilePath(f"{number}.txt", tmp_path) for number in range(10)]

    def write(number: int, content: str, time_s: int) -> None:
        (tmp_path / paths[number].path).write_text(content)
        os.utime(tmp_path / paths[number].path, (time_s, time_s))

    for number in range(10):
        write(number, str(number), 1000)
    assert load(paths, tmp_path)[0] == [*range(10)]
    (tmp_path / "3.txt").write_text("7")
    os.utime(tmp_path / "3.txt", (1000, 1000))  # which nobody does but a test
    assert load(paths, tmp_path)[0] == [*range(10)]
    write(3, "7", 1001)
    write(9, "55", 1000)
    log()
    assert load(paths, tmp_path)[0] == [0, 1, 2, 7, *range(4, 9), 55]
    assert log() == {0, 1, 2, 7, *range(4, 9), 55}
    # Of a damaged part the files are read again; what was changed just now, every time.
    for file in tmp_path.glob("digits-*/*.arrow"):
        file.write_bytes(b"")
    assert load(paths, tmp_path)[0] == [0, 1, 2, 7, *range(4, 9), 55]
    (tmp_path / "3.txt").write_text("8")
    assert load(paths, tmp_path)[0][3] == 8
    (tmp_path / "3.txt").write_text("9")
    assert load(paths, tmp_path)[0][3] == 9


def test_errors_are_kept_and_told(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    values = [*digits(0, "x", 2), FilePath("../etc", tmp_path), *digits(*range(4, 12)), FilePath("none", tmp_path)]
    samples, found = load(values, tmp_path)
    assert samples == [0, None, 2, None, *range(4, 12), None]
    assert found.errors[1] == "is b'x'; expected a digit"
    assert "'..'" in found.errors[3]
    assert "cannot be found" in found.errors[12]
    assert all((found.parts[0][number] == 0).all() for number in (1, 3))
    log()
    assert load(values, tmp_path)[1].errors == found.errors
    assert log() == set()
    (tmp_path / "none").write_bytes(b"12")
    assert load(values, tmp_path)[0] == [0, None, 2, None, *range(4, 13)]


def test_a_value_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10 * MOST_BYTES)  # of which the disk keeps nothing
    samples, found = load([b"1", b"2" * (MOST_BYTES + 1), FilePath("large", tmp_path)], tmp_path)
    assert samples == [1, None, None]
    assert found.errors[1] == "has 134,217,729 bytes; expected at most 134,217,728"
    assert found.errors[2] == ("is 'large', which is larger than 128 MiB; expected a regular file of at most 128 MiB")


def test_the_first_error_can_end_it(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    def refuse(number: int, error: str) -> None:
        raise DataError(f"{number}: {error}")

    values = [*digits(0, 1, "x", "y"), *digits(*range(4, 100))]
    with pytest.raises(DataError, match=r"^2: is b'x'; expected a digit$"):
        load(values, tmp_path, refuse=refuse)
    assert len(log()) < 50
    with pytest.raises(DataError, match=r"^2: is b'x'; expected a digit$"):
        load(values, tmp_path, refuse=refuse)


def run(values: list[Value], folder: Path) -> None:
    """What a process of its own does."""
    load(values, folder)


def process_of(values: list[Value], folder: Path) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=run, args=(values, folder))
    process.start()
    return process


def test_what_was_killed_goes_on(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    killed = process_of([*digits(*range(40)), b"kill"], tmp_path)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    kept = len([*tmp_path.glob("digits-*/*.arrow")])
    assert kept >= 2
    log()
    assert load(digits(*range(40)), tmp_path)[0] == [*range(40)]
    assert log() == {*range(PART * kept, 40)}
    assert len([*tmp_path.glob("digits-*/*.arrow")]) == 5


def test_of_two_processes_one_decodes(tmp_path: Path, log: Callable[[], set[int]]) -> None:
    values = digits(*range(24))
    both = [process_of(values, tmp_path) for _ in range(2)]
    for each in both:
        each.join()
    assert [each.exitcode for each in both] == [0, 0]
    assert len([*Path(os.environ["DECODED"]).iterdir()]) == 24
    assert log() == {*range(24)}
    assert load(values, tmp_path)[0] == [*range(24)]


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "other"])
def test_a_damaged_part_is_made_anew(damage: str, tmp_path: Path, log: Callable[[], set[int]]) -> None:
    load(digits(*range(12)), tmp_path)
    log()
    first, second = sorted(tmp_path.glob("digits-*/*.arrow"), key=lambda file: -file.stat().st_size)
    content = first.read_bytes()
    match damage:
        case "cut":
            first.write_bytes(content[: len(content) // 2])
        case "changed":
            first.write_bytes(content[:1_000_000] + bytes([content[1_000_000] ^ 1]) + content[1_000_001:])
        case "emptied":
            first.write_bytes(b"")
        case _:
            first.write_bytes(b"ARROW1" + content[6:200])
    assert load(digits(*range(12)), tmp_path)[0] == [*range(12)]
    assert log() == {*range(8)}
    assert first.read_bytes() == content
    assert second.exists()


def test_progress_is_told(tmp_path: Path) -> None:
    heard = []
    with listening(lambda *told: heard.append(told)):
        load(digits(*range(20)), tmp_path)
    assert heard == [("decoding x", 8, 20), ("decoding x", 16, 20), ("decoding x", 20, 20)]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"the cache folder .* cannot be written"):
        load(digits(1), tmp_path / "file")


def test_no_values(tmp_path: Path) -> None:
    samples, found = load([], tmp_path)
    assert (samples, found.kept[0].num_bytes) == ([], 0)
    assert [part.shape for part in found.parts] == [(0, 2**20)]
