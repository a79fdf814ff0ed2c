"""An encoder of tokens: what padding is, by hand and beside loops; which numbers are refused, before a round begins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch.func import functional_call

from blossom_ray import Run, Scenario, from_arrays, simulate
from blossom_ray.core.blocks import Block
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.models.build import build_block
from blossom_ray.models.encoder_options import EmbeddingEncoder
from blossom_ray.models.encoders import token_problem
from blossom_ray.models.options import Model
from blossom_ray.reading.inspection import Inspector
from blossom_ray.scenario.checks import cross_problems

POOLINGS = ("mean", "max", "gru")


def encoder(**options: Any) -> EmbeddingEncoder:
    return EmbeddingEncoder(kind="embedding", **{"vocabulary": 6, "width": 4, **options})


def built(shape: tuple[int, ...] = (5,), **options: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    return encoder(**options).build(shape).eval()


def looped(module: Any, samples: torch.Tensor, pooling: str) -> torch.Tensor:
    """What an encoder gives, sample by sample and token by token."""
    table, found = module.embedding.weight, []
    for sample in samples.long().tolist():
        vectors = [table[token] for token in sample if token]
        if not vectors:
            pooled = torch.zeros(table.shape[1])
        elif pooling == "max":
            pooled = torch.stack(vectors).amax(dim=0)
        else:
            if pooling == "gru":
                cell = torch.nn.GRUCell(table.shape[1], table.shape[1])
                parameters = {name.removesuffix("_l0"): values for name, values in module.gru.named_parameters()}
                states = [torch.zeros(1, table.shape[1])]
                for vector in vectors:
                    states.append(functional_call(cell, parameters, (vector[None], states[-1])))
                vectors = [state[0] for state in states[1:]]
            pooled = sum(vectors) / len(vectors)
        found.append(module.projection(pooled))
    return torch.stack(found)


@pytest.mark.parametrize("dim", [None, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_takes_no_part_wherever_it_stands(pooling: str, dim: int | None) -> None:
    module = built(pooling=pooling, dim=dim)
    samples = torch.tensor([[2.0, 5, 2, 1, 3], [2, 5, 0, 0, 0], [0, 0, 0, 2, 5], [0, 2, 0, 5, 0], [0, 0, 0, 0, 0]])
    found = module(samples)
    assert found.shape == (5, encoder(dim=dim).embedding_dim((5,)))
    torch.testing.assert_close(found, looped(module, samples, pooling))
    # Padded less, on the other side or in between, it is the same sample.
    torch.testing.assert_close(found[[2, 3]], found[[1, 1]])
    torch.testing.assert_close(module(samples[1:2, :2]), found[1:2])
    # Alone or among longer ones, and of padding alone.
    torch.testing.assert_close(module(samples[1:2]), found[1:2])
    nothing = module.projection(torch.zeros(1, 4)) if dim else torch.zeros(1, 4)
    torch.testing.assert_close(module(samples[4:]), nothing)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_has_no_gradient(pooling: str) -> None:
    module = built(pooling=pooling)
    (module(torch.tensor([[1.0, 0, 3], [0, 0, 0]])) * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    has_gradient = module.embedding.weight.grad.abs().sum(dim=1) > 0  # type: ignore[union-attr, operator]
    assert has_gradient.tolist() == [False, True, False, True, False, False]


def test_the_mean_of_a_bag_by_hand() -> None:
    module = built(width=2)
    with torch.no_grad():
        module.embedding.weight.copy_(torch.tensor([[9.0, 9], [1, -2], [3, 4], [0, 0], [0, 0], [5, 1]]))  # type: ignore[operator, union-attr]
    assert module(torch.tensor([[1.0, 2, 0], [5, 5, 1]])).tolist() == [[2.0, 1.0], [pytest.approx(11 / 3), 0.0]]
    assert built(width=2, pooling="max").embedding.mode == "max"  # type: ignore[union-attr]


def test_large_numbers_of_tokens_are_exact() -> None:
    """The largest token that float32 knows apart from its neighbours; its table would take too much memory here."""
    last = np.float32(2**24 - 1)
    assert token_problem([np.array([[last, last - 1]])], 2**24) is None
    assert last != last - 1
    with pytest.raises(ValueError, match="less than or equal to 16777216"):
        encoder(vocabulary=2**24 + 1)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.5, "has 0.5 in row 3; expected whole numbers of tokens, 0 for padding"),
        (-1, "has -1 in row 3; expected whole numbers of tokens, 0 for padding"),
        (7, "has the token 7, while vocabulary is 6; expected at least 8"),
    ],
)
@pytest.mark.parametrize("is_held_out", [False, True], ids=["shared", "held-out"])
def test_numbers_that_are_no_tokens_end_the_run_before_it_begins(
    value: float, found: str, *, is_held_out: bool
) -> None:
    words = np.arange(60).reshape(20, 3) % 6
    wrong = words.astype(np.float64)
    wrong[3, 1] = value
    shared, other = (words, wrong) if is_held_out else (wrong, words)
    labels = [0, 1] * 10
    data = from_arrays({"caption": shared}, labels, held_out=({"caption": other}, labels))
    with pytest.raises(InputError, match="^" + re.escape(f"model.encoders.caption: caption {found}")):
        simulate(scenario(), data=data)


def scenario(**changes: Any) -> Scenario:
    return Scenario.model_validate(
        {
            "rounds": 1,
            "data": {"dataset": "custom"},
            "clients": [{"count": 2, "modalities": ["caption"]}],
            "model": {"encoders": {"caption": {"kind": "embedding", "vocabulary": 6, "width": 4}}},
            "execution": {"runtime": "local"},
            **changes,
        }
    )


def test_a_vocabulary_that_nobody_knows_is_said_with_the_least_that_it_can_be() -> None:
    data = from_arrays({"caption": np.arange(60).reshape(20, 3) % 6}, [0, 1] * 10)
    nobody = scenario(model={"encoders": {"caption": {"kind": "embedding"}}})
    with pytest.raises(InputError, match="caption has the token 5, while vocabulary is null; expected at least 6"):
        simulate(nobody, data=data)


def test_no_transform_of_tokens() -> None:
    sections = dict(scenario(training={"transform": {"caption": {"kind": "noise"}}}))
    (found,) = cross_problems(sections)
    assert found == (
        "training.transform.caption",
        "is given, while model.encoders.caption takes numbers of tokens, which no transform knows",
        "none for this modality",
    )


def test_a_pretrained_table_from_a_file(tmp_path: Any) -> None:
    table = torch.arange(24.0).view(6, 4)
    save_file({"embedding.weight": table}, tmp_path / "words.safetensors")
    section = {"kind": "embedding", "vocabulary": 6, "width": 4}
    weights = {"path": str(tmp_path / "words.safetensors")}
    model = Model.model_validate({"encoders": {"caption": section | {"weights": weights}}})
    block = build_block(Block("encoder", "caption"), model, {"caption": (3,)}, 2, seed=0)
    torch.testing.assert_close(block(torch.tensor([[1.0, 5, 0]])), table[[1, 5]].mean(dim=0, keepdim=True))
    narrow = Model.model_validate({"encoders": {"caption": section | {"width": 3, "weights": weights}}})
    with pytest.raises(InputError, match=r"embedding\.weight: \[6, 4\] in the file, \[6, 3\] in the block"):
        build_block(Block("encoder", "caption"), narrow, {"caption": (3,)}, 2, seed=0)


def table_of_texts(folder: Path, buckets: int, rows: int = 12) -> dict[str, Any]:
    """The `data` section of a table of sentences, as numbers of hashed words."""
    path = folder / f"{buckets}.parquet"
    texts = [f"word{row} of {row % 2}" if row else "" for row in range(rows)]
    pq.write_table(pa.table({"caption": texts, "label": ["a", "b"] * (rows // 2)}), path)
    caption = {"kind": "text", "max_length": 4, "buckets": buckets}
    return {"dataset": "table", "path": str(path), "modalities": {"caption": caption}}


def test_the_vocabulary_is_that_of_the_text_where_it_is_left_to_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    left = {"model": {"encoders": {"caption": {"kind": "embedding", "width": 4, "pooling": "gru"}}}}
    given = scenario(data=table_of_texts(tmp_path, 50), **left)
    run = simulate(given, out=tmp_path / "runs")
    assert given.model.encoders["caption"].vocabulary is None  # type: ignore[union-attr]
    for known in (run.scenario, Run.open(run.path).scenario):
        assert known.model.encoders["caption"].vocabulary == 51  # type: ignore[union-attr]
    assert run.model(0).weights()["encoder/caption/embedding.weight"].shape == (51, 4)
    # One that the scenario says stays, and is looked at.
    few = given.override({"model.encoders.caption.vocabulary": 9})
    with pytest.raises(InputError, match=r"model\.encoders\.caption: caption has the token \d+, while vocabulary is 9"):
        simulate(few)


def test_one_vocabulary_for_data_sets_with_different_ones_is_to_be_said(tmp_path: Path) -> None:
    sections = {f"x{buckets}": table_of_texts(tmp_path, buckets) for buckets in (50, 60)}
    two = scenario(
        data=None,
        datasets=sections,
        tasks={f"of_{name}": {"data": name} for name in sections},
        clients=[{"count": 2, "task": f"of_{name}", "modalities": ["caption"]} for name in sections],
        model={"encoders": {"caption": {"kind": "embedding"}}},
        sharing={"encoder/*": "shared", "fusion": "same-task", "head": "same-task"},
    )
    expected = "model.encoders.caption.vocabulary is null, while data sets have 51, 61 numbers of tokens; expected one"
    with pytest.raises(ScenarioError, match=re.escape(expected)):
        Inspector().check(two)
