# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Files of VMs on the KVM host: directly when it is this machine, else through libvirt's storage volumes.

Both ways make the same files with the same names, so what one began the other can finish or remove.

``STORAGE/_base/`` are base images (see :mod:`.bases`); ``STORAGE/UUID/`` is the directory of a VM.
"""

from __future__ import annotations

import typing as t

from .bases import Base, Source
from .cache import BaseCache
from .host import Host
from .local import LocalStorage
from .pools import PoolStorage
from .streams import Extent


class Storage(t.Protocol):
    """What operations need of a host's files. Paths are absolute and on the host; sizes are bytes."""

    def free(self, directory: str) -> int | None:
        """Free space where *directory* is or will be; ``None`` when it cannot be told before the directory exists."""

    def fetch_base(self, source: Source, directory: str) -> Base:
        """The base image made of *source*, in the cache below *directory*; what it lies upon comes with it.

        What is there is neither read nor copied. Many who want the same image fetch it once, and different images come
        side by side. On the host itself it is not removed by others before :meth:`close`.

        :raises Invalid: The content is not what it is said to be.
        :raises NoSpace: There is no room for it.
        """

    def cache(self, directory: str) -> BaseCache:
        """The base cache below *directory*, to remove from it.

        :raises Unsupported: The host is another machine.
        """

    def base_facts(self, path: str) -> Base | None:
        """What is known of the base image *path*; ``None`` when it lies in no base cache, or is not complete."""

    def there(self, path: str) -> bool:
        """Whether there is a file, or a block device. What we may not look at counts as there: libvirtd may."""

    def digest(self, path: str) -> str:
        """The sha256 of a file that nobody writes to, hexadecimal. A file that did not change is read once only."""

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """A qcow2 file over *base*; one that is there already is kept."""

    def make_disk(self, path: str, size: int) -> None:
        """An empty qcow2 file; one that is there already is kept."""

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """Make the disk in a file larger; nobody else has it open."""

    def write(self, path: str, content: bytes) -> None:
        """A file with *content*, readable by nobody else, in the place of one that is there."""

    def remove(self, path: str) -> bool:
        """Remove a file; whether there was one."""

    def remove_directory(self, directory: str) -> list[str]:
        """Remove a directory if it is empty; the names that are still in it."""

    def read(self, path: str) -> t.Generator[Extent, None, None]:
        """The content of a file or block device, holes as such."""

    def length(self, path: str) -> int:
        """Of a file, in bytes.

        :raises NotFound: There is none.
        """

    def close(self) -> None:
        """Let go of what was held for the work."""


def storage_of(host: Host) -> Storage:
    """The storage of *host*."""
    return LocalStorage(host.name) if host.local else PoolStorage(host)
