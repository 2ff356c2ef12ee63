# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Shelving: what of a VM goes into its shelf, and what the host remembers of it while the VM is still there."""

from __future__ import annotations

import json
import os
import typing as t
import uuid
from dataclasses import dataclass

from .._core.errors import Invalid, Unsupported
from .domain import Disk
from .instance import Mark
from .shelf import OFFLOADED, SHELVED, VM_STATES

# What becomes of a VM on its host, once it is shelved.
LATER, NEVER = "later", "never"


def set_name(vm: str) -> str:
    """The name of a VM's shelf, as Nova calls the image of one that is shelved."""
    return f"{vm}-shelved"


def base_id(sha256: str, attempt: int = 0) -> str:
    """The identifier of a base image that a shelf puts into a store. It follows from the content, so that it is there
    once, whoever comes first.

    :param attempt: How many were there and deleted before, in a store that gives no identifier twice.
    """
    what = f"urn:kvmops:lifecycle:base:{sha256}"
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{what}:{attempt}" if attempt else what))


def base_name(sha256: str) -> str:
    """Its name."""
    return f"base-{sha256[:12]}"


@dataclass(frozen=True)
class Chosen:
    """What becomes of the disks and drives of a VM.

    :param disks: Are copied.
    :param drives: Are stored as they are: config drives and other media of the VM's own.
    :param volumes: Stay on network storage: by target, what they are.
    :param left: Stay as well, by target, each with the reason.
    """

    disks: tuple[Disk, ...]
    drives: tuple[Disk, ...]
    volumes: t.Mapping[str, str]
    left: t.Mapping[str, str]


def choose(disks: t.Sequence[Disk], own: t.Container[str], directory: str, *, name: str) -> Chosen:
    """What of the *disks* of VM *name* goes into its shelf.

    :param own: Files that a launch made.
    :param directory: The VM's own; empty when it has none.
    :raises Unsupported: There is data that cannot be copied, and that would be lost when the host lets go of the VM.
    """
    copied, drives = [], []
    volumes: dict[str, str] = {}
    left: dict[str, str] = {}
    for disk in disks:
        if disk.empty:
            continue
        path = disk.image.source
        mine = disk.image.kind == "file" and (path in own or bool(directory and os.path.dirname(path) == directory))
        if disk.device in ("cdrom", "floppy") or disk.readonly:
            if mine:
                drives.append(disk)
            else:
                left[disk.target] = f"nothing is written to it, and it is not the VM's own ({path})"
        elif disk.image.kind == "network":
            volumes[disk.target] = f"{disk.image.protocol}:{path}"
        else:
            _demand_copyable(disk, name)
            copied.append(disk)
    return Chosen(tuple(copied), tuple(drives), volumes, left)


def _demand_copyable(disk: Disk, name: str) -> None:
    why = ""
    if disk.encrypted:
        why = "it is encrypted, and its image would not be"
    elif disk.shareable:
        why = "other VMs may write to it (shareable)"
    elif disk.device == "lun" or disk.image.kind in ("dir", "nvme", "vhostuser"):
        why = f"QEMU cannot copy {'lun' if disk.device == 'lun' else disk.image.kind} disks"
    if why:
        raise Unsupported(
            f"VM {name} cannot be shelved: disk {disk.target} cannot be copied, as {why}, and it would be lost when the"
            " host lets go of the VM.",
            hint="Detach it first, and attach it again when the VM is back.",
            target=disk.target,
        )


# ---- what the host remembers


@dataclass(frozen=True)
class File:
    """A file of a VM, and what changes when somebody writes to it.

    :param mtime: In nanoseconds.
    """

    path: str
    size: int
    mtime: int
    inode: int

    @staticmethod
    def look(path: str, seen: os.stat_result) -> File:
        """The file *path*, as *seen*."""
        return File(path, seen.st_size, seen.st_mtime_ns, seen.st_ino)


@dataclass(frozen=True)
class Record:
    """What the mark of a shelved VM tells.

    :param set_id: Of the shelf.
    :param store: Kind of the image store that it is in, and ``place`` what tells it from others.
    :param offload: ``later`` or ``never``.
    :param power_before: As in :class:`.shelf.Contents`.
    :param memory: Whether the shelf has the memory of the suspended VM.
    :param images: The identifiers of all its images.
    :param files: The VM's own on the host that the shelf has, as they were.
    """

    set_id: str
    store: str
    place: str
    offload: str
    power_before: str
    autostart: bool
    memory: bool
    images: tuple[str, ...]
    files: tuple[File, ...]

    def mark(self, since: str) -> Mark:
        """The mark of a VM that is shelved."""
        return Mark(
            VM_STATES[SHELVED],
            since,
            {
                "set": self.set_id,
                "store": self.store,
                "place": self.place,
                "offload": self.offload,
                "power_before": self.power_before,
                "autostart": str(self.autostart).lower(),
                "memory": str(self.memory).lower(),
                "images": json.dumps(self.images),
                "files": json.dumps([[each.path, each.size, each.mtime, each.inode] for each in self.files]),
            },
        )

    @staticmethod
    def load(mark: Mark) -> Record:
        """What :meth:`mark` wrote.

        :raises Invalid: It cannot be read.
        """
        data = mark.data
        try:
            return Record(
                set_id=data["set"],
                store=data["store"],
                place=data["place"],
                offload=data["offload"],
                power_before=data["power_before"],
                autostart=data["autostart"] == "true",
                memory=data["memory"] == "true",
                images=tuple(str(each) for each in json.loads(data["images"])),
                files=tuple(File(str(path), int(a), int(b), int(c)) for path, a, b, c in json.loads(data["files"])),
            )
        except (KeyError, ValueError, TypeError, RecursionError) as exc:
            raise Invalid(
                "What is remembered of a shelved VM in its metadata cannot be read.",
                hint="Mend it with 'virsh edit', or clear the status with vm_status and state: active.",
            ) from exc


def shelved_mark(marks: t.Iterable[Mark]) -> Mark | None:
    """The mark of a VM that is shelved and still on its host."""
    return next((mark for mark in marks if mark.state == VM_STATES[SHELVED]), None)


def offloaded_mark(marks: t.Iterable[Mark]) -> Mark | None:
    """The mark of a VM that is just brought back from its shelf."""
    return next((mark for mark in marks if mark.state == VM_STATES[OFFLOADED]), None)
