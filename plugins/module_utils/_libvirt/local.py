# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Files of VMs on this machine, which is the KVM host: directly."""

from __future__ import annotations

import contextlib
import os
import threading
import typing as t

from .._core.files import working
from .bases import Base, Source
from .cache import BaseCache, facts_of
from .files import PART, Memo, free_space, hash_file, identity, make_directory, qemu_img, write_whole
from .streams import Extent, read_file

# Hashes of images that are in no cache of ours.
MEMO = "/var/cache/kvmops/hashes.json"


class LocalStorage:
    """The files of this machine.

    :param host: Its name as libvirt tells it.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._caches: dict[str, BaseCache] = {}
        self._guard = threading.Lock()

    def free(self, directory: str) -> int | None:
        """See :class:`.storage.Storage`."""
        with working(f"look at {directory}"):
            return free_space(directory)

    def fetch_base(self, source: Source, directory: str) -> Base:
        """See :class:`.storage.Storage`."""
        return self.cache(directory).fetch(source)

    def cache(self, directory: str) -> BaseCache:
        """See :class:`.storage.Storage`."""
        with self._guard:
            return self._caches.setdefault(directory, BaseCache(directory, self.host))

    def base_facts(self, path: str) -> Base | None:
        """See :class:`.storage.Storage`."""
        return facts_of(path)

    def there(self, path: str) -> bool:
        """See :class:`.storage.Storage`."""
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def digest(self, path: str) -> str:
        """See :class:`.storage.Storage`. The hash is remembered by the file's identity, if we may."""
        with working(f"hash {path}"):
            seen = identity(path)
            memo = Memo(MEMO)
            sha256 = memo.recall(path)
            if sha256 is None:
                sha256 = hash_file(path)
                with contextlib.suppress(PermissionError):
                    make_directory(os.path.dirname(MEMO))
                    memo.remember(path, seen, sha256)
        return sha256

    def read(self, path: str) -> t.Generator[Extent, None, None]:
        """See :class:`.storage.Storage`."""
        with working(f"read {path}"):
            yield from read_file(path)

    def length(self, path: str) -> int:
        """See :class:`.storage.Storage`."""
        with working(f"look at {path}"):
            return os.stat(path).st_size

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """See :class:`.storage.Storage`."""
        self._create(path, size, "-b", base.path, "-F", base.format)

    def make_disk(self, path: str, size: int) -> None:
        """See :class:`.storage.Storage`."""
        self._create(path, size)

    def _create(self, path: str, size: int, *options: str) -> None:
        if os.path.exists(path):
            return
        part = f"{path}{PART}"
        with working(f"create disk {path}"):
            make_directory(os.path.dirname(path))
            qemu_img("create", "-q", "-f", "qcow2", *options, part, str(size))
            os.chmod(part, 0o600)
            os.rename(part, path)

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """See :class:`.storage.Storage`."""
        qemu_img("resize", "-q", "-f", disk_format, path, str(size))

    def write(self, path: str, content: bytes) -> None:
        """See :class:`.storage.Storage`."""
        with working(f"write {path}"):
            make_directory(os.path.dirname(path))
            write_whole(path, content, 0o600)

    def remove(self, path: str) -> bool:
        """See :class:`.storage.Storage`."""
        with working(f"remove {path}"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                return False
        return True

    def remove_directory(self, directory: str) -> list[str]:
        """See :class:`.storage.Storage`."""
        with working(f"remove {directory}"):
            if not os.path.isdir(directory):
                return []
            left = sorted(os.listdir(directory))
            if not left:
                os.rmdir(directory)
        return left

    def close(self) -> None:
        """See :class:`.storage.Storage`."""
        for cache in self._caches.values():
            cache.close()
