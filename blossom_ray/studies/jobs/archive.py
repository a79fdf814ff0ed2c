"""Prints a folder as lines of text, on a node that may not have this package: standard library alone.

`python -c <this file> MARK FOLDER [NAME...]` prints a line `MARK <SHA-256> <bytes>`, then a gzipped tar of the folder's
content without files and folders of these names, as base64 in lines, then `MARK end`. `MARK missing`: there is no such
folder. `MARK large <bytes>`: it is too large for the way through a log.
"""

import base64
import hashlib
import io
import os
import stat
import sys
import tarfile

MOST_BYTES = 2**30
_LINE_BYTES = 57 * 64
_ATTEMPTS = 10


def main(mark: str, folder: str, names: list[str]) -> None:
    """Print it."""
    _hide_output()
    folder = os.path.expanduser(folder)
    if not os.path.isdir(folder):
        print(mark, "missing")
        return
    for attempt in range(_ATTEMPTS):
        try:
            content = pack_folder(folder, names)
            break
        except FileNotFoundError:  # the run goes on, and has replaced a file meanwhile
            if attempt == _ATTEMPTS - 1:
                raise
    if isinstance(content, int):
        print(mark, "large", content)
        return
    print(mark, hashlib.sha256(content).hexdigest(), len(content))
    for start in range(0, len(content), _LINE_BYTES):
        print(base64.b64encode(content[start : start + _LINE_BYTES]).decode())
    print(mark, "end")


def pack_folder(folder: str, names: list[str]) -> bytes | int:
    """The gzipped tar, or the number of bytes of a folder that is too large.

    A table `rounds` goes first: what it counts, the other tables, which may grow meanwhile, have too.
    """
    files = []
    for parent, folders, found in os.walk(folder):
        folders[:] = [name for name in folders if name not in names]
        files += [os.path.join(parent, name) for name in found if name not in names]
    # Not what a link leads to, nor what a pipe would say.
    files = [file for file in files if stat.S_ISREG(os.lstat(file).st_mode)]
    size = sum(os.lstat(file).st_size for file in files)
    if size > MOST_BYTES:
        return size
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for file in sorted(files, key=lambda file: (not os.path.basename(file).startswith("rounds."), file)):
            with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
                content = opened.read()
            member = tarfile.TarInfo(os.path.relpath(file, folder))
            member.size, member.mode, member.mtime = len(content), 0o600, int(os.lstat(file).st_mtime)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _hide_output() -> None:
    """Have nobody else read the log that the folder is printed into."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
