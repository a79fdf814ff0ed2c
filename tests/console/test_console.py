import io
from dataclasses import replace

import pytest
from rich.console import Console

from blossom_ray.cli.console.rounds import CURVE_WIDTH, failure_line, score_table, sparkline
from blossom_ray.cli.console.runs import LiveView, final_summary, run_view
from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.progress import tell
from blossom_ray.core.records import ActorRound, BlockRound, Failure, RoundRecord
from blossom_ray.core.scores import default_score
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import Run
from blossom_ray.studies.tables import format_bytes, format_score, format_seconds

LONG_SET = "accelerometer+gyroscope+magnetometer"
PROFILES = (ClientProfile(0, ("acc",)), ClientProfile(1, ("acc",)), ClientProfile(2, tuple(LONG_SET.split("+"))))


def make_scenario(**changes):
    names = ("acc", *LONG_SET.split("+"))
    return Scenario.model_validate(
        {
            "name": "quick",
            "rounds": 20,
            "data": {"dataset": "synthetic"},
            "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 1, "modalities": names[1:]}],
            "model": {
                "encoders": {name: {"kind": "mlp"} for name in names},
                "fusion": {"kind": "mean"},
                "head": {"kind": "linear"},
            },
            **changes,
        }
    )


def make_metrics(accuracy, prefix="", suffix=""):
    scores = {"accuracy": accuracy, "macro_f1_present": 0.631, "macro_f1_all": 0.58, "loss": 1.234}
    return {f"{prefix}{name}{suffix}": value for name, value in scores.items()}


def make_record(round_index, *, accuracy=None, held_out=False, seconds=0.5):
    metrics, evaluation = {}, ()
    if round_index > 0:
        metrics["train_loss"] = 0.987
    if accuracy is not None:
        scores = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1_present", "macro_f1_all"), accuracy)
        evaluation = (ClientEvaluation(0, 7, 1.234, scores, bytes_down=0, seconds=0.0),)
        for suffix in ("", "/acc", f"/{LONG_SET}"):
            metrics |= make_metrics(accuracy, suffix=suffix)
    if held_out:
        metrics |= make_metrics(0.432, "held_out/", "/acc")
    blocks = (
        BlockRound(BlockInstance("encoder/acc", Scope.SHARED), 2, 40, 1_200_000, 1_100_000, 0.25, 0.3),
        BlockRound(BlockInstance("head", Scope.SAME_MODALITIES, LONG_SET), 1, 40, 3_400, 0, 0.0, None),
        BlockRound(BlockInstance("fusion", Scope.GROUP, "red"), 0, 0, 0, 0, 0.0, None),
    )
    return RoundRecord(round_index, 0.1, (0,), (), evaluation, metrics, blocks, {"total": seconds})


def make_console(**options):
    return Console(file=io.StringIO(), **({"width": 80, "no_color": True, "force_terminal": False} | options))


def printed(console):
    return console.file.getvalue()


def assert_narrow(text):
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def draw(view, console):
    """What the live view shows now, without the codes that move the cursor."""
    sheet = make_console()
    sheet.print(view._live.renderable)
    return printed(sheet)


def test_plain_line_by_hand():
    console = make_console()
    with run_view(make_scenario(), console) as show:
        for record in (make_record(0), make_record(1), make_record(2), make_record(3, accuracy=0.612, seconds=0.42)):
            show(record)
    lines = printed(console).splitlines()
    assert lines[0] == "quick, private-head-fusion, 3 clients, 20 rounds"
    # Mean of rounds 1 to 3: (0.5 + 0.5 + 0.42) / 3 s; 17 are left: 8.05 s.
    assert lines[4] == (
        "round  3/20  0.42 s  train loss 0.987  loss 1.234  accuracy 61.2 %  F1 present 63.1 %  F1 all 58.0 %"
        "  up 1.1 MB  down 1.2 MB  left 8.05 s"
    )
    assert len(lines) == 5


def test_plain_line_without_evaluation_and_after_the_last_round():
    console = make_console()
    with run_view(make_scenario(rounds=1), console) as show:
        show(make_record(0))
        show(make_record(1))
    assert printed(console).splitlines()[1:] == [
        "round 0/1  0.5 s  up 1.1 MB  down 1.2 MB",
        "round 1/1  0.5 s  train loss 0.987  up 1.1 MB  down 1.2 MB",
    ]


