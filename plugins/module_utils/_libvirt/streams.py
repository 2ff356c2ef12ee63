# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The content of files on its way from host to host: blocks of equal size, of which those that hold zeros are not sent.

What is sent is hashed without them too, so a sparse file is as quick to compare as it is to copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import typing as t

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import LifecycleError

# The cluster of a qcow2 file: what is a hole in it stays one.
BLOCK = 1 << 16
_READ = 1 << 20
_ZEROS = bytes(BLOCK)

# A run of data, or the length of a hole.
Extent = t.Union[bytes, int]


def read_file(path: str) -> t.Iterator[Extent]:
    """The content of a file or block device of this machine."""
    with open(path, "rb", buffering=0) as file:
        fd = file.fileno()
        end = os.lseek(fd, 0, os.SEEK_END)
        position = 0
        while position < end:
            try:
                begin = os.lseek(fd, position, os.SEEK_DATA)
                hole = min(end, os.lseek(fd, begin, os.SEEK_HOLE))
            except OSError:  # no data from here on; a device, too, may not know its holes
                begin, hole = (end, end) if _sparse(fd) else (position, end)
            if begin > position:
                yield begin - position
            position = begin
            while position < hole:
                data = os.pread(fd, min(_READ, hole - position), position)
                if not data:
                    raise LifecycleError(f"Failed to read {path}: it became shorter.", hint="Run the task again.")
                yield data
                position += len(data)


def _sparse(fd: int) -> bool:
    """Whether it is known where a file has holes."""
    try:
        os.lseek(fd, 0, os.SEEK_HOLE)
    except OSError:
        return False
    return True


def read_stream(stream: t.Any) -> t.Iterator[Extent]:
    """What a sparse download brings. Who wants no more of it closes the generator."""
    try:
        while True:
            data = stream.recvFlags(BLOCK * 4, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
            if data == -3:
                yield int(stream.recvHole())
            elif data:
                yield data
            else:
                break
    except (libvirt.libvirtError, GeneratorExit):
        end_stream(stream)
        raise
    stream.finish()


def end_stream(stream: t.Any) -> None:
    """Give a stream up, so that the volume is not in use any more. One that has failed is fine."""
    with contextlib.suppress(libvirt.libvirtError):
        stream.abort()


def blocks(extents: t.Iterable[Extent]) -> t.Iterator[Extent]:
    """The same content in blocks of :data:`BLOCK` bytes that hold something, and holes between them of whole blocks."""
    kept = bytearray()
    hole = 0
    for extent in extents:
        whole = last = 0
        if isinstance(extent, int):
            first = min(extent, -len(kept) % BLOCK)
            kept.extend(bytes(first))
            whole = (extent - first) // BLOCK * BLOCK
            last = extent - first - whole
        else:
            kept.extend(extent)
        while len(kept) >= BLOCK:
            block = bytes(kept[:BLOCK])
            del kept[:BLOCK]
            if block == _ZEROS:
                hole += BLOCK
                continue
            if hole:
                yield hole
                hole = 0
            yield block
        hole += whole
        kept.extend(bytes(last))
    if hole:
        yield hole
    if kept:
        yield bytes(kept)


class Digest:
    """What tells contents apart: made of the blocks that hold something, and of where they are."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.length = 0
        self.data = 0

    def take(self, block: Extent) -> None:
        """The next of :func:`blocks`."""
        if isinstance(block, int):
            self.length += block
            return
        self._hash.update(self.length.to_bytes(8, "big"))
        self._hash.update(block)
        self.length += len(block)
        self.data += len(block)

    @property
    def text(self) -> str:
        """Hexadecimal, with the length."""
        return f"{self._hash.hexdigest()}-{self.length}"


def digest_of(extents: t.Iterable[Extent]) -> str:
    """The digest of a content."""
    digest = Digest()
    for block in blocks(extents):
        digest.take(block)
    return digest.text
