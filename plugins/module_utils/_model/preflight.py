# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What stands in the way of a move: facts of the VM and of both hosts in, findings with stable reason codes out.

The rules are those of libvirt (what it refuses to migrate, and what its QEMU driver needs at the destination) and of
QEMU. All findings are found at once; nothing is asked of anybody here.
"""

from __future__ import annotations

import os
import typing as t
from dataclasses import asdict, dataclass, field
from datetime import datetime

from .._core.clock import stamp
from .capacity import inside
from .certificate import Certificate
from .needs import DiskNeeds, Needs
from .placing import COPIED, SHARED, Layout

BLOCKER, WARNING = "blocker", "warning"
LIVE, COLD, OFFLINE = "live", "cold", "offline"

Result = dict[str, t.Any]
Version = tuple[int, ...]

# Every reason code, and what it means; guide_migrate_checks.rst tells what to do about each.
CODES: dict[str, str] = {
    # where to
    "destination_unreachable": "The destination's libvirtd cannot be reached from here.",
    "same_host": "The destination is the host that the VM is on.",
    "libvirt_too_old": "libvirt on one of the hosts is older than 8.0.",
    "libvirt_older": "libvirt at the destination is older than on the source.",
    "hypervisor_older": "QEMU at the destination is older than on the source.",
    "destination_unresolved": "The source does not know the address that the destination tells it to send to.",
    "destination_is_localhost": "The destination calls itself localhost.",
    "migration_ports_closed": "Packets from the source do not get to the ports of a migration at the destination.",
    # TLS
    "certificate_missing": "A certificate or its key is missing on the source.",
    "certificate_unreadable": "A certificate on the source cannot be read as one.",
    "certificate_not_valid": "A certificate on the source is not valid at this time.",
    "certificate_issuer": "A certificate on the source was issued by another authority than the one that is trusted.",
    "certificate_missing_there": "The destination has no certificate in the usual place for QEMU's migration.",
    # the VM's status
    "wrong_status": "The VM is in a status from which it cannot be moved.",
    "locked": "The VM is locked.",
    "busy": "Another operation on the VM is under way.",
    "job_running": "libvirt is busy with a job on the VM.",
    "block_job_running": "A disk of the VM is being copied or merged.",
    "saved_memory": "The VM is suspended: its memory lies in a file of the source.",
    "not_persistent": "The VM is not defined: it exists for as long as it runs.",
    "has_snapshots": "libvirt keeps snapshots of the VM.",
    # CPU, memory, machine
    "architecture_missing": "The destination does not run VMs of that architecture.",
    "domain_type_missing": "The destination does not run VMs of that type.",
    "machine_missing": "The destination's QEMU does not know the machine type.",
    "emulator_missing": "The program that runs the VM is not at the destination.",
    "cpu_incompatible": "The destination cannot give the guest the CPU that it has.",
    "cpu_not_migratable": "The guest's CPU has features that no other host can continue.",
    "host_passthrough": "The guest sees the host's CPU as it is, and the destination's differs.",
    "too_many_vcpus": "The VM has more CPUs than a machine of its type can have at the destination.",
    "vcpus_exceed_host": "The VM has more CPUs than the destination.",
    "cpu_pinning": "The VM is bound to CPUs or NUMA nodes that the destination does not have.",
    "memory_short": "The destination does not have the memory.",
    "memory_promised": "With this one, VMs at the destination may take more memory than it has.",
    "huge_pages_short": "The destination does not have the huge pages.",
    # disks and files
    "disk_shareable": "A disk that several VMs may use would be copied.",
    "disk_transient": "A disk forgets what is written when the VM is off.",
    "storage_unsafe": "libvirt takes a shared file system for a local one.",
    "no_room": "There is no room at the destination for the disks that are copied.",
    "path_taken": "At the destination there is a file where a disk would go.",
    "backing_not_shared": "Both hosts see a disk, and only one sees what it lies upon.",
    "block_device": "The destination does not have a device that a disk is on.",
    "disk_kind": "A disk is of a kind that cannot be moved.",
    "disk_format": "A disk that would be copied has another format than qcow2 and raw.",
    "encrypted_format": "An encrypted disk can be copied only while the VM is off.",
    "disk_unknown": "A disk's file cannot be looked at.",
    "volume_missing": "A disk's volume cannot be looked at.",
    "chain_unknown": "What a disk lies upon is not known.",
    "tpm_state": "The state of an emulated TPM comes along only while the VM runs.",
    "pool_missing": "A storage pool is missing at the destination.",
    "pool_inactive": "A storage pool at the destination is not active.",
    "media_missing": "The medium of a CD-ROM or floppy drive is not at the destination.",
    "secret_missing": "A secret of libvirt is missing at the destination, and its value is not given out here.",
    "secret_differs": "A secret of libvirt has another value at the destination.",
    "directory_missing": "The directory that a console writes to is not at the destination.",
    "path_missing": "A socket, pipe or device of the VM may be missing at the destination.",
    "boot_file_missing": "A file that the VM boots from is not at the destination.",
    "firmware_missing": "The VM's firmware is not at the destination.",
    # networks
    "network_missing": "A network is missing at the destination.",
    "network_inactive": "A network at the destination is not active.",
    "bridge_missing": "A bridge or network device is missing at the destination.",
    "filter_missing": "A network filter is missing at the destination.",
    "listen_address": "A display listens on an address that the destination may not have.",
    "user_network": "Connections through QEMU's own network break.",
    # devices
    "host_device": "The guest has been given a device of the host.",
    "shared_directory": "The guest shares a directory of the host.",
    "shared_memory": "The guest shares memory with other VMs.",
    "launch_security": "The guest's memory is encrypted by the host's CPU.",
    "tpm_unsupported": "The destination has no such TPM.",
    "video_acceleration": "The guest draws with the host's graphics card.",
    "vsock_taken": "The address of the VM's vsock is another VM's at the destination.",
    "custom_arguments": "The VM has arguments of QEMU's command line of its own.",
    # clashes
    "name_taken": "Another VM at the destination has the name.",
    "uuid_taken": "A VM at the destination has the UUID under another name.",
    "runs_there": "The VM runs at the destination.",
    "defined_there": "The destination has a definition of the VM, which is replaced.",
    "mac_taken": "Another VM at the destination has the address of one of the VM's network cards.",
    # both
    "not_examined": "Something could not be found out.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way of a move, or that one should know before it.

    :param code: Of :data:`CODES`; it does not change.
    :param severity: ``blocker`` or ``warning``.
    :param message: What is the matter, one sentence with the facts in it.
    :param way_out: What would allow it, one sentence.
    """

    code: str
    severity: str
    message: str
    way_out: str = ""

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown reason code {self.code}")

    def tell(self) -> Result:
        """For results."""
        return asdict(self)


