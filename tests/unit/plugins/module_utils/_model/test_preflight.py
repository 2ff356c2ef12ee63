# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What stands in the way of a move: each reason code has a case that has it, and a VM like any other has none."""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import placing, preflight
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.certificate import Certificate
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.needs import read_needs
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placing import Layout, Placed, Problem, Room
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.preflight import (
    BLOCKER,
    CODES,
    COLD,
    LIVE,
    OFFLINE,
    WARNING,
    Case,
    Finding,
    Fit,
    HostFacts,
    Other,
    Paper,
    Route,
    Status,
    choose_method,
    examine,
)

REPO = Path(__file__).resolve().parents[5]
GUIDE = REPO / "docs/docsite/rst/guide_migrate_checks.rst"
PLACING = REPO / "plugins/module_utils/_flows/placing.py"

UUID = "11111111-abcd-4000-8000-000000000001"
MAC = "52:54:00:00:00:64"
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
MIB = 1 << 20

DOMAIN = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web1</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>512</memory><vcpu>2</vcpu>{extra}
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>{os}</os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'{disk}<driver name='qemu' type='qcow2'/>
      <source file='/vms/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <interface type='network'><mac address='{mac}'/><source network='default'/></interface>{devices}
  </devices>
</domain>
"""

HERE = HostFacts(
    name="kvm1",
    uuid="here",
    libvirt=(9, 0, 0),
    hypervisor=(7, 2, 22),
    types={"x86_64": ("kvm", "qemu")},
    cpus=8,
    present=8,
    nodes=1,
    memory=16384,
    available=8192,
    networks={"default": True},
    pools={},
    links=frozenset(("br0", "eth0")),
    filters=frozenset(("clean-traffic",)),
)
THERE = replace(HERE, name="kvm2", uuid="there")
FIT = Fit(machine_known=True, max_vcpus=288, cpu_compatible=True, same_cpu=True, tpms=frozenset(("emulator",)))
DISK = Placed("vda", "disk", placing.SHARED, "/vms/a.qcow2", "/vms/a.qcow2")
ROUTE = Route("kvm2", resolved=True, open=True)


def case(
    *, method: str = LIVE, extra: str = "", devices: str = "", os: str = "", disk: str = ">", **changes: t.Any
) -> Case:
    """A VM that can be moved, but for what is said.

    :param disk: What stands in its disk's element before the driver.
    """
    root = ET.fromstring(DOMAIN.format(uuid=UUID, mac=MAC, extra=extra, devices=devices, os=os, disk=disk))
    known: dict[str, t.Any] = {
        "method": method,
        "needs": read_needs(root),
        "status": Status(active=method == LIVE),
        "here": HERE,
        "there": THERE,
        "fit": FIT,
        "layout": Layout(disks=(DISK,)),
        "route": ROUTE,
        "now": NOW,
        "file_systems": {"vda": "nfs4"},
        "foreign_listens": frozenset(),
    }
    return Case(**{**known, **changes})


def there(**changes: t.Any) -> dict[str, t.Any]:
    """The destination, changed."""
    return {"there": replace(THERE, **changes)}


def fit(**changes: t.Any) -> dict[str, t.Any]:
    """What it answers about the VM, changed."""
    return {"fit": replace(FIT, **changes)}


def status(**changes: t.Any) -> dict[str, t.Any]:
    """The VM's status, changed."""
    return {"status": replace(Status(active=True), **changes)}


def copied(**changes: t.Any) -> dict[str, t.Any]:
    """A layout with a disk that is copied, changed."""
    return {"layout": replace(Layout(disks=(replace(DISK, how=placing.COPIED),)), **changes)}


def paper(role: str = "client", **changes: t.Any) -> Paper:
    """A certificate of libvirt's that is as it should be, changed."""
    one = Certificate(
        "kvm1", "our CA", NOW - timedelta(days=1), NOW + timedelta(days=1), owner_id=b"kvm1", issuer_id=b"ca"
    )
    if role == "authority":
        one = replace(one, subject="our CA", owner_id=b"ca")
    return replace(Paper("libvirt", role, f"/etc/pki/{role}.pem", certificate=one), **changes)


def other(**changes: t.Any) -> dict[str, t.Any]:
    """Another VM at the destination."""
    return there(vms=(replace(Other("other", "22222222", active=True), **changes),))


HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='yes'><source>
<address domain='0x0000' bus='0x06' slot='0x12' function='0x5'/></source>{}</hostdev>"""
SHARED_DIRECTORY = "<filesystem><source dir='/srv/data'/><target dir='data'/></filesystem>"
INVTSC = "<cpu mode='custom'><model>EPYC</model><feature policy='require' name='invtsc'/></cpu>"
CDROM = "<disk type='file' device='cdrom'><source file='/iso/a.iso'/><target dev='sda'/></disk>"
VOLUME = "<disk type='volume'><source pool='fast' volume='b'/><target dev='vdb'/></disk>"
BRIDGE = "<interface type='bridge'><mac address='52:54:00:00:00:65'/><source bridge='br9'/></interface>"
FILTERED = "<interface type='bridge'><source bridge='br0'/><filterref filter='ours'/></interface>"
LISTEN = "<graphics type='vnc'><listen type='address' address='192.0.2.1'/></graphics>"
FULL = {"/vms": Room(real=200 * MIB, promised=900 * MIB, free=300 * MIB)}

BLOCKED: list[tuple[str, dict[str, t.Any]]] = [
    ("same_host", there(uuid="here")),
    ("libvirt_too_old", {"here": replace(HERE, libvirt=(7, 10, 0)), **there(libvirt=(7, 10, 0))}),
    ("destination_unresolved", {"route": Route("kvm2", resolved=False)}),
    ("destination_is_localhost", {"route": Route("localhost.localdomain", resolved=True, open=True)}),
    ("certificate_missing", {"papers": (paper(missing=("/k.pem",)),)}),
    ("certificate_unreadable", {"papers": (paper(certificate=None, problem="There is no certificate in it."),)}),
    ("certificate_not_valid", {"papers": (paper(),), "now": NOW + timedelta(days=2)}),
    ("certificate_not_valid", {"papers": (paper("authority"),), "now": NOW - timedelta(days=2)}),
    (
        "certificate_issuer",
        {"papers": (paper("authority"), replace(paper(), certificate=Certificate("kvm1", "theirs", NOW, NOW)))},
    ),
    ("wrong_status", status(refused="RESCUE", way_out="Use vm_rescue with state: unrescued first.")),
    ("locked", status(locked="2026-01-01T00:00:00Z")),
    ("busy", status(busy="snapshot since 2026-01-01T00:00:00Z")),
    ("job_running", status(job="backup")),
    ("block_job_running", status(copying=("vda",))),
    ("saved_memory", status(saved=True)),
    ("not_persistent", {"method": COLD, **status(persistent=False)}),
    ("has_snapshots", status(snapshots=2)),
    ("architecture_missing", there(types={"aarch64": ("qemu",)})),
    ("domain_type_missing", there(types={"x86_64": ("qemu",)})),
    ("emulator_missing", fit(emulator_there=False, machine_known=None)),
    ("machine_missing", fit(machine_known=False)),
    ("too_many_vcpus", fit(max_vcpus=1)),
    ("cpu_incompatible", fit(cpu_compatible=False, cpu_reason="Host CPU does not provide required features: avx512f")),
    ("cpu_not_migratable", {"extra": INVTSC}),
    ("cpu_not_migratable", {"extra": "<cpu mode='host-passthrough' migratable='off'/>"}),
    ("cpu_pinning", {"extra": "<cputune><vcpupin vcpu='0' cpuset='1,8-9,^8'/></cputune>"}),
    ("cpu_pinning", {"extra": "<numatune><memory mode='strict' nodeset='1'/></numatune>"}),
    ("memory_short", there(available=511)),
    ("huge_pages_short", {"extra": "<memoryBacking><hugepages/></memoryBacking>", **there(pages={2048: 255})}),
    (
        "huge_pages_short",
        {
            "extra": "<memoryBacking><hugepages><page size='1' unit='GiB'/></hugepages></memoryBacking>",
            **there(pages={2048: 1000}),
        },
    ),
    ("disk_shareable", {"disk": "><shareable/>", **copied()}),
    ("disk_transient", {"disk": "><transient/>"}),
    ("storage_unsafe", {"file_systems": {"vda": "fuse.sshfs"}}),
    ("no_room", copied(room=FULL)),
    ("path_taken", copied(problems=(Problem("path_taken", "There is a file.", "Move it away."),))),
    ("pool_missing", {"devices": VOLUME}),
    ("pool_inactive", {"devices": VOLUME, **there(pools={"fast": False})}),
    ("media_missing", {"devices": CDROM, **fit(missing=frozenset(("/iso/a.iso",)))}),
    (
        "directory_missing",
        {
            "devices": "<serial type='file'><source path='/logs/web1'/></serial>",
            **fit(missing=frozenset(("/logs",))),
        },
    ),
    ("boot_file_missing", {"os": "<kernel>/boot/k</kernel>", **fit(missing=frozenset(("/boot/k",)))}),
    (
        "firmware_missing",
        {"os": "<loader type='pflash'>/OVMF/CODE.fd</loader>", **fit(missing=frozenset(("/OVMF/CODE.fd",)))},
    ),
    ("network_missing", there(networks={})),
    ("network_inactive", there(networks={"default": False})),
    ("bridge_missing", {"devices": BRIDGE}),
    ("bridge_missing", {"devices": "<interface type='direct'><source dev='eth9'/></interface>"}),
    ("filter_missing", {"devices": FILTERED}),
    ("listen_address", {"devices": LISTEN, "foreign_listens": frozenset(("192.0.2.1",))}),
    ("host_device", {"devices": HOSTDEV.format("")}),
    ("host_device", {"devices": "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>"}),
    ("shared_directory", {"devices": SHARED_DIRECTORY}),
    ("shared_memory", {"devices": "<shmem name='ring' role='peer'/>"}),
    ("launch_security", {"extra": "<launchSecurity type='sev'/>"}),
    ("tpm_unsupported", {"devices": "<tpm><backend type='passthrough'/></tpm>"}),
    ("tpm_unsupported", {"devices": "<tpm><backend type='emulator'/></tpm>", **fit(tpms=frozenset())}),
    (
        "video_acceleration",
        {"devices": "<video><model type='virtio'><acceleration accel3d='yes'/></model></video>"},
    ),
    ("vsock_taken", {"devices": "<vsock><cid auto='no' address='7'/></vsock>", **other(cid=7)}),
    ("name_taken", other(name="web1")),
    ("uuid_taken", other(uuid=UUID)),
    ("runs_there", other(name="web1", uuid=UUID)),
    ("mac_taken", other(macs=frozenset((MAC,)))),
]

WARNED: list[tuple[str, dict[str, t.Any]]] = [
    ("libvirt_older", there(libvirt=(8, 10, 0))),
    ("hypervisor_older", there(hypervisor=(7, 1, 0))),
    ("migration_ports_closed", {"route": replace(ROUTE, open=False)}),
    ("certificate_missing", {"papers": (paper("server", missing=("/k.pem",)),)}),
    ("certificate_missing_there", {"papers": (paper(),), "certificate_there": False}),
    ("not_persistent", status(persistent=False)),
    ("vcpus_exceed_host", there(cpus=1)),
    (
        "cpu_incompatible",
        {"extra": "<cpu mode='custom' check='none'><model>EPYC</model></cpu>", **fit(cpu_compatible=False)},
    ),
    ("host_passthrough", {"extra": "<cpu mode='host-passthrough'/>", **fit(same_cpu=False)}),
    ("memory_promised", there(promised=16000)),
    ("path_missing", {"devices": "<serial type='pipe'><source path='/run/pipe'/></serial>"}),
    ("path_missing", {"devices": "<memory model='nvdimm'><source><path>/nv/a</path></source></memory>"}),
    ("listen_address", {"devices": LISTEN, "foreign_listens": None}),
    ("user_network", {"devices": "<interface type='user'/>"}),
    ("host_device", {"method": COLD, "devices": HOSTDEV.format("")}),
    (
        "host_device",
        {
            "devices": HOSTDEV.format(""),
            "here": replace(HERE, libvirt=(8, 6, 0), hypervisor=(8, 1, 0)),
            **there(hypervisor=(8, 2, 0)),
        },
    ),
    ("shared_directory", {"method": COLD, "devices": SHARED_DIRECTORY}),
    ("custom_arguments", {"extra": "<qemu:commandline><qemu:arg value='-d'/></qemu:commandline>"}),
    ("defined_there", other(name="web1", uuid=UUID, active=False)),
    ("not_examined", {"unknown": ("The task does not run there.",)}),
]


def codes(found: t.Sequence[Finding]) -> list[tuple[str, str]]:
    """Code and severity of each."""
    return [(finding.code, finding.severity) for finding in found]


@pytest.mark.parametrize(("code", "changes"), BLOCKED)
def test_what_stands_in_the_way_is_found_and_nothing_else(code: str, changes: dict[str, t.Any]) -> None:
    found = examine(case(**changes))
    assert set(codes(found)) == {(code, BLOCKER)}
    for finding in found:
        assert finding.way_out.endswith((".", "'", ">")) or finding.way_out.startswith("Start it there: ")
        assert finding.message.endswith(".")


@pytest.mark.parametrize(("code", "changes"), WARNED)
def test_what_one_should_know_stands_in_no_way(code: str, changes: dict[str, t.Any]) -> None:
    assert codes(examine(case(**changes))) == [(code, WARNING)]


@pytest.mark.parametrize("method", [LIVE, COLD, OFFLINE])
def test_an_ordinary_vm_has_no_findings(method: str) -> None:
    papers = (paper("authority"), paper(), paper("server"))
    assert examine(case(method=method, papers=papers, certificate_there=True)) == []


def test_every_code_is_tried() -> None:
    from_layout = set(re.findall(r'_problem\(\s*"(\w+)"', PLACING.read_text(encoding="utf-8")))
    assert from_layout - set(CODES) == set()
    tried = {code for code, _changes in (*BLOCKED, *WARNED)}
    assert set(CODES) - tried - from_layout == {"destination_unreachable"}  # of the flow, which cannot ask any more


def test_all_findings_come_at_once_with_the_blockers_first() -> None:
    found = examine(case(devices=BRIDGE + CDROM, **{**there(networks={}, hypervisor=(6, 0, 0)), **status(snapshots=1)}))
    assert codes(found) == [
        ("has_snapshots", BLOCKER),
        ("network_missing", BLOCKER),
        ("bridge_missing", BLOCKER),
        ("hypervisor_older", WARNING),
    ]


def test_the_guide_has_every_code_and_says_of_it_what_the_code_says() -> None:
    rows = re.findall(r"   \* - ``(\w+)``\n     - (.+)\n     - \S", GUIDE.read_text(encoding="utf-8"))
    assert len(rows) == len(CODES)
    assert dict(rows) == CODES


def test_a_code_that_the_guide_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown reason code no_idea"):
        Finding("no_idea", BLOCKER, "?")


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": HOSTDEV.format("<teaming type='transient' persistent='ua-1'/>")},
        {"devices": "<shmem name='ring' role='master'/>"},
        {
            "devices": CDROM,
            **fit(missing=frozenset(("/iso/a.iso",))),
            **copied(disks=(Placed("sda", "cdrom", "copied", "/iso/a.iso"),)),
        },
        {"devices": "<vsock><cid auto='yes' address='7'/></vsock>", **other(cid=7)},
        {"devices": "<graphics type='vnc'><listen type='network' address='192.0.2.1' network='default'/></graphics>"},
        {"devices": "<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/agent'/></channel>"},
        {"extra": INVTSC + "<clock><timer name='tsc' frequency='3504000000'/></clock>"},
        {"disk": "><readonly/>", "file_systems": {"vda": "ext4"}},
        {"overcommit": True, **copied(room=FULL)},
        copied(room={"/vms": replace(FULL["/vms"], free=None)}),
        copied(problems=(Problem("tpm_state", "The TPM.", live=False),)),
        {"method": OFFLINE, **there(available=0)},
        {"method": COLD, "file_systems": {"vda": "ext4"}},
        {"method": COLD, "extra": INVTSC},
        {"extra": "<cputune><vcpupin vcpu='0' cpuset='0-7'/></cputune>"},
        {"devices": FILTERED + BRIDGE, **there(links=None, filters=None, networks=None, pools=None)},
    ],
)
def test_what_comes_along_or_does_not_matter_is_no_finding(changes: dict[str, t.Any]) -> None:
    assert examine(case(**changes)) == []


def test_virtualization_is_looked_for_where_it_is_needed() -> None:
    (finding,) = examine(case(**there(types={"x86_64": ("qemu",)})))
    assert "/dev/kvm" in finding.way_out
    emulated = ET.fromstring(DOMAIN.format(uuid=UUID, mac=MAC, extra="", devices="", os="", disk=">"))
    emulated.set("type", "qemu")
    (finding,) = examine(case(needs=read_needs(emulated), **there(types={"x86_64": ("kvm",)})))
    assert finding.way_out == "Name another host."


def test_what_overcommit_cannot_help_does_not_name_it() -> None:
    (finding,) = examine(case(**copied(room={"/vms": replace(FULL["/vms"], free=10 * MIB)})))
    assert finding.way_out == "Make room there."
    assert "need 900 MiB in /vms of kvm2, and 10 MiB are free" in finding.message


def test_a_dead_destination_is_examined_from_the_source_alone() -> None:
    nowhere = HostFacts("kvm2", "", (), ())
    found = preflight.examine_source(case(there=nowhere, papers=(paper(missing=("/c.pem",)),), **status(snapshots=1)))
    assert codes(found) == [("certificate_missing", BLOCKER), ("has_snapshots", BLOCKER)]


def test_the_method_follows_from_the_state_and_the_storage() -> None:
    assert [choose_method("auto", condition, shared=True) for condition in ("running", "paused", "stopped")] == [
        LIVE,
        LIVE,
        OFFLINE,
    ]
    assert choose_method("auto", "stopped", shared=False) == COLD
    assert choose_method(COLD, "running", shared=True) == COLD
