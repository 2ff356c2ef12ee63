# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What vm_info tells of a VM."""

from __future__ import annotations

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import status
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.chain import Chain, Layer
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Disk, Image, Interface
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.info import (
    Address,
    Traits,
    agent_addresses,
    reason,
    running_chain,
    tell_disk,
    tell_guest,
    tell_interface,
    tell_status,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    Group,
    Instance,
    Launch,
    Lock,
    Mark,
    Origin,
    Policy,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.statistics import Size
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import Observation

SINCE = "2026-01-01T12:00:00Z"


def seen(instance: Instance | None = None, *, state: int = status.RUNNING, code: int = 1) -> Observation:
    return Observation("web1", "u", state, code, False, True, instance or Instance())


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        (status.RUNNING, 1, "booted"),
        (status.PAUSED, 5, "I/O error"),
        (status.PAUSED, 13, "post-copy migration failed"),
        (status.SHUTOFF, 5, "memory saved"),
        (status.SHUTOFF, 0, ""),
        (status.SHUTOFF, 99, ""),
        (status.SHUTOFF, -1, ""),
        (status.PMSUSPENDED, 0, ""),
        (77, 1, ""),
    ],
)
def test_a_reason_is_told_in_words_or_not_at_all(state: int, code: int, words: str) -> None:
    assert reason(state, code) == words


def test_a_vm_that_another_tool_made_has_nothing_of_ours() -> None:
    told = tell_status(seen(), Traits())
    assert (told["status"], told["power_state"], told["reason"], told["locked"]) == (
        "ACTIVE",
        "RUNNING",
        "booted",
        False,
    )
    assert [told[key] for key in ("lock", "flavor", "launched", "journal", "operation", "uptime")] == [None] * 6
    assert told["marks"] == []
    assert told["policy"] == {"strategy": "", "priority": 0, "groups": []}
    assert (told["origin"], told["generation"]) == (None, "")


def test_all_that_we_remember_is_told() -> None:
    told = tell_status(
        seen(
            Instance(
                lock=Lock(SINCE, "audit"),
                flavor=Flavor(vcpus=1, memory=64, name="tiny"),
                launch=Launch(SINCE, "ada@kvm1", "/i.qcow2", "/b.qcow2", "qcow2", "00ff", "/images", {"x": "hash"}),
                marks=(Mark("soft-delete", SINCE, {"power_before": "running"}),),
                journal=Journal("delete", SINCE, "kvm1", 7, "undefine", {"xml": "<domain/>"}),
                policy=Policy("stop", 5, (Group("db", "affinity"),)),
                origin=Origin("kvm2", SINCE, "paused", "memory"),
                generation="6f1c",
            ),
            state=status.SHUTOFF,
        ),
        Traits(autostart=True, snapshots=2, checkpoints=1),
    )
    assert told["status"] == "SOFT_DELETED"
    assert told["lock"] == {"since": SINCE, "reason": "audit"}
    assert told["flavor"]["name"] == "tiny"
    assert told["launched"] == {
        "at": SINCE,
        "by": "ada@kvm1",
        "image": "/i.qcow2",
        "image_id": "",
        "image_store": "",
        "image_properties": {},
        "base": "/b.qcow2",
        "base_sha256": "00ff",
        "storage": "/images",
    }
    assert told["marks"] == [{"state": "soft-delete", "since": SINCE, "data": {"power_before": "running"}}]
    assert told["journal"] == {"action": "delete", "since": SINCE, "node": "kvm1", "pid": 7, "step": "undefine"}
    assert told["policy"] == {"strategy": "stop", "priority": 5, "groups": [{"name": "db", "policy": "affinity"}]}
    assert told["origin"] == {"host": "kvm2", "since": SINCE, "power": "paused", "reason": "memory"}
    assert told["generation"] == "6f1c"
    assert (told["autostart"], told["snapshots"], told["checkpoints"]) == (True, 2, 1)


def test_a_running_chain_has_the_sizes_of_its_layers() -> None:
    disk = Disk(
        "vda",
        "virtio",
        "disk",
        Image("file", "/top", "qcow2", index=2),
        backing=(Image("file", "/base", "raw", index=3), Image("network", "x", index=4)),
        chain_known=True,
    )
    chain = running_chain(disk, {("vda", 2): Size("/top", 8, 2), ("vda", 3): Size("/base", 8, 8)})
    assert [(layer.capacity, layer.allocation) for layer in chain.layers] == [(8, 2), (8, 8), (None, None)]
    assert chain.known


