# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other files under the disks of a definition, and starting with them."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError, TimedOut
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.swap import Swap, on_file, on_variables
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, OwnDisk
from tests.unit.fakes import FakeGuest, JumpingClock
from tests.unit.hypervisor import Hypervisor

RAW = """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>
<source file='/old.img' index='2'><slices><slice type='storage' offset='0' size='1'/></slices>
<seclabel model='dac' relabel='no'/></source><backingStore type='file'><source file='/base'/></backingStore>
<target dev='vda' bus='virtio'/><serial>s</serial><boot order='1'/>
<address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>"""


def test_a_disk_on_another_file_is_qcow2_and_the_same_device() -> None:
    node = ET.fromstring(on_file(RAW, "/new.qcow2"))
    source, driver = node.find("source"), node.find("driver")
    assert source is not None
    assert driver is not None
    assert source.attrib == {"file": "/new.qcow2"}
    assert [child.tag for child in source] == ["seclabel"]
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap"}
    assert [child.tag for child in node] == ["driver", "source", "target", "serial", "boot", "address"]


def test_a_disk_without_a_driver_gets_one() -> None:
    node = ET.fromstring(on_file("<disk><target dev='vda'/></disk>", "/new"))
    assert node.get("type") == "file"
    assert {"name": "qemu", "type": "qcow2"} in [child.attrib for child in node]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "<nvram>/new.fd</nvram>"),
        ("<nvram template='/t.fd'>/old.fd</nvram>", '<nvram template="/t.fd">/new.fd</nvram>'),
        (
            "<nvram type='file'><source file='/old.fd'/></nvram>",
            '<nvram type="file"><source file="/new.fd" /></nvram>',
        ),
    ],
)
def test_variables_in_another_file_come_from_the_same_template(before: str, after: str) -> None:
    assert on_variables(before, "/new.fd") == after


def test_variables_come_and_go_with_the_definition(kvm: Hypervisor) -> None:
    kvm.define("web1", running=False)
    swap = Swap(kvm.guest(), JumpingClock())
    assert swap.nvram() == ("", "/var/lib/libvirt/qemu/nvram/web1_VARS.fd")
    assert swap.definition({}, "<nvram>/new.fd</nvram>").findtext("os/nvram") == "/new.fd"
    assert swap.definition({}, "").find("os/nvram") is None


def test_the_disks_and_what_we_remember_change_at_once_and_back(kvm: Hypervisor) -> None:
    kvm.define("web1", running=False, disks=["/old.qcow2", "", "/data.qcow2"])
    first = Instance(disks=(OwnDisk("root", "vda", "/old.qcow2"),), foreign=("<later />",))
    kvm.remember(first)
    swap = Swap(kvm.guest(), JumpingClock())
    old = swap.disks()
    assert sorted(old) == ["vda", "vdb", "vdc"]
    after = Instance(disks=(OwnDisk("root", "vda", "/new.qcow2"),), foreign=("<later />",))
    swap.define({"vda": on_file(old["vda"], "/new.qcow2")}, None, after)
    files = [node.get("file") for node in kvm.domain().iterfind("devices/disk/source")]
    assert files == ["/new.qcow2", "/data.qcow2"]
    assert kvm.recall() == after
    swap.define({"vda": old["vda"]}, None, first)
    assert (swap.disks(), kvm.recall()) == (old, first)


def test_what_is_defined_keeps_the_metadata_of_others(kvm: Hypervisor) -> None:
    kvm.define("web1", running=False, disks=["/old.qcow2"])
    domain = kvm.domain()
    ET.SubElement(ET.SubElement(domain, "metadata"), "{urn:other}thing").text = "kept"
    kvm.guest().redefine(domain)
    Swap(kvm.guest(), JumpingClock()).define({}, None, Instance(foreign=("<later />",)))
    assert "kept" in [node.text for node in kvm.domain().iterfind("metadata/{urn:other}thing")]
    assert kvm.recall() == Instance(foreign=("<later />",))


@pytest.mark.parametrize("condition", ["stopped", "running"])
def test_a_vm_runs_when_it_still_does_after_two_seconds(condition: str) -> None:
    clock = JumpingClock()
    guest = FakeGuest(condition, clock)
    Swap(guest, clock).run(agent=False, timeout=1)
    assert (clock.seconds, guest.condition) == (2, "running")
    assert guest.boots == (1 if condition == "stopped" else 0)


def test_a_vm_that_goes_off_does_not_run() -> None:
    clock = JumpingClock()
    guest = FakeGuest("stopped", clock)
    guest.start()
    guest.condition, guest.off_at = "going_down", 1.0
    with pytest.raises(LifecycleError, match="it is off"):
        Swap(guest, clock).run(agent=False, timeout=1)


def test_an_agent_is_waited_for_and_not_for_ever() -> None:
    clock = JumpingClock()
    Swap(FakeGuest("stopped", clock, agent_after=30), clock).run(agent=True, timeout=60)
    assert 30 <= clock.seconds < 31
    clock = JumpingClock()
    with pytest.raises(TimedOut):
        Swap(FakeGuest("stopped", clock, agent_after=90), clock).run(agent=True, timeout=60)
    assert clock.seconds == 60


@pytest.mark.parametrize("condition", ["stopped", "paused"])
def test_a_vm_that_stays_off_is_started_without_letting_it_run(condition: str) -> None:
    clock = JumpingClock()
    guest = FakeGuest(condition, clock)
    Swap(guest, clock).prove()
    assert (guest.condition, guest.boots) == ("stopped", 1)


def test_a_vm_that_somebody_has_started_meanwhile_is_left_alone() -> None:
    clock = JumpingClock()
    guest = FakeGuest("running", clock)
    Swap(guest, clock).prove()
    assert (guest.condition, guest.boots) == ("running", 0)
