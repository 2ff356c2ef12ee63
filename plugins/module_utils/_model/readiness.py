# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Whether hosts can exchange VMs at all, whatever the VM: what each host told of itself and of the others in, findings
for each pair of source and destination out.

A pair is judged by what the source sees of the destination and by what both say of themselves. Nothing is asked of
anybody here.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass
from datetime import datetime, timedelta

from .._core.clock import parse_stamp
from .preflight import BLOCKER, WARNING, Finding, HostFacts, examine_hosts

Result = dict[str, t.Any]
Facts = t.Mapping[str, t.Any]

READY = "ready"
LIBVIRT_PORT = 16514

# Every reason code of a pair that vm_migrate does not have too; guide_prepare.rst tells what to do about each.
CODES: dict[str, str] = {
    "host_unknown": "A host has told nothing of itself.",
    "name_unresolved": "The source cannot resolve the destination's name.",
    "name_is_loopback": "The source takes the destination's name for its own.",
    "port_unreachable": "Packets from the source do not get to libvirt's port at the destination.",
    "connection_failed": "The source cannot open a connection to the destination's libvirt.",
    "another_host": "Under the destination's name another host answers.",
    "migration_port_unreachable": "Packets from the source do not get to the ports of a migration at the destination.",
    "certificate_missing": "A certificate or its key is missing on one of both.",
    "certificate_unreadable": "A certificate on one of both cannot be read as one.",
    "certificate_not_valid": "A certificate on one of both is not valid at this time.",
    "certificate_expires": "A certificate on one of both expires soon.",
    "certificate_rejected": "A certificate, its key, its authority and its names do not belong together.",
    "authority_differs": "Both trust different certificate authorities.",
    "cpu_incompatible": "The hosts have no CPU model in common.",
    "cpu_differs": "The destination's CPU lacks something that the source's has.",
    "storage_missing": "A directory for disks is not there on one of both.",
    "storage_not_shared": "A directory for disks is another one at the destination.",
    "config_drive_local": "VMs have a medium in a drive, such as a config drive, that only the source sees.",
    "records_missing": "The directory of the records cannot be used on one of both.",
    "clock_skew": "The clocks differ.",
}


@dataclass(frozen=True)
class Limits:
    """What is borne.

    :param skew: Seconds between two clocks.
    :param expires: Within how many days a certificate that expires is told.
    """

    skew: float = 10
    expires: int = 14


def judge(hosts: t.Mapping[str, Facts | None], limits: Limits) -> Result:
    """The matrix: for each source and each destination whether VMs can go that way, and what is to be said of it.

    :param hosts: By name, what ``host_readiness`` told there; ``None`` for a host that told nothing.
    """
    names = sorted(hosts)
    matrix: dict[str, dict[str, Result]] = {}
    for source in names:
        matrix[source] = {
            destination: _cell(list(_pair(source, destination, hosts, limits)))
            for destination in names
            if destination != source
        }
    cells = [cell for row in matrix.values() for cell in row.values()]
    return {"ready": all(cell["ready"] for cell in cells), "matrix": matrix, "table": table(matrix)}


def table(matrix: t.Mapping[str, t.Mapping[str, Result]]) -> list[str]:
    """The matrix as lines for people: a row for each source, a column for each destination."""
    names = list(matrix)
    rows = [["from \\ to", *names]]
    for source in names:
        cells = matrix[source]
        rows.append([source, *(_word(cells[name]) if name in cells else "-" for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(names) + 1)]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]


def _word(cell: Result) -> str:
    codes = [finding["code"] for finding in cell["findings"] if finding["severity"] == BLOCKER]
    return READY if cell["ready"] else ",".join(dict.fromkeys(codes))


def _cell(findings: list[Result]) -> Result:
    ordered = sorted(findings, key=lambda finding: str(finding["severity"]) != BLOCKER)
    return {
        "ready": not any(finding["severity"] == BLOCKER for finding in ordered),
        "codes": list(dict.fromkeys(finding["code"] for finding in ordered)),
        "findings": ordered,
    }


Found = t.Iterator[Result]


def _said(code: str, severity: str, message: str, way_out: str) -> Result:
    if code not in CODES:
        raise ValueError(f"unknown reason code {code}")
    return {"code": code, "severity": severity, "message": message, "way_out": way_out}


