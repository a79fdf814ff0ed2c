"""What a shell offers at the Tab key: scenarios, keys and values of settings, data sets, folders of runs.

The functions are given what is typed so far, and must not fail: who presses Tab wants no error message. Heavy packages
are imported nowhere here; the scenario's sections are, for keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from blossom_ray.cli.output import say

if TYPE_CHECKING:
    from blossom_ray.core.structure import Hint

_MOST_FOLDERS = 500
_MOST_OFFERED = 200


def scenarios(incomplete: str) -> list[str]:
    """Scenario files in the folder that is typed and one level below it, and names of packaged scenarios."""
    from blossom_ray.reading.packaged import packaged_scenarios

    files = _paths(incomplete, 1, lambda path: path.suffix in (".yaml", ".yml"))
    return _offer([*files, *packaged_scenarios()], incomplete)


def folders_with(*names: str) -> Callable[[str], list[str]]:
    """Folders with a file of one of these names, up to three levels below the folder that is typed."""

    def offer(incomplete: str) -> list[str]:
        return _offer(_paths(incomplete, 3, lambda path: any((path / name).exists() for name in names)), incomplete)

    return offer


def words(*known: str) -> Callable[[str], list[str]]:
    """Some words."""
    return lambda incomplete: _offer(known, incomplete)


def datasets(incomplete: str) -> list[str]:
    """Names of data sets."""
    from blossom_ray.data.options import DATASETS

    return _offer(DATASETS, incomplete)


def datasets_and_scenarios(incomplete: str) -> list[str]:
    """Names of data sets, then scenarios."""
    return list(dict.fromkeys([*datasets(incomplete), *scenarios(incomplete)]))


def sharing(incomplete: str) -> list[str]:
    """Names of sharing schemes."""
    from blossom_ray.core.blocks import SCHEME_NAMES

    return _offer(SCHEME_NAMES, incomplete)


def partitions(incomplete: str) -> list[str]:
    """Kinds of partition."""
    from blossom_ray.core.structure import field_hint
    from blossom_ray.data.division.options import Division

    return _offer(field_hint(Division.model_fields["partition"]).kinds, incomplete)


def settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """`PATH=VALUE` of the scenario that is typed: first paths with their meanings, then what the key accepts."""
    from blossom_ray.core.structure import Hint
    from blossom_ray.reading.scenario import Scenario

    # An option without its value, which is being typed, keeps the arguments from being told apart.
    given = ctx.params.get("scenario") or ctx.params.get("scenarios") or ctx.args or [""]
    first = given[0] if isinstance(given, list | tuple) else given
    keys = dict(_keys_below("", Hint(Scenario), _tree(Path(str(first))), ""))
    path, equals, _ = incomplete.partition("=")
    matching = [key for key in keys if key == path or (not equals and key.startswith(path))]
    if len(matching) != 1:
        return [(f"{key}=", keys[key][1]) for key in matching]
    values, meaning = keys[matching[0]]
    return [(f"{matching[0]}={value}", meaning) for value in values or ("",)]


@contextmanager
def bash_words() -> Iterator[None]:
    """Answer bash, where it asks: it makes three words of `--set sharing=f` and replaces the last one alone."""
    if os.environ.get("_BLOSSOM_RAY_COMPLETE") != "complete_bash":
        yield
        return
    typed = os.environ.get("COMP_WORDS", "").split("\n")[: int(os.environ.get("COMP_CWORD", "0")) + 1]
    joined: list[str] = []
    # The part of the last word that bash does not replace.
    kept = ""
    for index, word in enumerate(typed):
        if index > 1 and "=" in (word, typed[index - 1]):
            kept = joined[-1] if typed[index - 1] == "=" else f"{joined[-1]}="
            joined[-1] += word
        else:
            joined.append(word)
            kept = ""
    os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    output = StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        say(*(line.removeprefix(kept) for line in output.getvalue().splitlines()))


def _offer(candidates: Iterable[str], incomplete: str) -> list[str]:
    # A shell takes a line for an offer, and shows it as it is.
    return [name for name in candidates if name.startswith(incomplete) and name.isprintable()][:_MOST_OFFERED]


def _paths(incomplete: str, levels: int, is_wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Paths that begin as is typed, up to some levels below the folder that is typed, as one would type them."""
    folder, begun = os.path.split(incomplete)
    base = Path(folder or ".").expanduser()
    for path in islice(_below(base, begun, levels), _MOST_FOLDERS):
        if is_wanted(path):
            yield os.path.join(folder, path.relative_to(base))