def blockers(findings: t.Iterable[Finding]) -> list[Finding]:
    """Those that stand in the way."""
    return [finding for finding in findings if finding.severity == BLOCKER]


def choose_method(wanted: str, condition: str, *, shared: bool) -> str:
    """How a VM moves: what was asked for or, with ``auto``, what its state allows.

    :param condition: One of :data:`.status.CONDITIONS`.
    :param shared: Whether the destination sees every disk of it.
    """
    if wanted != "auto":
        return wanted
    if condition in ("stopped", "crashed"):
        return OFFLINE if shared else COLD
    return LIVE


@dataclass(frozen=True)
class Other:
    """A VM that is at the destination already.

    :param macs: Of its network cards, in lower case.
    :param cid: Of its vsock.
    """

    name: str
    uuid: str
    active: bool
    macs: frozenset[str] = frozenset()
    cid: int | None = None


@dataclass(frozen=True)
class HostFacts:
    """What is known of a host. ``None`` is what could not be found out.

    :param libvirt: Its version; so ``hypervisor``.
    :param types: Domain types by architecture.
    :param cpus: How many are on; ``present`` with those that are off; 0 when unknown. ``nodes`` are NUMA nodes.
    :param memory: MiB in all; ``available`` what could be had, ``promised`` what its running VMs may take.
    :param pages: Free huge pages by their size in KiB.
    :param networks: Whether each is active; so ``pools``.
    :param links: Bridges and network devices.
    :param filters: Names of network filters.
    :param vms: Those that are there.
    """

    name: str
    uuid: str
    libvirt: Version
    hypervisor: Version
    types: t.Mapping[str, t.Sequence[str]] = field(default_factory=dict)
    cpus: int = 0
    present: int = 0
    nodes: int = 1
    memory: int = 0
    available: int = 0
    promised: int = 0
    pages: t.Mapping[int, int] = field(default_factory=dict)
    networks: t.Mapping[str, bool] | None = None
    pools: t.Mapping[str, bool] | None = None
    links: frozenset[str] | None = None
    filters: frozenset[str] | None = None
    vms: tuple[Other, ...] = ()


