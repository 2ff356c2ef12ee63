# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Rebuilding as values: which disks get another content, how large they are, which files go, what a run that died has
done."""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import asdict, dataclass, field, replace

from .._core.errors import Invalid, NotFound, Refused, Unsupported
from .domain import Disk
from .flavor import Flavor
from .instance import Instance, Launch, OwnDisk
from .launch import GIB

# How far a run that died has come.
STAGED = "staged"  # the definition is the old one
SWAPPED = "swapped"  # it names the new files, and nobody knows whether the VM starts with them
PROVEN = "proven"  # it did
ASTRAY = "astray"  # it names the new files of an earlier run, which this one was about to take back

_TAG = re.compile(r"-[0-9a-f]{8}$")


# ---- which disks


@dataclass(frozen=True)
class Chosen:
    """The disks of a VM that get another content.

    :param root: The target of the VM's first disk, whether it is among them or not.
    :param left: Disks that were not asked for or stay as they are, by target, each with the reason.
    """

    disks: tuple[Disk, ...]
    root: str
    left: t.Mapping[str, str]

    @property
    def targets(self) -> list[str]:
        """Of these disks."""
        return [disk.target for disk in self.disks]


def choose(disks: t.Sequence[Disk], wanted: t.Sequence[str], *, name: str) -> Chosen:
    """The disks that *wanted* means: ``root`` (the first one), ``all`` (those that a snapshot of all disks has), or
    targets.

    :raises NotFound: VM *name* has no such disk.
    :raises Refused: It has none at all, or one that must not be replaced.
    :raises Unsupported: One is not a file.
    """
    hard = [disk for disk in disks if disk.device in ("disk", "lun")]
    if not hard:
        raise Refused(f"VM {name} has no disk.")
    if not wanted:
        raise Refused(f"VM {name}: no disk was named.", hint="Say disks: root, all, or the targets of some.")
    left: dict[str, str] = {}
    if set(wanted) == {"root"}:
        chosen = hard[:1]
    elif set(wanted) == {"all"}:
        left = {disk.target: reason for disk in hard if (reason := _no_part(disk))}
        chosen = [disk for disk in hard if disk.target not in left]
        if not chosen:
            told = "; ".join(f"{target}: {reason}" for target, reason in left.items())
            raise Refused(f"VM {name} has no disk that could be restored. {told}.")
    else:
        known = {disk.target for disk in hard}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise NotFound(f"VM {name} has no disk {', '.join(unknown)}.", hint=f"It has {', '.join(sorted(known))}.")
        chosen = [disk for disk in hard if disk.target in wanted]
    for disk in chosen:
        _demand_file(disk, name)
    left = {**{disk.target: "not asked for" for disk in hard if disk not in chosen}, **left}
    return Chosen(tuple(chosen), hard[0].target, left)


def _no_part(disk: Disk) -> str:
    """Why a snapshot of all disks has no image of this one, or nothing."""
    if disk.readonly:
        return "it is read-only"
    if disk.shareable:
        return "other VMs may write to it (shareable)"
    if disk.image.kind == "network":
        return f"it is a volume on network storage ({disk.image.protocol}:{disk.image.source})"
    return ""


def _demand_file(disk: Disk, name: str) -> None:
    what = f"VM {name}: disk {disk.target} cannot get another content: "
    if disk.readonly or disk.shareable:
        raise Refused(f"{what}{_no_part(disk)}.", target=disk.target)
    if disk.encrypted:
        raise Unsupported(f"{what}it is encrypted, and the new one would not be.", target=disk.target)
    if disk.device == "lun" or disk.image.kind != "file" or disk.empty:
        kind = "lun" if disk.device == "lun" else disk.image.kind
        raise Unsupported(
            f"{what}it is of the kind {kind}, and a new disk is made as a file beside the old one, so that the old one"
            " can come back.",
            hint="Write the image to it with the means of its storage.",
            target=disk.target,
        )


# ---- names and sizes


def new_path(old: str, tag: str) -> str:
    """The file of a new disk or variable store: beside the old one and called after it.

    :param tag: Eight hexadecimal digits; those of an earlier rebuild go.
    """
    stem, ending = os.path.splitext(os.path.basename(old))
    return os.path.join(os.path.dirname(old), f"{_TAG.sub('', stem) or 'disk'}-{tag}{ending}")


def new_disk_path(old: str, tag: str) -> str:
    """The same for a disk, which is a qcow2 file whatever the old one is."""
    return os.path.splitext(new_path(old, tag))[0] + ".qcow2"


def new_size(virtual_size: int, old: int | None, flavor: Flavor | None, *, name: str, image: str) -> int:
    """The size of a new disk, in bytes: as large as the image and the old disk.

    :param virtual_size: Of the image.
    :param old: Of the old disk; ``None`` when it cannot be told.
    :param flavor: The VM's, for its root disk.
    :raises Invalid: The image is larger than the old disk, and the VM's flavor does not allow that.
    """
    least = max(old or 0, flavor.root * GIB if flavor else 0)
    if flavor and flavor.root and virtual_size > least:
        raise Invalid(
            f"VM {name} has a root disk of {least / GIB:.2f} GiB, and image {image} needs"
            f" {virtual_size / GIB:.2f} GiB.",
            hint="Enlarge its flavor with the module vm first, or use a smaller image.",
            virtual_size=virtual_size,
            root=least,
        )
    return max(virtual_size, least)


# ---- which files go


def let_go(
    chains: t.Mapping[str, t.Sequence[str]],
    instance: Instance,
    directory: str,
    listed: t.Sequence[str],
    users: t.Mapping[str, str],
    *,
    name: str,
) -> tuple[list[str], dict[str, str]]:
    """Which files of old disks are removed, and which are kept with the reason: the same rule as when a VM is removed.

    :param chains: By target the files of a disk from the top down, without base images.
    :param directory: The VM's own; empty when it has none.
    :param listed: Device names and paths that the user lists.
    :param users: Files that other VMs use, with the name of one.
    :raises Invalid: Something is listed that is no disk which is replaced.
    """
    ours = {disk.path for disk in instance.disks}
    words = {*chains, *(path for paths in chains.values() for path in paths)}
    unknown = sorted(set(listed) - words)
    if unknown:
        raise Invalid(
            f"VM {name}: {', '.join(unknown)} is not among the disks that are replaced.",
            hint="remove_disks takes their device names and paths.",
        )
    remove: list[str] = []
    keep: dict[str, str] = {}
    for target, paths in chains.items():
        for path in paths:
            if path in users:
                keep[path] = f"VM {users[path]} uses it too"
            elif path in ours or os.path.dirname(path) == directory or {target, path} & set(listed):
                remove.append(path)
                continue
            else:
                keep[path] = "it was not made by this collection, and remove_disks does not list it"
            break  # what lies below is a part of what is kept
    return remove, keep


# ---- the journal


@dataclass(frozen=True)
class Change:
    """One disk, or the variables of UEFI, that get another content.

    :param xml: The element in the definition before; empty when there was none.
    :param old: The file, and ``new`` the new one.
    """

    xml: str
    old: str
    new: str


@dataclass(frozen=True)
class Began:
    """What a rebuild has set out to do: enough to go on with it and to take it back.

    :param asked: What the task said, by which a later run knows that it means the same.
    :param ran: Whether the VM ran before.
    :param disks: By target.
    :param nvram: The variables of UEFI; ``None`` when they stay.
    :param remove: Files that go in the end.
    :param keep: Files of the old disks that stay, with the reason.
    :param leftovers: New files of earlier runs that died.
    :param launch: What was remembered of the launch before, when the root disk is among the disks.
    """

    asked: t.Mapping[str, t.Any]
    ran: bool
    disks: t.Mapping[str, Change]
    nvram: Change | None = None
    remove: tuple[str, ...] = ()
    keep: t.Mapping[str, str] = field(default_factory=dict)
    leftovers: tuple[str, ...] = ()
    launch: Launch | None = None

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
            told["disks"] = {target: Change(**each) for target, each in told["disks"].items()}
            told["launch"] = Launch(**told["launch"]) if told["launch"] else None
            told["nvram"] = Change(**told["nvram"]) if told["nvram"] else None
            for key in ("remove", "leftovers"):
                told[key] = tuple(told[key])
            return Began(**told)
        except (TypeError, KeyError, AttributeError) as exc:
            raise Invalid(
                f"The journal of a rebuild in the VM's metadata cannot be read: {exc}.",
                hint="Clear it with vm_status, and see which file the VM's disk is in.",
            ) from exc

    @property
    def new_files(self) -> list[str]:
        """All that this rebuild makes."""
        return [*(each.new for each in self.disks.values()), *([self.nvram.new] if self.nvram else [])]

    @property
    def going(self) -> list[str]:
        """The files that go in the end."""
        return [*self.remove, *([self.nvram.old] if self.nvram else [])]

    def phase(self, step: str, files: t.Mapping[str, str]) -> str:
        """How far it has come.

        :param step: The step that the journal tells.
        :param files: The files of the VM's disks as it is defined now, by target.
        """
        if any(files.get(target) != each.new for target, each in self.disks.items()):
            return ASTRAY if set(files.values()) & set(self.leftovers) else STAGED
        return PROVEN if step == "remove_old" else SWAPPED

    def owning_both(self, instance: Instance, root: str) -> Instance:
        """*instance* with the new disks beside the old ones, so that whoever removes the VM removes both."""
        roles = {disk.path: disk.role for disk in instance.disks}
        new = tuple(
            OwnDisk(roles.get(each.old, "root" if target == root else "data"), target, each.new)
            for target, each in self.disks.items()
        )
        return replace(instance, disks=(*disowning(instance, self.new_files).disks, *new))


def disowning(instance: Instance, gone: t.Collection[str]) -> Instance:
    """*instance* without the disks in files that are gone."""
    return replace(instance, disks=tuple(disk for disk in instance.disks if disk.path not in gone))
