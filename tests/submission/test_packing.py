"""What a job takes along, and what not."""

import importlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import blossom_ray
from blossom_ray import Scenario
from blossom_ray.core.factories import factory_problems
from blossom_ray.core.section import plain_tree
from blossom_ray.errors import InputError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.studies.jobs import packing
from blossom_ray.studies.jobs.packing import SCENARIO, Package, pack

pytestmark = pytest.mark.slow

HEAD = """\
import torch
from own_neighbour import WIDTH


def build(input_dim, num_outputs):
    return torch.nn.Linear(input_dim, num_outputs)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with own code, from which nothing has been imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def packed(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory, **options: object) -> Package:
    chosen = {"with_package": False} | options
    return pack(scenario, tmp_path_factory.mktemp("package"), **chosen)


def names(package: Package) -> set[str]:
    found = {path.relative_to(package.folder).as_posix() for path in package.folder.rglob("*") if path.is_file()}
    assert found == {path.as_posix() for path in package.files}
    return found


def test_a_scenario_alone_is_one_file(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = packed(small_scenario, tmp_path_factory)
    assert names(package) == {SCENARIO}
    text = (package.folder / SCENARIO).read_text(encoding="utf-8")
    assert text == scenario_yaml(small_scenario)
    assert package.num_bytes == len(text.encode())


def test_own_code_travels_with_what_it_imports(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "own_neighbour.py").write_text("WIDTH = 3\n", encoding="utf-8")
    (here / "own_stranger.py").write_text("raise SystemExit\n", encoding="utf-8")
    (here / "own_package").mkdir()
    (here / "own_package" / "__init__.py").write_text("", encoding="utf-8")
    (here / "own_package" / "heads.py").write_text(HEAD, encoding="utf-8")
    (here / "own_package" / "lazy.py").write_text("", encoding="utf-8")
    importlib.invalidate_caches()
    importlib.import_module("own_package.heads")
    scenario = small_scenario.override({"model.head": {"kind": "custom", "factory": "own_package.heads:build"}})
    package = packed(scenario, tmp_path_factory)
    assert names(package) == {
        SCENARIO, "own_neighbour.py", "own_package/__init__.py", "own_package/heads.py", "own_package/lazy.py",
    }  # fmt: skip
    assert package.files[Path("own_neighbour.py")] == "own code"


def test_data_keep_their_place(small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (here / "files").mkdir()
    (here / "files" / "table.parquet").write_bytes(b"12345")
    (here / "files" / "runs").mkdir()
    (here / "files" / "runs" / "x").write_bytes(b"1")
    scenario = small_scenario.override({"data": {"dataset": "table", "path": "files"}})
    package = packed(scenario, tmp_path_factory)
    assert names(package) == {SCENARIO, "files/table.parquet", "files/runs/x"}
    assert package.sizes["data"] == 6
    on_the_nodes = small_scenario.override({"data": {"dataset": "table", "path": f"file://{here}/files"}})
    assert names(packed(on_the_nodes, tmp_path_factory)) == {SCENARIO}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "/usr",
            r"^data.path is '/usr'; to travel with a job, expected a path below .*, a link there, or file:///usr ",
        ),
        ("..", r"^data.path is '\.\.'; to travel with a job, expected a path below"),
    ],
)
def test_data_elsewhere_do_not_travel(
    path: str, message: str, small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scenario = small_scenario.override({"data": {"dataset": "table", "path": path}})
    with pytest.raises(InputError, match=message):
        packed(scenario, tmp_path_factory)


def test_a_link_to_data_is_followed(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "table.parquet"
    elsewhere.write_bytes(b"12345")
    (here / "data.parquet").symlink_to(elsewhere)
    package = packed(small_scenario.override({"data": {"dataset": "table", "path": "data.parquet"}}), tmp_path_factory)
    assert (package.folder / "data.parquet").read_bytes() == b"12345"
    assert not (package.folder / "data.parquet").is_symlink()


def test_what_is_included_and_what_is_left_out(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("more/a.txt", "more/b.bin", "more/__pycache__/c.pyc", "more/.git/config", "more/runs/r", "one.txt"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("1", encoding="utf-8")
    package = packed(small_scenario, tmp_path_factory, includes=[Path("more"), Path("one.txt")], excludes=["*.bin"])
    assert names(package) == {SCENARIO, "more/a.txt", "one.txt"}
    with pytest.raises(InputError, match=r"^--include is 'none', which does not exist"):
        packed(small_scenario, tmp_path_factory, includes=[Path("none")])


def test_this_package_travels_with_its_version(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = packed(small_scenario, tmp_path_factory, with_package=True)
    here_is = Path(blossom_ray.__file__).parent
    modules = {path.relative_to(here_is.parent).as_posix() for path in here_is.rglob("*.py")}
    assert {"blossom_ray/studies/reports/page.html.j2", "blossom_ray/runs/session.py", *modules} <= names(package)
    metadata = package.folder / f"blossom_ray-{version('blossom-ray')}.dist-info" / "METADATA"
    assert f"\nVersion: {version('blossom-ray')}\n" in metadata.read_text(encoding="utf-8")
    assert not [name for name in names(package) if "__pycache__" in name]


def test_too_much_is_refused_with_numbers(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "large.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(InputError, match=r"takes 3\.0 MiB along \(scenario 0\.0, included 3\.0\); expected at most 2 "):
        packed(small_scenario, tmp_path_factory, includes=[Path("large.bin")], limit_mib=2)


def test_nobody_else_reads_a_package(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "more" / "deep").mkdir(parents=True)
    (here / "more" / "deep" / "open.sh").write_text("1", encoding="utf-8")
    (here / "more" / "deep" / "open.sh").chmod(0o777)
    package = packed(small_scenario, tmp_path_factory, includes=[Path("more")], with_package=True)
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in package.folder.rglob("*")}
    assert modes == {(True, 0o700), (False, 0o600)}


@pytest.mark.parametrize("kind", ["included", "own code"])
def test_what_leads_out_of_a_folder_or_is_no_file_stays_here(
    kind: str, small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "outside").mkdir()
    (here / "outside" / "hush.txt").write_text("hush", encoding="utf-8")
    mine = here / "own_package"
    (mine / "sub").mkdir(parents=True)
    (mine / "__init__.py").write_text("", encoding="utf-8")
    (mine / "sub" / "a.txt").write_text("a", encoding="utf-8")
    for name, target in {
        "file-out": "../outside/hush.txt", "absolute": str(here / "outside" / "hush.txt"), "folder-out": "../outside",
        "self": ".", "sub/up": "..", "loop": "loop", "nowhere": "none", "sub/again": "../sub", "device": "/dev/zero",
        "inside": "sub/a.txt", "folder-inside": "sub", "key": "id.pem",
    }.items():  # fmt: skip
        (mine / name).symlink_to(target)
    (mine / "id.pem").write_text("hush", encoding="utf-8")
    os.mkfifo(mine / "pipe")
    (mine / os.fsdecode(b"\xff")).write_text("x", encoding="utf-8")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("own_package/socket")
        if kind == "included":
            package = packed(small_scenario, tmp_path_factory, includes=[Path("own_package")])
        else:
            importlib.invalidate_caches()
            importlib.import_module("own_package")
            head = {"kind": "custom", "factory": "own_package:build"}
            package = packed(small_scenario.override({"model.head": head}), tmp_path_factory)
    assert names(package) == {
        SCENARIO, *(f"own_package/{name}" for name in ("__init__.py", "sub/a.txt", "inside", "folder-inside/a.txt")),
    }  # fmt: skip
    assert (package.folder / "own_package" / "inside").read_text(encoding="utf-8") == "a"
    assert not any(path.is_symlink() for path in package.folder.rglob("*"))
    left_out = {each.path.relative_to("own_package").as_posix(): each.reason for each in package.left_out}
    out, circle, nothing = "a link out of the folder", "a link to a folder that it is in", "a link to nothing"
    special = "neither a file nor a folder"
    assert left_out == {
        "file-out": out, "absolute": out, "folder-out": out, "device": out, "self": circle, "sub/up": circle,
        "sub/again": circle, "folder-inside/up": circle, "folder-inside/again": circle, "loop": nothing,
        "nowhere": nothing, "pipe": special, "socket": special, "key": "a link to what does not travel",
        "id.pem": "a secret's name: *.pem", "\udcff": "a name that is not UTF-8",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "credentials.json", "key.pem", "KEY.PEM", "server.key", "id_ed25519", "id_rsa.old", ".env", ".env.local",
        "prod.env", ".netrc", ".ssh/config", ".aws/credentials", "Secrets.toml", "secrets/a.txt", "kaggle.json",
        "my-service-account.json", "hf_token", "deep/er/credentials", ".git-credentials", "passwords.txt",
    ],
)  # fmt: skip
def test_secrets_stay_here_by_their_names(
    name: str, small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
    for each in (name, "tokenizer.json", "keys.csv", "monkey.txt"):
        (here / "mine" / each).write_text("hush", encoding="utf-8")
    package = packed(small_scenario, tmp_path_factory, includes=[Path("mine")])
    assert names(package) == {SCENARIO, "mine/tokenizer.json", "mine/keys.csv", "mine/monkey.txt"}
    (left_out,) = package.left_out
    assert (Path("mine") / name).is_relative_to(left_out.path)
    with pytest.raises(InputError, match=r"^--include is 'mine/.*, and \S+ is the name of a secret, which does not"):
        packed(small_scenario, tmp_path_factory, includes=[Path("mine", name)])


def test_ignore_files_say_what_stays_here(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "repository/.git/HEAD": "", "repository/.gitignore": "*.log\n/more/mine/\nbuild/\n!keep.log\n/top.txt\n",
        "repository/more/mine/sub/.gitignore": "!b.log\nc.*\n", "repository/more/mine/.rayignore": "**/big.bin\n",
        "repository/more/mine/.dockerignore": "*\n",
    } | {
        f"repository/more/mine/{name}": "1"
        for name in ("a.txt", "a.log", "keep.log", "build/x", "sub/b.log", "sub/c.txt", "sub/big.bin", "top.txt")
    }  # fmt: skip
    for name, text in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(here / "repository" / "more")
    package = packed(small_scenario, tmp_path_factory, includes=[Path("mine")])
    # `/more/mine/` is ignored as a whole, and was named in spite of it.
    assert names(package) == {SCENARIO, "mine/a.txt", "mine/keep.log", "mine/sub/b.log", "mine/top.txt"}
    assert [str(each) for each in package.left_out] == [
        "mine/a.log (named by .gitignore)", "mine/build (named by .gitignore)",
        "mine/sub/big.bin (named by more/mine/.rayignore)", "mine/sub/c.txt (named by more/mine/sub/.gitignore)",
    ]  # fmt: skip


def test_an_ignore_file_that_cannot_be_read_is_named(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "a.txt").write_text("1", encoding="utf-8")
    (here / "mine" / ".gitignore").write_text("!\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine/\.gitignore cannot be read .*; expected patterns as git takes them$"):
        packed(small_scenario, tmp_path_factory, includes=[Path("mine")])


def test_data_travel_whole_but_for_secrets(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "files").mkdir()
    (here / ".gitignore").write_text("*.parquet\nfiles\n", encoding="utf-8")
    for name in ("table.parquet", ".hidden.parquet", ".gitignore", "key.pem"):
        (here / "files" / name).write_text("*", encoding="utf-8")
    scenario = small_scenario.override({"data": {"dataset": "table", "path": "files"}})
    package = packed(scenario, tmp_path_factory)
    # Ray obeys an ignore file that it finds.
    assert names(package) == {SCENARIO, "files/table.parquet", "files/.hidden.parquet"}
    assert [str(each) for each in package.left_out] == ["files/key.pem (a secret's name: *.pem)"]
    (here / "files" / "more.parquet").symlink_to("../.gitignore")
    with pytest.raises(
        InputError, match=r"^data\.path holds files/more\.parquet, a link out of the folder, which does "
    ):
        packed(scenario, tmp_path_factory)


@pytest.mark.parametrize("name", ["pipe", "dangling"])
def test_what_is_included_is_a_file_or_a_folder(
    name: str, small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    os.mkfifo(here / "pipe")
    (here / "dangling").symlink_to("none")
    with pytest.raises(InputError, match=rf"^--include is '{name}', which .*; expected a file or a folder$"):
        packed(small_scenario, tmp_path_factory, includes=[Path(name)])


def test_too_many_files_are_refused(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_MOST_ENTRIES", 50)
    # Links from each folder into the next two make of 20 folders thousands.
    for number in range(20):
        (here / "mine" / str(number)).mkdir(parents=True)
        (here / "mine" / str(number) / "a").symlink_to(f"../{number + 1}")
        (here / "mine" / str(number) / "b").symlink_to(f"../{number + 1}")
    with pytest.raises(InputError, match=r"mine holds more than 50 files and folders; expected fewer in a job"):
        packed(small_scenario, tmp_path_factory, includes=[Path("mine")])


def test_an_own_algorithm_travels(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (here / "own_algorithm_of_a_test.py").write_text("class Mine:\n    def finish(self, k):\n        return {}\n")
    section = {"kind": "custom", "factory": "own_algorithm_of_a_test:Mine"}
    scenario = small_scenario.override({"algorithm": section})
    assert factory_problems(dict(scenario)) == []  # which imports it, as the check before does
    package = packed(scenario, tmp_path_factory)
    assert "own_algorithm_of_a_test.py" in names(package)


def test_weights_travel(small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (here / "pretrained").mkdir()
    save_file(torch.nn.Linear(8, 3).state_dict(), here / "pretrained" / "head.safetensors")
    weights = {"path": "pretrained/head.safetensors"}
    scenario = small_scenario.override({"model.head": {"kind": "linear"}, "model.head.weights": weights})
    package = packed(scenario, tmp_path_factory)
    assert names(package) == {SCENARIO, "pretrained/head.safetensors"}
    assert package.sizes["weights"] == (here / "pretrained" / "head.safetensors").stat().st_size
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "head.safetensors"
    elsewhere.write_bytes((here / "pretrained" / "head.safetensors").read_bytes())
    with pytest.raises(
        InputError, match=r"model.head.weights.path is '.*'; to travel with a job, expected a path below"
    ):
        packed(scenario.override({"model.head.weights.path": str(elsewhere)}), tmp_path_factory)


def test_models_of_features_travel(
    small_scenario: Scenario, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    save_file(torch.nn.Linear(8, 3).state_dict(), here / "linear.safetensors")
    (here / "bert").mkdir()
    (here / "bert" / "config.json").write_text("{}")
    (here / "rows.csv").write_text("photo,text,label\n")
    features = {
        "photo": {"kind": "image", "features": {"module": "torch.nn:Linear", "weights": "linear.safetensors"}},
        "text": {"kind": "text", "features": {"transformers": "bert"}},
    }
    scenario = Scenario.model_validate(
        {
            **plain_tree(small_scenario, defaults=False),
            "data": {"dataset": "table", "path": "rows.csv", "modalities": features},
            "clients": [{"count": 2, "modalities": ["photo", "text"]}],
            "model": {"encoders": {"photo": {"kind": "mlp"}, "text": {"kind": "mlp"}}},
        }
    )
    package = packed(scenario, tmp_path_factory)
    assert names(package) == {SCENARIO, "rows.csv", "linear.safetensors", "bert/config.json"}
    elsewhere = {"data.modalities.text.features.transformers": str(tmp_path_factory.mktemp("elsewhere"))}
    with pytest.raises(InputError, match=r"data.modalities.text.features.transformers is .*; to travel with a job"):
        packed(scenario.override(elsewhere), tmp_path_factory)