@dataclass(frozen=True)
class Fit:
    """What the destination answers when it is asked about one VM.

    :param machine_known: Whether its QEMU knows the machine; ``None`` when that was not to be found out.
    :param emulator_there: Whether the program is there.
    :param max_vcpus: That such a machine can have; 0 when unknown.
    :param cpu_compatible: ``None`` when there was nothing to compare or no way to.
    :param cpu_reason: What the host lacks, as libvirt says it.
    :param same_cpu: Whether both hosts have the same CPU with the same features.
    :param tpms: Kinds of TPM that such a machine can have; ``None`` when unknown.
    :param missing: Of the paths that were looked for, those that are not there.
    """

    machine_known: bool | None = None
    emulator_there: bool = True
    max_vcpus: int = 0
    cpu_compatible: bool | None = None
    cpu_reason: str = ""
    same_cpu: bool | None = None
    tpms: frozenset[str] | None = None
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Status:
    """How the VM is doing at the source.

    :param job: The job that libvirt runs on it; empty without one.
    :param copying: Targets of disks with a block job.
    :param way_out: How it gets out of ``refused``, a status from which it cannot be moved; both empty else.
    :param busy: What another process does to it; empty else.
    :param locked: Since when, when that forbids it; empty else.
    """

    active: bool
    persistent: bool = True
    saved: bool = False
    snapshots: int = 0
    job: str = ""
    copying: tuple[str, ...] = ()
    refused: str = ""
    way_out: str = ""
    busy: str = ""
    locked: str = ""


@dataclass(frozen=True)
class Paper:
    """A certificate with its key, as a file of the source.

    :param purpose: ``libvirt``, for its connections, or ``qemu``, for what QEMU sends.
    :param role: ``authority``, ``client`` or ``server``.
    :param key: The file of the key; empty for an authority's certificate.
    :param missing: Those of the two that are not there.
    :param certificate: ``None`` when it is not there or is not readable, which ``problem`` tells then.
    """

    purpose: str
    role: str
    path: str
    key: str = ""
    missing: tuple[str, ...] = ()
    certificate: Certificate | None = None
    problem: str = ""

    def tell(self) -> Result:
        """For results."""
        known = self.certificate
        return {
            "purpose": self.purpose,
            "role": self.role,
            "path": self.path,
            "key": self.key,
            "missing": list(self.missing),
            "problem": self.problem,
            "subject": known.subject if known else "",
            "issuer": known.issuer if known else "",
            "names": list(known.names) if known else [],
            "not_before": stamp(known.begins) if known else None,
            "not_after": stamp(known.ends) if known else None,
        }


@dataclass(frozen=True)
class Route:
    """What the source knows of the way to the destination; ``None`` is what could not be found out.

    :param address: What memory and disks are sent to.
    :param resolved: Whether the source can resolve it.
    :param open: Whether packets to the ports of a migration get there.
    """

    address: str = ""
    resolved: bool | None = None
    open: bool | None = None
    ports: tuple[int, int] = (49152, 49215)


@dataclass(frozen=True)
class Case:
    """All that is known of one move.

    :param layout: Where its disks go.
    :param overcommit: Count what the disks take now, and not what they may grow to.
    :param papers: Certificates that the source needs for this move.
    :param certificate_there: Whether the destination has one for QEMU in the usual place.
    :param now: The time at the source.
    :param file_systems: The type of file system that each shared disk lies on at the source, by target.
    :param foreign_listens: Addresses of displays that are the source's own; ``None`` when that is unknown.
    :param unknown: What could not be found out, and why, in sentences.
    """

    method: str
    needs: Needs
    status: Status
    here: HostFacts
    there: HostFacts
    fit: Fit = field(default_factory=Fit)
    layout: Layout = field(default_factory=Layout)
    overcommit: bool = False
    papers: tuple[Paper, ...] = ()
    certificate_there: bool | None = None
    now: datetime | None = None
    route: Route = field(default_factory=Route)
    file_systems: t.Mapping[str, str] = field(default_factory=dict)
    foreign_listens: frozenset[str] | None = None
    unknown: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        """Whether the guest runs on meanwhile."""
        return self.method == LIVE


# libvirt 9.0 takes these for shared (virFileIsSharedFS); names as in /proc/self/mounts.
SHARED_FILE_SYSTEMS = frozenset(
    (
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.quobyte",
        "gfs",
        "gfs2",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb",
        "smb2",
        "smb3",
    )
)
# With these on both sides QEMU itself knows of each assigned device whether it can be moved.
_DEVICES_ASKED = ((8, 6), (8, 1))
_MIB = 2**20

