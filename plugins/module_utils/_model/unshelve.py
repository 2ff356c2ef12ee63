# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Bringing back a VM from its shelf as values: where its disks will be, what it needs, how far a run has come."""

from __future__ import annotations

import os
import typing as t
from dataclasses import asdict, dataclass, field

from .._core.errors import Invalid, NoSpace, Refused
from .domain import Disk
from .shelf import Lease

INSTANT, COPIED = "instant", "copied"

# What is still to be done for a disk of a running VM.
PULL = "pull"  # its data are in the store
COPY = "copy"  # its data are here, and lie upon a base in the store
DONE = "done"

# The steps before anything of the VM can have run: a run that died in one of these is begun anew.
EARLY = ("define", "prepare", "copy")

# Bytes that a qcow2 file without data takes, with room for the tables of a large disk.
_EMPTY = 4 << 20


@dataclass(frozen=True)
class Piece:
    """One disk that comes back.

    :param image: Its image in the store.
    :param parents: The images that a delta lies upon, the nearest first.
    :param path: The file that the disk is in at the end.
    :param overlay: The file that the guest writes into while its data come: another one where the base has to come as
        well.
    :param size: Of the disk, in bytes.
    :param stored: Bytes that its image takes in the store.
    :param storage: The directory whose base cache is used.
    :param policies: What the disk's driver had for errors before, by attribute; those that it had not are empty.
    """

    target: str
    image: str
    parents: tuple[str, ...]
    path: str
    overlay: str
    size: int
    stored: int
    storage: str
    policies: t.Mapping[str, str] = field(default_factory=dict)

    def ahead(self, disk: Disk) -> str:
        """What is still to be done, with the disk as it is in the running VM."""
        if len(disk.backing) > len(self.parents):
            return PULL
        return COPY if disk.image.source != self.path else DONE


@dataclass(frozen=True)
class Began:
    """What an unshelve has set out to do: enough to go on with it and to take it back.

    :param set_id: Of the shelf; ``images`` are all of it, and the claim.
    :param store: Kind of the image store, and ``place`` which one.
    :param start: ``instant`` or ``copied``.
    :param power: What the VM will be: ``running``, ``stopped`` or ``suspended``; or ``down``, when its guest has shut
        down while data were on their way.
    :param files: All that is made on the host beside the disks.
    :param memory: The file that the memory of a suspended VM comes into; empty without.
    :param directory: The VM's own; empty when it has none.
    """

    set_id: str
    images: tuple[str, ...]
    store: str
    place: str
    start: str
    power: str
    disks: tuple[Piece, ...]
    files: tuple[str, ...] = ()
    memory: str = ""
    directory: str = ""
    autostart: bool = False
    leases: tuple[Lease, ...] = ()

    def dump(self) -> dict[str, t.Any]:
        """As the data of a journal."""
        return asdict(self)

    @staticmethod
    def load(data: t.Mapping[str, t.Any]) -> Began:
        """What :meth:`dump` made.

        :raises Invalid: It is something else.
        """
        try:
            told = dict(data)
            told["disks"] = tuple(Piece(**{**each, "parents": tuple(each["parents"])}) for each in told["disks"])
            told["leases"] = tuple(Lease(**each) for each in told["leases"])
            for key in ("images", "files"):
                told[key] = tuple(told[key])
            return Began(**told)
        except (TypeError, KeyError, AttributeError) as exc:
            raise Invalid(
                f"The journal of an unshelve in the VM's metadata cannot be read: {exc}.",
                hint="Clear it with vm_status. The shelf is whole; remove what is here of the VM, and unshelve it"
                " again.",
            ) from exc

    @property
    def made(self) -> list[str]:
        """All files that are made on the host."""
        disks = dict.fromkeys(path for each in self.disks for path in (each.path, each.overlay))
        return [*disks, *self.files, *([self.memory] if self.memory else [])]


# ---- where things go


def overlay_of(path: str) -> str:
    """The file that a guest writes into until its disk *path* can be made."""
    stem, ending = os.path.splitext(path)
    return f"{stem}-pulled{ending}"


