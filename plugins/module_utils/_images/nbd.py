# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Disks that are read over NBD, from a UNIX socket: the backup of a running VM, or a file at rest."""

from __future__ import annotations

import collections
import contextlib
import mmap
import queue
import threading
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor

from .._core.clock import Clock
from .._core.errors import Denied, LifecycleError, NoSpace, NotFound, Unreachable, Unsupported
from .bandwidth import TokenBucket
from .extents import Status
from .qcow2 import Layout

try:
    import nbd
except ImportError:  # told when an export is opened
    nbd = None

ALLOCATION = "base:allocation"

# The first whose Python binding reads into any buffer.
_OLDEST = (1, 14)
# Bytes of a block, and of one read at most. Larger ones are not faster.
_BLOCK = 2 << 20
# Blocks that are being read at a time; those that are there besides wait for the reader of the content, or are with it.
_IN_FLIGHT = 4
_BUFFERS = _IN_FLIGHT + 3
# Bytes that are asked about at a time: a request has 32 bits for it.
_PAGE = 1 << 30
# Seconds, at most, until somebody who waits looks around.
_LOOK = 0.2

_KINDS: dict[str, type[LifecycleError]] = {
    "EACCES": Denied,
    "EPERM": Denied,
    "ENOSPC": NoSpace,
    "EDQUOT": NoSpace,
    "ECONNREFUSED": Unreachable,
    "ECONNRESET": Unreachable,
    "ENOTCONN": Unreachable,
    "EPIPE": Unreachable,
    "ESHUTDOWN": Unreachable,
    "ENOENT": NotFound,
}


def dirty_bitmap(name: str) -> str:
    """The context that tells what QEMU's dirty bitmap *name* has seen."""
    return f"qemu:dirty-bitmap:{name}"


class Export:
    """A connection to one export; closed at the end of a ``with``.

    :param socket: Path of the UNIX socket.
    :param name: Of the export.
    :param contexts: What shall be asked with :meth:`extents`.
    :raises Unsupported: libnbd is missing or too old.
    :raises NotFound: There is no such socket, export or context.
    :raises Unreachable: Nobody answers there.
    """

    def __init__(self, socket: str, name: str = "", contexts: t.Sequence[str] = (ALLOCATION,)) -> None:
        self.what = f"NBD export {name!r} at {socket}"
        self._handle = _new_handle(self.what)
        try:
            with self.doing("open"):
                self._handle.set_export_name(name)
                self._handle.set_pread_initialize(False)  # what was not read well is not used
                for context in contexts:
                    self._handle.add_meta_context(context)
                self._handle.connect_unix(socket)
                missing = [context for context in contexts if not self._handle.can_meta_context(context)]
                self.size = int(self._handle.get_size())
            if missing:
                raise NotFound(f"Failed to open {self.what}: it has no {' and no '.join(missing)}.")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Export:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection, as libnbd does when nobody has the handle any more. It is not shut down in good
        order: a server that hangs would be waited for."""
        self._handle = None

    @contextlib.contextmanager
    def doing(self, what: str) -> t.Iterator[None]:
        """Translate libnbd's errors in the body, which does *what* to the export."""
        try:
            yield
        except nbd.Error as exc:
            kind = _KINDS.get(exc.errno, LifecycleError)
            if self._handle.aio_is_dead() and kind is LifecycleError:
                kind = Unreachable
            raise kind(f"Failed to {what} {self.what}: {exc.string}.") from exc

    def extents(self, context: str) -> t.Iterator[Status]:
        """What the export tells of itself in *context*, from its begin to its end, or further.

        :raises LifecycleError: It does not answer the question.
        """
        position = 0
        while position < self.size:
            answers = self._ask(context, position)
            before = position
            for length, flags in zip(answers[::2], answers[1::2]):
                yield Status(position, length, flags)
                position += length
            if position == before:
                raise LifecycleError(f"Failed to ask for {context} of {self.what}: it says nothing about {position}.")

    def _ask(self, context: str, position: int) -> list[int]:
        """Lengths and flags, by turns, of what begins at *position*."""
        answers: list[int] = []

        def collect(about: str, _offset: int, entries: list[int], _error: int) -> int:
            if about == context:
                answers.extend(entries)
            return 0

        with self.doing(f"ask for {context} of"):
            self._handle.block_status(min(_PAGE, self.size - position), position, collect)
        return answers

    def start_read(self, buffer: memoryview, offset: int) -> int:
        """Begin to fill *buffer* with what is at *offset*; what lies behind the disk's end is zeros.

        :returns: A number for :meth:`is_read`.
        """
        there = max(0, min(len(buffer), self.size - offset))
        if there < len(buffer):
            buffer[there:] = bytes(len(buffer) - there)
        with self.doing("read"):
            return int(self._handle.aio_pread(buffer[:there], offset))

    def is_read(self, number: int) -> bool:
        """Whether the read with that *number* is done; to be asked until it is."""
        with self.doing("read"):
            return bool(self._handle.aio_command_completed(number))

    def wait(self, seconds: float) -> None:
        """Wait for something to come of the reads."""
        with self.doing("read"):
            self._handle.poll(int(seconds * 1000))


