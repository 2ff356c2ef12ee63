# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Images in a directory, on a local or on a shared file system.

``ID.img`` is the content and ``ID.json``, the sidecar, tells about it: an image is there when its sidecar is, which
comes last and goes first. What is not finished lies in ``.staging``, in files named after the image; there ``ID.lock``
is locked for as long as somebody works on the image, so the kernel tells when he died. Not every shared file system
carries locks from host to host, so the file also says whose it is: what another host left counts as left only when
nothing was written for an hour.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import platform
import re
import stat
import time
import typing as t
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace

from .._core.clock import Clock, stamp
from .._core.errors import Busy, Invalid, NotFound, Refused
from .._core.files import working
from .base import ACTIVE, Block, Content, Exposed, Image, NewImage, is_identifier, unchanged
from .content import BLOCK, Hashes, read_blocks, verified

_SCHEMA = 1
_STAGING = ".staging"
_CONTENT, _SIDECAR, _LOCK = ".img", ".json", ".lock"
_JSON_LIMIT = 16 << 20
_LEFT_AFTER = 3600.0
_BUFFERS = 6
# What O_DIRECT may ask of lengths and offsets: no disk has larger sectors.
_SECTOR = 4096
_SHA256 = re.compile(r"[0-9a-f]{64}")

DAMAGED = "damaged"


