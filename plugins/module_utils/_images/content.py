# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Content on its way: read from a file, hashed while somebody else works on it."""

from __future__ import annotations

import hashlib
import mmap
import os
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor

from .._core.errors import Invalid
from .._core.files import working
from .base import Block, Content

BLOCK = 2 << 20


class FileContent:
    """The content of a local file.

    :param path: Of a file that is left alone while it is read.
    :param called: What it is called in errors; the path when it is empty.
    :raises NotFound: There is none.
    :raises Denied: It may not be read.
    """

    def __init__(self, path: str, called: str = "") -> None:
        self.path = path
        self.called = called or path
        with working(f"read {self.called}"), open(path, "rb", buffering=0) as file:
            self._identity = _identity(file.fileno())

    def __len__(self) -> int:
        """All bytes, as they were when this was made."""
        return self._identity[1]

    def __iter__(self) -> t.Iterator[Block]:
        """The blocks, from the first on.

        :raises Invalid: The file is another one than before, or was changed.
        """
        with working(f"read {self.called}"), open(self.path, "rb", buffering=0) as file:
            for block in read_blocks(file.fileno(), len(self)):
                self._check(file)
                yield block
            self._check(file)

    def _check(self, file: t.IO[bytes]) -> None:
        if _identity(file.fileno()) != self._identity:
            raise Invalid(f"{self.called} was changed while it was read.", hint="Run the task again.")


class TextContent:
    """A short content that is there already: a definition, what firmware remembers, who holds a claim."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        """All bytes."""
        return len(self._content)

    def __iter__(self) -> t.Iterator[Block]:
        """It, in blocks."""
        return (self._content[start : start + BLOCK] for start in range(0, len(self._content), BLOCK))


class VerifiedContent:
    """A content that must have these hashes.

    :param called: What it is called in errors.
    """

    def __init__(self, content: Content, digests: t.Mapping[str, str], called: str) -> None:
        self._content = content
        self._digests = digests
        self._called = called

    def __len__(self) -> int:
        """All bytes."""
        return len(self._content)

    def __iter__(self) -> t.Iterator[Block]:
        """The blocks; the last one only when all of them have the hashes.

        :raises Invalid: They have not.
        """
        return verified(self._content, size=len(self), digests=self._digests, called=self._called)


def _identity(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_blocks(fd: int, size: int) -> t.Iterator[memoryview]:
    """*size* bytes of an open file, or as many as there are, in blocks that share one buffer."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = memoryview(mmap.mmap(-1, BLOCK))
    offset = 0
    while offset < size:
        wanted = min(BLOCK, size - offset)
        filled = 0
        while filled < wanted:
            count = os.preadv(fd, [buffer[filled:wanted]], offset + filled)
            if not count:
                yield buffer[:filled]
                return
            filled += count
        yield buffer[:wanted]
        offset += wanted


class Hashes:
    """Hashes of a content, each in a thread of its own: hashlib lets go of the interpreter meanwhile.

    :param names: Algorithms, as hashlib knows them.
    """

    def __init__(self, names: t.Iterable[str]) -> None:
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in names}
        self._pools = {name: ThreadPoolExecutor(1) for name in self._digests}

    def __enter__(self) -> Hashes:
        return self

    def __exit__(self, *exc: object) -> None:
        for pool in self._pools.values():
            pool.shutdown()

    def take(self, block: Block) -> list[Future[None]]:
        """Begin to hash the next block. It must stay as it is until these are done."""
        return [self._pools[name].submit(digest.update, block) for name, digest in self._digests.items()]

    def told(self) -> dict[str, str]:
        """Hexadecimal, by algorithm, of all blocks; they must be done."""
        return {name: digest.hexdigest() for name, digest in self._digests.items()}


def hashed(content: Content, hashes: Hashes) -> t.Iterator[Block]:
    """The blocks of *content*, each hashed while the caller works on it."""
    for block in content:
        begun = hashes.take(block)
        yield block
        for each in begun:
            each.result()


def digests_of(content: Content, names: t.Iterable[str]) -> dict[str, str]:
    """Read *content* for its hashes by these algorithms."""
    with Hashes(names) as hashes:
        for _block in hashed(content, hashes):
            pass
        return hashes.told()


def verified(blocks: t.Iterable[Block], *, size: int, digests: t.Mapping[str, str], called: str) -> t.Iterator[Block]:
    """The *blocks*; the last one comes only when all of them have this size and these hashes.

    :param called: What they are, for the error.
    :raises Invalid: They have not.
    """
    seen = 0
    with Hashes(digests) as hashes:
        for block in blocks:
            seen += len(block)
            begun = hashes.take(block)
            if seen >= size:
                for each in begun:
                    each.result()
                _compare(seen, size, hashes.told(), digests, called)
            yield block
            for each in begun:
                each.result()
        _compare(seen, size, hashes.told(), digests, called)


def _compare(seen: int, size: int, found: t.Mapping[str, str], wanted: t.Mapping[str, str], called: str) -> None:
    if seen != size:
        raise Invalid(f"{called} is damaged: it has {seen} bytes instead of {size}.")
    wrong = sorted(name for name in wanted if found[name] != wanted[name])
    if wrong:
        raise Invalid(f"{called} is damaged: its {' and '.join(wrong)} is not the one that was told.")