def _block(code: str, message: str, way_out: str) -> Result:
    return _said(code, BLOCKER, message, way_out)


def _warn(code: str, message: str, way_out: str) -> Result:
    return _said(code, WARNING, message, way_out)


def _pair(source: str, destination: str, hosts: t.Mapping[str, Facts | None], limits: Limits) -> Found:
    here, there = hosts[source], hosts[destination]
    for name, facts in ((source, here), (destination, there)):
        if facts is None:
            yield _block("host_unknown", f"{name} has told nothing of itself.", "See that Ansible reaches it.")
    if here is None or there is None:
        return
    yield from (finding.tell() for finding in _hosts(source, destination, here, there))
    yield from _way(source, destination, here, there)
    yield from _papers(source, here, ("authority", "client"), limits)
    yield from _papers(destination, there, ("authority", "server"), limits)
    yield from _trust(source, destination, here, there)
    yield from _cpu(source, destination, here, there)
    yield from _storage(source, destination, here, there)
    yield from _clock(source, destination, here, there, limits)


# ---- who they are, and the way from one to the other


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _hosts(source: str, destination: str, here: Facts, there: Facts) -> list[Finding]:
    return examine_hosts(
        *(
            HostFacts(name, facts["uuid"], _parts(facts["libvirt"]), _parts(facts["qemu"]))
            for name, facts in ((source, here), (destination, there))
        )
    )


def _way(source: str, destination: str, here: Facts, there: Facts) -> Found:
    peer = here["peers"].get(destination)
    if peer is None:
        yield _block(
            "host_unknown", f"{source} has not looked at {destination}.", "Name it among the peers of host_readiness."
        )
        return
    name = peer["name"]
    hosts_file = f"Put it into DNS, or into /etc/hosts on {source}."
    if not peer["addresses"]:
        yield _block("name_unresolved", f"{source} cannot resolve the name {name} of {destination}.", hosts_file)
        return
    if peer["loopback"]:
        addresses = ", ".join(peer["addresses"])
        yield _block(
            "name_is_loopback", f"{source} resolves the name {name} of {destination} to {addresses}.", hosts_file
        )
        return
    if not peer["reached"]:
        yield _block(
            "port_unreachable",
            f"Packets from {source} to port {LIBVIRT_PORT} of {destination} ({name}) are not answered.",
            f"Open it in the firewalls between, and on {destination}.",
        )
    elif peer["problem"]:
        yield _block(
            "connection_failed",
            f"{source} cannot open a connection to libvirt on {destination}: {peer['problem']}",
            f"See that libvirt listens for TLS on {destination}, and that both trust the same authority.",
        )
    elif peer["uuid"] != there["uuid"]:
        yield _block(
            "another_host",
            f"Under the name {name} {source} reaches a host with the UUID {peer['uuid']}, and {destination} has"
            f" {there['uuid']}.",
            hosts_file,
        )
    elif peer["own_name_resolved"] is False and not there["address"]:
        yield _block(
            "name_unresolved",
            f"{destination} calls itself {peer['own_name']}, which is where VMs are sent to, and {source} cannot"
            " resolve that.",
            hosts_file,
        )
    if not peer["migration_reached"]:
        yield _block(
            "migration_port_unreachable",
            f"Packets from {source} to port {there['ports']['first']} of {destination} ({name}) are not answered.",
            f"Open the ports {there['ports']['first']} to {there['ports']['last']} in the firewalls between.",
        )


# ---- certificates


def _papers(name: str, facts: Facts, roles: t.Container[str], limits: Limits) -> Found:
    now = parse_stamp(facts["time"])
    anew = f"Run host_prepare on {name}."
    for paper in facts["certificates"]:
        if paper["role"] not in roles:
            continue
        if paper["missing"]:
            yield _block("certificate_missing", f"{name} has no {' and no '.join(paper['missing'])}.", anew)
        elif paper["problem"]:
            yield _block("certificate_unreadable", f"{paper['path']} on {name}: {paper['problem']}", anew)
        else:
            yield from _dates(name, paper, now, limits)
    for refused in facts["refused"]:
        if refused["role"] in roles:
            yield _block(
                "certificate_rejected",
                f"The {refused['purpose']} certificate of {name} as {refused['role']} is not good:"
                f" {refused['problem']}.",
                anew,
            )


