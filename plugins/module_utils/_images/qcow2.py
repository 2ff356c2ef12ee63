# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A qcow2 image that is laid out before its data are read: length and metadata follow from what is data alone.

So it can be written from front to back, into a file or a request whose length must be told first. The format is that of
QEMU's documentation, "QCow2 Image Format": version 3, no backing file, all reference counts 1.
"""

from __future__ import annotations

import struct
import sys
import typing as t
from array import array

from .extents import ABSENT, CLUSTER, DATA, Clusters

_SECTOR = 512
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_LENGTH = 104
_REFCOUNT_ORDER = 4  # 16 bits each
_PER_TABLE = CLUSTER // 8
_PER_REFCOUNT_BLOCK = CLUSTER // 2
# Of an entry of an L1 or L2 table: the reference count of what it points to is exactly 1.
_COPIED = 1 << 63
# Of an entry of an L2 table: the cluster reads as zeros.
_ZERO = 1


class Read(t.NamedTuple):
    """A range of bytes of the disk, of whole clusters; the last may reach over the disk's end."""

    start: int
    length: int


class Layout:
    """Where everything is in the image of a disk.

    In the file: header, refcount table and blocks, L1 table, L2 tables that are needed, data in the order of the disk.

    :ivar virtual_size: Of the disk in it, in bytes: whole sectors, as QEMU forgets what is less.
    :ivar clusters: Its clusters.
    :ivar length: Of the file, in bytes; a multiple of :data:`CLUSTER`.
    :ivar data_offset: Where in the file the data begin.
    """

    def __init__(self, virtual_size: int, clusters: Clusters) -> None:
        self.virtual_size = _parts(virtual_size, _SECTOR) * _SECTOR
        self.clusters = clusters
        self._l1_size = _parts(len(clusters), _PER_TABLE)
        l1_clusters = _parts(self._l1_size, _PER_TABLE)
        needed = self._needed()
        counted = 1 + l1_clusters + sum(needed) + clusters.data
        blocks = table = 0
        while True:  # what counts references is counted as well
            total = counted + blocks + table
            wanted = _parts(total, _PER_REFCOUNT_BLOCK)
            if (blocks, table) == (wanted, _parts(wanted, _PER_TABLE)):
                break
            blocks, table = wanted, _parts(wanted, _PER_TABLE)
        self._total = total
        self._refcount_clusters = table
        self._refcount_blocks = blocks
        self._l1_offset = (1 + table + blocks) * CLUSTER
        self._tables_offset = self._l1_offset + l1_clusters * CLUSTER
        self.data_offset = self._tables_offset + sum(needed) * CLUSTER
        self.length = total * CLUSTER

    def metadata(self) -> t.Iterator[bytes]:
        """All that comes before the data, in pieces of whole clusters, none larger than 1 MiB for any disk up to
        64 TiB."""
        yield self._header()
        first = (1 + self._refcount_clusters) * CLUSTER
        yield _padded(array("Q", range(first, self._l1_offset, CLUSTER)))
        left = self._total
        for _block in range(self._refcount_blocks):
            yield _padded(array("H", [1]) * min(left, _PER_REFCOUNT_BLOCK))
            left -= _PER_REFCOUNT_BLOCK
        yield self._l1()
        yield from self._l2()

    def reads(self, size: int) -> t.Iterator[list[Read]]:
        """What to read for the data, in order: for each block of *size* bytes (the last may be smaller) its pieces.

        :param size: A multiple of :data:`CLUSTER`.
        """
        block: list[Read] = []
        room = size
        for first, count, kind in self.clusters:
            if kind != DATA:
                continue
            start, left = first * CLUSTER, count * CLUSTER
            while left:
                length = min(left, room)
                block.append(Read(start, length))
                start += length
                left -= length
                room -= length
                if not room:
                    yield block
                    block, room = [], size
        if block:
            yield block

    def _needed(self) -> bytearray:
        """For each entry of the L1 table: 1 when it has a table, or 0."""
        needed = bytearray(self._l1_size)
        for start, count, kind in self.clusters:
            if kind != ABSENT:
                first, last = start // _PER_TABLE, (start + count - 1) // _PER_TABLE
                needed[first : last + 1] = b"\1" * (last + 1 - first)
        return needed

    def _header(self) -> bytes:
        header = _HEADER.pack(
            b"QFI\xfb",
            3,
            0,  # no backing file
            0,
            CLUSTER.bit_length() - 1,
            self.virtual_size,
            0,  # not encrypted
            self._l1_size,
            self._l1_offset,
            CLUSTER,  # where the refcount table begins
            self._refcount_clusters,
            0,  # no snapshots
            0,
            0,  # no features
            0,
            0,
            _REFCOUNT_ORDER,
            _HEADER_LENGTH,
        )
        return header.ljust(CLUSTER, b"\0")

    def _l1(self) -> bytes:
        entries = array("Q", bytes(8 * self._l1_size))
        offset = self._tables_offset
        for index, needed in enumerate(self._needed()):
            if needed:
                entries[index] = offset | _COPIED
                offset += CLUSTER
        return _padded(entries)

    def _l2(self) -> t.Iterator[bytes]:
        offset = self.data_offset
        entries = array("Q")
        current = -1
        for first, count, kind in self.clusters:
            if kind == ABSENT:
                continue
            start, end = first, first + count
            while start < end:
                index, position = divmod(start, _PER_TABLE)
                if index != current:
                    if entries:
                        yield _padded(entries)
                    entries, current = array("Q", bytes(CLUSTER)), index
                taken = min(end - start, _PER_TABLE - position)
                if kind == DATA:
                    entry = offset | _COPIED
                    new = array("Q", range(entry, entry + taken * CLUSTER, CLUSTER))
                    offset += taken * CLUSTER
                else:
                    new = array("Q", [_ZERO]) * taken
                entries[position : position + taken] = new
                start += taken
        if entries:
            yield _padded(entries)


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _padded(numbers: array[int]) -> bytes:
    """Big-endian numbers, filled up to whole clusters. The array is used up."""
    if sys.byteorder == "little":
        numbers.byteswap()
    content = numbers.tobytes()
    return content.ljust(_parts(len(content), CLUSTER) * CLUSTER, b"\0")