Found = t.Iterator[Finding]


def examine(case: Case) -> list[Finding]:
    """All findings, blockers first."""
    found = [*_hosts(case.here, case.there), *(finding for check in CHECKS for finding in check(case))]
    return sorted(found, key=lambda finding: finding.severity != BLOCKER)


def examine_hosts(here: HostFacts, there: HostFacts) -> list[Finding]:
    """What stands against a move between two hosts, whatever the VM."""
    return list(_hosts(here, there))


def examine_source(case: Case) -> list[Finding]:
    """What can be found without the destination, which does not answer; of it, the case knows the name."""
    return [finding for check in (_papers, _status) for finding in check(case)]


def _block(code: str, message: str, way_out: str = "") -> Finding:
    return Finding(code, BLOCKER, message, way_out)


def _warn(code: str, message: str, way_out: str = "") -> Finding:
    return Finding(code, WARNING, message, way_out)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


# ---- where to


def _hosts(here: HostFacts, there: HostFacts) -> Found:
    if here.uuid == there.uuid:
        yield _block(
            "same_host",
            f"The destination {there.name} is the host that the VM is on, or has the same host UUID {here.uuid}.",
            "Name another host in dest. Of cloned hosts, each needs a host_uuid of its own in libvirtd.conf.",
        )
    for host in (here, there):
        if host.libvirt < (8, 0):
            yield _block(
                "libvirt_too_old",
                f"libvirt on {host.name} is {_dotted(host.libvirt)}, and 8.0 is needed.",
                "Update the host.",
            )
    if there.libvirt < here.libvirt:
        yield _warn(
            "libvirt_older",
            f"libvirt is {_dotted(there.libvirt)} on {there.name} and {_dotted(here.libvirt)} on {here.name}: it may"
            " not know all of the definition.",
            "Update the destination first.",
        )
    if there.hypervisor < here.hypervisor:
        yield _warn(
            "hypervisor_older",
            f"QEMU is {_dotted(there.hypervisor)} on {there.name} and {_dotted(here.hypervisor)} on {here.name}: QEMU"
            " promises that a guest can be moved to the same or a newer version only.",
            "Update the destination first.",
        )


def _way(case: Case) -> Found:
    route = case.route
    if not case.live:
        return
    if route.resolved is False:
        yield _block(
            "destination_unresolved",
            f"{case.here.name} cannot resolve {route.address}, which is where memory and disks are sent.",
            "Put the name into DNS or /etc/hosts of both hosts, or say migration_network.",
        )
    elif route.address.partition(".")[0] == "localhost":
        yield _block(
            "destination_is_localhost",
            "The destination calls itself localhost, and libvirt refuses migrations to such a host.",
            "Give it a host name of its own, or say migration_network.",
        )
    elif route.open is False:
        first, last = route.ports
        yield _warn(
            "migration_ports_closed",
            f"{case.here.name} got no answer from {route.address} at port {first}: a firewall may keep migrations out.",
            f"Let the hosts reach each other's TCP ports {first} to {last}"
            " (migration_port_min and migration_port_max in qemu.conf).",
        )


# ---- TLS


def _papers(case: Case) -> Found:
    authorities = {paper.purpose: paper.certificate for paper in case.papers if paper.role == "authority"}
    for paper in case.papers:
        host, used = case.here.name, f"as {paper.role} of {paper.purpose}"
        # What only a migration to this host needs stands in nobody's way now.
        finding = _warn if paper.role == "server" else _block
        way_out = "Install it there (libvirt's page 'TLS certificates')"
        if paper.missing:
            yield finding(
                "certificate_missing",
                f"{host} has no {' and no '.join(paper.missing)}, which it needs {used}.",
                f"{way_out}; or use dest_transport: ssh." if paper.purpose == "libvirt" else f"{way_out}.",
            )
        if paper.problem:
            yield finding("certificate_unreadable", f"{paper.path} on {host}: {paper.problem}", f"{way_out} anew.")
        if paper.certificate is None:
            continue
        if case.now is not None and not paper.certificate.valid_at(case.now):
            begins, ends = stamp(paper.certificate.begins), stamp(paper.certificate.ends)
            yield finding(
                "certificate_not_valid",
                f"{paper.path} on {host} is valid from {begins} to {ends}, and there it is {stamp(case.now)}.",
                "Renew it, or set the host's clock right.",
            )
        authority = authorities.get(paper.purpose)
        if authority is not None and paper.certificate.issuer_id != authority.owner_id:
            yield finding(
                "certificate_issuer",
                f"{paper.path} on {host} was issued by {paper.certificate.issuer!r}, and trusted is"
                f" {authority.subject!r}.",
                "Install certificates of one authority on all hosts.",
            )
    if case.live and case.papers and case.certificate_there is False:
        yield _warn(
            "certificate_missing_there",
            f"{case.there.name} has no certificate for QEMU in /etc/pki/qemu, where it usually is.",
            "Install it there, or see where qemu.conf says that it is.",
        )


