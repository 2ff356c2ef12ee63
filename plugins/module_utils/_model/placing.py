# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Where the disks of a VM that moves will lie: what is shared, what is copied, and to where."""

from __future__ import annotations

import dataclasses
import json
import os
import typing as t
from dataclasses import dataclass, field

from .._core.errors import Invalid
from .domain import Disk

# How the content of a disk comes to the destination: it is there, as both hosts see the same storage; it is copied; it
# is reached over the network from both; there is no medium.
SHARED, COPIED, NETWORK, EMPTY = "shared", "copied", "network", "empty"


@dataclass(frozen=True)
class Problem:
    """What stands against a move.

    :param code: Stable: ``path_taken`` …
    :param message: What is the matter, one sentence.
    :param way_out: What would allow it.
    :param live: Whether it stands against a live migration; and ``cold``, against moving the VM while it is off.
    """

    code: str
    message: str
    way_out: str = ""
    live: bool = True
    cold: bool = True


@dataclass(frozen=True)
class Below:
    """A layer below a disk's file, on the source.

    :param path: Where it lies.
    :param size: Of its disk, in bytes.
    :param length: What it takes on its storage, in bytes.
    """

    path: str
    format: str
    size: int
    length: int


@dataclass(frozen=True)
class Placed:
    """A disk, CD-ROM or floppy of the VM, and where it goes.

    :param target: ``vda``.
    :param device: ``disk``, ``cdrom``, ``floppy`` or ``lun``.
    :param how: :data:`SHARED`, :data:`COPIED`, :data:`NETWORK` or :data:`EMPTY`.
    :param path: On the source; empty without a medium. For ``network`` the name in the protocol.
    :param there: At the destination.
    :param format: ``qcow2`` or ``raw``.
    :param size: Of the disk in it, in bytes.
    :param allocated: What the file of the top layer takes on its storage, in bytes.
    :param below: What lies below it, the nearest first.
    :param shared_base: Whether both hosts see the layer below it by the same path, so that it stays where it is.
    :param pool: The storage pool that its definition names.
    """

    target: str
    device: str
    how: str
    path: str = ""
    there: str = ""
    format: str = ""
    size: int = 0
    allocated: int = 0
    below: tuple[Below, ...] = ()
    shared_base: bool = False
    readonly: bool = False
    pool: str = ""

    @property
    def mirrored(self) -> bool:
        """Whether libvirt copies it in a live migration. What is read-only, it does not."""
        return self.how == COPIED and not self.readonly

    @property
    def sent(self) -> bool:
        """Whether it is sent ahead of a live migration, as nobody writes to it."""
        return self.how == COPIED and self.readonly


@dataclass(frozen=True)
class Room:
    """What is needed below a directory of the destination, in bytes.

    :param real: If everything takes what it takes now.
    :param promised: If every disk grows to its full size.
    :param free: What there is; ``None`` when that cannot be told.
    """

    real: int = 0
    promised: int = 0
    free: int | None = None


@dataclass(frozen=True)
class Layout:
    """Where all disks of a VM go.

    :param directory: The VM's own directory on the source; empty when it has none, or both see it.
    :param there: That at the destination.
    :param storage: The directory at the destination below which bases are kept.
    :param nvram: The file of the firmware's variables that has to move; empty when there is none, or both see it.
    :param nvram_made: Whether it is not at the destination yet.
    :param tpm: The directory of an emulated TPM's state that has to move; empty when there is none.
    :param secrets: UUIDs of libvirt's secrets that the disks need and the destination gets.
    :param room: What is needed, by directory of the destination.
    """

    disks: tuple[Placed, ...] = ()
    directory: str = ""
    there: str = ""
    storage: str = ""
    nvram: str = ""
    nvram_made: bool = False
    tpm: str = ""
    secrets: tuple[str, ...] = ()
    room: t.Mapping[str, Room] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @property
    def copied(self) -> list[str]:
        """The disks that libvirt copies in a live migration, by target: for its list of disks to migrate."""
        return [disk.target for disk in self.disks if disk.mirrored]

    @property
    def shared(self) -> bool:
        """Whether nothing has to be copied."""
        return not any(disk.how == COPIED for disk in self.disks) and not self.nvram and not self.tpm

    @property
    def to_copy(self) -> int:
        """What is copied of the disks' own files, in bytes; bases that the destination lacks come on top."""
        return sum(disk.allocated for disk in self.disks if disk.how == COPIED)

    def against(self, *, live: bool) -> list[Problem]:
        """What stands against a live migration, or against moving the VM while it is off."""
        return [problem for problem in self.problems if (problem.live if live else problem.cold)]

    def disk(self, target: str) -> Placed | None:
        """The disk of that name, or ``None``."""
        return next((disk for disk in self.disks if disk.target == target), None)

    def tell(self) -> dict[str, str]:
        """For results: how each disk goes, by target."""
        return {disk.target: disk.how for disk in self.disks}

    def dump(self) -> dict[str, t.Any]:
        """As JSON values, for the journal: what has to be known to tidy up. What was in the way is not."""
        told = dataclasses.asdict(dataclasses.replace(self, room={}, problems=()))
        return t.cast("dict[str, t.Any]", json.loads(json.dumps(told)))

    @staticmethod
    def load(told: t.Mapping[str, t.Any]) -> Layout:
        """What :meth:`dump` wrote.

        :raises Invalid: It cannot be read.
        """
        try:
            disks = tuple(
                Placed(**{**disk, "below": tuple(Below(**layer) for layer in disk["below"])}) for disk in told["disks"]
            )
            rest = {key: told[key] for key in ("directory", "there", "storage", "nvram", "nvram_made", "tpm")}
            return Layout(disks=disks, secrets=tuple(told["secrets"]), **rest)
        except (KeyError, TypeError) as exc:
            raise Invalid(f"Where the disks of the VM go cannot be read from its journal: {exc!r}.") from exc


def place_files(paths: t.Mapping[str, str], directory: str, own: str, uuid: str) -> dict[str, str]:
    """Where files go that are copied.

    :param paths: By the disk's target.
    :param directory: The one at the destination that the user wants; empty for the same paths as here.
    :param own: The VM's own directory; empty when it has none.
    :param uuid: Of the VM.
    """
    if not directory:
        return dict(paths)
    placed: dict[str, str] = {}
    for target, path in paths.items():
        name = os.path.basename(path)
        if own and os.path.dirname(path) == own:
            place = os.path.join(directory, uuid, name)
        else:
            place = os.path.join(directory, name)
        if place in placed.values():
            place = os.path.join(os.path.dirname(place), f"{target}-{name}")
        placed[target] = place
    return placed


def vouched(path: str, target: str, words: t.Container[str]) -> bool:
    """Whether the user says that both hosts see a disk.

    :param words: Of ``shared_storage``: targets, paths, and directories.
    """
    place = os.path.normpath(path)
    while place not in ("/", "", "."):
        if place in words:
            return True
        place = os.path.dirname(place)
    return target in words


def image_kind(disk: Disk) -> str:
    """How a disk would go, as far as its definition alone tells; empty when the storage has to be looked at."""
    if disk.empty:
        return EMPTY
    return "" if disk.image.kind in ("file", "block", "volume") else NETWORK
