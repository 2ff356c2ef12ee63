# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Files of VMs on a host that is reached through libvirt: as volumes of storage pools."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import tempfile
import threading
import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import replace

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.clock import Clock, wait_until
from .._core.errors import Invalid, LifecycleError, NotFound, Unsupported
from .._core.files import working
from .._model.chain import with_backing
from .bases import BASES, MARKER, Base, Layer, Marker, Source, base_name, placed
from .cache import BaseCache, take_in
from .errors import doing
from .files import free_space, hash_file, need_space
from .host import Host
from .streams import Digest, Extent, blocks, digest_of, end_stream, read_stream

# On a disk: /tmp may be in memory.
_TEMPORARY = "/var/tmp"
# The pools that we make.
_MADE = re.compile(r"kvmops-(?P<here>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{8}")
# Seconds that a pool may be busy with volumes that others make in it.
_BUSY = 120


class PoolStorage:
    """The files of a host that is reached through libvirt: each directory is a storage pool for as long as it is
    needed.

    A pool that the host has for the directory is used; else a transient one is made, which leaves nothing behind. The
    pools of a process that was killed are taken away by the next one of the same machine.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._connection = host.connection
        self._pools: dict[str, t.Any] = {}
        self._made: list[t.Any] = []
        self._fetching: dict[str, threading.Lock] = {}
        self._digests: dict[str, str] = {}
        self._guard = threading.RLock()

    def free(self, directory: str) -> int | None:
        """See :class:`.storage.Storage`."""
        pool = self._pool(directory, create=False)
        if pool is None:
            return None
        with doing(f"look at {directory} on {self.host.name}"):
            return int(pool.info()[3])

    def fetch_base(self, source: Source, directory: str) -> Base:
        """See :class:`.storage.Storage`. An image of a store is copied to a temporary file of this machine first:
        nothing is sent that was not looked at, or that the host has."""
        bases = os.path.join(directory, BASES)
        return placed(self._fetch(source, bases), bases)

    def _fetch(self, source: Source, bases: str) -> Base:
        parent = self._fetch(source.parent, bases) if source.parent else None
        with self._guard:
            one = self._fetching.setdefault(source.key, threading.Lock())
        with one, working(f"read image {source.label}"):  # one upload serves all
            if source.path:
                source = replace(source, digests={"sha256": hash_file(source.path)})
            return self._find(source, source.digests, bases, parent) or self._send(source, bases, parent)

    def _find(
        self, source: Source | Layer, digests: t.Mapping[str, str], bases: str, parent: Base | None
    ) -> Base | None:
        upon = parent.path if parent else ""
        known = digests.get("sha256", "")
        names = self._names(bases)
        for name in sorted(name for name in names if known in name and name + MARKER in names):
            marker = Marker.load(name, self._read(os.path.join(bases, name + MARKER)))
            if marker and marker.of(source.format, source.size, digests, upon):
                return marker.base
        return None

    def _send(self, source: Source, bases: str, parent: Base | None) -> Base:
        pool = self._need(bases)
        with doing(f"look at {bases} on {self.host.name}"):
            room = int(pool.info()[3])
        need_space(f"upload image {source.label}", source.size, room, f"{bases} on {self.host.name}")
        with contextlib.ExitStack() as stack:
            if source.path:
                file: t.IO[bytes] = stack.enter_context(open(source.path, "rb"))
                sha256, virtual_size = source.digests["sha256"], source.inspect(source.path)
                base = Base("", source.format, sha256, source.size, virtual_size, source.digests)
            else:
                need_space(f"download image {source.label}", source.size, free_space(_TEMPORARY), _TEMPORARY)
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="kvmops-", dir=_TEMPORARY))
                base = take_in(source, file, file.name, parent)
                file.seek(0)
            # Every upload has a name of its own, as volumes cannot be renamed: the marker makes it count.
            name = base_name(base.sha256, base.format, base.parent, uuid.uuid4().hex[:8])
            base = replace(base, path=name)
            length = os.fstat(file.fileno()).st_size
            self._upload(os.path.join(bases, name), file, length, 0o644)
        marker = Marker(base, length, source.label, (self.host.name,))
        self.write(os.path.join(bases, name + MARKER), marker.dump())
        return base

    def bring_base(self, layer: Layer, directory: str) -> tuple[Base, int]:
        """The base with the content of *layer*, which is on another host, in the cache below *directory*; what it lies
        upon comes with it. What is there is neither read nor copied.

        :returns: The base, and how many bytes were sent.
        :raises Invalid: The content is not what it is said to be.
        :raises NoSpace: There is no room for it.
        """
        bases = os.path.join(directory, BASES)
        base, sent = self._bring(layer, bases)
        return placed(base, bases), sent

    def lacks(self, layer: Layer, directory: str) -> int:
        """How many bytes :meth:`bring_base` would have to copy at most. Nothing is made for the question."""
        bases = os.path.join(directory, BASES)
        if self._pool(bases, create=False) is None:
            return layer.total
        return self._lacks(layer, bases)[1]

    def _lacks(self, layer: Layer, bases: str) -> tuple[Base | None, int]:
        parent, lacking = self._lacks(layer.parent, bases) if layer.parent else (None, 0)
        if lacking:
            return None, lacking + layer.length
        found = self._find(layer, {**layer.digests, "sha256": layer.sha256}, bases, parent)
        return found, 0 if found else layer.length

    def _bring(self, layer: Layer, bases: str) -> tuple[Base, int]:
        parent, sent = self._bring(layer.parent, bases) if layer.parent else (None, 0)
        digests = {**layer.digests, "sha256": layer.sha256}
        with self._guard:
            one = self._fetching.setdefault(layer.sha256, threading.Lock())
        with one:
            found = self._find(layer, digests, bases, parent)
            if found:
                return found, sent
            upon = parent.path if parent else ""
            need_space(f"copy image {layer.label}", layer.length, self.free(bases) or 0, f"{bases} on {self.host.name}")
            # As in _send().
            name = base_name(layer.sha256, layer.format, upon, uuid.uuid4().hex[:8])
            path = os.path.join(bases, name)
            whole = hashlib.sha256()

            def content() -> t.Iterator[Extent]:
                for number, block in enumerate(blocks(layer.read())):
                    if parent is None:
                        whole.update(bytes(block) if isinstance(block, int) else block)
                    yield with_backing(block, upon) if upon and number == 0 and isinstance(block, bytes) else block

            sent += self._put(path, content(), layer.length, 0o644).data
            if parent is None and whole.hexdigest() != layer.sha256:
                self.remove(path)
                raise Invalid(
                    f"Image {layer.label} is damaged: it has the sha256 {whole.hexdigest()}, and should have"
                    f" {layer.sha256}.",
                    hint="Take a snapshot of the VM while it runs, and find out what wrote to its base.",
                )
        base = Base(name, layer.format, layer.sha256, layer.size, layer.virtual_size, digests, layer.images, upon)
        self.write(path + MARKER, Marker(base, layer.length, layer.label, (self.host.name,)).dump())
        return base, sent

    def cache(self, directory: str) -> BaseCache:
        """See :class:`.storage.Storage`."""
        raise Unsupported(
            f"Failed to look into the base cache below {directory} on {self.host.name}: from another machine it cannot"
            " be seen who is about to use a base.",
            hint="Run the task on the host itself.",
        )

    def base_facts(self, path: str) -> Base | None:
        """See :class:`.storage.Storage`."""
        bases, name = os.path.split(path)
        if os.path.basename(bases) != BASES or not {name, name + MARKER} <= self._names(bases):
            return None
        marker = Marker.load(name, self._read(path + MARKER))
        return placed(marker.base, bases) if marker else None

    def there(self, path: str) -> bool:
        """See :class:`.storage.Storage`. Of devices, and of pools that are not active, nothing is known from here."""
        if path.startswith("/dev/"):
            return True
        try:
            pool = self._pool(os.path.dirname(path), create=False)
        except Invalid:  # which is not active
            return True
        if pool is None:
            return False
        self._refresh(pool, os.path.dirname(path))  # others write there too
        with doing(f"look for {path} on {self.host.name}"):
            return os.path.basename(path) in pool.listVolumes()

    def length(self, path: str) -> int:
        """See :class:`.storage.Storage`."""
        with doing(f"look at {path} on {self.host.name}"):
            told = ET.fromstring(self._volume_of(path).XMLDesc())
        return int(told.findtext("physical") or told.findtext("capacity") or 0)

    def read(self, path: str) -> t.Generator[Extent, None, None]:
        """See :class:`.storage.Storage`."""
        with doing(f"read {path} on {self.host.name}"):
            stream = self.host.connection.newStream()
            self._volume_of(path).download(stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
            yield from read_stream(stream)

    def _volume_of(self, path: str) -> t.Any:
        if path.startswith("/dev/"):
            return self.host.connection.storageVolLookupByPath(path)
        pool = self._pool(os.path.dirname(path), create=False)
        if pool is None:
            raise NotFound(f"There is no {path} on {self.host.name}.")
        return pool.storageVolLookupByName(os.path.basename(path))

    def send(self, path: str, content: t.Iterable[Extent], length: int) -> Digest:
        """A new file with *content*, thin, read back and compared; none when that fails.

        :param length: Of the content, in bytes.
        :returns: What tells the content, and how much of it holds something.
        :raises LifecycleError: What is there is not what was sent.
        """
        return self._put(path, content, length, 0o600)

    def _put(self, path: str, content: t.Iterable[Extent], length: int, mode: int) -> Digest:
        digest = Digest()
        volume_xml = ET.tostring(_volume(path, "raw", length, mode), encoding="unicode")
        with doing(f"upload {path} to {self.host.name}"):
            volume = self._need(os.path.dirname(path)).createXML(volume_xml)
            stream = self.host.connection.newStream()
        try:
            with doing(f"upload {path} to {self.host.name}"):
                volume.upload(stream, 0, length, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
                for block in blocks(content):
                    digest.take(block)
                    if isinstance(block, int):
                        stream.sendHole(block)
                        continue
                    position = 0
                    while position < len(block):
                        position += stream.send(block[position:])
                stream.finish()
            if digest.length != length or digest_of(self.read(path)) != digest.text:
                raise LifecycleError(
                    f"Failed to upload {path} to {self.host.name}: what is there is not what was sent.",
                    hint="Run the task again. If that does not help, look for errors of the host's disk or memory.",
                )
        except (LifecycleError, OSError):
            end_stream(stream)
            with contextlib.suppress(libvirt.libvirtError):  # the first error is the one to tell
                volume.delete()
            raise
        return digest

    def digest(self, path: str) -> str:
        """See :class:`.storage.Storage`. All of the file comes here to be hashed, once a task."""
        if path not in self._digests:
            digest = hashlib.sha256()
            self._download(path, digest.update)
            self._digests[path] = digest.hexdigest()
        return self._digests[path]

    def _read(self, path: str) -> bytes:
        content = bytearray()
        self._download(path, content.extend)
        return bytes(content)

    def _download(self, path: str, take: t.Callable[[bytes], t.Any]) -> None:
        pool = self._pool(os.path.dirname(path), create=False)
        if pool is None:
            raise NotFound(f"There is no {path} on {self.host.name}.")

        def received(_stream: t.Any, block: bytes, _opaque: t.Any) -> int:
            take(block)
            return len(block)

        with doing(f"read {path} on {self.host.name}"):
            stream = self.host.connection.newStream()
            pool.storageVolLookupByName(os.path.basename(path)).download(stream, 0, 0)
            stream.recvAll(received, None)
            stream.finish()

    def make_overlay(self, path: str, base: Base, size: int) -> None:
        """See :class:`.storage.Storage`."""
        volume = _volume(path, "qcow2", size)
        backing = ET.SubElement(volume, "backingStore")
        ET.SubElement(backing, "path").text = base.path
        ET.SubElement(backing, "format", {"type": base.format})
        self._create(path, volume)

    def make_disk(self, path: str, size: int) -> None:
        """See :class:`.storage.Storage`."""
        self._create(path, _volume(path, "qcow2", size))

    def make_raw(self, path: str, size: int) -> None:
        """An empty raw disk, thin; one that is there already is kept."""
        self._create(path, _volume(path, "raw", size))

    def _create(self, path: str, volume: ET.Element) -> None:
        if os.path.basename(path) in self._names(os.path.dirname(path)):
            return
        with doing(f"create disk {path} on {self.host.name}"):
            self._need(os.path.dirname(path)).createXML(ET.tostring(volume, encoding="unicode"))

    def grow(self, path: str, disk_format: str, size: int) -> None:
        """See :class:`.storage.Storage`. libvirt knows the format of its volumes."""
        with doing(f"resize {path} on {self.host.name}"):
            self._need(os.path.dirname(path)).storageVolLookupByName(os.path.basename(path)).resize(size)

    def write(self, path: str, content: bytes) -> None:
        """See :class:`.storage.Storage`."""
        self.remove(path)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            self._upload(path, file, len(content), 0o600)

    def _upload(self, path: str, file: t.IO[bytes], size: int, mode: int) -> None:
        with doing(f"upload {path} to {self.host.name}"):
            volume = self._need(os.path.dirname(path)).createXML(
                ET.tostring(_volume(path, "raw", size, mode), encoding="unicode")
            )
            try:
                stream = self.host.connection.newStream()
                volume.upload(stream, 0, size)
                stream.sendAll(lambda _stream, count, _opaque: file.read(count), None)
                stream.finish()
            except (libvirt.libvirtError, OSError):
                with contextlib.suppress(libvirt.libvirtError):  # the first error is the one to tell
                    volume.delete()
                raise

    def remove(self, path: str) -> bool:
        """See :class:`.storage.Storage`."""
        pool = self._pool(os.path.dirname(path), create=False)
        if pool is None:
            return False
        with doing(f"remove {path} on {self.host.name}"):
            try:
                pool.storageVolLookupByName(os.path.basename(path)).delete()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                    raise
                return False
        return True

    def remove_directory(self, directory: str) -> list[str]:
        """See :class:`.storage.Storage`."""
        pool = self._pool(directory, create=False)
        if pool is None:
            return []
        self._refresh(pool, directory)
        with doing(f"remove {directory} on {self.host.name}"):
            left = sorted(pool.listVolumes())
            ours = [made for made in self._made if made.UUID() == pool.UUID()]
            if not left and ours:
                self._pools.pop(directory)
                self._made.remove(ours[0])
                pool.destroy()
                # A pool must be defined, and stopped, for its directory to be removed.
                defined = self.host.connection.storagePoolDefineXML(_pool_xml(directory))
                try:
                    defined.delete()
                finally:
                    defined.undefine()
        return left

    def close(self) -> None:
        """See :class:`.storage.Storage`."""
        self._follow()
        with doing(f"close the storage of {self.host.name}"):
            for pool in self._made:
                pool.destroy()
            for pool in self._connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_TRANSIENT):
                _take_away(pool)
        self._made.clear()
        self._pools.clear()

    def _names(self, directory: str) -> set[str]:
        with doing(f"look at {directory} on {self.host.name}"):
            return set(self._need(directory).listVolumes())

    def _need(self, directory: str) -> t.Any:
        pool = self._pool(directory, create=True)
        if pool is None:
            raise NotFound(f"{directory} on {self.host.name} is gone.")
        return pool

    def _pool(self, directory: str, *, create: bool) -> t.Any:
        """The pool of *directory*; ``None`` when there is no such directory and it shall not be created."""
        with self._guard:
            self._follow()
            if not self._is_open(directory):
                self._pools[directory] = self._open_pool(directory, create=create)
            return self._pools[directory]

    def _follow(self) -> None:
        """Look our pools up anew when the host was connected to anew."""
        if self._connection is self.host.connection:
            return
        self._connection = self.host.connection
        self._pools.clear()
        made, self._made = self._made, []
        for pool in made:
            with contextlib.suppress(libvirt.libvirtError):  # it went with libvirtd
                self._made.append(self._connection.storagePoolLookupByUUID(pool.UUID()))

    def _is_open(self, directory: str) -> bool:
        """Whether we have the pool, and it is still there: another task, whose it was, may have ended."""
        pool = self._pools.get(directory)
        if pool is None:
            return False
        with doing(f"look at {directory} on {self.host.name}"):
            try:
                return bool(pool.isActive())
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                    raise
                return False

    def _open_pool(self, directory: str, *, create: bool) -> t.Any:
        with doing(f"look at {directory} on {self.host.name}"):
            pool = self._look_up_pool(directory)
            if pool is not None:
                self._refresh(pool, directory)
                return pool
            # To build a directory that is there would change its mode.
            for build in (0, libvirt.VIR_STORAGE_POOL_CREATE_WITH_BUILD) if create else (0,):
                try:
                    pool = self.host.connection.storagePoolCreateXML(_pool_xml(directory), build)
                except libvirt.libvirtError:
                    pool = self._look_up_pool(directory)  # somebody else was faster
                    if pool is not None:
                        return pool
                    if build:
                        raise
                else:
                    self._made.append(pool)
                    return pool
        return None

    def _refresh(self, pool: t.Any, directory: str) -> None:
        """Let libvirt see what is in *directory*. It refuses while it makes a volume there, which is soon over.

        :raises TimedOut: It was not.
        """

        def refreshed() -> bool:
            with doing(f"look at {directory} on {self.host.name}"):
                try:
                    pool.refresh()
                except libvirt.libvirtError as exc:
                    if "asynchronous jobs" not in str(exc):
                        raise
                    return False
            return True

        what = f"waiting to look at {directory} on {self.host.name}, where volumes are made"
        wait_until(refreshed, clock=Clock(), timeout=_BUSY, doing=what)

    def _look_up_pool(self, directory: str) -> t.Any:
        try:
            pool = self.host.connection.storagePoolLookupByTargetPath(directory)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise
            return None
        if _take_away(pool):
            return None
        if not pool.isActive():
            raise Invalid(
                f"The storage pool {pool.name()} of {directory} on {self.host.name} is not active.",
                hint=f"Start it: virsh pool-start {pool.name()}",
            )
        return pool


def _here() -> str:
    """Where the process numbers of this process mean something: a machine, or a container on it."""
    told = f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _take_away(pool: t.Any) -> bool:
    """Stop a pool that a process of this machine has made and not lived to stop."""
    made = _MADE.fullmatch(pool.name())
    if not made or made["here"] != _here() or os.path.exists(f"/proc/{made['pid']}"):
        return False
    try:
        pool.destroy()
    except libvirt.libvirtError as exc:  # another one was faster
        if exc.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
    return True


def _pool_xml(directory: str) -> str:
    pool = ET.Element("pool", {"type": "dir"})
    ET.SubElement(pool, "name").text = f"kvmops-{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    target = ET.SubElement(pool, "target")
    ET.SubElement(target, "path").text = directory
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = "0711"
    return ET.tostring(pool, encoding="unicode")


def _volume(path: str, volume_format: str, size: int, mode: int = 0o600) -> ET.Element:
    volume = ET.Element("volume")
    ET.SubElement(volume, "name").text = os.path.basename(path)
    ET.SubElement(volume, "capacity", {"unit": "bytes"}).text = str(size)
    ET.SubElement(volume, "allocation", {"unit": "bytes"}).text = "0"
    target = ET.SubElement(volume, "target")
    ET.SubElement(target, "format", {"type": volume_format})
    ET.SubElement(ET.SubElement(target, "permissions"), "mode").text = f"{mode:04o}"
    return volume
