# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""libvirt's bulk statistics of a domain (virConnectGetAllDomainStats), read into plain values.

Memory is in MiB, storage and traffic in bytes, time in seconds.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

Raw = t.Mapping[str, t.Any]
Result = dict[str, t.Any]

_NANO = 10**9
# Ours, and libvirt's in KiB.
_MEMORY = {
    "current": "current",
    "maximum": "maximum",
    "available": "available",
    "unused": "unused",
    "usable": "usable",
    "rss": "rss",
}
_BLOCK = {
    "read_requests": "rd.reqs",
    "read_bytes": "rd.bytes",
    "write_requests": "wr.reqs",
    "write_bytes": "wr.bytes",
    "flush_requests": "fl.reqs",
}
_NET = {
    f"{way}_{what}": f"{way}.{key}"
    for way in ("rx", "tx")
    for what, key in (("bytes", "bytes"), ("packets", "pkts"), ("errors", "errs"), ("drops", "drop"))
}


@dataclass(frozen=True)
class Size:
    """How large an image is.

    :param path: Where libvirt says it lies; empty when it does not.
    :param capacity: Size of the disk in it, in bytes.
    :param allocation: What it takes on the host's storage, in bytes.
    """

    path: str
    capacity: int | None
    allocation: int | None


def figures(raw: Raw) -> Result:
    """What the guest has used since its QEMU began; no figures of a VM that is off."""
    return {"cpu": _cpu(raw), "memory": _memory(raw), "block": _blocks(raw), "net": _nets(raw)}


def answered(raw: Raw) -> bool:
    """Whether QEMU itself was asked. It is not while it is busy with another request, or hangs.

    :param raw: With the group ``balloon``.
    """
    return "balloon.rss" in raw


def sizes(raw: Raw, *, running: bool) -> dict[tuple[str, int | None], Size]:
    """The size of every image of every disk, by the disk's target and libvirt's number of the layer.

    A VM that is off has no numbers: only its top layers are there, with ``None``.
    """
    found: dict[tuple[str, int | None], Size] = {}
    for block in _numbered(raw, "block"):
        # QEMU tells what a file takes as "physical"; its "allocation" is how far it was written. Of a VM that is off,
        # libvirt tells the length of the file as "physical", and what it takes as "allocation".
        allocation = block.get("physical" if running else "allocation")
        size = Size(block.get("path", ""), block.get("capacity"), allocation)
        index = block.get("backingIndex")
        found[block.get("name", ""), index] = size
        found.setdefault((block.get("name", ""), None), size)
    return found


def _numbered(raw: Raw, kind: str) -> list[Result]:
    """The groups ``KIND.0.…``, ``KIND.1.…`` as dictionaries."""
    groups: list[Result] = [{} for _number in range(raw.get(f"{kind}.count", 0))]
    for key, value in raw.items():
        if key.startswith(f"{kind}."):
            number, _dot, name = key[len(kind) + 1 :].partition(".")
            if number.isdigit() and int(number) < len(groups):
                groups[int(number)][name] = value
    return groups


def _cpu(raw: Raw) -> Result:
    told: Result = {
        name: round(raw[f"cpu.{name}"] / _NANO, 3) if f"cpu.{name}" in raw else None
        for name in ("time", "user", "system")
    }
    told["vcpus"] = raw.get("vcpu.current")
    return told


def _memory(raw: Raw) -> Result:
    return {ours: raw[f"balloon.{its}"] // 1024 if f"balloon.{its}" in raw else None for ours, its in _MEMORY.items()}


def _blocks(raw: Raw) -> list[Result]:
    seen: set[str] = set()
    told = []
    for block in _numbered(raw, "block"):
        name = block.get("name", "")
        if name not in seen:  # the layers below the top come with the same name
            seen.add(name)
            told.append({"target": name, **{ours: block.get(its) for ours, its in _BLOCK.items()}})
    return told


def _nets(raw: Raw) -> list[Result]:
    return [
        {"tap": net["name"], **{ours: net.get(its) for ours, its in _NET.items()}}
        for net in _numbered(raw, "net")
        if net.get("name")
    ]