# ---- the VM's status


def _status(case: Case) -> Found:
    name, status = case.needs.domain.name, case.status
    if status.refused:
        yield _block(
            "wrong_status", f"VM {name} is {status.refused}, and cannot be moved in that status.", status.way_out
        )
    if status.locked:
        yield _block(
            "locked",
            f"VM {name} is locked since {status.locked}.",
            "Unlock it with vm_lock, or say override_lock: true.",
        )
    if status.busy:
        yield _block("busy", f"VM {name} is busy: {status.busy}.", "Run the task again when it has ended.")
    if status.job:
        yield _block(
            "job_running",
            f"libvirt runs a job on VM {name}: {status.job}.",
            "Run the task again when it has ended, or end it with 'virsh domjobabort'.",
        )
    if status.copying:
        yield _block(
            "block_job_running",
            f"Disks of VM {name} are being copied or merged: {', '.join(status.copying)}.",
            "Run the task again when that has ended, or end it with 'virsh blockjob --abort'.",
        )
    if status.saved:
        yield _block(
            "saved_memory",
            f"VM {name} is suspended: its memory lies in a file of {case.here.name}, which does not come along.",
            "Use vm_power with state: running or state: paused first.",
        )
    if not status.persistent:
        finding = _warn if case.live else _block
        yield finding(
            "not_persistent",
            f"VM {name} is not defined: "
            + ("it will be, at the destination." if case.live else "nothing is left of it when it is off."),
            "Define it with 'virsh define', from the output of 'virsh dumpxml'.",
        )
    if status.snapshots:
        yield _block(
            "has_snapshots",
            f"libvirt keeps {status.snapshots} snapshots of VM {name}, and refuses to migrate it.",
            "Remove them with 'virsh snapshot-delete' (--metadata keeps their files), or make images with vm_snapshot.",
        )


# ---- machine, CPU, memory


def _machine(case: Case) -> Found:
    domain, there, fit = case.needs.domain, case.there, case.fit
    types = there.types.get(domain.arch)
    if types is None:
        yield _block(
            "architecture_missing",
            f"{there.name} does not run VMs of the architecture {domain.arch}.",
            f"Install QEMU for {domain.arch} there, or name another host.",
        )
        return
    if domain.type not in types:
        yield _block(
            "domain_type_missing",
            f"{there.name} does not run VMs of the type {domain.type}, but {', '.join(types)}.",
            "See that the CPU's virtualization is on in the firmware and that /dev/kvm is there."
            if domain.type == "kvm"
            else "Name another host.",
        )
        return
    if not fit.emulator_there:
        yield _block(
            "emulator_missing",
            f"{there.name} has no {domain.emulator}, which runs the VM.",
            "Install it there, or name a program in the definition that both hosts have.",
        )
    elif fit.machine_known is False:
        yield _block(
            "machine_missing",
            f"QEMU on {there.name} does not know the machine type {domain.machine}.",
            "Update QEMU there, or give the VM a machine type that both hosts have, while it is off.",
        )
    if fit.max_vcpus and domain.max_vcpus > fit.max_vcpus:
        yield _block(
            "too_many_vcpus",
            f"The VM has up to {domain.max_vcpus} CPUs, and such a machine on {there.name} can have {fit.max_vcpus}.",
            "Give it fewer.",
        )
    if there.cpus and domain.vcpus > there.cpus:
        yield _warn(
            "vcpus_exceed_host",
            f"The VM has {domain.vcpus} CPUs and {there.name} has {there.cpus}: it will be slow.",
            "Name a larger host.",
        )


