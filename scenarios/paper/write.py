"""Writes the paper's grid beside this file: data set x {iid, Dirichlet 0.5} x {0-0-10, 3-3-4, 5-5-0}.

    python scenarios/paper/write.py

Each file is the scenario of its data set in the folder above with another partition and other clients, so a change of
a model or an optimizer is made once. Schemes, fusions and seeds are what a sweep varies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent

BASES = {
    "av-mnist": "av-mnist.yaml",
    "iemocap": "iemocap.yaml",
    "ku-har": "ku-har.yaml",
    "meld": "meld.yaml",
    "ptb-xl": "ptb-xl.yaml",
    "uci-har": "uci-har-exclusive.yaml",
}
"""The scenario that each data set's files are made of, from the folder above."""

PARTITIONS = {"iid": "{kind: iid}", "dirichlet": "{kind: dirichlet, alpha: 0.5}"}

CASES = {"0-0-10": (0, 0, 10), "3-3-4": (3, 3, 4), "5-5-0": (5, 5, 0)}
"""Clients that own only the first modality, only the second one, both; modalities in the order of the alphabet."""


def files() -> Iterator[tuple[Path, str]]:
    """Each file of the grid with its text."""
    for dataset, base in BASES.items():
        for partition, section in PARTITIONS.items():
            for case, counts in CASES.items():
                name = f"{dataset}_{partition}_{case}"
                yield HERE / f"{name}.yaml", scenario(HERE.parent / base, name, section, counts)


def scenario(base: Path, name: str, partition: str, counts: tuple[int, int, int]) -> str:
    """The text of one file.

    Args:
        base: The scenario that it is made of.
        name: Its name.
        partition: The section `data.partition`.
        counts: Clients with the first modality, the second one, both.
    """
    text = base.read_text(encoding="utf-8")
    first, second = re.findall(r"count: 5, modalities: \[(\w+)\]", text)
    owned = (first, second, f"{first}, {second}")
    groups = [f"  - {{count: {n}, modalities: [{names}]}}\n" for n, names in zip(counts, owned, strict=True) if n]
    tree = text[text.index("\nname: ") + 1 :]
    tree = re.sub(r"^name: .*$", f"name: {name}", tree, flags=re.MULTILINE)
    tree = re.sub(r"^seed: .*$", "seed: 0", tree, flags=re.MULTILINE)
    tree = re.sub(r"^  partition: .*$", f"  partition: {partition}", tree, flags=re.MULTILINE)
    tree = re.sub(r"^clients:\n(  - .*\n)+", f"clients:\n{''.join(groups)}", tree, flags=re.MULTILINE)
    tree = re.sub(r"^execution:\n( .*\n)+", "", tree, flags=re.MULTILINE)
    return f"""\
# A cell of the paper's grid, written by write.py from ../{base.name}: see there where the data come
# from and what the settings mean. Schemes, fusions and seeds are varied by a sweep:
#
#     blossom-ray sweep scenarios/paper/{name}.yaml --set data.path=PATH \\
#         --vary sharing=full-model,private-head,private-head-fusion,local --seeds 5
#
# Every 20 rounds clients are also scored after an epoch of local fine-tuning, which changes nothing else.
{tree}evaluation:
  fine_tune: {{epochs: 1, every: 20}}
"""


def main() -> None:
    """Write all files."""
    for path, text in files():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
