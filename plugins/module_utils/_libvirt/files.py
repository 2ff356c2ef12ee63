# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Files of this machine: whole or not at all, with holes kept, and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import tempfile
import typing as t

from .._core.errors import LifecycleError, NoSpace, NotFound
from .bases import Block

PART = ".part"

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_MIB = 1 << 20


def make_directory(directory: str) -> None:
    """QEMU, which is another user, passes through every directory that is made here, whatever the umask."""
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.mkdir(path)
            os.chmod(path, 0o711)


def free_space(directory: str) -> int:
    """Bytes that are free where *directory* is or will be."""
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def need_space(what: str, needed: int, free: int, place: str) -> None:
    """See that something fits.

    :param what: What is being done, in the infinitive.
    :param needed: Bytes.
    :raises NoSpace: It does not.
    """
    if needed > free:
        raise NoSpace(
            f"Failed to {what}: No space left on device: {needed / _MIB:.1f} MiB are needed and {free / _MIB:.1f} MiB"
            f" are free in {place}.",
            hint="Make room on the host and run the task again.",
            needed=needed,
            free=free,
        )


def identity(path: str) -> list[int]:
    """What changes when somebody writes to a file, or puts another one in its place."""
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def read_whole(path: str) -> bytes:
    """The content of a small file; nothing when there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def read_json(path: str) -> dict[str, t.Any]:
    """The JSON object in a file; one that is not there, or not whole, says nothing."""
    try:
        found = json.loads(read_whole(path))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: str, content: bytes, mode: int) -> None:
    """The whole file or none, on disk when this returns."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), suffix=PART, delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fchmod(part.fileno(), mode)
            os.fsync(part.fileno())
            os.rename(part.name, path)
        except OSError:
            os.unlink(part.name)
            raise


def receive(content: t.Iterable[Block], target: t.IO[bytes]) -> tuple[str, int]:
    """Write *content* to *target*, zeros as holes.

    :returns: Its sha256, hexadecimal, and its length in bytes.
    """
    digest, length = hashlib.sha256(), 0
    for block in content:
        digest.update(block)
        view = memoryview(block)
        length += len(view)
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            if not any(piece[:512]) and bytes(piece) == _ZEROS[: len(piece)]:
                target.seek(len(piece), os.SEEK_CUR)
            else:
                target.write(piece)
    target.truncate()
    return digest.hexdigest(), length


def hash_file(path: str) -> str:
    """The sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def alone(path: str) -> t.Iterator[None]:
    """One process or thread at a time; the others wait. The kernel lets go when a process dies. The file stays."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def alone_for_now(path: str, *, wait: bool = True) -> t.Iterator[bool]:
    """The same with a lock file that goes when it is let go of.

    :param wait: Else the body runs also when another holds the lock, and is told so.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            yield False
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        os.close(fd)  # whoever had it has removed it
    try:
        yield True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


class Memo:
    """Hashes of files, by what changes when somebody writes to them. Whoever removes it loses time only.

    :param path: The file that it is kept in.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def recall(self, path: str) -> str | None:
        """The sha256 of a file, if it is known."""
        known = read_json(self.path).get(os.path.realpath(path))
        if not isinstance(known, dict) or known.get("identity") != identity(path):
            return None
        return known.get("sha256")

    def remember(self, path: str, seen: list[int], sha256: str) -> None:
        """Note the hash of a file that had the identity *seen*, and forget files that are gone."""
        with alone_for_now(f"{self.path}.lock"):
            memo = {known: entry for known, entry in read_json(self.path).items() if os.path.exists(known)}
            memo[os.path.realpath(path)] = {"identity": seen, "sha256": sha256}
            write_whole(self.path, json.dumps(memo, sort_keys=True).encode(), 0o600)


def qemu_img(*arguments: str) -> None:
    """Run qemu-img. Paths are absolute, so none is taken for an option, a URL or ``json:``."""
    try:
        done = subprocess.run(["qemu-img", *arguments], check=False, capture_output=True, text=True)
    except FileNotFoundError as exc:
        raise NotFound(
            "Failed to run qemu-img: it is not installed.", hint="Install the package qemu-utils or qemu-img."
        ) from exc
    if done.returncode:
        said = done.stderr.strip()
        kind = NoSpace if "No space left on device" in said else LifecycleError
        raise kind(f"Failed to run qemu-img {arguments[0]}: {said}.")


def lay_upon(path: str, parent: str, parent_format: str) -> None:
    """Make the header of the qcow2 file *path*, which has no backing file, name one. Nothing is copied.

    :param parent: Its name, relative to the directory of *path*.
    """
    qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-b", parent, "-F", parent_format, path)
