from __future__ import annotations

import numpy as np
import pytest

from blossom_ray.data.sets.base import check_content
from blossom_ray.errors import DataError


def test_smaller_cuts_and_the_official_content_pass() -> None:
    for labels in ([0, 0, 1], [1, 0], [0, 1, 1, 1]):
        lacking = check_content("set", "rows", np.array(labels), (2, 1), ("no", "yes"))
        assert [entry.count for entry in lacking] == ([1] if len(labels) == 2 else [])


def test_as_many_rows_and_other_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"set has 1 rows of class no; expected 2, as in the official files"):
        check_content("set", "rows", np.array([0, 1, 1]), (2, 1), ("no", "yes"))
