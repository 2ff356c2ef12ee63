# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Copying the disks of a VM into an image store: of a running one through a backup job, of one that is off from the
files. Either way a disk is read over NBD and laid out as qcow2 on its way, in one pass."""

from __future__ import annotations

import contextlib
import os
import typing as t
from dataclasses import dataclass, field, replace

from .._core.clock import Clock, parse_stamp, stamp
from .._core.errors import LifecycleError, NoSpace, NotFound
from .._core.files import working
from .._images.base import ACTIVE, Content, Image, NewImage
from .._images.content import FileContent
from .._images.extents import above, allocation, changed, dirty, full, to_clusters
from .._images.nbd import ALLOCATION, Export, Qcow2Content, dirty_bitmap
from .._images.qcow2 import Layout
from .._images.rest import Layer, at_rest, compressed, depths, exported, remove_bitmap
from .._libvirt.backup import Backup, BackupOrder, CheckpointLost, Held
from .._libvirt.files import PART
from .._libvirt.guard import Guard
from .._libvirt.guard import file as file_debt
from .._libvirt.guard import job as job_debt
from .._libvirt.guest import Guest
from .._model import snapshot
from .._model.domain import Disk
from .._model.snapshot import Manifest, Member
from .._model.status import PAUSED
from .._task import Context

# Bytes that the file system with the scratch files keeps free: a guest whose scratch file finds no room stands still.
_RESERVE = 128 << 20
# Seconds between two looks at that.
_LOOK = 0.5


@dataclass(frozen=True)
class Upon:
    """What the image of one disk lies upon.

    :param image: The parent in the store.
    :param sha256: Of its content, where it is known.
    :param virtual_size: Of the disk in it, in bytes; 0 when it is not known.
    :param depth: The number of the layer of the disk's chain that is the parent's content; 0 for an increment, which
        QEMU tells by what was written since.
    """

    image: str
    sha256: str = ""
    virtual_size: int = 0
    depth: int = 0


@dataclass(frozen=True)
class Job:
    """What is to be copied, and as what.

    :param set_id: See :mod:`.._model.snapshot`.
    :param name: Of the set.
    :param layers: The layers of each disk, from the top down; those of running VMs only where a delta needs them.
    :param upon: What the image of a disk lies upon, by target; the others are whole.
    :param otherwise: The same, should it turn out that there can be no increment.
    :param properties: Of each image.
    :param since: The backup that this one is an increment of.
    :param checkpoint: The name of the checkpoint to make; or empty.
    :param scratch: The directory for what a running guest overwrites meanwhile, and for images while they are
        compressed.
    """

    set_id: str
    name: str
    disks: tuple[Disk, ...]
    layers: t.Mapping[str, tuple[Layer, ...]]
    upon: t.Mapping[str, Upon]
    otherwise: t.Mapping[str, Upon]
    properties: t.Mapping[str, str]
    min_disk: int
    min_ram: int
    scratch: str
    since: Manifest | None = None
    checkpoint: str = ""

    def scratch_file(self, target: str) -> str:
        """Where QEMU keeps what the guest overwrites in a disk."""
        return f"{self.scratch}/kvmops-{self.set_id}-{target}.scratch"

    def packed_file(self, target: str) -> str:
        """Where the compressed image of a disk is made."""
        return f"{self.scratch}/kvmops-{self.set_id}-{target}.packed"

    @property
    def files(self) -> list[str]:
        """All files that may be made on the host."""
        made = [path(disk.target) for disk in self.disks for path in (self.scratch_file, self.packed_file)]
        return [*made, *(f"{path}{PART}" for path in made)]

    @property
    def ids(self) -> list[str]:
        """The identifiers of all images that the set may have."""
        found = [snapshot.image_id(self.set_id, "disk", disk.target) for disk in self.disks]
        return [*found, snapshot.image_id(self.set_id, "memory")]


@dataclass
class Copied:
    """What came of it."""

    at: str = ""
    members: list[Member] = field(default_factory=list)
    held: Held = field(default_factory=Held)
    checkpoint: str = ""
    increment: bool = False
    why_full: str = ""


def whole(context: Context, copied: Copied, called: str) -> list[Image]:
    """The images of a set as the store has them, which are all whole.

    :param called: The set, for the error.
    :raises NotFound: One is not.
    """
    images = []
    for member in copied.members:
        image = context.store.get(member.id)
        if image is None or image.status != ACTIVE or image.size != member.size:
            raise NotFound(f"Image {member.id} of the {called} is not in {context.store.place} any more.")
        images.append(image)
    return images


class Copier:
    """Copies the disks of one VM."""

    def __init__(
        self, context: Context, guest: Guest, job: Job, tell: t.Callable[[t.Mapping[str, t.Any]], None]
    ) -> None:
        self.context = context
        self.guest = guest
        self.job = job
        self.tell = tell
        self.clock: Clock = context.clock
        self.backup = Backup(guest, context.clock)
        self.copied = Copied()
        self._sent = 0
        self._looked = 0.0

    # ---- of a running VM

    def live(self, *, quiesce: str, paused: bool) -> Copied:
        """Copy the disks of a VM that has a QEMU process.

        :param paused: Its CPUs are stopped already.
        """
        ask = self.context.params
        job = self.job
        self._see_room()
        try:
            debt = job_debt(self.backup.socket(job.set_id))
            with Guard(self.guest.host.uri, self.guest.uuid) as guard:
                guard.owe(debt)
                try:
                    if job.since:
                        self._adopt(job.since)
                    self._make_scratch(guard)
                    # A delta is told by what QEMU wrote into the file, and it writes all when the CPUs are stopped.
                    told_by_file = any(upon.depth for upon in (*job.upon.values(), *job.otherwise.values()))
                    pause = told_by_file and not paused
                    with self.backup.held(quiesce=quiesce, pause=pause, timeout=ask["quiesce_timeout"]) as held:
                        socket = self._begin()
                        self.copied.at = stamp(self.clock.now())
                    self.copied.held = held
                    for index, disk in enumerate(job.disks):
                        self._copy(index, disk, socket, disk.target)
                finally:
                    self.backup.end()
                    guard.paid(debt)
                    self._remove_scratch(guard)
        except LifecycleError as exc:
            self._explain(exc)
            raise
        return self.copied

    def _make_scratch(self, guard: Guard) -> None:
        """Make the scratch files before the guest is held, and not while it is."""
        for disk in self.job.disks:
            path = self.job.scratch_file(disk.target)
            guard.owe(file_debt(path))
            self.context.storage.make_disk(path, self.guest.disk_size(disk.target))
            if disk.image.path:  # which QEMU has open; libvirt need not be one that gives files to QEMU's user
                with working(f"give {path} to QEMU"):
                    owner = os.stat(disk.image.path)
                    os.chown(path, owner.st_uid, owner.st_gid)

    def _remove_scratch(self, guard: Guard) -> None:
        for disk in self.job.disks:
            path = self.job.scratch_file(disk.target)
            self.context.storage.remove(path)
            guard.paid(file_debt(path))

    def _adopt(self, since: Manifest) -> None:
        """libvirt forgets a checkpoint when the VM moves to another host; the bitmaps come along in the disks."""
        if since.checkpoint not in self.backup.checkpoints():
            created = int(parse_stamp(since.at).timestamp())
            self.backup.adopt_checkpoint(since.checkpoint, created, since.disks)

    def _begin(self) -> str:
        """Begin the job; the socket of its exports."""
        job = self.job
        order = BackupOrder(
            run=job.set_id,
            scratch={disk.target: job.scratch_file(disk.target) for disk in job.disks},
            checkpoint=job.checkpoint,
        )
        try:
            socket = self.backup.begin(replace(order, since=job.since.checkpoint if job.since else ""))
            self.copied.increment = job.since is not None
        except CheckpointLost as exc:
            # None of the same type that was made before or after is of use without the one that is lost.
            kind = self.context.params["backup_type"]
            for name in snapshot.own_checkpoints(self.backup.checkpoints(), kind):
                self.backup.drop_checkpoint(name)
            socket = self.backup.begin(order)
            self.copied.why_full = str(exc)
            self.job = replace(job, since=None, upon=job.otherwise)
        self.copied.checkpoint = job.checkpoint
        return socket

    def _see_room(self) -> None:
        free = self.context.storage.free(self.job.scratch)
        if free is not None and free < 2 * _RESERVE:
            raise NoSpace(
                f"{self.job.scratch} on {self.guest.host.name} has {free >> 20} MiB free, and what the guest overwrites"
                f" while its disks are copied is put aside there: {2 * _RESERVE >> 20} MiB is the least.",
                hint="Make room, or say another directory with scratch.",
                free=free,
            )

    def _watch(self) -> None:
        """End the copying before a scratch file has no room and the guest has to wait for it."""
        now = self.clock.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        free = self.context.storage.free(self.job.scratch)
        if (free is not None and free < _RESERVE) or self.backup.stalled():
            raise NoSpace(
                f"The guest of VM {self.guest.name} writes so much while its disks are copied that {self.job.scratch}"
                f" has only {(free or 0) >> 20} MiB left.",
                hint="Make room, or say another directory with scratch.",
            )

    def _explain(self, exc: LifecycleError) -> None:
        """A guest that is off takes the export with it; say that, rather than how the socket broke."""
        try:
            if not self.guest.active():
                exc.hint = f"VM {self.guest.name} went off meanwhile: run the task again. {exc.hint}".rstrip()
        except LifecycleError:
            exc.hint = f"VM {self.guest.name} is gone. {exc.hint}".rstrip()

    # ---- of a VM that is off

    def still(self) -> Copied:
        """Copy the disks of a VM that is off, from their files. QEMU's locks keep it from being started meanwhile."""
        self.copied.at = stamp(self.clock.now())
        for index, disk in enumerate(self.job.disks):
            with at_rest(self.job.layers[disk.target]) as socket:
                self._copy(index, disk, socket, "")
        return self.copied

    def memory(self, path: str) -> None:
        """Store the memory of a suspended VM, libvirt's save image."""
        self.beside("memory", FileContent(path), "save")

    def beside(self, role: str, content: Content, content_format: str, target: str = "") -> None:
        """Store something of the VM that is no disk, as it is."""
        new = NewImage(
            id=snapshot.image_id(self.job.set_id, role, target),
            name=snapshot.image_name(self.job.name, len(self.job.disks), role, target),
            disk_format="raw",
            properties={
                **self.job.properties,
                snapshot.SET: self.job.set_id,
                snapshot.ROLE: role,
                snapshot.FORMAT: content_format,
                **({snapshot.DISK: target} if target else {}),
            },
        )
        image = self.context.store.put(new, content)
        self.copied.members.append(
            Member(role, image.id, image.size, image.digests.get("sha256", ""), target, format=content_format)
        )

    # ---- one disk

    def _copy(self, index: int, disk: Disk, socket: str, export_name: str) -> None:
        upon = self.job.upon.get(disk.target)
        if self.context.params["compress"] and not upon:
            size = self._pack(disk, socket, export_name)
            path = self.job.packed_file(disk.target)
            try:
                self._put(index, disk, FileContent(path), size, None)
            finally:
                os.unlink(path)
            return
        bitmap = dirty_bitmap(f"backup-{disk.target}")
        contexts = [ALLOCATION, *([bitmap] if upon and not upon.depth else [])]
        with Export(socket, export_name, contexts) as export:
            extents = allocation(export.extents(ALLOCATION))
            if upon is None:
                wanted = full(extents)
            else:
                present = (
                    above(depths(self.job.layers[disk.target]), upon.depth)
                    if upon.depth
                    else dirty(export.extents(bitmap))
                )
                limit = {"parent_size": upon.virtual_size} if upon.virtual_size else {}
                wanted = changed(present, extents, **limit)
            layout = Layout(export.size, to_clusters(wanted, export.size))
            with Qcow2Content(
                export,
                layout,
                progress=self._progress(disk),
                bandwidth=self.context.params["bandwidth"] << 20,
                check=self._watch if export_name else None,
                clock=self.clock,
            ) as content:
                self._put(index, disk, content, export.size, upon)

    def _pack(self, disk: Disk, socket: str, export_name: str) -> int:
        path = self.job.packed_file(disk.target)
        with Export(socket, export_name) as export:
            size = export.size
        compressed(
            exported(socket, export_name),
            path,
            bandwidth=self.context.params["bandwidth"] << 20,
            check=self._watch if export_name else None,
        )
        return size

    def _put(self, index: int, disk: Disk, content: t.Any, virtual_size: int, upon: Upon | None) -> None:
        job = self.job
        properties = {
            **job.properties,
            snapshot.SET: job.set_id,
            snapshot.ROLE: "disk",
            snapshot.DISK: disk.target,
            snapshot.FORM: snapshot.DELTA if upon else snapshot.FULL,
            snapshot.FORMAT: "qcow2",
            snapshot.VIRTUAL_SIZE: str(virtual_size),
        }
        if upon:
            properties[snapshot.PARENT] = upon.image
            if upon.sha256:
                properties[snapshot.PARENT_SHA256] = upon.sha256
        new = NewImage(
            id=snapshot.image_id(job.set_id, "disk", disk.target),
            name=snapshot.image_name(job.name, index, "disk", disk.target),
            disk_format="raw" if upon else "qcow2",
            properties=properties,
            min_disk=job.min_disk if index == 0 else 0,
            min_ram=job.min_ram if index == 0 else 0,
        )
        image = self.context.store.put(new, content)
        self._sent += image.size
        self.copied.members.append(
            Member(
                role="disk",
                id=image.id,
                size=image.size,
                sha256=image.digests.get("sha256", ""),
                target=disk.target,
                form=snapshot.DELTA if upon else snapshot.FULL,
                parent=upon.image if upon else "",
                virtual_size=virtual_size,
            )
        )

    def _progress(self, disk: Disk) -> t.Callable[[int, int], None]:
        last = -1

        def progress(done: int, total: int) -> None:
            nonlocal last
            percent = done * 100 // total
            if percent != last:
                last = percent
                self.tell({"disk": disk.target, "percent": percent, "bytes": self._sent + done})

        return progress


