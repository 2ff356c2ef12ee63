# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a planner is told of hosts and VMs."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import status
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.capacity import Pool, read_source
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.facts import (
    Mount,
    Sighting,
    condition,
    identity,
    mount_of,
    pool_identity,
    read_mounts,
    storage_mounts,
    taken,
    tell_vm,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    Group,
    Instance,
    Lock,
    Origin,
    Policy,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.needs import read_needs
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.statistics import Size
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import Observation

MOUNTS = r"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 254:2 / /var/lib/libvirt/images rw - xfs /dev/vdb rw
25 22 0:40 / /srv/vms rw,relatime shared:9 master:3 - nfs4 filer:/srv/vms rw,vers=4.2
26 22 0:40 /deep /srv/deep rw - nfs4 filer:/srv/vms rw
27 22 0:41 / /srv/with\040blank rw - fuse.glusterfs vol\134one rw
28 22 7:1 / /srv/iso ro - squashfs /dev/loop1 ro
29 22 254:1 /x /boot/efi rw - vfat /dev/vda2 rw
30 22 0:50 / /run/user/0 rw - tmpfs tmpfs rw
31 22 0:51 / /tank rw - zfs pool/tank rw
32 22 254:9 / /srv/vms/upper rw - ext4 /dev/vdc rw
33 32 254:10 / /srv/vms/upper rw - ext4 /dev/vdd rw
nonsense
35 22 254:1 /usr/bin/x /usr/bin/y rw - ext4 /dev/vda1 rw
34 22 0:52 / /srv/host rw - 9p tag rw
"""


def test_the_kernels_table_of_mounts_is_read() -> None:
    mounts = read_mounts(MOUNTS)
    assert len(mounts) == 14
    assert mounts[0] == Mount("/", "/", "ext4", "/dev/vda1")
    assert mounts[5] == Mount("/", "/srv/with blank", "fuse.glusterfs", "vol\\one")
    assert mounts[6].readonly
    assert read_mounts("") == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/etc", "/dev/vda1"),
        ("/srv/vms", "filer:/srv/vms"),
        ("/srv/vms/a/b.qcow2", "filer:/srv/vms"),
        ("/srv/vmsother", "/dev/vda1"),
        ("/srv/vms/upper/c", "/dev/vdd"),
    ],
)
def test_a_file_lies_where_the_nearest_and_newest_mount_is(path: str, source: str) -> None:
    found = mount_of(path, read_mounts(MOUNTS))
    assert found is not None
    assert found.source == source


def test_only_file_systems_that_others_see_have_an_identity() -> None:
    told = {mount.point: identity(mount) for mount in read_mounts(MOUNTS)}
    assert {point: word for point, word in told.items() if word} == {
        "/srv/vms": "nfs filer:/srv/vms",
        "/srv/deep": "nfs filer:/srv/vms /deep",
        "/srv/with blank": "fuse.glusterfs vol\\one",
    }
    assert identity(Mount("/", "/m", "nfs", "filer:/srv/vms")) == told["/srv/vms"]
    assert mount_of("/x", []) is None


def test_where_disks_may_lie_is_told_once_and_all_that_was_asked_for() -> None:
    usual = [mount.point for mount in storage_mounts(read_mounts(MOUNTS), [])]
    assert usual == [
        "/",
        "/srv/deep",
        "/srv/vms",
        "/srv/vms/upper",
        "/srv/with blank",
        "/tank",
        "/var/lib/libvirt/images",
    ]
    asked = storage_mounts(read_mounts(MOUNTS), ["/srv/iso/a", "/srv/iso", "/run/user/0/x", "/etc"])
    assert sorted({mount.point for mount in asked} - set(usual)) == ["/run/user/0", "/srv/iso"]
    assert {mount.source for mount in asked if mount.point == "/srv/vms/upper"} == {"/dev/vdd"}


@pytest.mark.parametrize(
    ("xml", "source"),
    [
        ("<pool type='netfs'><source><host name='f'/><dir path='/d'/></source></pool>", "nfs f:/d"),
        (
            "<pool type='netfs'><source><host name='f'/><dir path='/d'/><format type='auto'/></source></pool>",
            "nfs f:/d",
        ),
        (
            "<pool type='netfs'><source><host name='f'/><dir path='v'/><format type='glusterfs'/></source></pool>",
            "glusterfs f:v",
        ),
        ("<pool type='netfs'/>", ""),
        ("<pool type='dir'><source><host name='f'/><dir path='/d'/></source></pool>", ""),
    ],
)
def test_a_pool_of_a_network_file_system_says_which_and_others_say_nothing(xml: str, source: str) -> None:
    root = ET.fromstring(xml)
    kind = root.get("type", "")
    pool = Pool("p", "u", kind, "/p", active=True, autostart=True, persistent=True, source=read_source(root))
    assert pool_identity(pool) == pool.source == source


DOMAIN = """
<domain type='kvm' id='3'>
  <name>web1</name><uuid>u</uuid>
  <memory unit='MiB'>2048</memory><currentMemory unit='MiB'>1024</currentMemory>
  <vcpu current='2'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='custom'><model>Skylake-Server</model></cpu>
  <devices>
    <disk type='file' device='disk'>
      <driver type='qcow2'/><source file='/srv/a.qcow2' index='2'/><target dev='vda'/>
    </disk>
    <disk type='volume' device='disk'><source pool='fast' volume='b.raw'/><target dev='vdb'/></disk>
    <disk type='volume' device='disk'><source pool='rbd' volume='c'/><target dev='vdc'/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='ssd/d'/><target dev='vdd'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/e'/><target dev='vde'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/iso/f'/><target dev='sdb'/><readonly/></disk>
    <interface type='bridge'><source bridge='br1'/><target dev='vnet3'/></interface>
    <interface type='network'><source network='default' bridge='virbr0'/></interface>
    <interface type='direct'><source dev='eth0'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='user'/>
    <hostdev type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>
    <hostdev type='pci'><source><address domain='0' bus='2' slot='0' function='0'/></source>
      <teaming type='transient'/></hostdev>
  </devices>
</domain>
"""


def sighting(instance: Instance | None = None, xml: str = DOMAIN, *, active: bool = True) -> Sighting:
    """A VM that was seen."""
    state = status.RUNNING if active else status.SHUTOFF
    seen = Observation("web1", "u", state, 0, False, True, instance or Instance())
    sizes = {("vda", 2): Size("/srv/a.qcow2", 1000, 70), ("vdb", None): Size("", 500, None)}
    return Sighting(seen, ET.fromstring(xml), active, autostart=True, sizes=sizes, dirty_rate=5)


def test_a_vm_is_told_with_all_that_it_needs() -> None:
    held = Instance(
        lock=Lock("then"),
        policy=Policy("cold", 7, (Group("db", "anti-affinity"),)),
        origin=Origin("kvm2", "then", "running", "memory"),
    )
    vm = sighting(held)
    told = tell_vm(vm, read_needs(vm.root), {"fast": "/fast", "rbd": ""})
    disks = {disk.pop("target"): disk for disk in told.pop("disks")}
    assert told == {
        "name": "web1",
        "uuid": "u",
        "status": "ACTIVE",
        "condition": "running",
        "task_state": "",
        "locked": True,
        "persistent": True,
        "autostart": True,
        "memory": 2048,
        "vcpus": 2,
        "arch": "x86_64",
        "machine": "pc-q35-7.2",
        "cpu": "Skylake-Server",
        "networks": ["default"],
        "links": ["br0", "br1", "eth0"],
        "devices": ["pci 0000:01:00.0"],
        "strategy": "cold",
        "priority": 7,
        "groups": [{"name": "db", "policy": "anti-affinity"}],
        "origin": {"host": "kvm2", "since": "then", "power": "running", "reason": "memory"},
        "dirty_rate": 5,
    }
    plain = {"readonly": False, "network": False}
    assert disks == {
        "vda": {"path": "/srv/a.qcow2", "bytes": 70, "size": 1000, **plain},
        "vdb": {"path": "/fast/b.raw", "bytes": 0, "size": 500, **plain},
        "vdc": {"path": "volume:rbd/c", "bytes": 0, "size": 0, "readonly": False, "network": True},
        "vdd": {"path": "rbd:ssd/d", "bytes": 0, "size": 0, "readonly": False, "network": True},
        "vde": {"path": "/dev/vg/e", "bytes": 0, "size": 0, **plain},
        "sdb": {"path": "/iso/f", "bytes": 0, "size": 0, "readonly": True, "network": False},
    }


@pytest.mark.parametrize(
    ("cpu", "word"),
    [
        ("<cpu mode='host-passthrough'/>", "host-passthrough"),
        ("<cpu mode='maximum'/>", "host-passthrough"),
        ("<cpu mode='host-model'/>", ""),
        ("", ""),
    ],
)
def test_a_cpu_is_a_model_or_the_hosts_own_or_not_said(cpu: str, word: str) -> None:
    xml = DOMAIN.replace("<cpu mode='custom'><model>Skylake-Server</model></cpu>", cpu)
    vm = sighting(xml=xml, active=False)
    told = tell_vm(vm, read_needs(vm.root), {})
    assert (told["cpu"], told["condition"], told["status"]) == (word, "off", "SHUTOFF")
    assert (told["strategy"], told["priority"], told["groups"], told["origin"]) == ("", 0, [], None)


def test_conditions_are_those_of_states_but_for_off() -> None:
    assert [condition(word) for word in status.CONDITIONS] == [
        "running",
        "paused",
        "suspended",
        "off",
        "going_down",
        "asleep",
        "crashed",
    ]


def test_what_is_taken_is_of_vms_that_are_on() -> None:
    memory, cpus, needs = taken([sighting(), sighting(active=False), sighting()])
    assert (memory, cpus, [need.memory for need in needs]) == (4096, 4, [2048] * 3)