class DirectoryStore:
    """Implements :class:`.base.Store`.

    :param path: Absolute path; made with the first image.
    """

    kind = "directory"

    def __init__(self, path: str, clock: Clock | None = None) -> None:
        if not os.path.isabs(path):
            raise Invalid(f"The path of an image store must be absolute: {path!r} is not.")
        self.place = os.path.normpath(path)
        self._staging = os.path.join(self.place, _STAGING)
        self._clock = clock or Clock()

    # ---- looking

    def find(self, *, name: str | None = None, properties: t.Mapping[str, str] | None = None) -> list[Image]:
        """See :class:`.base.Store`."""
        try:
            with working(f"look into the image store {self.place}"):
                names = os.listdir(self.place)
        except NotFound:
            return []
        found = []
        for each in names:
            image_id, kind = os.path.splitext(each)
            read = self._read(image_id) if kind == _SIDECAR and is_identifier(image_id) else None
            if (
                read
                and read[0].status == ACTIVE
                and (name is None or read[0].name == name)
                and all(read[0].properties.get(key) == value for key, value in (properties or {}).items())
            ):
                found.append(read)
        # The content is as old as the image, to the nanosecond; nobody writes into it again.
        return [image for image, _age in sorted(found, key=lambda each: (each[0].created_at, each[1], each[0].id))]

    def get(self, image_id: str) -> Image | None:
        """See :class:`.base.Store`. An image whose content is not as long as it was is ``damaged``."""
        read = self._read(image_id) if is_identifier(image_id) else None
        return read[0] if read else None

    def _read(self, image_id: str) -> tuple[Image, int] | None:
        """The image, and when its content was last written, in nanoseconds; ``None`` when the sidecar is missing, or
        is none of ours."""
        with working(f"read {self._sidecar(image_id)}"):
            told = _read_json(self._sidecar(image_id))
        image = _image(told, self._content(image_id))
        if image is None or image.id != image_id:
            return None
        try:
            found = os.stat(self._content(image_id))
        except FileNotFoundError:
            return replace(image, status=DAMAGED), 0
        return (image if found.st_size == image.size else replace(image, status=DAMAGED)), found.st_mtime_ns

    # ---- reading

    @contextlib.contextmanager
    def open(self, image: Image) -> t.Iterator[Content]:
        """See :class:`.base.Store`."""
        path = self._content(image.id)
        if image.status != ACTIVE:
            raise Invalid(f"Image {image.name} ({path}) is {image.status} and cannot be read.")
        with working(f"read image {image.name} ({path})"):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield _Reading(fd, image)
        finally:
            os.close(fd)

    def expose(self, image: Image, directory: str) -> Exposed:
        """See :class:`.base.Store`. It is the file itself, which libvirt lets QEMU read (``dynamic_ownership``)."""
        return Exposed("file", self._content(unchanged(self, image).id))

    def withdraw(self, image: Image, directory: str) -> None:
        """See :class:`.base.Store`."""

    # ---- changing

    def put(self, new: NewImage, content: Content) -> Image:
        """See :class:`.base.Store`."""
        if not is_identifier(new.id):
            raise Invalid(f"Failed to store image {new.name}: {new.id!r} is no UUID in lower case.")
        with working(f"store image {new.name} in {self.place}"), self._working_on(new.id) as lock:
            self._sweep()
            if os.path.lexists(self._sidecar(new.id)):
                raise Invalid(f"Failed to store image {new.name}: {self.place} has an image {new.id} already.")
            try:
                return self._store(new, content, lock)
            except BaseException:
                self._drop(new.id, self._sidecar(new.id), self._content(new.id))
                raise

    def _store(self, new: NewImage, content: Content, lock: int) -> Image:
        staged = self._staged(new.id, _CONTENT)
        _unlink(staged)
        size = len(content)
        with Hashes(["sha256"]) as hashes:
            _write_content(staged, content, size, hashes, called=f"image {new.name}")
            digests = hashes.told()
        image = Image(
            id=new.id,
            name=new.name,
            status=ACTIVE,
            size=size,
            disk_format=new.disk_format,
            digests=digests,
            properties=dict(new.properties),
            protected=new.protected,
            min_disk=new.min_disk,
            min_ram=new.min_ram,
            created_at=stamp(self._clock.now()),
            where=self._content(new.id),
        )
        if not _is_file(lock, self._staged(new.id, _LOCK)):
            raise Busy(f"Failed to store image {new.name}: another process took it for left behind, and removed it.")
        os.rename(staged, self._content(new.id))
        _flush_directory(self.place)
        self._write_sidecar(image)
        return image

    def update(
        self,
        image: Image,
        *,
        properties: t.Mapping[str, str | None] | None = None,
        name: str | None = None,
        protected: bool | None = None,
        min_disk: int | None = None,
        min_ram: int | None = None,
    ) -> Image:
        """See :class:`.base.Store`."""
        with working(f"change image {image.name} in {self.place}"), self._working_on(image.id):
            found = self.get(image.id)
            if found is None:
                raise NotFound(f"Failed to change image {image.name}: it is gone from {self.place}.")
            kept = {key: value for key, value in found.properties.items() if key not in (properties or {})}
            kept.update({key: value for key, value in (properties or {}).items() if value is not None})
            changed = replace(
                found,
                properties=kept,
                name=found.name if name is None else name,
                protected=found.protected if protected is None else protected,
                min_disk=found.min_disk if min_disk is None else min_disk,
                min_ram=found.min_ram if min_ram is None else min_ram,
            )
            self._write_sidecar(changed)
        return changed

    def delete(self, image_id: str) -> bool:
        """See :class:`.base.Store`."""
        if self.get(image_id) is None and not os.path.isdir(self._staging):
            return False
        with working(f"delete image {image_id} from {self.place}"), self._working_on(image_id):
            self._sweep()
            image = self.get(image_id)
            if image is None:
                return False
            if image.protected:
                raise Refused(
                    f"Image {image.name} ({image_id}) in {self.place} is protected and cannot be deleted.",
                    hint="Say protected: false first.",
                )
            _unlink(self._sidecar(image_id))
            _flush_directory(self.place)
            self._drop(image_id, self._content(image_id))
        return True

    def close(self) -> None:
        """See :class:`.base.Store`."""

    # ---- files

    def _content(self, image_id: str) -> str:
        return os.path.join(self.place, image_id + _CONTENT)

    def _sidecar(self, image_id: str) -> str:
        return os.path.join(self.place, image_id + _SIDECAR)

    def _staged(self, image_id: str, kind: str) -> str:
        return os.path.join(self._staging, image_id + kind)

    def _write_sidecar(self, image: Image) -> None:
        """In the place of the one that is there, or not at all."""
        staged = self._staged(image.id, _SIDECAR)
        told = {key: value for key, value in asdict(image).items() if key not in ("status", "where")}
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(json.dumps({"schema": _SCHEMA, **told}, indent=1, sort_keys=True).encode())
                file.flush()
                os.fsync(fd)
            os.rename(staged, self._sidecar(image.id))
        except BaseException:
            _unlink(staged)
            raise
        _flush_directory(self.place)

    def _drop(self, image_id: str, *paths: str) -> None:
        """Remove *paths* and what is staged for an image, but not its lock file."""
        for path in (*paths, self._staged(image_id, _CONTENT), self._staged(image_id, _SIDECAR)):
            _unlink(path)

    # ---- one at a time

    @contextlib.contextmanager
    def _working_on(self, image_id: str) -> t.Iterator[int]:
        """Hold an image's lock file, which is there only meanwhile.

        :raises Busy: Somebody else does.
        """
        _make_directory(self._staging)
        fd = self._lock(image_id)
        if fd is None:
            told = _holder(self._staged(image_id, _LOCK))
            raise Busy(
                f"Image {image_id} in {self.place} is busy: process {told.get('pid', 'unknown')} of the machine"
                f" {told.get('node', 'unknown')} works on it.",
                hint="Run the task again when that has ended.",
            )
        try:
            yield fd
        finally:
            self._unlock(image_id, fd)

    def _lock(self, image_id: str) -> int | None:
        """Take an image's lock file; ``None`` when somebody else has it, who may be alive."""
        path = self._staged(image_id, _LOCK)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file(fd, path):
                    told = _holder(path)
                    if told and told.get("node") != platform.node() and not self._old(image_id):
                        os.close(fd)
                        return None
                    with contextlib.suppress(OSError):  # images must be deleted from a store that is full
                        os.ftruncate(fd, 0)
                        os.pwrite(fd, json.dumps({"node": platform.node(), "pid": os.getpid()}).encode(), 0)
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its holder ended and removed it meanwhile

    def _unlock(self, image_id: str, fd: int) -> None:
        path = self._staged(image_id, _LOCK)
        try:
            if _is_file(fd, path):
                _unlink(path)
        finally:
            os.close(fd)

    def _old(self, image_id: str) -> bool:
        """Whether nothing was written for an image for an hour."""
        times = []
        for kind in (_LOCK, _CONTENT, _SIDECAR):
            with contextlib.suppress(FileNotFoundError):
                times.append(os.stat(self._staged(image_id, kind)).st_mtime)
        return max(times, default=0.0) < time.time() - _LEFT_AFTER

    def _sweep(self) -> None:
        """Remove what others left who are dead: what is staged, and contents without a sidecar."""
        left = {os.path.splitext(each)[0] for each in os.listdir(self._staging)}
        for each in os.listdir(self.place):
            image_id, kind = os.path.splitext(each)
            # Somebody may just copy images in here, and files come one after the other.
            if kind == _CONTENT and not os.path.lexists(self._sidecar(image_id)):
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(self._content(image_id)).st_ctime < time.time() - _LEFT_AFTER:
                        left.add(image_id)
        for image_id in filter(is_identifier, left):
            with contextlib.suppress(OSError):  # somebody else may remove what we may not
                self._sweep_one(image_id)

    def _sweep_one(self, image_id: str) -> None:
        fd = self._lock(image_id)
        if fd is None:  # the one that we work on, too
            return
        try:
            # Who had the lock may have finished since we looked.
            orphan = not os.path.lexists(self._sidecar(image_id))
            self._drop(image_id, *([self._content(image_id)] if orphan else []))
        finally:
            self._unlock(image_id, fd)


