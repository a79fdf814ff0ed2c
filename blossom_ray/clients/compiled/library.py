"""The kernels of `kernels.c`, compiled by the machine's C compiler for its processor when they are first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path

from blossom_ray.clients.compiled.program import Client
from blossom_ray.data.files.cache import cache_folder, writable
from blossom_ray.errors import BlossomError, RunError
from blossom_ray.text import brief

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-shared", "-fPIC")
_OF_PROCESSORS = {"x86_64": ("-mprefer-vector-width=512",)}
_POINTER = ctypes.c_void_p


class Library:
    """The functions of `kernels.c`, as they are described there.

    Args:
        file: The shared library.

    Attributes:
        compiler: The version of the compiler that made it.
    """

    def __init__(self, file: Path) -> None:
        library, size = ctypes.CDLL(str(file)), ctypes.c_int64
        library.compiler.restype = ctypes.c_char_p
        self.compiler: str = library.compiler().decode()
        self.train, self.scatter, self.gather = library.train, library.scatter, library.gather
        self.train.argtypes, self.train.restype = (ctypes.POINTER(Client), _POINTER, size, size), ctypes.c_double
        self.scatter.argtypes, self.scatter.restype = (_POINTER, _POINTER, size, _POINTER), None
        self.gather.argtypes = (_POINTER, _POINTER, size, _POINTER, _POINTER)
        self.gather.restype = ctypes.c_double


@cache
def library() -> Library:
    """The library: compiled where nobody has yet on a processor like this one, else from the cache folder.

    Raises:
        RunError: There is no compiler (`cc`, or what `CC` names), it fails, or the cache folder cannot be written, or
            others can write to it.
    """
    source = resources.files(__package__).joinpath("kernels.c").read_text(encoding="utf-8")
    compiler = compiler_command()
    flags = (*_FLAGS, *_OF_PROCESSORS.get(platform.machine(), ()))
    key = hashlib.sha256("\n".join((source, *compiler, *flags, _instructions())).encode()).hexdigest()
    try:
        file = _own_folder() / f"kernels-{key[:32]}.so"
        if not file.exists():
            from filelock import FileLock  # which imports asyncio

            with writable(file.parent), FileLock(file.with_suffix(".lock")):
                if not file.exists():  # another process may have made it meanwhile
                    _compile((*compiler, *flags, "-x", "c", "-", "-lm", "-o"), source, file)
        return Library(file)
    except BlossomError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        raise RunError(f"the compiled kernels cannot be loaded: {brief(str(error))}") from error


def compiler_command() -> list[str]:
    """The words by which the machine's C compiler is called."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def missing_library() -> str | None:
    """Why there are no compiled kernels here, as one line; None where there are."""
    try:
        library()
    except RunError as error:
        return str(error)
    return None


def _own_folder() -> Path:
    """The folder of libraries, which nobody else may write to: what lies there is run."""
    folder = cache_folder() / "compiled"
    with writable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.geteuid() or state.st_mode & 0o022:
        raise RunError(f"others can write to {folder}; expected a folder of yours alone")
    return folder


def _compile(command: tuple[str, ...], source: str, file: Path) -> None:
    made = file.with_suffix(".new")  # what has the name is whole
    try:
        done = subprocess.run([*command, str(made)], input=source, text=True, capture_output=True, check=False)
    except OSError as error:
        raise RunError(f"there is no C compiler {command[0]}; expected one, or its name in CC") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "nothing")
        raise RunError(f"the C compiler {command[0]} failed; it says {brief(said)}")
    made.replace(file)


def _instructions() -> str:
    """What the processor can do: a cache folder may be shared by machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE))))
