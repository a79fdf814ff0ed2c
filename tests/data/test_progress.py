from __future__ import annotations

from blossom_ray.core.progress import listening, tracked


def test_a_listener_hears_of_each_step_and_of_the_end() -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *step: heard.append(step)):
        assert list(tracked("ab", "decoding")) == ["a", "b"]
    assert heard == [("decoding", 0, 2), ("decoding", 1, 2), ("decoding", 2, 2)]


def test_without_a_listener_nothing_is_told() -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *step: heard.append(step)):
        pass
    assert list(tracked([1, 2], "decoding")) == [1, 2]
    assert heard == []
