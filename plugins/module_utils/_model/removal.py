# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Removing: which files of a VM go with it, and which stay."""

from __future__ import annotations

import os
import typing as t
from dataclasses import dataclass

from .._core.errors import Invalid
from .domain import Domain
from .instance import Instance


@dataclass(frozen=True)
class Removal:
    """What happens to the disks of a VM that is removed.

    :param remove: Files that go.
    :param keep: Files and volumes that stay, with the reason.
    """

    remove: tuple[str, ...]
    keep: t.Mapping[str, str]


def choose(
    domain: Domain, instance: Instance, listed: t.Sequence[str], others: t.Mapping[str, str], *, name: str
) -> Removal:
    """Which disks go: those that a launch of ours made, and those that the user lists.

    :param listed: Device names (``vdb``) or paths.
    :param others: Files that other VMs of the host use, with the VM's name.
    :raises Invalid: Something is listed that the VM does not have, or that is no file.
    """
    ours = {disk.path for disk in instance.disks}
    directory = own_directory(domain.uuid, instance)
    words = dict.fromkeys(listed, False)
    remove: list[str] = []
    keep: dict[str, str] = {}
    for disk in domain.disks:
        path = disk.image.source
        if not path:
            continue
        named = [word for word in (disk.target, path) if word in words]
        words.update(dict.fromkeys(named, True))
        if named and disk.image.kind != "file":
            raise Invalid(
                f"Disk {named[0]} of VM {name} is of the kind {disk.image.kind}, no file: it cannot be removed here.",
                hint="Take it out of remove_disks, and remove it where it is managed.",
            )
        if path in others:
            keep[path] = f"VM {others[path]} uses it too"
        elif named or path in ours or (directory and os.path.dirname(path) == directory):
            remove.append(path)
        else:
            keep[path] = "it was not made by this collection, and remove_disks does not list it"
    unknown = sorted(word for word, found in words.items() if not found)
    if unknown:
        raise Invalid(f"VM {name} has no disk {', '.join(unknown)}.", hint="remove_disks takes device names and paths.")
    # Files of ours that are no disk of the definition any more are ours all the same, unless another VM has them now.
    for path in sorted(ours - set(remove) - set(keep)):
        if path in others:
            keep[path] = f"VM {others[path]} uses it"
        else:
            remove.append(path)
    return Removal(tuple(remove), keep)


def own_directory(uuid: str, instance: Instance) -> str:
    """The VM's own directory, empty when it has none."""
    return f"{instance.launch.storage}/{uuid}" if instance.launch else ""
