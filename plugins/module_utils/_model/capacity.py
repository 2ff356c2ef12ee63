# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a KVM host has, and what its VMs take of it. Memory is in MiB, storage in bytes."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from .status import SHUTOFF

Result = dict[str, t.Any]
Raw = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Pool:
    """A storage pool.

    :param path: Its directory, if it has one.
    :param capacity: Bytes; like the next two ``None`` while the pool is not active.
    :param source: The file system, server and directory that a ``netfs`` pool mounts; empty for others.
    """

    name: str
    uuid: str
    type: str
    path: str
    active: bool
    autostart: bool
    persistent: bool
    capacity: int | None = None
    allocation: int | None = None
    available: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Network:
    """A libvirt network.

    :param forward: ``nat``, ``route``, ``bridge`` …; empty for an isolated one.
    """

    name: str
    uuid: str
    bridge: str
    forward: str
    active: bool
    autostart: bool
    persistent: bool


@dataclass(frozen=True)
class Room:
    """The file system that a directory is on."""

    capacity: int
    allocation: int
    available: int


@dataclass(frozen=True)
class Capabilities:
    """What virConnectGetCapabilities tells.

    :param types: Per architecture, the domain types it can run: ``kvm``, ``qemu``.
    :param machines: Machine types, with their versions, of the host's own architecture.
    """

    uuid: str
    arch: str
    model: str
    vendor: str
    features: tuple[str, ...]
    types: t.Mapping[str, tuple[str, ...]]
    machines: tuple[str, ...]


def read_capabilities(root: ET.Element) -> Capabilities:
    """From the element ``<capabilities>``."""
    arch = root.findtext("host/cpu/arch", "")
    types: dict[str, tuple[str, ...]] = {}
    machines: list[str] = []
    for guest in root.iterfind("guest"):
        node = guest.find("arch")
        if guest.findtext("os_type") != "hvm" or node is None:
            continue
        name = node.get("name", "")
        types[name] = tuple(sorted({domain.get("type", "") for domain in node.iterfind("domain")}))
        if name == arch:
            machines = [machine.text or "" for machine in node.iterfind("machine")]
    return Capabilities(
        uuid=root.findtext("host/uuid", ""),
        arch=arch,
        model=root.findtext("host/cpu/model", ""),
        vendor=root.findtext("host/cpu/vendor", ""),
        features=tuple(sorted(feature.get("name", "") for feature in root.iterfind("host/cpu/feature"))),
        types=types,
        machines=tuple(sorted(machines)),
    )


def read_source(pool: ET.Element) -> str:
    """What a ``netfs`` pool mounts, from the element ``<pool>``: "nfs server:/directory"; empty for others."""
    host, directory, kind = (pool.find(f"source/{tag}") for tag in ("host", "dir", "format"))
    if pool.get("type") != "netfs" or host is None or directory is None:
        return ""
    named = "nfs" if kind is None or kind.get("type", "auto") == "auto" else kind.get("type", "")
    return f"{named} {host.get('name', '')}:{directory.get('path', '')}"


def version(number: int) -> str:
    """libvirt packs versions into numbers: 7002022 is 7.2.22."""
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def on(raw: Raw) -> bool:
    """Whether a VM is on, from its bulk statistics."""
    return bool(raw.get("state.state", SHUTOFF) != SHUTOFF)


def taken(raws: t.Iterable[Raw]) -> dict[str, Result]:
    """What VMs may take, from their bulk statistics: of all that are defined, and of those that are on."""
    told: dict[str, Result] = {
        "memory": {"defined": 0, "running": 0},
        "vcpus": {"defined": 0, "running": 0},
    }
    for raw in raws:
        running = on(raw)
        for key, amount in (("memory", raw.get("balloon.maximum", 0) // 1024), ("vcpus", raw.get("vcpu.current", 0))):
            told[key]["defined"] += amount
            told[key]["running"] += amount if running else 0
    return told


def promised(raws: t.Iterable[Raw], directory: str) -> Result:
    """How many disks of VMs lie below *directory*, and how large they would be if they were full.

    A disk that several VMs share counts once.
    """
    disks: dict[str, int] = {}
    for raw in raws:
        seen: set[str] = set()
        for number in range(raw.get("block.count", 0)):
            name, path = raw.get(f"block.{number}.name", ""), raw.get(f"block.{number}.path", "")
            if name not in seen and inside(path, directory):
                disks[path] = raw.get(f"block.{number}.capacity", 0)
            seen.add(name)
    return {"disks": len(disks), "promised": sum(disks.values())}


def inside(path: str, directory: str) -> bool:
    """Whether *path* is *directory* or below it."""
    return bool(path and directory) and f"{path}/".startswith(f"{directory.rstrip('/')}/")


def pool_of(directory: str, pools: t.Iterable[Pool]) -> Pool | None:
    """The active pool that *directory* is in: the one with the longest path, if there are several."""
    holding = [pool for pool in pools if pool.active and inside(directory, pool.path)]
    return max(holding, key=lambda pool: len(pool.path), default=None)


def by_status(statuses: t.Iterable[tuple[str, str]]) -> Result:
    """Names by status, from pairs of name and status."""
    told: dict[str, list[str]] = {}
    for name, status in statuses:
        told.setdefault(status, []).append(name)
    return {status: sorted(told[status]) for status in sorted(told)}