def _cpu(case: Case) -> Found:
    needs, there, fit = case.needs, case.there, case.fit
    if fit.cpu_compatible is False:
        # Without libvirt's check it starts, with another CPU than before.
        yield (_block if needs.cpu_checked else _warn)(
            "cpu_incompatible",
            f"{there.name} cannot give the guest its CPU{f': {fit.cpu_reason}' if fit.cpu_reason else ''}.",
            "Name a host with such a CPU, or give the VM a CPU model that both have ('virsh hypervisor-cpu-baseline')"
            " and stop and start it.",
        )
    elif needs.domain.cpu_mode == "host-passthrough" and fit.same_cpu is False and case.live:
        yield _warn(
            "host_passthrough",
            f"The guest sees the CPU of {case.here.name} as it is, and that of {there.name} differs: it may crash.",
            "Give the VM the CPU mode host-model or a CPU model, and stop and start it.",
        )
    if needs.unmovable_cpu and case.live:
        yield _block(
            "cpu_not_migratable",
            f"The guest's CPU has what no other host can continue: {', '.join(needs.unmovable_cpu)}.",
            "Move it with method: cold, or take it from the definition and stop and start the VM.",
        )
    short = [f"CPU {needs.cpus}"] if there.present and needs.cpus >= there.present else []
    short += [f"NUMA node {needs.nodes}"] if needs.nodes >= there.nodes else []
    if short:
        yield _block(
            "cpu_pinning",
            f"The VM is bound to {' and '.join(short)} of its host, and {there.name} has {there.present} CPUs and"
            f" {there.nodes} NUMA nodes.",
            "Change <cputune>, <numatune> and the cpuset of <vcpu>, or name a host like the one it is on.",
        )


def _memory(case: Case) -> Found:
    needs, there = case.needs, case.there
    for size, wanted in (needs.pages or {}).items():
        # Without a size it is the host's default one, which libvirt does not tell.
        free = sum(page * count for page, count in there.pages.items() if size in (0, page))
        if free < wanted:
            yield _block(
                "huge_pages_short",
                f"The VM needs {wanted // 1024} MiB in huge pages{f' of {size} KiB' if size else ''}, and {there.name}"
                f" has {free // 1024} MiB free.",
                "Reserve more of them there ('virsh allocpages'), or name another host.",
            )
    if needs.pages or case.method == OFFLINE:
        return
    if needs.memory > there.available:
        yield _block(
            "memory_short",
            f"The VM may take {needs.memory} MiB, and {there.name} has {there.available} MiB that could be had.",
            "Move or stop other VMs there first, or name another host.",
        )
    elif needs.memory + there.promised > there.memory:
        yield _warn(
            "memory_promised",
            f"With this one, VMs on {there.name} may take {needs.memory + there.promised} MiB of its {there.memory}.",
            "Name another host.",
        )


# ---- disks and files


def _disks(case: Case) -> Found:
    known = {disk.target: disk for disk in case.needs.disks}
    for problem in case.layout.against(live=case.live):
        yield _block(problem.code, problem.message, problem.way_out)
    for disk in case.layout.disks:
        needs = known.get(disk.target)
        if needs and needs.shareable and disk.how == COPIED:
            yield _block(
                "disk_shareable",
                f"Disk {disk.target} may be used by several VMs, and would be copied: they would no longer share it.",
                "Put it on storage that both hosts have.",
            )
        kind = case.file_systems.get(disk.target, "")
        if case.live and disk.how == SHARED and kind and kind not in SHARED_FILE_SYSTEMS and not _sheltered(needs):
            yield _block(
                "storage_unsafe",
                f"{case.there.name} sees disk {disk.target}, but libvirt takes {kind}, which it is on, for local, and"
                " refuses to migrate.",
                "Mount it as a file system that libvirt knows to be shared, such as NFS or CephFS, or use"
                " shared_filesystems in qemu.conf (libvirt 10.8).",
            )
    for target in (disk.target for disk in case.needs.disks if disk.transient and case.live):
        yield _block(
            "disk_transient",
            f"Disk {target} forgets what is written when the VM is off, and libvirt refuses to migrate it.",
            "Move it with method: cold.",
        )
    for directory, room in case.layout.room.items():
        needed = room.real if case.overcommit else room.promised
        if room.free is not None and needed > room.free:
            yield _block(
                "no_room",
                f"The disks need {_size(needed)} in {directory} of {case.there.name}, and {_size(room.free)} are free.",
                "Make room there."
                if case.overcommit or room.real > room.free
                else "Make room there, or say overcommit: true to count only what the disks take now.",
            )
    yield from _volumes(case)


def _sheltered(needs: DiskNeeds | None) -> bool:
    """Whether libvirt does not care on what the disk lies: nothing is written to it."""
    return needs is not None and needs.readonly


