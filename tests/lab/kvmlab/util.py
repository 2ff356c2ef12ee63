# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small tools: running programs, locks, looking at the machine's processes."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable, Union

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

StrPath = Union[str, "os.PathLike[str]"]


class LabError(Exception):
    """Something the user should read; ends the program with exit code 1."""


def say(text: str) -> None:
    """Tell what goes on, on stderr: stdout is for what was asked for."""
    print("lab: " + text, file=sys.stderr, flush=True)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run(
    *argv: StrPath,
    check: bool = True,
    stdin: str = "",
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: StrPath | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. It dies when we die. An error carries what the program said."""
    command = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            preexec_fn=_die_with_parent,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is missing (see packages.txt)") from error
    except subprocess.TimeoutExpired as error:
        raise LabError("no answer within {} s: {}".format(timeout, " ".join(command))) from error
    if check and done.returncode:
        raise LabError(
            "{}: exit code {}: {}".format(" ".join(command), done.returncode, (done.stderr or done.stdout).strip())
        )
    return done


def spawn(argv: Sequence[StrPath], log: StrPath, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start something that outlives us, in a session of its own."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [os.fspath(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=dict(env),
            cwd="/",
        )


def wait_for(condition: Callable[[], bool], seconds: float, step: float = 0.02) -> bool:
    """Wait until the condition holds; False when it did not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one stroke: readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(temporary, mode)
    os.replace(temporary, path)


@contextlib.contextmanager
def lock(path: Path, waiting: str = "", patience: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file (made if need be) or a directory. Yields False when not patient and it is held.

    The kernel frees it when we die. A lock file that was removed while we waited for it does not count.
    """
    while True:
        if path.is_dir():
            descriptor = os.open(path, os.O_RDONLY)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
                if not patience:
                    yield False
                    return
                if waiting:
                    say(waiting)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(descriptor), os.stat(path))
            except FileNotFoundError:
                same = False
            if same:
                yield True
                return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def machine_lock(name: str) -> Iterator[None]:
    """Hold a lock of the whole machine that leaves no file: the name of an abstract socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:

        def taken() -> bool:
            try:
                holder.bind("\0" + name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

        if not wait_for(taken, 60, 0.05):
            raise LabError(f"the lock {name} is not let go")
        yield


@dataclasses.dataclass(frozen=True)
class Process:
    """A process of the machine, as /proc tells."""

    pid: int
    ppid: int
    state: str
    command: str

    @property
    def alive(self) -> bool:
        return self.state not in ("Z", "X")

    def environment(self) -> dict[str, str]:
        return _environment(self.pid)

    def namespace(self, kind: str) -> int:
        """The inode of its namespace (0: gone)."""
        try:
            return os.stat(f"/proc/{self.pid}/ns/{kind}").st_ino
        except OSError:
            return 0

    def arguments(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""

    def mounts(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def _environment(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if item)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, _sign, value in pairs}


def process(pid: int) -> Process | None:
    """One process, or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    head, _paren, tail = text.rpartition(")")
    fields = tail.split()
    return Process(pid, int(fields[1]), fields[0], head.partition("(")[2])


def processes() -> list[Process]:
    """All processes of the machine, kernel threads left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            item = process(int(name))
            if item and item.pid != 2 and item.ppid != 2:
                found.append(item)
    return found


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
