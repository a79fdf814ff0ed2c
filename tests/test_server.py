import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blossom_ray.algorithms.server_optimizers import FedAdam, FedAvg
from blossom_ray.clients.plan import SentBlock
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.core.sums import Total
from blossom_ray.server import Server, ServerBlock, server_step

HEAD = BlockInstance("head", Scope.SHARED)
FUSION = BlockInstance("fusion", Scope.SHARED)


def server(section: FedAvg | FedAdam, *values: float, num_parameters: int | None = None) -> Server:
    vector = np.array(values, dtype=np.float32)
    size = len(values) if num_parameters is None else num_parameters
    block = ServerBlock(SentBlock(0, vector), size, section.init(size))
    return Server({FUSION: block, HEAD: block})


def total(*values: float) -> Total:
    return np.array(values)


def test_fedavg_takes_the_average_and_counts_the_version() -> None:
    section = FedAvg(kind="fedavg")
    before = server(section, 0.0, 0.0)
    after, norms = server_step(before, {HEAD: total(3.0, 4.0)}, section)
    assert after.blocks[HEAD].sent.values.tolist() == [3.0, 4.0]
    assert after.blocks[HEAD].sent.version == 1
    assert norms == {HEAD: 5.0}
    assert before.blocks[HEAD].sent.values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("section", [FedAvg(kind="fedavg"), FedAdam(kind="fedadam")])
def test_a_block_without_contributors_keeps_value_version_and_state(section: FedAvg | FedAdam) -> None:
    before = server(section, 1.0, 2.0)
    after, norms = server_step(before, {HEAD: total(3.0, 4.0)}, section)
    assert after.blocks[FUSION] is before.blocks[FUSION]
    assert FUSION not in norms


def test_normalisation_statistics_take_the_average_whatever_the_optimizer() -> None:
    section = FedAdam(kind="fedadam", lr=1.0)
    # One parameter, then a running variance: an adaptive step would send it from 0.1 to about -10.
    before = server(section, 0.0, 0.1, num_parameters=1)
    after, norms = server_step(before, {HEAD: total(0.5, 0.05)}, section)
    parameter, variance = after.blocks[HEAD].sent.values
    assert variance == np.float32(0.05)
    # FedAdam by hand: m = 0.1 * 0.5, v = 0.99e-6 + 0.01 * 0.25, step = m / (sqrt(v) + 0.001)
    assert parameter == pytest.approx(0.05 / (np.sqrt(0.99e-6 + 0.0025) + 1e-3), rel=1e-6)
    assert norms[HEAD] == pytest.approx(parameter)


def test_the_digest_tells_values_apart() -> None:
    section = FedAvg(kind="fedavg")
    assert server(section, 1.0).digest() == server(section, 1.0).digest()
    assert server(section, 1.0).digest() != server(section, 2.0).digest()


def test_the_norm_of_a_step_does_not_depend_on_the_number_of_threads() -> None:
    code = """
import numpy as np
from test_server import FedAvg, HEAD, server, server_step, total
section = FedAvg(kind="fedavg")
step = np.random.default_rng(0).standard_normal(400_000)
print(repr(server_step(server(section, *np.zeros(step.size)), {HEAD: total(*step)}, section)[1][HEAD]))
"""
    printed = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert printed[0] == printed[1] != ""