def _below(base: Path, begun: str, levels: int) -> Iterator[Path]:
    """Entries of a folder that begin so, and those below them, breadth first; hidden ones are left out."""
    try:
        entries = sorted(path for path in base.iterdir() if path.name.startswith(begun) and path.name[0] != ".")
    except OSError:
        return
    yield from entries
    if levels:
        for path in entries:
            if path.is_dir():
                yield from _below(path, "", levels - 1)


def _tree(path: Path) -> Mapping[str, Any]:
    """A scenario file as plain values, or nothing where it cannot be read."""
    from blossom_ray.reading.packaged import scenario_path
    from blossom_ray.reading.yaml_tree import parse_yaml
    from blossom_ray.storage import read_file

    try:
        document = parse_yaml(read_file(scenario_path(path)).decode())
    except (OSError, ValueError):
        return {}
    tree = None if document.root is None else document.root.plain()
    return tree if isinstance(tree, Mapping) else {}


def _keys_below(path: str, hint: Hint, value: Any, meaning: str) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
    """Each key that `--set` takes: its path, what it may be set to, its meaning."""
    from blossom_ray.core.phrases import sentences, shortened
    from blossom_ray.core.section import Section
    from blossom_ray.core.structure import Hint, field_hint, meaning_of

    if hint.kinds:
        key = str(hint.discriminator)
        kind = value.get(key, hint.default_kind) if isinstance(value, Mapping) else getattr(value, key, None)
        yield f"{path}.{key}", (tuple(hint.kinds), meaning)
        if kind in hint.kinds:
            own = _keys_below(path, Hint(hint.kinds[kind]), value, meaning)
            yield from (entry for entry in own if entry[0] != f"{path}.{key}")
    elif hint.section is not None:
        for name, field in hint.section.model_fields.items():
            is_required = field.is_required()
            default = None if is_required else field.get_default(call_default_factory=True, validated_data={})
            below = value.get(name, default) if isinstance(value, Mapping) else getattr(value, name, default)
            # The kind of a union's section was yielded above, with all kinds that there are.
            if not (is_required and name in ("kind", "dataset")):
                # Typer breaks longer texts into lines, which fish takes for further offers.
                said = shortened(next(sentences(meaning_of(hint.section, name)), ""))
                yield from _keys_below(f"{path}.{name}".lstrip("."), field_hint(field), below, said)
    elif isinstance(value, Mapping) and hint.item is not None and (hint.item.kinds or hint.item.section):
        for name, item in value.items():
            yield from _keys_below(f"{path}.{name}", hint.item, item, meaning)
    elif isinstance(value, list) and hint.item is not None and hint.item.section:
        for index, item in enumerate(value):
            yield from _keys_below(f"{path}.{index}", hint.item, item, meaning)
    elif not isinstance(value, Section):
        yield path, (_values(hint, value), meaning)


def _values(hint: Hint, value: Any) -> tuple[str, ...]:
    """What a key accepts where that is a list, else the value that it has."""
    from blossom_ray.core.structure import literal_values
    from blossom_ray.reading.writer import flow_yaml

    listed = literal_values(hint) or tuple(known for member in hint.members for known in literal_values(member))
    if listed:
        return tuple(str(known) for known in listed)
    if hint.type is bool:
        return ("true", "false")
    return () if value is None else (flow_yaml(value, ""),)
