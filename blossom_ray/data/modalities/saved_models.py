"""Folders that the `transformers` library saved. Nothing is downloaded, and no code in a folder is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blossom_ray.core.extras import module_of_extra
from blossom_ray.core.phrases import one_of
from blossom_ray.errors import DataError, first_line
from blossom_ray.text import brief


def model_folder(path: str, where: str) -> Path:
    """The folder of a saved model.

    Args:
        path: As a user wrote it.
        where: Where that stands in the scenario, for messages.

    Raises:
        DataError: There is no such folder.
    """
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{where} {path}: {error}; expected a folder") from error
    if not folder.is_dir():
        raise DataError(f"{where} {path} is no folder; expected one with a model that `transformers` saved")
    return folder


def read_tokenizer(folder: Path, where: str) -> Any:
    """The tokenizer in a folder.

    Raises:
        DataError: There is none, from which the library would make one that knows no word; or as `read_saved`.
    """
    found = read_saved("AutoTokenizer", folder, where)
    names = sorted(set(found.vocab_files_names.values()))
    if names and not any((folder / name).is_file() for name in names):
        raise DataError(f"{where} {folder} has no tokenizer; expected {one_of(names)} in it")
    return found


def read_saved(loader: str, folder: Path, where: str, **options: Any) -> Any:
    """What a class of `transformers` reads from a folder.

    Args:
        loader: The class, such as `AutoModel`.
        folder: The folder.
        where: Where it stands in the scenario, for messages.
        options: More arguments of `from_pretrained`.

    Raises:
        DataError: It cannot be read, or `transformers` or PyTorch is not installed.
    """
    transformers, _ = (module_of_extra(name, f"{where} needs {name}", "text") for name in ("transformers", "torch"))
    logging = transformers.utils.logging
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is looked at by whom it concerns
    try:
        return getattr(transformers, loader).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # the library raises what its parts raise: OSError, ValueError, KeyError, ...
        reason = brief(first_line(f"{type(error).__name__}: {error}"))
        raise DataError(f"{where} {folder} cannot be loaded ({reason}); expected a saved model") from error
    finally:
        logging.set_verbosity(verbosity)
