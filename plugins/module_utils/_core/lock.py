# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""One operation at a time on one VM: a lock that the process holds, and that the kernel lets go when it dies.

The lock file tells who holds it. It lies on the machine where the module runs: that is the KVM host itself for
``qemu:///system``. Operations that are begun on different machines for the same VM are kept apart by the journal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import typing as t

from .errors import Busy, Denied

DIRECTORY = "/run/lock/kvmops"

# Bytes of what a holder says.
_RECORD = 1024

Tell = t.Callable[[t.Mapping[str, t.Any]], None]

# The environment variable by which whoever began a task finds what the task's processes say in files here.
TASK = "KVMOPS_TASK"

# Open file description locks (fcntl(2)): they belong to the open file, so threads exclude each other too, and one can
# ask who holds one without taking it. struct flock: type, whence, start, len, pid, on 64-bit Linux.
_FLOCK = "hhqqi4x"


def key_of(host: str, name: str) -> str:
    """The key of VM *name* on *host*: by name, so that a VM has it before it has a UUID, and safe as a file's name."""
    return hashlib.sha256(f"{host}/{name}".encode()).hexdigest()[:32]


def flock(kind: int) -> bytes:
    """``struct flock`` for the whole of a file."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _path(key: str) -> str:
    return os.path.join(DIRECTORY, f"{key}.lock")


def open_file(key: str) -> int:
    """The file of the lock *key*, made if need be.

    :raises Denied: It cannot be opened.
    """
    path, flags = _path(key), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if not os.path.isdir(DIRECTORY):
            os.makedirs(DIRECTORY, exist_ok=True)
            # Everyone who may talk to libvirtd takes locks here, so it is like /tmp: anyone may create, nobody may
            # remove what is another's.
            os.chmod(DIRECTORY, 0o1777)
        # Where fs.protected_regular is set, O_CREAT in such a directory fails for the file of another user, root's own
        # attempt included. Lock files are never removed, so one that is not there is created or just was.
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            try:
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                fd = os.open(path, flags)
    except OSError as exc:
        raise Denied(
            f"Failed to open the lock file {path}: {exc.strerror}.",
            hint=f"Run the task with become, or let root make {DIRECTORY} with the mode 1777 once after each boot.",
        ) from exc
    with contextlib.suppress(PermissionError):  # another user's file has its mode already
        os.fchmod(fd, 0o666)  # whatever the umask
    return fd


def _read(fd: int) -> dict[str, t.Any]:
    try:
        told = json.loads(os.pread(fd, 4 * _RECORD, 0) or b"{}")
    except (ValueError, RecursionError):  # anyone may write into it
        return {}
    return told if isinstance(told, dict) else {}


@contextlib.contextmanager
def hold(key: str, what: t.Mapping[str, t.Any], *, name: str) -> t.Iterator[Tell]:
    """Hold the lock *key* of a VM while the body runs, which is given a function to tell others how far it is.

    :param what: What the holder does, told to others that want it: ``action``, ``since``, ``pid``.
    :param name: The VM's name, for the error.
    :raises Busy: Another process or thread holds it.
    :raises Denied: The lock file cannot be opened.
    """
    fd = open_file(key)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, flock(fcntl.F_WRLCK))
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EACCES):
                raise Denied(f"Failed to lock {key}: {exc.strerror}.") from exc
            told = _read(fd)
            raise Busy(
                f"VM {name} is busy: {told.get('action', 'another operation')} has been running"
                f" since {told.get('since', 'an unknown time')} (process {told.get('pid', 'unknown')}).",
                hint="Run the task again when it has ended.",
                running=told,
            ) from exc

        named = {"task": os.environ[TASK]} if TASK in os.environ else {}

        def tell(progress: t.Mapping[str, t.Any]) -> None:
            told = {"name": name, **what, **named, **({"progress": progress} if progress else {})}
            # In one write, and over all that may stand there: whoever reads meanwhile finds the one or the other.
            os.pwrite(fd, json.dumps(told).encode().ljust(_RECORD), 0)

        os.ftruncate(fd, 0)
        tell({})
        try:
            yield tell
        finally:
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def holder(key: str) -> dict[str, t.Any] | None:
    """What the holder of the lock *key* said of itself, or ``None`` when nobody holds it."""
    try:
        fd = os.open(_path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, flock(fcntl.F_WRLCK))
        return None if struct.unpack(_FLOCK, found)[0] == fcntl.F_UNLCK else _read(fd)
    finally:
        os.close(fd)


def is_still(key: str, told: t.Mapping[str, t.Any]) -> bool:
    """Whether whoever said *told* holds the lock *key* still, however far it is by now."""
    now = holder(key)
    return now is not None and {**now, "progress": None} == {**told, "progress": None}