def _size(number: int) -> str:
    return f"{number / _MIB:.0f} MiB" if number < 10 * 2**30 else f"{number / 2**30:.1f} GiB"


def _volumes(case: Case) -> Found:
    there = case.there
    for pool in dict.fromkeys(disk.pool for disk in case.needs.disks if disk.pool):
        active = None if there.pools is None else there.pools.get(pool)
        if active is None and there.pools is not None:
            yield _block(
                "pool_missing",
                f"{there.name} has no storage pool {pool}, which a disk of the VM is in.",
                "Define it there as on the source.",
            )
        elif active is False:
            yield _block(
                "pool_inactive",
                f"The storage pool {pool} on {there.name} is not active.",
                f"Start it there: virsh pool-start {pool}",
            )


def _files(case: Case) -> Found:
    needs, there, missing = case.needs, case.there, case.fit.missing
    carried = {disk.path for disk in case.layout.disks if disk.how == COPIED}
    for disk in needs.disks:
        if disk.device in ("cdrom", "floppy") and disk.path in missing and disk.path not in carried:
            yield _block(
                "media_missing",
                f"{disk.path}, the medium in drive {disk.target}, is not on {there.name}.",
                "Take it out ('virsh change-media --eject'), or put the file there.",
            )
    for path in needs.outputs:
        directory = os.path.dirname(path)
        if directory in missing and not inside(directory, case.layout.there):
            yield _block(
                "directory_missing",
                f"The VM's console uses {path}, and {there.name} has no directory {directory}.",
                "Make it there.",
            )
    for path in needs.sockets:
        yield _warn(
            "path_missing",
            f"The VM is connected to {path}, and without it it does not start on {there.name}, which is not known from"
            " here.",
            "See that it is there.",
        )
    for path in needs.memory_files:
        yield _warn(
            "path_missing",
            f"Memory of the VM lies in {path}, which {there.name} has to have with the same size.",
            "See that it is there.",
        )
    for path in needs.boot_files:
        if path in missing:
            yield _block(
                "boot_file_missing",
                f"{path}, which the VM boots from, is not on {there.name}.",
                "Put the same file there.",
            )
    for path in needs.firmware:
        if path in missing:
            yield _block(
                "firmware_missing",
                f"{path}, firmware of the VM, is not on {there.name}.",
                "Install the same firmware there (package ovmf, for example).",
            )


# ---- networks


def _networks(case: Case) -> Found:
    there = case.there
    for nic in case.needs.domain.interfaces:
        if nic.kind == "network" and there.networks is not None:
            active = there.networks.get(nic.source)
            if active is None:
                yield _block(
                    "network_missing",
                    f"{there.name} has no network {nic.source}, which card {nic.mac} is in.",
                    "Define it there as on the source ('virsh net-define').",
                )
            elif not active:
                yield _block(
                    "network_inactive",
                    f"The network {nic.source} on {there.name} is not active.",
                    f"Start it there: virsh net-start {nic.source}",
                )
        if nic.kind in ("bridge", "direct") and there.links is not None and nic.source not in there.links:
            yield _block(
                "bridge_missing",
                f"{there.name} has no {'bridge' if nic.kind == 'bridge' else 'device'} {nic.source}, which card"
                f" {nic.mac} is on.",
                "Make it there, or use a network of libvirt that has the same name on all hosts.",
            )
        if nic.filter and there.filters is not None and nic.filter not in there.filters:
            yield _block(
                "filter_missing",
                f"{there.name} has no network filter {nic.filter}, which card {nic.mac} has.",
                "Define it there as on the source ('virsh nwfilter-define').",
            )
    for address in case.needs.listens:
        own = case.foreign_listens is not None and address in case.foreign_listens
        yield (_block if own else _warn)(
            "listen_address",
            f"A display of the VM listens on {address}, "
            + (f"which is {case.here.name}'s." if own else f"which {there.name} may not have."),
            "Let it listen on 0.0.0.0, 127.0.0.1 or a network that both hosts have, and stop and start the VM.",
        )
    if case.needs.user_network and case.live:
        yield _warn("user_network", "The guest's connections through QEMU's own network break.")


# ---- devices