def test_live_view_shows_progress_scores_and_blocks():
    console = make_console()
    with LiveView(make_scenario(), console) as view:
        view.update(make_record(0, accuracy=0.25))
        view.update(make_record(1, accuracy=0.612, seconds=3.0))
        text = draw(view, console)
    assert_narrow(text)
    words = [" ".join(line.split()) for line in text.splitlines()]
    assert words[0] == "quick, private-head-fusion, 3 clients, 20 rounds"
    assert words[1].startswith("round 1/20 ")
    assert words[1].endswith("3 s (mean 3 s) left 57 s")
    assert "acc 2 61.2 % 63.1 % 58.0 % 1.234 ▁█" in words
    assert any(line.startswith("accelero") and "… 1 61.2 %" in line for line in words)
    assert "all clients 3 61.2 % 63.1 % 58.0 % 1.234 ▁█" in words
    assert "encoder/acc shared 2 1.2 MB 1.1 MB 0.25" in words
    assert any(line.startswith("head[acc") and line.endswith("same-modalities 1 3.4 kB 0 B 0") for line in words)
    assert "fusion[red] group 0 0 B 0 B 0" in words


def test_live_view_shows_the_first_rounds_at_once():
    console = make_console(force_terminal=True)
    with LiveView(make_scenario(), console) as view:
        for round_index in (0, 1):
            view.update(make_record(round_index, accuracy=0.25))
            assert f"round {round_index}/20" in printed(console)


def test_live_view_stays_narrow_with_a_long_history():
    console = make_console()
    with LiveView(make_scenario(rounds=5000), console) as view:
        for round_index in range(40):
            view.update(make_record(round_index, accuracy=round_index / 40, seconds=500.0))
        text = draw(view, console)
    assert_narrow(text)
    assert text.count("97.5 %") == 3
    assert "█" in text


def test_live_view_keeps_the_scores_of_the_last_evaluation():
    console = make_console()
    with LiveView(make_scenario(), console) as view:
        assert "accuracy" not in draw(view, console)
        view.update(make_record(0, accuracy=0.25))
        view.update(make_record(1))
        text = draw(view, console)
    assert "25.0 %" in text
    assert "round 1/20" in text


def test_live_view_shows_the_held_out_scores():
    console = make_console()
    with LiveView(make_scenario(), console) as view:
        view.update(make_record(0, accuracy=0.25, held_out=True))
        assert "held-out acc" in draw(view, console)


def test_live_view_on_an_ascii_terminal_without_colour():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=stream, width=120, force_terminal=True, no_color=True, legacy_windows=False)
    with LiveView(make_scenario(), console) as view:
        view.update(make_record(0, accuracy=0.25))
        view.update(make_record(1, accuracy=0.5))
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert "_@" in text
    assert "\x1b[3" not in text


@pytest.mark.parametrize("error", [None, RuntimeError("client 3 failed")])
def test_live_view_stays_on_the_screen_only_when_the_run_fails(error):
    console = make_console(force_terminal=True, height=50)
    view = LiveView(make_scenario(), console)
    try:
        with view:
            view.update(make_record(0, accuracy=0.25))
            if error is not None:
                raise error
    except RuntimeError:
        pass
    assert view._live.transient is (error is None)
    erase_line = "\x1b[2K"
    after_last_word = printed(console).rpartition("fusion[red]")[2]
    assert (erase_line in after_last_word) is (error is None)


def on_actors(record, *, num_actors=2, replaced=0, failures=()):
    """The record of a round of 10 s on actors; the first one was busy for 5 s, the others for 9 s."""
    actors = [ActorRound(i, 3, 9.0, 180_000_000, 0) for i in range(num_actors)]
    actors[0] = ActorRound(0, 3, 5.0, 200_000_000, replaced)
    return replace(record, seconds={"total": 10.0}, actors=tuple(actors), failures=failures)


LOST = Failure("training", (3, 4, 9), 0, "died: its process ended unexpectedly\nand more", "repeated")


def live_words(view, **options):
    """The words of each line of what a live view would draw now, on a terminal of its own size."""
    sheet = make_console(**options)
    sheet.print(view._live.renderable)
    return [" ".join(line.split()) for line in printed(sheet).splitlines()]


def test_live_view_shows_actors_and_failures():
    with LiveView(make_scenario(), make_console(height=50)) as view:
        view.update(on_actors(make_record(0, accuracy=0.25), replaced=1))
        view.update(on_actors(make_record(1, accuracy=0.5), replaced=1, failures=(LOST,)))
        view.update(on_actors(make_record(2, accuracy=0.5)))
        words = live_words(view, width=120)
    assert words[2] == "1 failure:"
    assert words[3] == (
        "round 1, training, actor 0, client 3 and 2 others: died: its process ended unexpectedly; repeated"
    )
    assert "0 3 replaced 2x 50 % 200.0 MB" in words
    assert "1 3 up 90 % 180.0 MB" in words


