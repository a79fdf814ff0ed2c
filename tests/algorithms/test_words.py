"""What the words of the seam mean, by numbers that one can do by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from plain_loops import Simulated, scenario_of, simulated

from blossom_ray.algorithms.seam import Client, Extra, Layout, Sent, ServerView, Tree
from blossom_ray.core.blocks import Block
from blossom_ray.core.seeding import Purpose, generator

ONE = ("", "")
STARTS = ("initial", "received", "seeded")


class Own:
    """Keeps what the server saw, for the test to look at; every test's algorithm is a class of its own."""

    seen: ClassVar[list[ServerView]]

    def server(self, s: ServerView) -> dict[str, Tree]:
        self.seen.append(s)
        return {}


def run(algorithm: type[Own], **changes: Any) -> Simulated:
    algorithm.seen = []
    return simulated(scenario_of({"kind": "custom", "factory": algorithm}, **changes))


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_mean_and_a_sum_of_what_is_sent(weighting: str, engine: str) -> None:
    class Ids(Own):
        def extras(self, layout: Layout) -> dict[str, Extra]:
            return {"mean": Extra(shape=()), "sum": Extra(shape=()), "some": Extra(shape=())}

        def finish(self, k: Client) -> dict[str, Any]:
            return {
                "mean": Sent(k.client * 1.0),
                "sum": Sent(k.client * 1.0, 1),
                "some": Sent(k.client * 1.0, (k.client < 4) * 2.0),
            }

    found = run(Ids, rounds=1, server__weighting=weighting, training__engine=engine)
    (s,) = Ids.seen
    records = found.records[1].training
    ids = np.array([record.client for record in records])
    # Two epochs over the shard, and the weight is the samples seen.
    n = found.preparation.shards.num_train[ids] * 2.0 if weighting == "samples" else np.ones(5)
    assert s.clients.tolist() == ids.tolist()
    assert s.total["mean"][ONE] == pytest.approx((n * ids).sum())
    assert s.weight["mean"][ONE] == n.sum()
    assert found.value("", "mean") == pytest.approx((n * ids).sum() / n.sum())
    assert (s.total["sum"][ONE], s.weight["sum"][ONE]) == (ids.sum(), 5)
    assert found.value("", "sum") == pytest.approx(ids.mean())
    few = ids[ids < 4]
    assert (s.total["some"][ONE], s.weight["some"][ONE]) == (2 * few.sum(), 2 * len(few))
    assert s.contributors["some"][ONE] == len(few) < 5
    # What has a weight of 0 is not sent.
    rows = {str(block.instance): block.bytes_up for block in found.records[1].blocks}
    assert (rows["mean"], rows["some"]) == (4 * 5, 4 * len(few))


def test_holders_are_all_who_have_it_drawn_or_not() -> None:
    class Nothing(Own):
        def extras(self, layout: Layout) -> dict[str, Extra]:
            # Of those with two modalities alone.
            return {"both": Extra(shape=(), scope="same-modalities")} if len(layout.modalities) == 2 else {}

        def finish(self, k: Client) -> dict[str, Any]:
            return {"both": Sent(k.client * 1.0)} if "both" in k.extras else {}

    found = run(Nothing, rounds=2)
    num_train = found.preparation.shards.num_train
    for s in Nothing.seen:
        for (block, _), number in s.num_holders["model"].items():
            owners = {"encoder/acc": range(6), "encoder/gyro": [0, 1, 2, 6, 7, 8]}.get(block, range(9))
            assert number == len(owners)
            assert s.holders["model"][block, ""] == 2 * num_train[[*owners]].sum()
        if "both" in s.total:
            assert s.num_holders["both"]["", "acc+gyro"] == 3
            assert s.holders["both"]["", "acc+gyro"] == 2 * num_train[:3].sum()
    assert any("both" in s.total for s in Nothing.seen)


def test_what_is_the_server_s_own_and_what_it_has_for_each_client() -> None:
    class Counting(Own):
        def extras(self, layout: Layout) -> dict[str, Extra]:
            return {
                "rounds": Extra(shape=(), scope="server"),
                "by block": Extra(layout.averaged, shape=(2,), scope="server", initial=1.0),
                "times": Extra(shape=(), scope="client", initial=3.0),
            }

        def finish(self, k: Client) -> dict[str, Any]:
            assert "rounds" not in k.extras
            return {"times": Sent(k["times"] + 1, 1)}

        def server(self, s: ServerView) -> dict[str, Tree]:
            super().server(s)
            return {"rounds": s.current["rounds"] + 1, "by block": s.current["by block"] * s.contributors["model"]}

    found = run(Counting, rounds=3)
    assert found.value("", "rounds") == 3
    cohorts = [[record.client for record in each.training] for each in found.records[1:]]
    for client in range(9):
        assert found.value("", "times", str(client)) == 3 + sum(client in cohort for cohort in cohorts)
    # The fusion is in every model: five clients in each of three rounds.
    assert found.value("fusion", "by block").tolist() == [125.0, 125.0]
    down = {i.instance: i.bytes_down for i in found.records[2].blocks}
    assert sum(size for i, size in down.items() if i.copy == "rounds" or i.copy == "by block") == 0
    # Each gets its own number: for the first time, or since it has changed when it trained; one row for all of them.
    (times,) = (block for block in found.records[2].blocks if block.instance.copy == "times")
    assert (times.instance.key, times.contributors, times.bytes_down, times.bytes_up) == ("", 5, 20, 20)
    assert times.update_norm == pytest.approx(5**0.5)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_what_is_drawn(engine: str) -> None:
    class Noisy(Own):
        rows = ("even", "bell")

        def extras(self, layout: Layout) -> dict[str, Extra]:
            return {
                "u": Extra(shape=(400,), scope="drawn", initial="uniform"),
                "g": Extra(shape=(400,), scope="drawn", initial="normal"),
                "even": Extra(shape=(400,), scope="server"),
                "bell": Extra(shape=(400,), scope="server"),
            }

        def finish(self, k: Client) -> dict[str, Any]:
            return {"even": Sent(k["u"], 1), "bell": Sent(k["g"], 1)}

    run(Noisy, rounds=2, training__engine=engine)
    even, bell = (np.concatenate([s.rows[name][ONE] for s in Noisy.seen]) for name in ("even", "bell"))
    assert even.shape == (10, 400)
    assert len(np.unique(even.round(5), axis=0)) == 10
    assert even.min() >= 0
    assert even.max() < 1
    assert (abs(even.mean() - 0.5) < 0.02, abs(bell.mean()) < 0.06, abs(bell.std() - 1) < 0.05) == (True,) * 3
    once = Noisy.seen
    run(Noisy, rounds=2, training__engine=engine)
    assert all(np.array_equal(s.rows["even"][ONE], t.rows["even"][ONE]) for s, t in zip(once, Noisy.seen, strict=True))