def test_a_disk_is_as_large_as_its_top_layer() -> None:
    disk = Disk("vda", "virtio", "disk", Image("file", "/top", "qcow2"), mirror=Image("file", "/copy", "raw"))
    chain = Chain((Layer(disk.image, 8, 2), Layer(Image("file", "/base", "raw"), 4, 4)), known=True)
    told = tell_disk(disk, chain, {"operation": "copy"})
    assert (told["capacity"], told["allocation"], told["source"]) == (8, 2, "/top")
    assert [layer["source"] for layer in told["chain"]] == ["/top", "/base"]
    assert told["mirror"]["source"] == "/copy"
    assert told["job"] == {"operation": "copy"}


def test_an_empty_drive_has_no_size_and_no_chain() -> None:
    told = tell_disk(Disk("sda", "sata", "cdrom", Image("file", "")), Chain((), known=True), None)
    assert (told["capacity"], told["allocation"], told["chain"], told["source"]) == (None, None, [], "")


def test_an_address_comes_once_from_who_knows_best() -> None:
    told = tell_interface(
        Interface("52:54:00:00:00:01", "network", "default"),
        [
            Address("10.0.0.5", "arp"),
            Address("10.0.0.5", "lease", 24, hostname="web1"),
            Address("fe80::1", "agent", 64, "eth0"),
            Address("10.0.0.9", "arp"),
            Address("10.0.0.5", "agent", 24, "eth0"),
        ],
    )
    assert [(each["address"], each["source"]) for each in told["addresses"]] == [
        ("10.0.0.5", "agent"),
        ("fe80::1", "agent"),
        ("10.0.0.9", "arp"),
    ]


def test_the_agents_addresses_are_found_by_card() -> None:
    raw = {
        "if.count": 3,
        "if.0.name": "lo",
        "if.0.addr.count": 1,
        "if.0.addr.0.addr": "127.0.0.1",
        "if.1.name": "eth0",
        "if.1.hwaddr": "52:54:00:AA:00:01",
        "if.1.addr.count": 2,
        "if.1.addr.0.addr": "10.0.0.5",
        "if.1.addr.0.prefix": 24,
        "if.1.addr.1.addr": "fe80::1",
        "if.1.addr.1.prefix": 64,
        "if.2.name": "eth1",
        "if.2.hwaddr": "52:54:00:aa:00:02",
    }
    assert agent_addresses(raw) == {
        "52:54:00:aa:00:01": [Address("10.0.0.5", "agent", 24, "eth0"), Address("fe80::1", "agent", 64, "eth0")]
    }
    assert agent_addresses({}) == {}


def test_a_guest_is_told_by_its_agent() -> None:
    raw = {"hostname": "web1", "os.id": "debian", "os.version-id": "12", "if.count": 0}
    assert tell_guest("connected", raw) == {
        "agent": "connected",
        "hostname": "web1",
        "os": {"id": "debian", "version_id": "12"},
        "filesystems": [],
    }
    assert tell_guest("absent", {}) == {"agent": "absent", "hostname": "", "os": {}, "filesystems": []}


def test_the_guests_file_systems_are_told_with_the_disks_that_they_lie_on() -> None:
    raw = {
        "fs.count": 2,
        "fs.0.name": "dm-0",
        "fs.0.mountpoint": "/",
        "fs.0.fstype": "ext4",
        "fs.0.total-bytes": 40914944,
        "fs.0.used-bytes": 8706048,
        "fs.0.disk.count": 3,
        "fs.0.disk.0.alias": "vda",
        "fs.0.disk.0.device": "/dev/vda2",
        "fs.0.disk.1.device": "/dev/nowhere",  # which libvirt does not find among the VM's disks
        "fs.0.disk.2.alias": "vdb",
        "fs.1.name": "old",
        "fs.1.mountpoint": "/old",
        "fs.1.fstype": "xfs",
    }
    first, second = tell_guest("connected", raw)["filesystems"]
    assert first == {
        "mountpoint": "/",
        "type": "ext4",
        "name": "dm-0",
        "total": 40914944,
        "used": 8706048,
        "disks": ["vda", "vdb"],
    }
    assert (second["mountpoint"], second["total"], second["used"], second["disks"]) == ("/old", None, None, [])
