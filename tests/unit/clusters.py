# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Clusters as host_info tells them with ``gather: [placement]``, for tests of what plans with them."""

from __future__ import annotations

import typing as t

Facts = dict[str, t.Any]
MIB = 2**20
NFS = "nfs store:/vms"
SINCE = "2026-01-31T12:00:00Z"


def vm(name: str, memory: int = 512, *, disk: str = "", **more: t.Any) -> Facts:
    """A VM that runs.

    :param disk: The directory of its disk, if it has one.
    """
    disks = [{"target": "vda", "path": f"{disk}/{name}", "bytes": 100 * MIB, "size": 200 * MIB}] if disk else []
    return {
        "name": name,
        "uuid": f"uuid-{name}",
        "status": "ACTIVE",
        "condition": "running",
        "task_state": "",
        "locked": False,
        "persistent": True,
        "autostart": False,
        "memory": memory,
        "vcpus": 1,
        "arch": "x86_64",
        "machine": "pc-q35-7.2",
        "cpu": "qemu64",
        "disks": [{**each, "readonly": False, "network": False} for each in disks],
        "networks": [],
        "links": [],
        "devices": [],
        "strategy": "",
        "priority": 0,
        "groups": [],
        "origin": None,
        "dirty_rate": None,
        **more,
    }


def off(name: str, memory: int = 512, **more: t.Any) -> Facts:
    """A VM that is off."""
    return vm(name, memory, **{"status": "SHUTOFF", "condition": "off", **more})


def group(name: str, policy: str) -> list[Facts]:
    """The groups of a VM that is in one."""
    return [{"name": name, "policy": policy}]


def origin(host: str, power: str = "running") -> Facts:
    """Where a VM was."""
    return {"host": host, "since": SINCE, "power": power, "reason": ""}


def host(name: str, *vms: Facts, memory: int = 4096 + 512, **more: t.Any) -> Facts:
    """A host with a directory of its own and one that all hosts see. By default VMs may take 4 GiB of it."""
    running = [each for each in vms if each["condition"] not in ("off", "suspended", "crashed")]
    return {
        "name": f"{name}.example.com",
        "arch": "x86_64",
        "scheduling": {"enabled": True, "reason": "", "since": "", "by": ""},
        "memory": {"total": memory, "available": memory, "running": sum(each["memory"] for each in running)},
        "cpus": {"total": 8, "running": sum(each["vcpus"] for each in running)},
        "cpu_models": ["qemu64", "EPYC"],
        "machines": ["pc-q35-7.2"],
        "libvirt": "9.0.0",
        "qemu": "7.2.22",
        "networks": ["lab"],
        "links": ["br0"],
        "storage": [
            storage("/", 4096, 2048),
            storage("/srv/shared", 4096, 2048, NFS),
        ],
        "vms": list(vms),
        **more,
    }


def storage(path: str, capacity: int, available: int, shared: str = "") -> Facts:
    """A place for files, in MiB."""
    return {"path": path, "shared": shared, "capacity": capacity * MIB, "available": available * MIB}


def disabled(reason: str) -> Facts:
    """Of a host that is out of scheduling."""
    return {"enabled": False, "reason": reason, "since": SINCE, "by": "me@here"}


def cluster(**hosts: Facts) -> dict[str, Facts]:
    """Hosts by name."""
    return dict(hosts)


def carried_out(hosts: t.Mapping[str, Facts], plan: t.Mapping[str, t.Any]) -> dict[str, Facts]:
    """What hosts tell when all moves of a plan have been made."""
    moves = {move["uuid"]: move for move in plan["moves"]}
    vms = {each["uuid"]: each for one in hosts.values() for each in one["vms"]}
    after = {}
    for name, one in hosts.items():
        stayed = [each for each in one["vms"] if each["uuid"] not in moves]
        came = [vms[uuid] for uuid, move in moves.items() if move["dest"] == name]
        again = host(name, *stayed, *came)
        after[name] = {**one, **{key: again[key] for key in ("vms",)}}
        after[name]["memory"] = {**one["memory"], "running": again["memory"]["running"]}
        after[name]["cpus"] = {**one["cpus"], "running": again["cpus"]["running"]}
    return after
