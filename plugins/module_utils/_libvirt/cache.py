# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The cache of base images of a storage directory, on this machine. On shared storage it is that of all its hosts.

Three locks, all of the kernel, so none outlives its holder: one an image, held while it is fetched; ``.lock`` for
moments, held to look and to change; ``.use``, shared by all tasks that may be about to build upon a base, and taken
alone by who removes bases.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import threading
import typing as t
from dataclasses import replace

from .._core.errors import Invalid
from .._core.files import working
from .._model.chain import HEADER, read_qcow2
from .._model.purge import Cached
from .bases import BASES, MARKER, Base, Marker, Source, base_name, placed
from .files import (
    PART,
    Memo,
    alone,
    alone_for_now,
    free_space,
    identity,
    lay_upon,
    make_directory,
    need_space,
    read_whole,
    receive,
    write_whole,
)

_LOCK = ".lock"
_USE = ".use"
# As base_name() makes them.
_NAME = re.compile(r"(delta-)?[0-9a-f]{64}(-[0-9a-f]+)*\.(qcow2|raw)")
_LEFT_AFTER = 86400.0


class BaseCache:
    """The bases below a directory.

    :param directory: Of the storage.
    :param host: The name that this host has in markers.
    """

    def __init__(self, directory: str, host: str) -> None:
        self.place = os.path.join(directory, BASES)
        self.host = host
        self._shared: int | None = None
        self._guard = threading.Lock()
        self._memo = Memo(self._path("hashes.json"))

    # ---- fetching

    def fetch(self, source: Source) -> Base:
        """The base made of *source*, and those that it lies upon; what is there already is neither read nor copied.

        Until :meth:`close` no base of the directory is removed by others.

        :raises Invalid: The content is not what the store or the user says, or changed on the way.
        :raises NoSpace: There is no room for it.
        """
        with working(f"copy image {source.label} to {self.place}"):
            make_directory(self.place)
            self._share()
            return placed(self._fetch(source), self.place)

    def look(self, source: Source) -> Base | None:
        """The base made of *source*, if it is there with all that it lies upon; nothing is fetched."""
        with working(f"look into {self.place}"):
            found = self._look(source) if os.path.isdir(self.place) else None
        return placed(found, self.place) if found else None

    def _look(self, source: Source) -> Base | None:
        parent = self._look(source.parent) if source.parent else None
        if source.parent and parent is None:
            return None
        found = self._find(source, source.digests, parent)
        return found.base if found else None

    def close(self) -> None:
        """Let others remove bases again."""
        with self._guard:
            if self._shared is not None:
                os.close(self._shared)
                self._shared = None

    def _share(self) -> None:
        with self._guard:
            if self._shared is None:
                fd = os.open(self._path(_USE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_SH)
                self._shared = fd

    def _fetch(self, source: Source) -> Base:
        parent = self._fetch(source.parent) if source.parent else None
        with alone_for_now(self._path(f"{source.key}.lock")):
            known = self._memo.recall(source.path) if source.path else None
            digests = {"sha256": known} if known else source.digests
            with alone(self._path(_LOCK)):
                found = self._find(source, digests, parent)
                if found:
                    return self._use(found, source, {})
                self._sweep(source.key)
            return self._copy(source, parent)

    def _find(self, source: Source, digests: t.Mapping[str, str], parent: Base | None) -> Marker | None:
        upon = parent.path if parent else ""
        return next((marker for marker in self.markers() if marker.of(source.format, source.size, digests, upon)), None)

    def _use(self, marker: Marker, source: Source, digests: t.Mapping[str, str]) -> Base:
        """Note that *source* is in a base, and that this host uses it now."""
        base = replace(
            marker.base,
            digests={**marker.base.digests, **digests},
            images={**marker.base.images, **source.images},
        )
        used = replace(marker, base=base, hosts=tuple(sorted({*marker.hosts, self.host})))
        if used == marker:
            os.utime(self._path(base.path + MARKER))
        else:
            self._mark(used)
        return base

    def _copy(self, source: Source, parent: Base | None) -> Base:
        seen = identity(source.path) if source.path else None
        taken = min(source.size, os.stat(source.path).st_blocks * 512) if source.path else source.size
        need_space(f"copy image {source.label}", taken, free_space(self.place), self.place)
        with tempfile.NamedTemporaryFile(dir=self.place, prefix=f"{source.key}.", suffix=PART, delete=False) as part:
            try:
                base = take_in(source, part, part.name, parent)
                if seen and identity(source.path) != seen:
                    raise Invalid(f"Image {source.label} changed while it was copied.", hint="Run the task again.")
                os.fchmod(part.fileno(), 0o644)  # QEMU runs as another user
                os.fsync(part.fileno())
                with alone(self._path(_LOCK)):
                    base = self._publish(part.name, base, source, parent)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part.name)
        if seen:
            self._memo.remember(source.path, seen, base.sha256)
        return base

    def _publish(self, part: str, base: Base, source: Source, parent: Base | None) -> Base:
        """Make *part* a base, unless the same content came from elsewhere meanwhile."""
        found = self._find(source, {"sha256": base.sha256}, parent)
        if found:
            return self._use(found, source, base.digests)
        # The marker comes first: without the file it says nothing.
        self._mark(Marker(base, os.path.getsize(part), source.label, (self.host,)))
        os.rename(part, self._path(base.path))
        return base

    def _sweep(self, mine: str) -> None:
        """Remove what fetches that died have left.

        :param mine: The key of the image whose lock we hold.
        """
        for name in os.listdir(self.place):
            if name.endswith(PART):
                key = name.partition(".")[0]
                with contextlib.ExitStack() as stack:
                    if key == mine or stack.enter_context(alone_for_now(self._path(f"{key}.lock"), wait=False)):
                        os.unlink(self._path(name))

    # ---- removing

    def reserve(self) -> bool:
        """See that nobody begins to use a base before :meth:`close`; ``False`` when somebody is about to."""
        with self._guard:
            try:
                fd = os.open(self._path(_USE), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:  # nobody ever did
                return True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            self._shared = fd
            return True

    def cached(self, now: float) -> list[Cached]:
        """The complete bases.

        :param now: Seconds since the epoch.
        """
        found = []
        for marker in self.markers():
            base, path = marker.base, self._path(marker.base.path)
            idle = max(0.0, now - os.stat(path + MARKER).st_mtime)
            found.append(Cached(base.path, base.parent, os.stat(path).st_blocks * 512, idle, marker.hosts))
        return found

    def leftovers(self, now: float) -> list[str]:
        """Names of what is no complete base, and to which nobody has written for a day: what died in the middle. An
        upload from elsewhere is not complete before it ends, and holds no lock."""
        complete = {marker.base.path for marker in self.markers()}

        def left(name: str) -> bool:
            ours = name.endswith(PART) or _NAME.fullmatch(name.removesuffix(MARKER))
            old = now - os.stat(self._path(name)).st_mtime > _LEFT_AFTER
            return bool(ours) and old and name.removesuffix(MARKER) not in complete

        return [name for name in sorted(os.listdir(self.place)) if left(name)]

    def built_upon(self, names: t.Sequence[str]) -> dict[str, str]:
        """Which of *names* files of the storage name in their headers, each with one such file.

        On shared storage these are the disks of all hosts. Names of bases are like no others, so it does not matter how
        a header spells the path. What a guest writes into a raw disk may look like a header; then a base is kept.
        """
        found: dict[str, str] = {}
        for path in _regular_files(os.path.dirname(self.place)):
            known = os.path.dirname(path) == self.place and os.path.basename(path) in names
            backing = "" if known else _backing_of(path)
            found.update((name, path) for name in names if backing and name in backing)
        return found

    def remove(self, name: str) -> None:
        """Remove a base or a leftover. The marker goes last: alone it says nothing."""
        for each in (name, name + MARKER):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(each))

    def let_go(self, name: str) -> None:
        """Note that this host does not use a base any more. When it was used last stays."""
        marker, path = self.marker(name), self._path(name + MARKER)
        if marker:
            seen = os.stat(path)
            self._mark(replace(marker, hosts=tuple(host for host in marker.hosts if host != self.host)))
            os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))

    # ---- what is known

    def markers(self) -> list[Marker]:
        """Those of all complete bases, by name."""
        return list(filter(None, (self.marker(name) for name in sorted(os.listdir(self.place)))))

    def marker(self, name: str) -> Marker | None:
        """That of the file *name*; ``None`` when it is no complete base."""
        marker = Marker.load(name, read_whole(self._path(name + MARKER)))
        try:
            return marker if marker and marker.length == os.path.getsize(self._path(name)) else None
        except FileNotFoundError:
            return None

    def _mark(self, marker: Marker) -> None:
        write_whole(self._path(marker.base.path + MARKER), marker.dump(), 0o644)

    def _path(self, name: str) -> str:
        return os.path.join(self.place, name)