def _devices(case: Case) -> Found:
    needs, here, there = case.needs, case.here, case.there
    asked = all(
        host.libvirt >= _DEVICES_ASKED[0] and host.hypervisor >= _DEVICES_ASKED[1] for host in (case.here, case.there)
    )
    for device in needs.devices:
        if device.teamed and case.live:
            continue
        told = f"The guest has a device of {here.name}: {device.kind} {device.name}".rstrip()
        if not case.live:
            yield _warn(
                "host_device",
                f"{told}. {there.name} has to have such a one in the same place.",
                "See that it is there.",
            )
        elif asked and device.kind in ("pci", "mdev"):
            yield _warn(
                "host_device", f"{told}. Whether it can be moved, QEMU decides.", "Try it, or use method: cold."
            )
        else:
            yield _block(
                "host_device",
                f"{told}. It cannot be moved while the guest runs.",
                "Detach it first, or use method: cold when the destination has such a device.",
            )
    for directory in needs.filesystems:
        if case.live:
            yield _block(
                "shared_directory",
                f"The guest shares {directory} of {here.name}, which cannot be moved while it runs.",
                "Use method: cold when the destination has the directory, or detach it.",
            )
        else:
            yield _warn(
                "shared_directory",
                f"The guest shares {directory} of {here.name}; at {there.name} it will see what that has there.",
                "Have the same directory on both, on shared storage for example.",
            )
    if needs.tpm == "passthrough" or (needs.tpm and case.fit.tpms is not None and needs.tpm not in case.fit.tpms):
        passed = needs.tpm == "passthrough"
        yield _block(
            "tpm_unsupported",
            f"The VM has a TPM of the kind {needs.tpm}, "
            + ("which is a device of its host." if passed else f"which {there.name} does not offer."),
            "Give the VM an emulated one." if passed else "Install swtpm there.",
        )
    if needs.cid is not None:
        for vm in there.vms:
            if vm.cid == needs.cid and vm.active and vm.uuid != needs.domain.uuid:
                yield _block(
                    "vsock_taken",
                    f"The vsock address {needs.cid} is that of VM {vm.name} on {there.name}.",
                    "Let libvirt choose it: <cid auto='yes'/>.",
                )
    if needs.commands:
        yield _warn(
            "custom_arguments",
            "The VM has arguments of QEMU's command line of its own; what they mean there is not looked at.",
            "See that they fit there.",
        )
    if case.live:
        yield from _unmovable(needs)


def _unmovable(needs: Needs) -> Found:
    cold = "Use method: cold."
    for name in needs.shared_memory:
        yield _block("shared_memory", f"The guest shares the memory {name} with other VMs of its host.", cold)
    if needs.launch_security:
        yield _block(
            "launch_security", f"The guest's memory is encrypted by its host's CPU ({needs.launch_security}).", cold
        )
    if needs.accelerated_video:
        yield _block(
            "video_acceleration", "The guest draws with the graphics card of its host, which QEMU cannot move.", cold
        )


# ---- clashes


def _clashes(case: Case) -> Found:
    domain, there = case.needs.domain, case.there
    macs = {nic.mac for nic in domain.interfaces if nic.mac}
    for vm in there.vms:
        if vm.uuid == domain.uuid:
            if vm.name != domain.name:
                yield _block(
                    "uuid_taken",
                    f"{there.name} has a VM {vm.name} with the same UUID {vm.uuid}.",
                    "See which of them is right, and undefine or rename the other.",
                )
            elif vm.active:
                yield _block(
                    "runs_there",
                    f"VM {vm.name} runs on {there.name}, and here it is defined as well.",
                    "Find out which is the right one, before both write to the same disks: vm_migrate with"
                    " state: recovered.",
                )
            else:
                yield _warn(
                    "defined_there", f"{there.name} has a definition of VM {vm.name}, which is off; it is replaced."
                )
            continue
        if vm.name == domain.name:
            yield _block(
                "name_taken",
                f"{there.name} has another VM of the name {vm.name}, with the UUID {vm.uuid}.",
                "Rename one of them, while it is off ('virsh domrename').",
            )
        for mac in sorted(macs & vm.macs):
            yield _block(
                "mac_taken",
                f"The address {mac} of a network card is that of VM {vm.name} on {there.name} too.",
                "Give one of them another address.",
            )


def _rest(case: Case) -> Found:
    for sentence in case.unknown:
        yield _warn("not_examined", sentence, "Run the task on the host that the VM is on to have all of it examined.")


CHECKS: tuple[t.Callable[[Case], Found], ...] = (
    _way,
    _papers,
    _status,
    _machine,
    _cpu,
    _memory,
    _disks,
    _files,
    _networks,
    _devices,
    _clashes,
    _rest,
)