def disk_path(disk: Disk, directory: str, taken: t.Container[str], *, name: str) -> str:
    """The file of a disk that comes back, which is a qcow2 image whatever the disk was.

    :param directory: Where disks go; empty for where they were.
    :param taken: Paths that other disks of the VM have.
    :raises Invalid: It was no file, and it is not said where it shall go.
    """
    if not directory and disk.image.kind != "file":
        raise Invalid(
            f"VM {name}: disk {disk.target} was no file, but {disk.image.kind} {disk.image.source}, and comes back as"
            " one.",
            hint="Say with storage where.",
            target=disk.target,
        )
    stem, ending = os.path.splitext(os.path.basename(disk.image.source))
    ending = ending if disk.image.format == "qcow2" and ending else ".qcow2"
    place = directory or os.path.dirname(disk.image.source)
    path = os.path.join(place, f"{stem or 'disk'}{ending}")
    return os.path.join(place, f"{stem or 'disk'}-{disk.target}{ending}") if path in taken else path


def power_after(asked: str, before: str, *, memory: bool, force: bool, name: str) -> str:
    """What a VM is when it is back. One that was paused is started: its memory was lost.

    :param asked: ``before``, ``running`` or ``stopped``.
    :param before: What it was when it was shelved.
    :param memory: Whether the shelf has its memory. A suspended VM whose memory was dropped is off.
    :param force: Throw the memory away.
    :raises Refused: There is memory, and nobody said that it may be thrown away.
    """
    if asked == "stopped" and memory and not force:
        raise Refused(
            f"VM {name} was suspended, and the shelf has its memory: power: stopped would throw it away.",
            hint="Say power: running or power: before, or force: true.",
        )
    if asked != "before":
        return asked
    if before == "suspended":
        return "suspended" if memory else "stopped"
    return "running" if before in ("running", "paused") else "stopped"


# ---- whether there is room


@dataclass(frozen=True)
class Room:
    """What a file system has, and what is to be written there, in bytes.

    :param directory: One in it.
    """

    directory: str
    free: int
    needed: int


def written(stored: int, *, copied_again: bool) -> int:
    """Bytes that a disk takes here.

    :param stored: Bytes of its image in the store.
    :param copied_again: Whether its data are in two files for a time.
    """
    return (stored + _EMPTY) * (2 if copied_again else 1)


def check_room(rooms: t.Iterable[Room], *, name: str, host: str) -> None:
    """See that what comes back fits.

    :raises NoSpace: It does not.
    """
    for room in rooms:
        if room.needed > room.free:
            raise NoSpace(
                f"VM {name} needs {_mebibytes(room.needed)} MiB in {room.directory} on {host}, where"
                f" {_mebibytes(room.free)} MiB are free.",
                hint="Make room, or say another directory with storage.",
                directory=room.directory,
                needed=room.needed,
                free=room.free,
            )


def check_capacity(*, name: str, host: str, memory: int, available: int, vcpus: int, cpus: int, max_vcpus: int) -> None:
    """See that the VM can run here beside those that do.

    :param memory: MiB that it wants.
    :param available: MiB that could be had.
    :param vcpus: That it has at most.
    :param cpus: Of the host.
    :param max_vcpus: That a VM of its kind can have here; 0 when it is not told.
    :raises NoSpace: It cannot.
    """
    if memory > available:
        raise NoSpace(
            f"VM {name} needs {memory} MiB of memory, and {host} has {available} MiB left.",
            hint="Unshelve it on another host, make room here, or say power: stopped.",
            memory=memory,
            available=available,
        )
    most = min(cpus, max_vcpus) if max_vcpus else cpus
    if vcpus > most:
        raise NoSpace(
            f"VM {name} has {vcpus} CPUs, and a VM can have {most} on {host}.",
            hint="Unshelve it on another host, or say power: stopped.",
            vcpus=vcpus,
            cpus=cpus,
        )


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}"
