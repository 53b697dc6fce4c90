"""``kdrs`` in a process of its own, for the tests: a fork of one that has loaded torch, which costs a tenth of a new one.

Such a process does what ``python -m kdrs`` does once its imports are done, with signals, streams, a folder and an environment
of its own. What a new interpreter does (what is imported and when, options of Python) is not seen here.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True)
class Ended:
    returncode: int
    """Negative for a signal."""
    stdout: bytes
    stderr: bytes


class Process:
    """One of them, from the test that began it."""

    def __init__(self, pid: int, end: int, files: list[IO[bytes] | None]):
        self.pid = pid
        self.returncode: int | None = None
        self._end = end
        self._files = files

    def poll(self, timeout: float = 0.0) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], timeout)[0]:
            self.returncode = int(os.read(self._end, 16))
            os.close(self._end)
        return self.returncode

    def wait(self, timeout: float = 120.0) -> int:
        code = self.poll(timeout)
        if code is None:
            self.kill()
            self.poll(30)
            raise AssertionError(f"the process did not end in {timeout} seconds: {self.said()[1].decode()}")
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def said(self) -> tuple[bytes, bytes]:
        """All that it has written until now, where it was not given files to write to."""
        written = []
        for file in self._files:
            if file is not None:
                file.seek(0)
            written.append(b"" if file is None else file.read())
        return written[0], written[1]

    def ended(self, timeout: float = 120.0) -> Ended:
        return Ended(self.wait(timeout), *self.said())


class Forks:
    """The process that has loaded torch."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def begin(
        self,
        *arguments: object,
        stdout: int | None = None,
        stderr: int | None = None,
        session: bool = False,
        whole: bool = False,
        **variables: str,
    ) -> Process:
        """``kdrs`` with these arguments, in the folder and the environment of the test and with these variables more.

        Descriptors are what it writes to, else files that `Process.said` reads. With ``session`` it leads a session of its own.
        With ``whole`` the interpreter is taken down at the end, which takes longer than most commands.
        """
        files = [tempfile.TemporaryFile() if given is None else None for given in (stdout, stderr)]  # noqa: SIM115
        end, theirs = os.pipe()
        job = {
            "arguments": list(map(str, arguments)),
            "environment": {**os.environ, **variables},
            "folder": os.getcwd(),
            "session": session,
            "whole": whole,
        }
        text = json.dumps(job).encode()
        streams = [file.fileno() if file else given for file, given in zip(files, (stdout, stderr), strict=True)]
        socket.send_fds(self._socket, [len(text).to_bytes(4, "little")], [*streams, theirs])
        self._socket.sendall(text)
        os.close(theirs)
        return Process(int(self._socket.recv(16)), end, files)

    def run(self, *arguments: object, **how: Any) -> Ended:
        return self.begin(*arguments, **how).ended()

    def close(self) -> None:
        self._socket.close()
        self._process.wait(30)


# --- in the process that has loaded torch -----------------------------------------------------------------------------


def serve(asked: socket.socket) -> dict[str, Any]:
    """Forks until nobody asks any more; in a fork, what it shall be."""
    ends: dict[int, int] = {}
    while True:
        if select.select([asked], [], [], 0.005 if ends else None)[0]:
            head, descriptors, _, _ = socket.recv_fds(asked, 4, 3)
            if not head:
                os._exit(0)
            job = json.loads(asked.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL))
            child = os.fork()
            if not child:
                asked.close()
                for end in (descriptors[2], *ends.values()):
                    os.close(end)
                return {**job, "streams": descriptors[:2]}
            for stream in descriptors[:2]:
                os.close(stream)
            ends[child] = descriptors[2]
            asked.sendall(str(child).encode())
        for child in list(ends):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                os.write(ends[child], str(os.waitstatus_to_exitcode(status)).encode())
                os.close(ends.pop(child))


def become(job: dict[str, Any]) -> None:
    """What an interpreter has that was begun so."""
    if job["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = ["kdrs", *job["arguments"]]
    sys.path[0] = job["folder"]
    encoding = os.environ.get("PYTHONIOENCODING") or sys.stdout.encoding
    for number, name, errors in ((1, "stdout", sys.stdout.errors), (2, "stderr", "backslashreplace")):
        stream = job["streams"][number - 1]
        os.dup2(stream, number)
        os.close(stream)
        file = open(number, "w", encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        file.reconfigure(line_buffering=number == 2 or file.isatty())
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


def load() -> None:
    """Imports what commands use, before the first fork."""
    for name in ("kdrs.cli", "kdrs.runs.seeds", "kdrs.studies.sweep", "kdrs.training.processes", "safetensors.torch"):
        importlib.import_module(name)
    tasks = "/proc/self/task"
    assert not os.path.isdir(tasks) or len(os.listdir(tasks)) == 1, "threads are not forked"
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page


def main() -> None:
    load()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = serve(socket.socket(fileno=int(sys.argv[1])))
    become(job)
    try:
        runpy.run_module("kdrs", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if job["whole"] or not isinstance(leaving.code, int):
            raise
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(leaving.code)


if __name__ == "__main__":
    main()