def clean_up(context: Context, guest: Guest | None, data: t.Mapping[str, t.Any]) -> None:
    """Remove what an attempt left that came to nothing: of this run, or of one that died. What can be removed is,
    also when something else cannot.

    :param data: Of its journal: ``images`` (identifiers), ``scratch`` (files), ``checkpoints`` (names),
        ``disks`` (the files with their bitmaps), ``quiesce`` (the guest may be frozen), ``started`` (by us, to copy
        it).
    :raises LifecycleError: Something cannot be removed.
    """
    faults: list[LifecycleError] = []

    def attempt(what: t.Callable[[str], object], names: t.Iterable[str]) -> None:
        for name in names:
            try:
                what(name)
            except LifecycleError as exc:
                faults.append(exc)

    if guest is not None:
        attempt(lambda _name: _let_go(context, guest, data), [guest.name])
    attempt(context.store.delete, data.get("images", []))
    attempt(context.storage.remove, data.get("scratch", []))
    if faults:
        raise faults[0]


def _let_go(context: Context, guest: Guest, data: t.Mapping[str, t.Any]) -> None:
    """Let a VM be as if nothing had been begun. One that is gone by now has nothing left."""
    with contextlib.suppress(NotFound):
        backup = Backup(guest, context.clock)
        backup.end()
        if data.get("quiesce") and guest.active() and guest.agent_connected():
            backup.thaw()
        for name in data.get("checkpoints", []):
            backup.drop_checkpoint(name)
        if data.get("started") and guest.state()[0] == PAUSED:
            guest.power_off()
        if not guest.active():
            for path in data.get("disks", []):
                for name in data.get("checkpoints", []):
                    remove_bitmap(path, name)
