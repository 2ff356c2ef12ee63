# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Telling people what is planned: as a table, as a diff of how full hosts are, and what the world was like when it was
planned, so that one can see later what has changed since."""

from __future__ import annotations

import hashlib
import json
import typing as t

from .placement_facts import Host, Raw, Vm

Result = dict[str, t.Any]

# What a VM is called that moves, stops or stays, in the column HOW.
_TITLES = {"drain": "Drain of", "restore": "Return to", "evacuate": "Evacuation of"}
# How the facts of a VM are called when they have changed.
_WORDS = {
    "arch": "architecture",
    "cpu": "CPU model",
    "devices": "devices of the host",
    "disks": "disks",
    "groups": "groups",
    "links": "bridges",
    "machine": "machine type",
    "memory": "memory",
    "name": "name",
    "networks": "networks",
    "persistent": "definition",
    "priority": "priority",
    "strategy": "strategy",
    "vcpus": "number of CPUs",
}


# ---- what the world was like


def vms_basis(vms: t.Iterable[Vm]) -> Result:
    """What matters of VMs and does not change by itself, by UUID. How much disks take, and what guests do to their
    memory, does."""
    return {
        vm.uuid: {
            "name": vm.name,
            "on": vm.on,
            "memory": vm.memory,
            "vcpus": vm.vcpus,
            "arch": vm.arch,
            "machine": vm.machine,
            "cpu": vm.cpu,
            "disks": sorted([disk.path, disk.size] for disk in vm.disks),
            "networks": sorted(vm.networks),
            "links": sorted(vm.links),
            "devices": sorted(vm.devices),
            "persistent": vm.persistent,
            "strategy": vm.strategy,
            "priority": vm.priority,
            "groups": sorted([name, policy] for name, policy in vm.groups),
        }
        for vm in vms
    }


def hosts_basis(hosts: t.Iterable[Host]) -> Result:
    """Whether hosts take VMs, and which they have, by name."""
    return {
        host.name: {
            "enabled": host.enabled,
            "vms": {str(raw["uuid"]): str(raw["name"]) for raw in sorted(host.vms, key=lambda raw: str(raw["uuid"]))},
        }
        for host in hosts
    }


def fingerprint(told: Raw) -> str:
    """Of what a plan was made from: equal when that is."""
    seen = {key: told[key] for key in ("kind", "host", "basis")}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def changes(then: Raw, basis: Raw) -> list[str]:
    """What has changed since a plan was made, in sentences. What the plan itself has done meanwhile is no change.

    :param then: The plan.
    :param basis: What the world is like now.
    """
    moves = {str(move["uuid"]): str(move["dest"]) for move in then["moves"]}
    switched = {str(each["uuid"]) for each in [*then["stops"], *then["starts"]]}
    found = []
    old, new = then["basis"]["hosts"], basis["hosts"]
    for name in sorted({*old, *new}):
        if name not in new:
            found.append(f"Host {name} does not answer any more, or is no candidate.")
        elif name not in old:
            found.append(f"Host {name} is new.")
        else:
            if old[name]["enabled"] != new[name]["enabled"]:
                found.append(f"Host {name} is {'in' if new[name]['enabled'] else 'out of'} scheduling now.")
            came = {uuid: vm for uuid, vm in new[name]["vms"].items() if uuid not in old[name]["vms"]}
            went = {uuid: vm for uuid, vm in old[name]["vms"].items() if uuid not in new[name]["vms"]}
            found += [f"VM {vm} is on {name} now." for uuid, vm in sorted(came.items()) if moves.get(uuid) != name]
            found += [f"VM {vm} is not on {name} any more." for uuid, vm in sorted(went.items()) if uuid not in moves]
    arrived = {uuid for uuid, dest in moves.items() if uuid in new.get(dest, {}).get("vms", {})}
    return found + _vms_changed(then["basis"]["vms"], basis["vms"], arrived, switched)


def _vms_changed(old: Raw, new: Raw, arrived: t.Container[str], switched: t.Container[str]) -> list[str]:
    found = []
    for uuid in sorted({*old, *new}, key=lambda uuid: (str((old.get(uuid) or new[uuid])["name"]), uuid)):
        if uuid not in new:
            if uuid not in arrived:
                found.append(f"VM {old[uuid]['name']} is gone.")
        elif uuid not in old:
            found.append(f"VM {new[uuid]['name']} is new.")
        else:
            name = old[uuid]["name"]
            if old[uuid]["on"] != new[uuid]["on"] and uuid not in switched:
                found.append(f"VM {name} is {'on' if new[uuid]['on'] else 'off'} now.")
            found += [
                f"The {_WORDS[key]} of VM {name} is {_plain(new[uuid][key])} now, and was {_plain(value)}."
                for key, value in sorted(old[uuid].items())
                if key in _WORDS and value != new[uuid].get(key)
            ]
    return found


def _plain(value: t.Any) -> str:
    return json.dumps(value) if value else "none"


# ---- tables


def table(told: Raw) -> list[str]:
    """The plan as lines for people."""
    counts = [
        f"{len(told[key])} {word if len(told[key]) == 1 else words}"
        for key, word, words in (
            ("moves", "move", "moves"),
            ("stops", "stop", "stops"),
            ("starts", "start", "starts"),
            ("stays", "stays", "stay"),
            ("blockers", "blocker", "blockers"),
        )
        if told[key] or key == "moves"
    ]
    lines = [f"{_TITLES[told['kind']]} {told['host']}: {', '.join(counts)}."]
    rows = [
        (
            move["vm"],
            move["how"],
            move["source"],
            move["dest"],
            f"{move['memory']} MiB",
            "shared" if move["shared"] else "anew" if told["kind"] == "evacuate" else "carried",
            move["why"],
        )
        for move in told["moves"]
    ]
    rows += [(stop["vm"], "stop", told["host"], "", "", "", stop["why"]) for stop in told["stops"]]
    rows += [
        (start["vm"], "start", "", told["host"], f"{start['memory']} MiB", "", start["why"]) for start in told["starts"]
    ]
    rows += [(stay["vm"], "stays", "", "", "", "", f"{stay['code']}: {stay['why']}") for stay in told["stays"]]
    rows += [
        (each["vm"] or "-", "BLOCKED", "", "", "", "", f"{each['code']}: {each['message']} {each['way_out']}".rstrip())
        for each in told["blockers"]
    ]
    if rows:
        lines += ["", *_columns([("VM", "HOW", "FROM", "TO", "MEMORY", "DISKS", "WHY"), *rows])]
    touched = _touched(told)
    if touched:
        full = [
            (
                name,
                _arrow(each, "vms"),
                f"{_arrow(each, 'memory')} of {each['after']['memory_limit']} MiB",
                f"{_arrow(each, 'cpus')} of {each['after']['cpus_limit']}",
                f"{_arrow(each, 'load')} %",
            )
            for name, each in touched.items()
        ]
        lines += ["", *_columns([("HOST", "VMS", "MEMORY", "CPUS", "LOAD"), *full])]
    return lines


def occupancy(told: Raw, when: str) -> str:
    """How full hosts are ``before`` or ``after``, those that a plan touches, for a diff."""
    return "".join(
        f"{name}: {each[when]['vms']} VMs, {each[when]['memory']} of {each[when]['memory_limit']} MiB,"
        f" {each[when]['cpus']} of {each[when]['cpus_limit']} CPUs\n"
        for name, each in _touched(told).items()
    )


def _touched(told: Raw) -> dict[str, t.Any]:
    return {name: each for name, each in told["hosts"].items() if each["before"] != each["after"]}


def _arrow(each: Raw, key: str) -> str:
    before, after = each["before"][key], each["after"][key]
    return str(after) if before == after else f"{before} -> {after}"


def _columns(rows: t.Sequence[t.Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
