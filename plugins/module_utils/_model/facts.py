# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a planner has to know of a host and of its VMs: plain values from what libvirt and the kernel tell.

Memory is in MiB, storage in bytes.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from . import status
from .capacity import Pool, inside
from .domain import Disk
from .instance import Policy
from .needs import Needs, read_needs
from .statistics import Size
from .status import Observation

Result = dict[str, t.Any]
Sizes = t.Mapping["tuple[str, int | None]", Size]

# What the guest is doing, where planners have another word for it than :data:`.status.CONDITIONS`.
_CONDITIONS = {"stopped": "off"}
# Modes of a CPU that is the host's own.
_OWN_CPU = ("host-passthrough", "maximum")

# File systems that several machines see at once, as the kernel names them. libvirt trusts most of them in migrations
# (virFileIsSharedFS); of the others it wants to be told.
_NAMES = (
    "acfs afs beegfs ceph cifs fhgfs fuse.ceph fuse.ceph-fuse fuse.glusterfs fuse.juicefs fuse.mfs fuse.quobyte gfs2"
    " gpfs lustre nfs nfs4 ocfs2 smb3 smbfs"
)
_SHARED = frozenset(_NAMES.split())
# Names of the same file system.
_ALIASES = {"nfs4": "nfs", "smb3": "cifs", "smbfs": "cifs", "fhgfs": "beegfs", "fuse.ceph-fuse": "fuse.ceph"}
# Those that hold files and have no device.
_OWN_DEVICES = ("zfs", "btrfs")
# Where nobody keeps disks, and mounts come and go.
_ELSEWHERE = ("/boot", "/dev", "/proc", "/run", "/snap", "/sys")
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A line of ``/proc/self/mountinfo``.

    :param root: The directory of the file system that is seen there.
    :param point: Where it is seen.
    """

    root: str
    point: str
    type: str
    source: str
    readonly: bool = False


def read_mounts(text: str) -> list[Mount]:
    """The lines of ``/proc/self/mountinfo`` (proc(5)), in their order: a later one hides what is below it."""
    found = []
    for line in text.splitlines():
        mine, _rule, its = line.partition(" - ")
        words, more = mine.split(), its.split()
        if len(words) < 6 or len(more) < 2:
            continue
        root, point, source = (_plain(word) for word in (words[3], words[4], more[1]))
        found.append(Mount(root, point, more[0], source, "ro" in words[5].split(",")))
    return found


def _plain(word: str) -> str:
    """Blanks and the like are written as octal numbers."""
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), word)


def mount_of(path: str, mounts: t.Iterable[Mount]) -> Mount | None:
    """Where *path*, which has no symbolic links, lies."""
    best: Mount | None = None
    for mount in mounts:
        if inside(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def identity(mount: Mount) -> str:
    """What is the same on two machines that see the same files; empty where other machines do not see them.

    That is a guess: nothing tells whether two servers have the same name, and one server may have two.
    """
    if mount.type not in _SHARED:
        return ""
    where = "" if mount.root == "/" else f" {mount.root}"
    return f"{_ALIASES.get(mount.type, mount.type)} {mount.source}{where}"


def pool_identity(pool: Pool) -> str:
    """The same of a storage pool, for who is not on its machine."""
    return pool.source if pool.type == "netfs" else ""


def storage_mounts(mounts: t.Sequence[Mount], directories: t.Iterable[str]) -> list[Mount]:
    """Those that matter: where one of *directories* lies, and what disks could lie on. One for each place, sorted.

    :param directories: Without symbolic links.
    """
    visible = {mount.point: mount for mount in mounts}  # the last one at a place hides the others
    chosen = {mount.point: mount for mount in visible.values() if _holds_disks(mount)}
    for directory in directories:
        found = mount_of(directory, visible.values())
        if found:
            chosen[found.point] = found
    return [chosen[point] for point in sorted(chosen)]


def _holds_disks(mount: Mount) -> bool:
    if mount.readonly or any(inside(mount.point, place) for place in _ELSEWHERE):
        return False
    whole = mount.root == "/"  # else a part of it, or a single file, which is seen here too
    return mount.type in _SHARED or mount.type in _OWN_DEVICES or (whole and mount.source.startswith("/dev/"))


@dataclass(frozen=True)
class Sighting:
    """What was seen of one VM.

    :param root: Its XML: as it runs, if it does.
    :param sizes: Of its disks (:func:`.statistics.sizes`).
    :param dirty_rate: MiB of its memory that the guest changes a second; ``None`` when that was not measured.
    """

    seen: Observation
    root: ET.Element
    active: bool
    autostart: bool
    sizes: Sizes
    dirty_rate: int | None = None


def tell_vm(vm: Sighting, needs: Needs, pools: t.Mapping[str, str]) -> Result:
    """A VM as planners see it.

    :param needs: Of it.
    :param pools: The directories of storage pools, by name.
    """
    state, instance, domain = status.read(vm.seen), vm.seen.instance, needs.domain
    origin = instance.origin
    return {
        "name": vm.seen.name,
        "uuid": vm.seen.uuid,
        "status": state.status,
        "condition": condition(state.condition),
        "task_state": state.task_state,
        "locked": instance.lock is not None,
        "persistent": vm.seen.persistent,
        "autostart": vm.autostart,
        "memory": needs.memory,
        "vcpus": domain.vcpus,
        "arch": domain.arch,
        "machine": domain.machine,
        "cpu": _OWN_CPU[0] if domain.cpu_mode in _OWN_CPU else domain.cpu_model,
        "disks": [_tell_disk(disk, vm.sizes, pools) for disk in domain.disks if not disk.empty],
        "networks": _sources(needs, "network"),
        "links": _sources(needs, "bridge", "direct"),
        "devices": [f"{device.kind} {device.name}".rstrip() for device in needs.devices if not device.teamed],
        **(instance.policy or Policy()).tell(),
        "origin": dict(vars(origin)) if origin else None,
        "dirty_rate": vm.dirty_rate,
    }


def condition(word: str) -> str:
    """What the guest is doing, in the planner's words.

    :param word: One of :data:`.status.CONDITIONS`.
    """
    return _CONDITIONS.get(word, word)


def taken(vms: t.Iterable[Sighting]) -> tuple[int, int, list[Needs]]:
    """Memory (MiB) and CPUs of VMs that are on, and the needs of all of them, in their order."""
    memory, cpus, needs = 0, 0, []
    for vm in vms:
        needs.append(read_needs(vm.root))
        if vm.active:
            memory += needs[-1].memory
            cpus += needs[-1].domain.vcpus
    return memory, cpus, needs


def _sources(needs: Needs, *kinds: str) -> list[str]:
    return sorted({card.source for card in needs.domain.interfaces if card.kind in kinds and card.source})


def _tell_disk(disk: Disk, sizes: Sizes, pools: t.Mapping[str, str]) -> Result:
    """A disk. What lies below its top layer is brought only where it is not at hand, so it does not count."""
    size = sizes.get((disk.target, disk.image.index)) or sizes.get((disk.target, None)) or Size("", None, None)
    path = disk.image.path or ""
    if disk.image.kind == "volume":
        pool, _slash, volume = disk.image.source.partition("/")
        directory = pools.get(pool, "")
        path = size.path or (f"{directory}/{volume}" if directory and volume else "")
    network = not path.startswith("/")
    return {
        "target": disk.target,
        "path": f"{disk.image.protocol or disk.image.kind}:{disk.image.source}" if network else path,
        "bytes": size.allocation or 0,
        "size": size.capacity or 0,
        "readonly": disk.readonly,
        "network": network,
    }
