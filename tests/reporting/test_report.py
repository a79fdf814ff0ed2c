"""The whole report, from run folders to files, and in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blossom_ray import Run, Scenario, report, simulate
from blossom_ray.cli import main
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.writer import RunWriter

pytestmark = pytest.mark.slow

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def folder(tiny: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = simulate(tiny, out=tmp_path_factory.mktemp("runs"))
    assert run.path is not None
    return run.path


def test_a_run_gets_its_page_into_its_folder(folder: Path) -> None:
    assert report(folder) == [folder / "report.html"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("Scores over rounds", "Modality sets", "Clients", "Communication", "Time", "Resolved scenario"):
        assert f"{part}</h2>" in page
    assert "Failures</h2>" not in page
    assert f"{100 * Run.open(folder).final['accuracy']:.1f} %" in page


def test_figures_for_a_paper_are_svg_and_pdf(folder: Path, tmp_path: Path) -> None:
    written = report(folder, out=tmp_path / "page.html", figures=tmp_path / "figures")
    names = [path.name for path in written[1:]]
    assert len(names) == len(set(names))
    assert {"curve-accuracy.svg", "curve-accuracy.pdf", "communication.svg"} <= set(names)
    assert (tmp_path / "figures" / "curve-accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert "var(--" not in (tmp_path / "figures" / "curve-accuracy.svg").read_text(encoding="utf-8")


def test_a_run_without_a_round_is_refused(tiny: Scenario, tmp_path: Path) -> None:
    RunWriter(tmp_path / "empty", scenario_yaml(tiny), {}).close("interrupted")
    with pytest.raises(InputError, match=r"round yet \(.*empty: interrupted\); expected at least one"):
        report(tmp_path / "empty")


def test_a_page_that_cannot_be_written_is_named(folder: Path) -> None:
    with pytest.raises(RunFolderError, match=re.escape(str(folder / "manifest.json"))):
        report(folder, out=folder / "manifest.json" / "page.html")


def test_bad_paths_end_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setattr("sys.argv", ["blossom-ray", "report", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert re.fullmatch(r"error: .*none: is no folder; expected .*\n", capsys.readouterr().err)


def test_the_command_prints_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    from blossom_ray.cli import app

    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "page.html"), "--title", "A & B"])
    assert result.stdout.strip() == str(tmp_path / "page.html")
    assert "<h1>A &amp; B</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_the_page_without_errors_or_overflow(folder: Path, tmp_path: Path, width: int) -> None:
    page = report(folder, out=tmp_path / "page.html")[0]
    # The page allows no scripts; the copy does, to measure itself.
    measured = "document.documentElement.scrollWidth + ' ' + document.querySelectorAll('svg').length"
    probe = f"<script>document.title = {measured}</script>"
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8")).replace("</body>", f"{probe}</body>")
    copy = tmp_path / "probe.html"
    copy.write_text(text, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},800", "--dump-dom"]
    shown = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(\d+) (\d+)</title>", shown)
    assert title is not None
    # Chromium's window is at least 500 wide.
    assert int(title[1]) <= max(width, 500)
    assert int(title[2]) == 7
