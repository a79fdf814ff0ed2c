"""Data at a URI: what is elsewhere is copied into the cache once, and read from there.

Arrow's own file systems are asked first (`file`, `s3`, `gs`, `hdfs`, `abfs`), then fsspec (`http`, `https`, and what
the user has installed). Credentials are theirs to find.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from blossom_ray.core.locations import is_uri
from blossom_ray.data.files.cache import cache_folder
from blossom_ray.errors import DataError
from blossom_ray.storage import replacing_folder

_EXPECTED = "a path, or a URI that Arrow or fsspec can read, such as s3://bucket/file or file:///folder/file"


def local_path(path: str) -> str:
    """Where the files at a path or URI can be read on this machine.

    What is not at `file://` is copied into `remote/` in the cache folder, under a key of the URI and of the sizes and
    times of its files, so that a changed file is copied again. Where a server tells no times (http), a change that
    keeps the size goes unnoticed.

    Args:
        path: `data.path`. A plain path is returned as it is.

    Raises:
        DataError: Nothing is there, it cannot be read, or there is no room for it.
    """
    if not is_uri(path):
        return path
    parts = urlsplit(path)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise DataError(f"data.path is {path!r}, which names the host {parts.netloc!r}; expected file:///...")
        return url2pathname(parts.path)
    import fsspec
    import pyarrow as pa
    from pyarrow import fs

    try:
        try:
            filesystem, place = fs.FileSystem.from_uri(path)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            found, place = fsspec.core.url_to_fs(path)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(found))
        place = str(place).rstrip("/")
        files = [filesystem.get_file_info(place)]
        if files[0].type == fs.FileType.Directory:
            below = filesystem.get_file_info(fs.FileSelector(place, recursive=True))
            files = sorted(below, key=lambda info: info.path)
        files = [info for info in files if info.type == fs.FileType.File]
        if not files:
            raise DataError(f"data.path is {path!r}, where nothing is; expected a file or a folder")
        return str(_copied(path, filesystem, place, files))
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise DataError(f"data.path is {path!r}, which cannot be read ({error}); expected {_EXPECTED}") from error


def _copied(uri: str, filesystem: Any, place: str, files: list[Any]) -> Path:
    """The copy in the cache, made now if it is not there. It gets its name when it is whole."""
    from filelock import FileLock
    from pyarrow import fs

    facts = [uri, [(info.path, info.size, info.mtime_ns) for info in files]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    root = cache_folder() / "remote"
    # With the name that the data have there: messages and suffixes go by it.
    entry, name = root / key, place.rpartition("/")[2]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{key}.lock"):
        if not entry.exists():
            with replacing_folder(entry) as folder:
                for info in files:
                    target = Path(os.path.normpath(folder / name / os.path.relpath(info.path, place)))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    fs.copy_files(info.path, str(target), filesystem, fs.LocalFileSystem())
    return entry / name