def demand_libnbd(what: str) -> None:
    """See that disks can be read, before something is done that would have to be taken back.

    :param what: That would be opened.
    :raises Unsupported: libnbd is missing or too old.
    """
    _new_handle(what)


def _new_handle(what: str) -> t.Any:
    if nbd is None:
        raise Unsupported(
            f"Failed to open {what}: the Python library of libnbd is missing.",
            hint="Install it on the machine on which the module runs (package python3-libnbd).",
        )
    handle = nbd.NBD()
    version = handle.get_version()
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise Unsupported(
            f"Failed to open {what}: libnbd {version} is too old.", hint="Version 1.14 or newer is needed."
        )
    return handle


class Qcow2Content:
    """The qcow2 image of an export, as a :class:`.base.Content`: its bytes, in order, once.

    The blocks are page-aligned, so that they may go to a file past the page cache. While one is with the caller, the
    next are read, by a thread that alone uses the export. The end of a ``with`` ends it, if the caller did not come to
    the last block.

    :param export: Not asked for extents meanwhile.
    :param progress: Is told how many bytes went by, and how many there are.
    :param bandwidth: Bytes per second at most; 0 for no limit.
    :param check: Is called for every block, and several times a second while there is none; what it raises ends the
        reading.
    """

    def __init__(
        self,
        export: Export,
        layout: Layout,
        *,
        progress: t.Callable[[int, int], None] | None = None,
        bandwidth: int = 0,
        check: t.Callable[[], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._export = export
        self._layout = layout
        self._progress = progress
        self._check = check
        self._clock = clock or Clock()
        self._bucket = TokenBucket(bandwidth, self._clock) if bandwidth else None
        self._blocks = self._slowed(self._metadata(), self._data())

    def __len__(self) -> int:
        return self._layout.length

    def __iter__(self) -> t.Iterator[memoryview]:
        return self._blocks

    def __enter__(self) -> Qcow2Content:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more."""
        self._blocks.close()

    def _slowed(self, *parts: t.Generator[memoryview, None, None]) -> t.Generator[memoryview, None, None]:
        """The blocks of the *parts*, with everything that is done for each of them."""
        done = 0
        for part in parts:
            with contextlib.closing(part):
                for block in part:
                    self._look()
                    if self._bucket:
                        self._pause(self._bucket.take(len(block)))
                    yield block
                    done += len(block)
                    if self._progress:
                        self._progress(done, len(self))

    def _look(self) -> None:
        if self._check:
            self._check()

    def _pause(self, seconds: float) -> None:
        while seconds > 0:
            self._clock.sleep(min(seconds, _LOOK))
            seconds -= _LOOK
            self._look()

    def _metadata(self) -> t.Generator[memoryview, None, None]:
        buffer = memoryview(mmap.mmap(-1, _BLOCK))
        filled = 0
        for piece in self._layout.metadata():
            if filled + len(piece) > len(buffer):
                yield buffer[:filled]
                filled = 0
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        yield buffer[:filled]

    def _data(self) -> t.Generator[memoryview, None, None]:
        reader = _Reader(self._export, self._layout)
        with ThreadPoolExecutor(1, thread_name_prefix="kvmops-nbd") as pool:
            reading: Future[None] = pool.submit(reader.run)
            try:
                while True:
                    try:
                        block = reader.filled.get(timeout=_LOOK)
                    except queue.Empty:
                        self._look()
                        continue
                    if block is None:
                        break
                    yield block
                    reader.free.put(block)
                reading.result()
            finally:
                reader.stopped.set()


class _Reader:
    """Reads the data of a layout, block by block.

    :ivar free: Buffers to be filled.
    :ivar filled: Blocks in order, and ``None`` when no more will come.
    :ivar stopped: To be set when no more are wanted.
    """

    def __init__(self, export: Export, layout: Layout) -> None:
        self.free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self.filled: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self._export = export
        self._layout = layout
        for _buffer in range(_BUFFERS):
            self.free.put(memoryview(mmap.mmap(-1, _BLOCK)))

    def run(self) -> None:
        """Read it all, unless stopped."""
        try:
            self._read()
        finally:
            self.filled.put(None)

    def _read(self) -> None:
        blocks = self._layout.reads(_BLOCK)
        reading: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        block = next(blocks, None)
        while not self.stopped.is_set() and (block or reading):
            if block and len(reading) < _IN_FLIGHT:
                with contextlib.suppress(queue.Empty):
                    # Without a read on its way, a buffer is all that can be waited for.
                    buffer = self.free.get(timeout=0 if reading else _LOOK)
                    reading.append(self._start(buffer, block))
                    block = next(blocks, None)
                    continue
            if reading and self._is_read(reading[0][1]):
                self.filled.put(reading.popleft()[0])
            elif reading:
                self._export.wait(_LOOK)

    def _start(self, buffer: memoryview, block: list[t.Any]) -> tuple[memoryview, list[int]]:
        numbers = []
        position = 0
        for start, length in block:
            numbers.append(self._export.start_read(buffer[position : position + length], start))
            position += length
        return buffer[:position], numbers

    def _is_read(self, numbers: list[int]) -> bool:
        while numbers and self._export.is_read(numbers[-1]):
            numbers.pop()
        return not numbers
