# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a VM shows to whom looks: the log of its console, the console itself, its screen."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import os
import stat
import threading
import types
import typing as t
from dataclasses import dataclass

try:
    import libvirt
except ImportError:  # run_queries() tells the user
    libvirt = None

from .._core.errors import Busy, LifecycleError, NoSpace, NotFound
from .._core.files import working
from .._model.console import FINGERPRINT, Position
from .errors import doing
from .guest import Guest

# Bytes that are read of a stream at once, as many as libvirt sends.
_CHUNK = 262120
# Bytes of a picture: a screen of 8192 by 8192 without compression.
MAX_PICTURE = 3 * 8192 * 8192 + 1024


@dataclass(frozen=True)
class _File:
    """One that is open.

    :param size: In bytes.
    :param written: When it was last written to, in nanoseconds.
    """

    descriptor: int
    inode: int
    size: int
    written: int

    def fingerprint(self, offset: int) -> str:
        """See :class:`.Position`."""
        size = min(FINGERPRINT, offset)
        return hashlib.sha256(os.pread(self.descriptor, size, offset - size)).hexdigest()[:16]


class Log:
    """The log of a console as it is at one moment, with what was rotated away: to PATH.0 by virtlogd and to PATH.1 by
    logrotate, and on from there. For a ``with``. Places in it are counted in bytes from the oldest.

    :param path: On this machine.
    :raises Denied: We may not read it.
    :raises LifecycleError: It is no regular file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._files: list[_File] = []  # the oldest first
        try:
            self._open(path)
        except BaseException:
            self._close()
            raise

    def _open(self, path: str) -> None:
        # The newest first: what is rotated meanwhile is met a second time, and not missed.
        seen: set[int] = set()
        for number in itertools.count(-1):
            name = path if number < 0 else f"{path}.{number}"
            try:
                with working(f"read the console's log {name}"):
                    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except LifecycleError as exc:
                if exc.code != "not_found":
                    raise
                if number > 0:
                    break
                continue
            told = os.fstat(descriptor)
            if not stat.S_ISREG(told.st_mode) or told.st_ino in seen:
                os.close(descriptor)
                if told.st_ino in seen:
                    continue
                raise LifecycleError(f"Failed to read the console's log {name}: it is no regular file.")
            seen.add(told.st_ino)
            self._files.insert(0, _File(descriptor, told.st_ino, told.st_size, told.st_mtime_ns))

    @property
    def there(self) -> bool:
        """Whether there is any file of it."""
        return bool(self._files)

    @property
    def size(self) -> int:
        """Bytes in all of it."""
        return sum(file.size for file in self._files)

    def read(self, begin: int, end: int) -> bytes:
        """The bytes between two places."""
        found, start = [], 0
        for file in self._files:
            first, last = max(begin - start, 0), min(end - start, file.size)
            if first < last:
                with working(f"read the console's log {self.path}"):
                    found.append(os.pread(file.descriptor, last - first, first))
            start += file.size
        return b"".join(found)

    def position(self, place: int, *, uuid: str, run: int) -> Position:
        """What :meth:`find` finds that place by later."""
        start = 0
        for file in self._files:
            offset = place - start
            if 0 < offset <= file.size:
                return Position(uuid, run, file.inode, offset, file.fingerprint(offset), file.written)
            start += file.size
        # Before all there is: what was written up to now counts as written later.
        return Position(uuid, run, written=self._files[0].written - bool(self.size) if self._files else 0)

    def find(self, position: Position, *, anew: bool = False) -> tuple[int, bool]:
        """The place, and whether it is the very one. Else its file is gone, or was emptied; and the place is the first
        after which anything was written since.

        :param anew: The file is known to have been emptied.
        """
        start, copies, later = 0, [], None
        for file in self._files:
            same = file.size >= position.offset > 0 and file.fingerprint(position.offset) == position.fingerprint
            if same and file.inode == position.inode and not anew:
                return start + position.offset, True
            if same and not anew:  # logrotate may leave a copy, and empty the file
                copies.append(start + position.offset)
            # Whatever has the inode of a file that is gone: what was written before is older than the position.
            if later is None and file.written > position.written:
                later = start
            start += file.size
        if copies:
            return copies[-1], True
        return (start if later is None else later), not position.offset

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop().descriptor)


class Terminal:
    """The console of a running VM, listened to. For a ``with``.

    A guest that speaks slowly makes a message of every byte, and libvirt's event loop takes one at each turn. So a
    thread waits for them: it takes each at once, and answers libvirtd when that asks whether we are still there.

    :raises Busy: Somebody else has it open.
    :raises NotFound: libvirtd is starting the VM, and has made no console yet.
    :raises LifecycleError: The VM is off, or has no such console.
    """

    def __init__(self, guest: Guest) -> None:
        self._heard: collections.deque[bytes] = collections.deque()
        with doing(f"open the console of VM {guest.name}"):
            self._stream = guest.host.connection.newStream(0)
            try:
                guest.domain.openConsole(None, self._stream, 0)
            except libvirt.libvirtError as exc:
                if "active console session" in str(exc).lower():
                    raise Busy(
                        f"Failed to open the console of VM {guest.name}: somebody else has it open.",
                        hint="End that session, or give the console a log: <log file='...' append='on'/>.",
                    ) from exc
                if "not yet assigned" in str(exc):
                    raise NotFound(f"VM {guest.name} has no console yet.") from exc
                raise
        self._thread = threading.Thread(target=self._listen, name="kvmops-console", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):  # the VM was switched off, or we have heard enough
            while block := self._stream.recv(_CHUNK):
                self._heard.append(block)

    def read(self) -> bytes | None:
        """What the guest has said since; ``None`` when that is nothing, and no bytes when the console is closed."""
        alive = self._thread.is_alive()  # asked first: what is heard meanwhile is not lost
        blocks = [self._heard.popleft() for _number in range(len(self._heard))]
        return b"".join(blocks) if blocks or not alive else None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        with contextlib.suppress(libvirt.libvirtError):  # it has ended by itself
            self._stream.abort()


def screenshot(guest: Guest) -> bytes:
    """A picture of the first screen of a running VM (virDomainScreenshot), PPM or PNG as QEMU gives it.

    :raises LifecycleError: It has none, or the VM is off.
    """
    picture = bytearray()

    def received(_stream: t.Any, block: bytes, _opaque: t.Any) -> int:
        picture.extend(block)
        return -1 if len(picture) > MAX_PICTURE else 0

    with doing(f"take a picture of the screen of VM {guest.name}"):
        stream = guest.host.connection.newStream(0)
        try:
            guest.domain.screenshot(stream, 0, 0)
            stream.recvAll(received, None)
            stream.finish()
        except BaseException:
            with contextlib.suppress(libvirt.libvirtError):
                stream.abort()
            if len(picture) > MAX_PICTURE:
                raise NoSpace(
                    f"Failed to take a picture of the screen of VM {guest.name}: it has more than {MAX_PICTURE} bytes."
                ) from None
            raise
    return bytes(picture)
