"""A frozen model that the samples of a modality pass once: what comes out of it is what clients learn from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from blossom_ray.core.factories import resolve_factory
from blossom_ray.core.locations import local_path
from blossom_ray.core.section import Factory, Finding, Positive, Rate, Section, check_factory, plain_tree
from blossom_ray.core.source_code import code_checksums
from blossom_ray.data.modalities.saved_models import model_folder
from blossom_ray.errors import DataError
from blossom_ray.storage import checksum

_Name = Annotated[str, Field(min_length=1)]
_VERSION = 1
"""Raised when the same model with the same options gives other features."""
_Finite = Annotated[float, Field(ge=-1e38, le=1e38, allow_inf_nan=False)]


class Features(Section):
    """What a frozen model gives for each sample, computed once and kept. Naming own code here runs it."""

    module: Factory | None = None
    """`module:attribute` of a callable that builds the model, a `torch.nn.Module`, such as
    `torchvision.models:mobilenet_v3_small`; or, from Python, the callable itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the callable."""
    weights: _Name | None = None
    """File with the model's values: safetensors, or a state dict that `torch.save` wrote. Relative to the working
    directory. null: those that the callable gives it, drawn from seed 0 where it draws them."""
    prefix: str = ""
    """What the names of the model's tensors in that file begin with, such as `module.`; others are left aside."""
    transformers: _Name | None = None
    """In the place of `module`: the folder of a model that the `transformers` library saved, of texts with its
    tokenizer. Needs the extra `text`."""
    layer: _Name | None = None
    """The submodule whose output is taken, by its name in the model, such as `avgpool`. null: the model's own output,
    of one in `transformers` its last hidden state."""
    output: Literal["vector", "sequence"] = "vector"
    """`vector`: (dim,), the mean over the places of a map (dim, height, width) or of a sequence (positions, dim).
    `sequence`: (positions, dim), of a map row by row. Padding of texts counts for no mean and is 0 in a sequence."""
    mean: Annotated[tuple[_Finite, ...], Field(strict=False, min_length=1)] | None = None
    """Of each channel (the first dimension of a picture, else the last one), or one for all: the model gets
    (sample - mean) / std. Of ImageNet's pictures [0.485, 0.456, 0.406]. Default: as the processor in the folder of
    `transformers` says, else samples as they are."""
    std: Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)] | None = None
    """As `mean`. Of ImageNet's pictures [0.229, 0.224, 0.225]."""
    batch_size: Positive = 32
    """Samples that the model gets at a time; another number changes the last bits of features."""

    _factory = field_validator("module")(lambda value: None if value is None else check_factory(value))

    def conflicts(self) -> Iterator[Finding]:
        """As `Section`."""
        if (self.module is None) == (self.transformers is None):
            found = "is null" if self.module is None else "is given beside transformers"
            yield Finding("module", found, "either module or transformers")
        for name in ("options", "weights", "prefix"):
            if self.transformers is not None and getattr(self, name):
                yield Finding(name, "is given beside transformers", "it beside module alone")
        if (self.mean is None) != (self.std is None):
            missing = "mean" if self.mean is None else "std"
            yield Finding(missing, "is null", "both mean and std, or neither")


def weights_file(features: Features, where: str) -> Path:
    """The file with the model's values, which is there.

    Raises:
        InputError: It is not there, or no file.
    """
    assert features.weights is not None
    path = local_path(features.weights, f"{where}.weights")
    if not path.is_file():
        found = "does not exist" if not path.exists() else "is no file"
        raise DataError(
            f"{where}.weights is {features.weights!r}, and {path.absolute()} {found}; expected the model's values "
            "there (safetensors, or what torch.save wrote): nothing is downloaded"
        )
    return path


def model_files(features: Features, where: str) -> list[Path]:
    """The files that a model is read from, which are there; its factory is imported, and nothing is loaded.

    Raises:
        InputError: The factory cannot be found, or a file or a folder is missing.
    """
    if features.transformers is None:
        resolve_factory(features.module or "", f"{where}.module")
        return [] if features.weights is None else [weights_file(features, where)]
    folder = model_folder(features.transformers, f"{where}.transformers")
    if not (folder / "config.json").is_file():
        found = f"{where}.transformers is {features.transformers!r}, which has no config.json"
        raise DataError(f"{found}; expected a folder that save_pretrained wrote")
    return [path for path in sorted(folder.iterdir()) if path.is_file()]


def features_key(features: Features, where: str) -> dict[str, object]:
    """All that features follow from besides the samples, as JSON has it: options, code, content of files, versions.

    Raises:
        InputError: As `model_files`.
    """
    try:
        sums = {path.name: checksum(path) for path in model_files(features, where)}
    except OSError as error:
        raise DataError(f"{where}: {error.filename} cannot be read ({error.strerror}); expected a file") from error
    key: dict[str, object] = {**plain_tree(features, defaults=True), "features": _VERSION}
    if features.module is None:
        key |= {"transformers": sums, "version": version("transformers")}
    else:
        factory = resolve_factory(features.module, f"{where}.module")
        library = sys.modules.get(factory.__module__.partition(".")[0])
        key |= {
            "module": features.module if isinstance(features.module, str) else getattr(factory, "__qualname__", ""),
            "version": getattr(library, "__version__", None),
            "code": code_checksums(features.module, features.options),
            "weights": next(iter(sums.values()), None),
        }
    plain: dict[str, object] = json.loads(json.dumps(key, default=repr, sort_keys=True))
    return plain