class _Reading:
    """The content of an image, verified."""

    def __init__(self, fd: int, image: Image) -> None:
        self._fd = fd
        self._image = image

    def __len__(self) -> int:
        """All bytes."""
        return self._image.size

    def __iter__(self) -> t.Iterator[Block]:
        """The blocks; the last one only when all of them are as they were stored."""
        called = f"Image {self._image.name} ({self._image.where})"
        size = os.fstat(self._fd).st_size
        if size != len(self):
            raise Invalid(f"{called} is damaged: it has {size} bytes instead of {len(self)}.")
        with working(f"read {called}"):
            yield from verified(
                read_blocks(self._fd, len(self)), size=len(self), digests=self._image.digests, called=called
            )


# ---- writing


def _write_content(path: str, content: Content, size: int, hashes: Hashes, *, called: str) -> None:
    """Write a new file, past the page cache where the file system lets us, while *hashes* take what is written. The
    blocks are copied into buffers of ours, so that the next one is read meanwhile."""
    fd = _open_direct(path)
    try:
        with ThreadPoolExecutor(1) as pool:
            buffers = [memoryview(mmap.mmap(-1, BLOCK)) for _number in range(_BUFFERS)]
            pending: list[list[Future[t.Any]]] = [[] for _buffer in buffers]
            number = filled = done = 0

            def send() -> None:
                """Hand the buffer that is filled to the threads, and wait for the next one to be free."""
                nonlocal number, filled, done
                block = buffers[number][:filled]
                pending[number] = [*hashes.take(block), pool.submit(_write_block, fd, buffers[number], filled, done)]
                number, filled, done = (number + 1) % _BUFFERS, 0, done + filled
                _wait(pending[number])

            for block in content:
                view = memoryview(block).cast("B")
                if done + filled + len(view) > size:
                    raise Invalid(f"Failed to store {called}: its content is longer than the {size} bytes announced.")
                while view:
                    count = min(len(view), BLOCK - filled)
                    buffers[number][filled : filled + count] = view[:count]
                    filled += count
                    view = view[count:]
                    if filled == BLOCK:
                        send()
            if filled:
                send()
            for each in pending:
                _wait(each)
        if done != size:
            raise Invalid(f"Failed to store {called}: its content ended after {done} of {size} bytes.")
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _wait(pending: list[Future[t.Any]]) -> None:
    for each in pending:
        each.result()