def _regular_files(directory: str) -> t.Iterator[str]:
    """All below *directory*, behind links to directories too."""
    seen = set()

    def fail(exc: OSError) -> None:
        raise exc

    for place, below, names in os.walk(directory, onerror=fail, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (os.path.join(place, name) for name in names)


def _backing_of(path: str) -> str:
    """What the header of a qcow2 image names, as it stands there; nothing for other files."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError):
        return ""  # it is gone, or a socket's or a link's end is
    try:
        header = read_qcow2(os.pread(fd, HEADER, 0)) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)
    return header.backing if header else ""


def take_in(source: Source, file: t.IO[bytes], path: str, parent: Base | None) -> Base:
    """Copy *source* into the file *path*, see that it is what it is said to be, and make it lie upon *parent*.

    :param parent: With only its name as path.
    :returns: The base that it will be, with a name and no directory.
    :raises Invalid: It is something else.
    """
    with source.read() as content:
        sha256, size = receive(content, file)
    file.flush()
    told = source.digests.get("sha256", sha256)
    if (size, sha256) != (source.size, told):
        if source.path:
            raise Invalid(f"Image {source.label} changed while it was copied.", hint="Run the task again.")
        raise Invalid(
            f"Image {source.label} is damaged: it has {size} bytes with the sha256 {sha256}, and should have"
            f" {source.size} bytes with {told}.",
            hint="Upload it again.",
        )
    virtual_size = source.inspect(path)
    upon = parent.path if parent else ""
    if parent:
        lay_upon(path, upon, parent.format)
    name = base_name(sha256, source.format, upon)
    digests = {**source.digests, "sha256": sha256}
    return Base(name, source.format, sha256, size, virtual_size, digests, source.images, upon)


def facts_of(path: str) -> Base | None:
    """What the marker of the base *path* says; ``None`` when that is no complete base of a cache."""
    directory, name = os.path.split(path)
    if os.path.basename(directory) != BASES:
        return None
    with working(f"look at {path}"):
        marker = BaseCache(os.path.dirname(directory), "").marker(name)
    return placed(marker.base, directory) if marker else None
