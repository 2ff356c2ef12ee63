# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has, and what its VMs take of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.capacity import (
    Capabilities,
    Pool,
    by_status,
    inside,
    pool_of,
    promised,
    read_capabilities,
    taken,
    version,
)

CAPABILITIES = """
<capabilities>
  <host>
    <uuid>f603b9fc-ea8c-4f09-bf11-4dcccda58d62</uuid>
    <cpu>
      <arch>x86_64</arch>
      <model>Skylake-Server</model>
      <vendor>Intel</vendor>
      <topology sockets='1' dies='1' cores='2' threads='1'/>
      <feature name='vmx'/>
      <feature name='aes'/>
    </cpu>
  </host>
  <guest>
    <os_type>hvm</os_type>
    <arch name='i686'>
      <machine>pc-i440fx-7.2</machine>
      <domain type='qemu'/>
    </arch>
  </guest>
  <guest>
    <os_type>hvm</os_type>
    <arch name='x86_64'>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <machine maxCpus='288'>pc-q35-7.2</machine>
      <machine canonical='pc-q35-7.2' maxCpus='288'>q35</machine>
      <domain type='qemu'/>
      <domain type='kvm'/>
    </arch>
  </guest>
  <guest>
    <os_type>xen</os_type>
    <arch name='x86_64'><domain type='xen'/></arch>
  </guest>
</capabilities>
"""
ON = {
    "state.state": 1,
    "balloon.maximum": 2 << 20,
    "balloon.current": 1 << 20,
    "vcpu.current": 2,
    "block.count": 3,
    "block.0.name": "vda",
    "block.0.path": "/images/a.qcow2",
    "block.0.capacity": 10,
    "block.1.name": "vda",
    "block.1.path": "/images/base.qcow2",
    "block.1.capacity": 7,
    "block.2.name": "sda",
}
OFF = {
    "state.state": 5,
    "balloon.maximum": 1 << 20,
    "vcpu.current": 1,
    "block.count": 2,
    "block.0.name": "vda",
    "block.0.path": "/images/b.qcow2",
    "block.0.capacity": 5,
    "block.1.name": "vdb",
    "block.1.path": "/elsewhere/c.qcow2",
    "block.1.capacity": 100,
}


def pool(name: str, path: str, *, active: bool = True) -> Pool:
    return Pool(name, "u", "dir", path, active, autostart=True, persistent=True)


def test_capabilities_are_those_of_hardware_machines() -> None:
    assert read_capabilities(ET.fromstring(CAPABILITIES)) == Capabilities(
        uuid="f603b9fc-ea8c-4f09-bf11-4dcccda58d62",
        arch="x86_64",
        model="Skylake-Server",
        vendor="Intel",
        features=("aes", "vmx"),
        types={"i686": ("qemu",), "x86_64": ("kvm", "qemu")},
        machines=("pc-q35-7.2", "q35"),
    )


def test_a_host_whose_cpu_libvirt_does_not_know_is_told_all_the_same() -> None:
    found = read_capabilities(
        ET.fromstring("<capabilities><host><cpu><arch>riscv64</arch></cpu></host></capabilities>")
    )
    assert (found.arch, found.model, found.features, found.machines) == ("riscv64", "", (), ())


@pytest.mark.parametrize(("number", "text"), [(7002022, "7.2.22"), (9000000, "9.0.0"), (11003001, "11.3.1")])
def test_versions_are_unpacked(number: int, text: str) -> None:
    assert version(number) == text


def test_what_vms_may_take_is_added_up() -> None:
    assert taken([ON, OFF, {}]) == {
        "memory": {"defined": 3072, "running": 2048},
        "vcpus": {"defined": 3, "running": 2},
    }


def test_the_disks_below_a_directory_are_added_up_without_their_bases() -> None:
    assert promised([ON, OFF], "/images") == {"disks": 2, "promised": 15}
    assert promised([ON, OFF], "/") == {"disks": 3, "promised": 115}
    assert promised([ON, OFF], "/image") == {"disks": 0, "promised": 0}


def test_a_disk_that_two_vms_share_counts_once() -> None:
    assert promised([OFF, OFF], "/images") == {"disks": 1, "promised": 5}


def test_a_disk_of_unknown_size_counts_as_a_disk() -> None:
    assert promised([{"block.count": 1, "block.0.name": "vda", "block.0.path": "/images/x"}], "/images") == {
        "disks": 1,
        "promised": 0,
    }


@pytest.mark.parametrize(
    ("path", "directory", "is_inside"),
    [
        ("/a/b", "/a", True),
        ("/a/b", "/a/", True),
        ("/a", "/a", True),
        ("/ab", "/a", False),
        ("/", "/a", False),
        ("/a", "/", True),
        ("", "/a", False),
        ("pool/volume", "/a", False),
        ("/a", "", False),
    ],
)
def test_paths_are_compared_by_their_parts(path: str, directory: str, is_inside: bool) -> None:
    assert inside(path, directory) is is_inside


def test_the_nearest_active_pool_holds_a_directory() -> None:
    pools = [pool("all", "/srv"), pool("vms", "/srv/vms"), pool("off", "/srv/vms/off", active=False), pool("rbd", "")]
    found = {path: pool_of(path, pools) for path in ("/srv/vms/off/x", "/srv/vms", "/srv/other", "/opt")}
    assert {path: each.name if each else None for path, each in found.items()} == {
        "/srv/vms/off/x": "vms",
        "/srv/vms": "vms",
        "/srv/other": "all",
        "/opt": None,
    }


def test_names_are_listed_by_status() -> None:
    assert by_status([("b", "SHUTOFF"), ("c", "ACTIVE"), ("a", "SHUTOFF")]) == {"ACTIVE": ["c"], "SHUTOFF": ["a", "b"]}
