"""What names a Jobs API, and what goes there."""

import pytest

from blossom_ray.errors import InputError, RunError
from blossom_ray.studies.jobs.jobs import Jobs, check_with_ray, parse_address


@pytest.mark.parametrize("address", ["http://head:8265", "https://head", "http://[::1]:8265/", "http://head:1/ray"])
def test_an_address_is_that_of_the_dashboard(address: str) -> None:
    assert parse_address(address) == address.rstrip("/")


@pytest.mark.parametrize(
    "address",
    [
        "", "head:8265", "http://", "http:///x", "HTTP://head:1", "ftp://head", "http://a..b:1", "http://head:65536",
        "http://head:0", "http://head:x", "http://[::1", "http://::1:1", "http://[zz]:1", "http://a b:1", "http://h/?a",
        "http://h/#a", "http://h\x1b:1", "http://h\n:1", "http://" + "a" * 64 + ":1", "http://" + "a" * 100_000,
    ],
)  # fmt: skip
def test_another_address_is_refused_before_anybody_is_asked(address: str) -> None:
    with pytest.raises(InputError, match=r"expected http://HOST:8265") as caught:
        Jobs(address)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(InputError, match=r"^--address holds a name or password of a user") as caught:
        Jobs("http://user:hush@127.0.0.1:1")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("headers", ["{", "[]", '{"a": 1}', "nonsense"])
def test_headers_are_texts(headers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_HEADERS", headers)
    with pytest.raises(InputError, match=r"^RAY_JOB_HEADERS is no JSON object of texts; expected HTTP headers"):
        Jobs("http://127.0.0.1:1")


@pytest.mark.parametrize("token", ["a\nb", "тайна", " "])
def test_a_token_that_cannot_be_sent(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(InputError, match=r"^RAY_AUTH_TOKEN is no token"):
        Jobs("http://127.0.0.1:1")


def test_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(RunError, match=r"^no Jobs API of a Ray cluster answers at http://127\.0\.0\.1:1: "):
        Jobs("http://127.0.0.1:1")


@pytest.mark.parametrize("environment", [{"env_vars": {"A": 1}}, {"pip": 3}, {"env_vars": ["A"]}, {"pip": "/dev/zero"}])
def test_a_runtime_environment_that_ray_does_not_take(environment: dict[str, object]) -> None:
    check_with_ray({"env_vars": {"A": "1"}})
    with pytest.raises(InputError, match=r"^--runtime-env: .*; expected a runtime environment of Ray$"):
        check_with_ray(environment)