def test_first_values() -> None:
    class First(Own):
        rows = ("sent",)

        def extras(self, layout: Layout) -> dict[str, Extra]:
            own = {f"own {name}": Extra(("head",), scope="private", initial=name) for name in STARTS}
            known = {name: Extra(("head",), scope="server", initial=name) for name in ("initial", "seeded")}
            return own | known | {"sent": Extra(("head",), shape=(4, layout.sizes[Block("head")]), scope="server")}

        def finish(self, k: Client) -> dict[str, Any]:
            values = [k[f"own {name}"]["head"] for name in STARTS] + [k.received["head"]]
            return {"sent": Sent(Tree({"head": torch.stack(values)}), 1)}

    found = run(First, rounds=3)
    first = found.value("head", "initial")
    seeded = found.value("head", "seeded")
    own_seeded = First.seen[0].rows["sent"]["head", ""][0, 2]
    # Each extra is drawn for itself.
    assert len({values.tobytes() for values in (first, seeded, own_seeded)}) == 3
    assert min(values.std() for values in (seeded, own_seeded)) > 0.5 * first.std()
    before = first
    for s in First.seen:
        rows = s.rows["sent"]["head", ""]
        assert (rows[:, 0] == first).all()
        assert (rows[:, 2] == own_seeded).all()
        # What it is now, as long as the client keeps nothing of its own.
        assert (rows[:, 1] == rows[:, 3]).all()
        assert (rows[:, 3] == before).all()
        before = (s.total["model"]["head", ""] / s.weight["model"]["head", ""]).astype(np.float32)
    assert not any(name.startswith("own") for kept in found.kept.values() for name in kept)


def test_selection_sees_the_server_and_draws() -> None:
    class Oldest(Own):
        def extras(self, layout: Layout) -> dict[str, Extra]:
            return {"last": Extra(shape=(layout.num_clients,), scope="server")}

        def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
            """Those who waited longest; the numbers that it draws are the round's own."""
            expected = generator(0, Purpose.SELECTION, s.round).random(3)
            assert np.array_equal(draw.random(3), expected)
            assert s.clients.tolist() == []
            return candidates[np.argsort(s.all["last"][ONE], kind="stable")][:size]

        def server(self, s: ServerView) -> dict[str, Tree]:
            last = s.all["last"][ONE].copy()
            last[s.clients] = s.round
            return {"last": Tree({ONE: last})}

    found = run(Oldest, rounds=3)
    cohorts = [[record.client for record in each.training] for each in found.records[1:]]
    assert cohorts == [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [0, 1, 2, 3, 4]]


def test_only_admitted_contributions_count_and_cost() -> None:
    class Few(Own):
        rows = ("model",)

        def admit(self, s: ServerView) -> Any:
            return {"model": {key: members[:1] for key, members in s.members["model"].items() if key[0] == "head"}}

    found = run(Few, rounds=1, sharing="full-model")
    (s,), profiles = Few.seen, found.preparation.population.profiles
    cohort = [record.client for record in found.records[1].training]
    assert s.members["model"]["head", ""].tolist() == cohort[:1]
    assert s.members["model"]["fusion", ""].tolist() == cohort
    assert s.contributors["model"]["head", ""] == 1
    assert (found.value("head") == s.rows["model"]["head", ""][0]).all()
    size = found.value("head").nbytes
    blocks = {str(block.instance): block for block in found.records[1].blocks}
    assert (blocks["head"].contributors, blocks["head"].bytes_up) == (1, size)
    # The others, of which some have the same modalities, have not sent it.
    spent = {record.client: record.bytes_up for record in found.records[1].training}
    assert sum(spent.values()) == sum(block.bytes_up for block in blocks.values())
    held = {c: sum(found.value(b).nbytes for b in found.preparation.plan.held_blocks(profiles[c])) for c in cohort}
    assert spent == {client: held[client] - (client != cohort[0]) * size for client in cohort}


def test_rows_add_up_to_the_total() -> None:
    class Rows(Own):
        rows = ("model",)

    run(Rows, rounds=2, execution__chunk_size=2)
    for s in Rows.seen:
        for key, rows in s.rows["model"].items():
            members = s.members["model"][key].tolist()
            assert members == sorted(members)
            expected = (s.row_weights["model"][key][:, None] * rows.astype(np.float64)).sum(0)
            np.testing.assert_allclose(s.total["model"][key], expected, rtol=1e-12)
            assert s.weight["model"][key] == s.row_weights["model"][key].sum()
