# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Which base images of a cache may go, and why the others stay."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

# Operations that are begun and not finished, and that use no other base than before.
_FETCH_NOTHING = frozenset(["delete", "soft_delete", "snapshot", "backup"])


@dataclass(frozen=True)
class Cached:
    """A base image.

    :param parent: The name of the base that it lies upon; empty for whole images.
    :param size: What it takes, in bytes.
    :param idle: Seconds since a VM was last launched from it.
    :param hosts: Those that have used it.
    """

    name: str
    parent: str
    size: int
    idle: float
    hosts: tuple[str, ...]


@dataclass(frozen=True)
class Purge:
    """What becomes of the bases.

    :param remove: Names, in this order: none goes before those that lie upon it.
    :param keep: Names, with the reason.
    :param let_go: Those of ``keep`` that this host does not use any more, though others may.
    """

    remove: tuple[str, ...]
    keep: t.Mapping[str, str]
    let_go: tuple[str, ...]


def choose(
    cached: t.Sequence[Cached],
    users: t.Mapping[str, str],
    *,
    older_than: float,
    host: str,
    gone: t.Container[str],
) -> Purge:
    """What may go: what nobody uses, neither here nor, as far as it is known, on another host.

    :param users: Who uses a base, by its name.
    :param older_than: Seconds for which nobody has used it.
    :param host: This one.
    :param gone: Hosts whose use counts no more.
    """
    keep: dict[str, str] = {}
    let_go = []
    for base in cached:
        others = [other for other in base.hosts if other != host and other not in gone]
        if base.name in users:
            keep[base.name] = f"{users[base.name]} uses it"
        elif base.idle < older_than:
            keep[base.name] = f"it was used {int(base.idle)} seconds ago"
        elif others:
            keep[base.name] = f"{', '.join(others)} may use it"
            if host in base.hosts:
                let_go.append(base.name)
    by_name = {base.name: base for base in cached}
    depths: dict[str, int] = {}
    for base in cached:
        depth, parent = 0, base.parent
        while parent in by_name and depth < len(cached):
            if base.name in keep:
                keep.setdefault(parent, f"{base.name} lies upon it")
            depth, parent = depth + 1, by_name[parent].parent
        depths[base.name] = depth
    remove = sorted((name for name in by_name if name not in keep), key=lambda name: (-depths[name], name))
    return Purge(tuple(remove), keep, tuple(let_go))


def about_to_use(action: str, launch_storage: str | None, launch_base: str, storage: str) -> bool:
    """Whether an operation on a VM that is not finished may be about to use any base of *storage*.

    :param action: The journal's.
    :param launch_storage: Where the VM's own files are; ``None`` of a VM that was not launched by us.
    :param launch_base: The base that is known to be the VM's; empty before it is fetched.
    """
    if action in _FETCH_NOTHING:
        return False
    if action == "launch":
        return launch_storage == storage and not launch_base
    return True