def test_live_view_before_anything_is_known_of_the_actors():
    record = replace(make_record(0), seconds={}, actors=(ActorRound(0, 3, 0.0, None, 0),))
    with LiveView(make_scenario(), make_console(height=50)) as view:
        view.update(record)
        assert "0 3 up - -" in live_words(view)


def test_live_view_cuts_long_failures_off_and_counts_those_it_does_not_show():
    with LiveView(make_scenario(), make_console(height=50)) as view:
        view.update(replace(make_record(1), failures=(LOST,) * 5))
        text = draw(view, make_console())
    assert_narrow(text)
    assert "5 failures, the last 3:" in text
    assert text.count("round 1, training, actor 0") == 3


def test_what_does_not_fit_on_the_screen_is_summed_up_from_below():
    def drawn(height):
        console = make_console(height=height)
        with LiveView(make_scenario(), console) as view:
            view.update(on_actors(make_record(0, accuracy=0.25)))
            view.update(on_actors(make_record(1, accuracy=0.5), replaced=1, failures=(LOST, LOST)))
            lines = draw(view, console).splitlines()
        assert_narrow("\n".join(lines))
        assert len(lines) < height
        return [" ".join(line.split()) for line in lines]

    actors = "2 actors, replaced 1x, busy 50 % to 90 %, memory 380.0 MB, at most 200.0 MB each"
    high, middle, low, lowest = drawn(40), drawn(24), drawn(18), drawn(15)
    assert "0 3 replaced 1x 50 % 200.0 MB" in high
    assert actors not in high
    assert actors in middle
    assert "encoder/acc shared 2 1.2 MB 1.1 MB 0.25" in middle
    assert actors in low
    assert "3 blocks: down 1.2 MB, up 1.1 MB" in low
    assert "2 failures:" in low
    assert "2 failures, the last 1:" in lowest


def test_many_actors_are_summed_up_whatever_the_screen():
    with LiveView(make_scenario(), make_console(height=500)) as view:
        view.update(on_actors(make_record(1), num_actors=300))
        words = live_words(view)
    assert words[-1] == "300 actors, busy 50 % to 90 %, memory 54.0 GB, at most 200.0 MB each"


def test_the_start_names_what_is_going_on():
    terminal = make_console(force_terminal=True)
    with LiveView(make_scenario(), terminal) as view:
        view.begin("preparing data", 0, 0)
        assert live_words(view)[1] == "preparing data"
        view.begin("decoding pictures", 1024, 40_000)
        assert live_words(view)[1] == "decoding pictures, 1,024 of 40,000"
    with run_view(make_scenario(), terminal):
        tell("starting Ray")
    assert "starting Ray" in printed(terminal)


def test_a_round_that_takes_long_is_said_and_counted_off():
    now = 100.0
    with LiveView(make_scenario(), make_console(), clock=lambda: now) as view:
        assert live_words(view)[1] == "starting"
        now += 12.0
        assert live_words(view)[1] == "starting, 12 s"
        view.update(make_record(0, seconds=1.0))
        view.update(make_record(1, seconds=10.0))
        assert live_words(view)[1].endswith("10 s (mean 10 s) left 3 min 10 s")
        now += 70.0
        assert live_words(view, width=100)[1].endswith("10 s (mean 10 s) next for 1 min 10 s left 2 min 00 s")
        now += 300.0
        assert live_words(view, width=100)[1].endswith("next for 6 min 10 s left 0 s")
        view.update(make_record(20, seconds=10.0))
        now += 10.0
        assert live_words(view)[1].endswith("10 s (mean 10 s)")


def test_plain_lines_of_failures_follow_their_round():
    console = make_console()
    with run_view(make_scenario(), console) as show:
        show(replace(make_record(1), failures=(LOST, Failure("end", (), None, "full", "dropped"))))
    assert printed(console).splitlines()[2:] == [
        "  round 1, training, actor 0, client 3 and 2 others: died: its process ended unexpectedly; repeated",
        "  round 1, end: full; dropped",
    ]


def test_failure_line_by_hand():
    assert failure_line(2, Failure("set-up", (7,), 4, "died", "repeated")) == (
        "round 2, set-up, actor 4, client 7: died; repeated"
    )
    assert "client 7 and 1 other:" in failure_line(2, Failure("set-up", (7, 8), 4, "died", "repeated"))


def test_a_view_is_chosen_by_the_console():
    plain, terminal = make_console(), make_console(force_terminal=True)
    for console in (plain, terminal):
        with run_view(make_scenario(), console) as show:
            show(make_record(0))
    assert printed(plain).splitlines()[1:] == ["round  0/20  0.5 s  up 1.1 MB  down 1.2 MB"]
    assert "starting" in printed(terminal)
    assert "round 0/20" in printed(terminal)