def _open_direct(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
    # Some file systems refuse only when the file is there.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return os.open(path, flags, 0o600)


def _write_block(fd: int, buffer: memoryview, count: int, offset: int) -> None:
    """Write *count* bytes; zeros at the end, up to a whole sector, are cut off in the end. Zeros alone stay a hole."""
    whole = -(-count // _SECTOR) * _SECTOR
    buffer[count:whole] = bytes(whole - count)
    if buffer[:_SECTOR] == _ZEROS[:_SECTOR] and bytes(buffer[:whole]) == _ZEROS[:whole]:
        return
    written = 0
    while written < whole:
        try:
            written += os.pwrite(fd, buffer[written:whole], offset + written)
        except OSError as exc:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            if exc.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)  # the file system has it, but not for us


_ZEROS = bytes(BLOCK)


# ---- small things


_FIELDS: dict[str, type] = {
    "id": str,
    "name": str,
    "size": int,
    "disk_format": str,
    "digests": dict,
    "properties": dict,
    "protected": bool,
    "min_disk": int,
    "min_ram": int,
    "created_at": str,
}


def _is(value: t.Any, kind: type) -> bool:
    """Whether *value* is of that kind; a truth value is no number here."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _image(told: t.Any, path: str) -> Image | None:
    """The image that a sidecar tells of; ``None`` when it is none of ours."""
    if not isinstance(told, dict) or told.get("schema") != _SCHEMA:
        return None
    if not all(_is(told.get(key), kind) for key, kind in _FIELDS.items()):
        return None
    texts = [*told["properties"].values(), *told["digests"].values()]
    if not all(isinstance(text, str) for text in texts) or not _SHA256.fullmatch(told["digests"].get("sha256", "")):
        return None
    fields = {key: told[key] for key in _FIELDS}
    fields["digests"] = {"sha256": told["digests"]["sha256"]}
    return Image(**fields, status=ACTIVE, where=path)


def _read_json(path: str) -> t.Any:
    """What a small file tells; ``None`` when it is no regular file, or holds no JSON."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # nothing, a link, a socket
            return None
        raise
    try:
        return json.loads(os.read(fd, _JSON_LIMIT)) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except (ValueError, RecursionError):
        return None
    finally:
        os.close(fd)


def _holder(path: str) -> dict[str, t.Any]:
    """What is told in a lock file of who holds it."""
    told = _read_json(path)
    return told if isinstance(told, dict) else {}


def _is_file(fd: int, path: str) -> bool:
    """Whether *path* still names the open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _flush_directory(path: str) -> None:
    """What was renamed in a directory stays so when the power goes."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # not every file system of others can
            raise
    finally:
        os.close(fd)


def _make_directory(path: str) -> None:
    """QEMU, which is another user, passes through every directory that is made here, whatever the umask."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.mkdir(each)
            os.chmod(each, 0o711)
