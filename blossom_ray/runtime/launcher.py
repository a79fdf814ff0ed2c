"""Stands in for Python where Ray starts a worker: has it forked from the node's warm process (`runtime/zygote.py`).

It hands arguments, environment, folder and standard files over, and ends once the worker is there. It starts the warm
process where there is none, and becomes Python itself where there can be none. A program of its own, which imports
little, since every worker begins with it; `forks.py` says which Python it stands for.
"""

import json
import os
import socket
import struct
import sys

PYTHON = sys.executable
STANDING_BY = ""
"""The name of the process that can become the first warm one, where there is any."""
_ATTEMPTS = 2


def main(words: list[str]) -> None:
    """Have a worker forked, or go on as Python does with these arguments."""
    script = next((word for word in words if not word.startswith("-")), "")
    if script.endswith("/default_worker.py"):
        node = next((word for word in words if word.startswith("--node-id=")), "")
        # Ray reads the job from the environment when it is imported. Names that begin so go with their process.
        name = f"\0blossom-ray {os.getuid()} {node} {os.environ.get('RAY_JOB_ID')}"
        for _ in range(_ATTEMPTS):
            try:
                if _is_forked(name, words):
                    return
            except ConnectionError:  # it has just ended
                continue
            except OSError:
                break
    os.execv(PYTHON, [PYTHON, *words])


def _is_forked(name: str, words: list[str]) -> bool:
    """Whether the warm process has started the worker; it may fail over it.

    Raises:
        OSError: It cannot be started, or was not there any more.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(name)
        except ConnectionRefusedError:
            _start(name)
            connection.connect(name)
        if not is_own(connection):
            return False
        _send(connection, [words, os.getcwd(), dict(os.environ)], [0, 1, 2])
        return connection.recv(1) != b""


def is_own(connection: socket.socket) -> bool:
    """Whether whoever is at the other end is the same user: anyone may take a name, and ask for it."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())


def _start(name: str) -> None:
    """Start the warm process, unless another launcher does: only one gets the name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(name)
        except OSError:
            return
        listener.listen(1024)
        if STANDING_BY and _is_taken_over(listener):
            return
        if os.fork() == 0:
            os.setsid()
            listener.set_inheritable(True)
            code = f"import gc; gc.disable(); from blossom_ray.runtime.zygote import serve; serve({listener.fileno()})"
            os.execv(PYTHON, [PYTHON, "-P", "-c", code])


def _is_taken_over(listener: socket.socket) -> bool:
    """Whether the process that stands by has become the warm process, which a second one will find gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(STANDING_BY)
            if not is_own(connection):
                return False
            _send(connection, [os.getcwd(), dict(os.environ)], [0, 1, 2, listener.fileno()])
            return connection.recv(1) != b""
        except OSError:
            return False


def _send(connection: socket.socket, request: list[object], files: list[int]) -> None:
    socket.send_fds(connection, [json.dumps(request).encode("utf-8", "surrogateescape")], files)


if __name__ == "__main__":
    main(sys.argv[1:])