def test_a_sharing_map_is_written_out():
    console = make_console()
    with run_view(make_scenario(sharing={"encoder/*": "shared", "head": "private"}), console):
        pass
    assert printed(console) == "quick, encoder/* shared + head private, 3 clients, 20 rounds\n"


def test_final_summary():
    records = (
        make_record(0, accuracy=0.25),
        make_record(1, seconds=61.0),
        make_record(2, accuracy=0.612, held_out=True, seconds=59.5),
    )
    console = make_console()
    console.print(final_summary(Run.from_records(records, make_scenario(), PROFILES, {})))
    text = printed(console)
    assert_narrow(text)
    words = [" ".join(line.split()) for line in text.splitlines()]
    assert words[0] == "quick, private-head-fusion, 3 clients, 20 rounds: finished"
    assert "acc 2 61.2 % 63.1 % 58.0 % 1.234" in words
    assert "all clients 3 61.2 % 63.1 % 58.0 % 1.234" in words
    assert "held-out acc 43.2 % 63.1 % 58.0 % 1.234" in words
    assert "encoder/acc shared 3.6 MB 3.3 MB" in words
    assert any(line.startswith("head[acc") and line.endswith("same-modalities 10.2 kB 0 B") for line in words)
    assert "all blocks 3.6 MB 3.3 MB" in words
    assert words[-1] == "2 min 01 s for 3 rounds, round 0 included"


def test_final_summary_ends_with_what_the_run_noted():
    console = make_console()
    console.print(final_summary(Run.from_records((), make_scenario(), PROFILES, {"notes": ["head: look twice"]})))
    assert printed(console).rstrip().endswith("note: head: look twice")


def test_final_summary_of_a_run_without_rounds():
    console = make_console()
    console.print(final_summary(Run.from_records((), make_scenario(), PROFILES, {"status": "failed"})))
    assert "20 rounds: failed" in printed(console)
    assert "0 s for 0 rounds" in printed(console)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (999_949, "999.9 kB"),
        (999_950, "1.0 MB"), (5e9, "5.0 GB"), (7.25e13, "72.5 TB"),
    ],
)  # fmt: skip
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.004, "0 s"), (0.42, "0.42 s"), (7, "7 s"), (9.949, "9.95 s"), (9.96, "10 s"),
        (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (7_380, "2 h 03 min"),
    ],
)  # fmt: skip
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_format_score():
    accuracy, rmse = default_score("classification"), default_score("regression")
    assert format_score(accuracy, 0.6125) == "61.3 %"
    assert format_score(accuracy, 1) == "100.0 %"
    assert format_score(accuracy, None) == "-"
    assert format_score(rmse, 1234.56) == "1235"
    assert format_score(rmse, 0.0125) == "0.0125"


def test_the_scores_of_a_task_are_the_columns_and_a_missing_one_is_a_dash():
    console = make_console()
    metrics = {"loss": 0.5, "loss/acc": 0.5, "macro_f1_present": 0.25, "macro_f1_present/acc": 0.25}
    metrics |= {"macro_f1_all": 0.125, "macro_f1_all/acc": 0.125, "macro_auroc": 0.75}
    console.print(score_table(metrics, {"acc": 2}, "multilabel"))
    words = [line.split() for line in printed(console).strip().splitlines()]
    assert words[0] == ["modalities", "clients", "AUROC", "F1", "present", "F1", "all", "loss"]
    assert words[2] == ["acc", "2", "-", "25.0", "%", "12.5", "%", "0.500"]
    assert words[4] == ["all", "clients", "2", "75.0", "%", "25.0", "%", "12.5", "%", "0.500"]


def test_views_of_a_regression():
    scenario = make_scenario().override({"task": "regression"})
    scores = {"loss": 4.0, "loss/acc": 4.0, "rmse": 2.0, "rmse/acc": 2.0, "mae": 1.5, "mae/acc": 1.5}
    record = replace(make_record(1, accuracy=0.5), metrics=scores)
    console = make_console()
    with run_view(scenario, console) as show:
        show(record)
    assert "  loss 4.000  RMSE 2  MAE 1.5  R2 -  up" in printed(console).splitlines()[1]
    console = make_console()
    with LiveView(scenario, console) as view:
        view.update(replace(record, metrics=scores | {"rmse": 3.0}))
        view.update(record)
        text = draw(view, console)
    assert "all clients 3 2 1.5 - 4.000 █▁" in [" ".join(line.split()) for line in text.splitlines()]


def test_sparkline_by_hand():
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0.0, 0.5, 1.0], "_-=") == "_-="
    long = sparkline(list(range(100)), "0123456789")
    assert len(long) == CURVE_WIDTH
    assert (long[0], long[-1]) == ("0", "9")
    assert list(long) == sorted(long)