def _dates(name: str, paper: Facts, now: datetime, limits: Limits) -> Found:
    begins, ends = parse_stamp(paper["not_before"]), parse_stamp(paper["not_after"])
    span = f"{paper['path']} on {name} is valid from {paper['not_before']} to {paper['not_after']}"
    if not begins <= now <= ends:
        yield _block(
            "certificate_not_valid",
            f"{span}, and there it is {now:%Y-%m-%dT%H:%M:%SZ}.",
            f"Run host_prepare on {name}, or set its clock right.",
        )
    elif ends - now < timedelta(days=limits.expires):
        yield _warn("certificate_expires", f"{span}, which is soon over.", f"Run host_prepare on {name}.")


def _trust(source: str, destination: str, here: Facts, there: Facts) -> Found:
    for purpose, mine in sorted(here["authorities"].items()):
        theirs = there["authorities"].get(purpose, [])
        if mine and theirs and not set(mine) & set(theirs):
            yield _block(
                "authority_differs",
                f"For {purpose}, {source} and {destination} trust different certificate authorities.",
                "Give both certificates of one authority: run host_prepare on all hosts in one play.",
            )


# ---- what VMs find there


def _cpu(source: str, destination: str, here: Facts, there: Facts) -> Found:
    peer = here["peers"].get(destination, {})
    mine, theirs = here["cpu_models"], there["cpu_models"]
    if mine is not None and theirs is not None and not set(mine) & set(theirs):
        yield _block(
            "cpu_incompatible",
            f"No CPU model that VMs can have on {source} is there on {destination}.",
            "Live migration needs hosts of one architecture and vendor.",
        )
    elif peer.get("cpu") == "incompatible":
        yield _warn(
            "cpu_differs",
            f"The CPU of {destination} lacks something that the one of {source} has.",
            "Give VMs a CPU model that both have (cpu_models of host_info), and not the host's own CPU.",
        )


def _storage(source: str, destination: str, here: Facts, there: Facts) -> Found:
    other = {each["path"]: each for each in there["storage"]}
    shared = []
    for each in here["storage"]:
        path = each["path"]
        match = other.get(path, {"there": False})
        for name, side in ((source, each), (destination, match)):
            if not side["there"]:
                yield _block(
                    "storage_missing",
                    f"{path} is not there on {name}.",
                    f"Make or mount it on {name}, or do not name it.",
                )
        if not (each["there"] and match["there"]) or each["seen"] is None:
            continue
        if destination in each["seen"]:
            shared.append(path.rstrip("/") + "/")
        else:
            yield _warn(
                "storage_not_shared",
                f"{path} on {destination} is not the one that {source} sees.",
                "VMs go there with their disks copied. Mount the same storage on both to spare that.",
            )
    alone = [medium for medium in here["media"] if not medium["path"].startswith(tuple(shared))]
    if alone:
        listed = ", ".join(f"{medium['path']} (VM {medium['vm']})" for medium in alone[:5])
        yield _warn(
            "config_drive_local",
            f"{destination} may not have what is in drives of VMs on {source}: {listed}"
            + (f" and {len(alone) - 5} more." if len(alone) > 5 else "."),
            "Keep such files on storage that both see, or take them out ('virsh change-media --eject').",
        )
    for name, facts in ((source, here), (destination, there)):
        if facts["records_problem"]:
            yield _warn(
                "records_missing",
                f"The records of VMs on {name} are not kept: {facts['records_problem']}",
                "Mount what host_prepare_records_directory is on; without records VMs cannot be evacuated.",
            )


def _clock(source: str, destination: str, here: Facts, there: Facts, limits: Limits) -> Found:
    mine, theirs = here["clock_offset"], there["clock_offset"]
    if mine is not None and theirs is not None and abs(mine - theirs) > limits.skew:
        yield _warn(
            "clock_skew",
            f"The clock of {destination} differs from that of {source} by {abs(mine - theirs):.0f} seconds.",
            "Let both follow the same time servers (host_prepare_chrony).",
        )
