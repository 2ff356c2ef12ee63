# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Domains as other tools make them, read from their XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import (
    Disk,
    Domain,
    Firmware,
    Graphics,
    Image,
    Interface,
    read_domain,
)

# As virt-install makes it on a q35 machine with UEFI, and as `virsh dumpxml` shows it while it runs.
VIRT_INSTALL = """
<domain type='kvm' id='7'>
  <name>web1</name>
  <uuid>3B9B2F44-4C0B-4E0E-9F0C-0C4C0B3A7F11</uuid>
  <title>The shop</title>
  <description>ask Ada
first</description>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware>
      <feature enabled='yes' name='enrolled-keys'/>
      <feature enabled='yes' name='secure-boot'/>
    </firmware>
    <loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>
  </os>
  <cpu mode='host-passthrough' check='none' migratable='on'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/var/lib/libvirt/images/web1.snap' index='1'/>
      <backingStore type='file' index='3'>
        <format type='qcow2'/>
        <source file='/var/lib/libvirt/images/web1.qcow2'/>
        <backingStore type='block' index='4'>
          <format type='raw'/>
          <source dev='/dev/vg/base'/>
          <backingStore/>
        </backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <serial>disk-0001</serial>
      <boot order='1'/>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:AA:BB:CC'/>
      <source network='default' portid='6f0b6c5b-0f68-4f0c-a6a0-b0a0a0a0a0a0' bridge='virbr0'/>
      <target dev='vnet3'/>
      <model type='virtio'/>
      <filterref filter='clean-traffic'><parameter name='IP' value='192.168.122.5'/></filterref>
      <boot order='2'/>
    </interface>
    <serial type='pty'>
      <source path='/dev/pts/2'/>
      <log file='/var/log/libvirt/qemu/web1-console.log' append='on'/>
      <target type='isa-serial' port='0'><model name='isa-serial'/></target>
    </serial>
    <console type='pty' tty='/dev/pts/2'>
      <source path='/dev/pts/2'/>
      <log file='/var/log/libvirt/qemu/web1-console.log' append='on'/>
      <target type='serial' port='0'/>
    </console>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/7-web1/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <graphics type='spice' port='5901' tlsPort='5902' autoport='yes' listen='127.0.0.1'>
      <listen type='address' address='127.0.0.1'/>
    </graphics>
    <graphics type='vnc' port='5900' autoport='yes' websocket='5700' listen='::1'>
      <listen type='address' address='::1'/>
    </graphics>
  </devices>
</domain>
"""

# The least that `virsh define` takes, as it is written back.
PLAIN = """
<domain type='qemu'>
  <name>old</name>
  <uuid>00000000-0000-4000-8000-000000000001</uuid>
  <memory unit='KiB'>131072</memory>
  <currentMemory unit='KiB'>131072</currentMemory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='floppy'>
      <target dev='fda' bus='fdc'/>
    </disk>
    <serial type='file'>
      <source path='/var/log/old.log'/>
      <target port='0'/>
    </serial>
    <graphics type='vnc' port='-1' autoport='yes'>
      <listen type='address'/>
    </graphics>
  </devices>
</domain>
"""


def domain(xml: str) -> Domain:
    return read_domain(ET.fromstring(xml))


def devices(xml: str) -> Domain:
    """A domain with these devices."""
    return domain(PLAIN.replace("<devices>", f"<devices>{xml}"))


def test_a_running_domain_tells_everything() -> None:
    assert domain(VIRT_INSTALL) == Domain(
        name="web1",
        uuid="3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11",
        title="The shop",
        description="ask Ada\nfirst",
        id=7,
        type="kvm",
        arch="x86_64",
        machine="pc-q35-7.2",
        emulator="/usr/bin/qemu-system-x86_64",
        vcpus=2,
        max_vcpus=4,
        memory=4096,
        current_memory=2048,
        cpu_mode="host-passthrough",
        cpu_model="",
        firmware=Firmware(
            "uefi", "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/var/lib/libvirt/qemu/nvram/web1_VARS.fd", secure_boot=True
        ),
        disks=(
            Disk(
                target="vda",
                bus="virtio",
                device="disk",
                image=Image("file", "/var/lib/libvirt/images/web1.snap", "qcow2", index=1),
                backing=(
                    Image("file", "/var/lib/libvirt/images/web1.qcow2", "qcow2", index=3),
                    Image("block", "/dev/vg/base", "raw", index=4),
                ),
                chain_known=True,
                serial="disk-0001",
                boot=1,
            ),
            Disk(target="sda", bus="sata", device="cdrom", image=Image("file", ""), readonly=True),
        ),
        interfaces=(
            Interface(
                mac="52:54:00:aa:bb:cc",
                kind="network",
                source="default",
                bridge="virbr0",
                model="virtio",
                tap="vnet3",
                filter="clean-traffic",
                boot=2,
            ),
        ),
        graphics=(Graphics("spice", "127.0.0.1", 5901, 5902), Graphics("vnc", "::1", 5900, websocket=5700)),
        console_log="/var/log/libvirt/qemu/web1-console.log",
        agent=True,
        os="http://debian.org/debian/12",
    )


def test_a_plain_definition_leaves_the_rest_empty() -> None:
    old = domain(PLAIN)
    assert (old.id, old.title, old.cpu_mode, old.cpu_model, old.os) == (None, "", "", "", "")
    assert (old.vcpus, old.max_vcpus, old.memory, old.current_memory) == (1, 1, 128, 128)
    assert old.firmware == Firmware("bios")
    assert old.graphics == (Graphics("vnc"),)
    assert old.agent is None
    assert old.console_log == "/var/log/old.log"
    assert old.interfaces == ()


def test_a_drive_without_a_medium_is_empty() -> None:
    assert domain(PLAIN).disks == (Disk("fda", "fdc", "floppy", Image("file", "")),)
    assert domain(PLAIN).disks[0].empty
    assert domain(PLAIN).disks[0].image.path is None


def test_a_disk_of_a_ceph_cluster_has_a_name_but_no_path() -> None:
    disk = devices("""
        <disk type='network' device='disk'>
          <driver name='qemu' type='raw' cache='writeback'/>
          <auth username='libvirt'><secret type='ceph' uuid='11111111-1111-4111-8111-111111111111'/></auth>
          <source protocol='rbd' name='vms/web1'><host name='10.0.0.1' port='6789'/></source>
          <target dev='vdb' bus='virtio'/>
          <shareable/>
        </disk>
    """).disk("vdb")
    assert disk is not None
    assert disk.image == Image("network", "vms/web1", "raw", "rbd")
    assert disk.image.path is None
    assert disk.shareable
    assert not disk.chain_known


@pytest.mark.parametrize(
    ("source", "image"),
    [
        ("<disk type='block'><source dev='/dev/sdx'/>", Image("block", "/dev/sdx")),
        ("<disk type='volume'><source pool='vms' volume='a/b'/>", Image("volume", "vms/a/b")),
        ("<disk type='volume'><source/>", Image("volume", "")),
        ("<disk type='dir'><source dir='/srv/fat'/>", Image("dir", "/srv/fat")),
        (
            "<disk type='network'><source protocol='nbd'><host name='store' port='10809'/></source>",
            Image("network", "store", protocol="nbd"),
        ),
        (
            "<disk type='network'><source protocol='nbd'><host transport='unix' socket='/run/x'/></source>",
            Image("network", "/run/x", protocol="nbd"),
        ),
    ],
)
def test_every_kind_of_source_is_read(source: str, image: Image) -> None:
    assert devices(f"{source}<target dev='vdb' bus='virtio'/></disk>").disks[0].image == image


def test_a_chain_is_known_only_when_its_end_is() -> None:
    layer = "<backingStore type='file'><format type='qcow2'/><source file='/b'/>{}</backingStore>"
    disk = "<disk type='file'><source file='/a'/>{}<target dev='vdb'/></disk>"
    for inside, known, depth in (
        ("", False, 0),
        ("<backingStore/>", True, 0),
        (layer.format(""), False, 1),
        (layer.format("<backingStore/>"), True, 1),
    ):
        found = devices(disk.format(inside)).disks[0]
        assert (found.chain_known, len(found.backing)) == (known, depth)


def test_a_block_job_shows_as_mirror() -> None:
    found = devices("""
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2'/>
          <source file='/a.qcow2' index='1'/>
          <backingStore/>
          <mirror type='file' file='/b.raw' format='raw' job='copy' ready='yes'>
            <format type='raw'/>
            <source file='/b.raw' index='5'/>
            <backingStore/>
          </mirror>
          <target dev='vdb' bus='virtio'/>
        </disk>
    """).disks[0]
    assert found.mirror == Image("file", "/b.raw", "raw", index=5)


def test_an_encrypted_disk_is_told() -> None:
    secret = "<encryption format='luks'><secret type='passphrase' uuid='22222222-2222-4222-8222-222222222222'/>"
    xml = "<disk type='file'><source file='/a'>{}</source><target dev='vdb'/></disk>"
    assert devices(xml.format(f"{secret}</encryption>")).disks[0].encrypted
    assert not devices(xml.format("")).disks[0].encrypted


@pytest.mark.parametrize(
    ("xml", "interface"),
    [
        ("type='bridge'><source bridge='br0'/>", Interface("52:54:00:00:00:01", "bridge", "br0", "br0")),
        ("type='direct'><source dev='eno1' mode='bridge'/>", Interface("52:54:00:00:00:01", "direct", "eno1")),
        ("type='user'>", Interface("52:54:00:00:00:01", "user")),
        ("type='ethernet'><target dev='tap0'/>", Interface("52:54:00:00:00:01", "ethernet", tap="tap0")),
        ("type='user'><link state='down'/>", Interface("52:54:00:00:00:01", "user", up=False)),
    ],
)
def test_every_kind_of_interface_is_read(xml: str, interface: Interface) -> None:
    found = devices(f"<interface {xml}<mac address='52:54:00:00:00:01'/></interface>")
    assert found.interface("52:54:00:00:00:01") == interface
    assert found.interface("52:54:00:00:00:02") is None


@pytest.mark.parametrize(
    ("system", "firmware"),
    [
        ("<os firmware='efi'>", Firmware("uefi")),
        ("<os firmware='bios'>", Firmware("bios")),
        (
            "<os><loader type='pflash'>/f</loader><nvram>/n</nvram>",
            Firmware("uefi", "/f", "/n"),
        ),
        (
            "<os><loader type='pflash'>/f</loader><nvram type='file'><source file='/n'/></nvram>",
            Firmware("uefi", "/f", "/n"),
        ),
        (
            "<os><loader type='rom'>/usr/share/seabios/bios.bin</loader>",
            Firmware("bios", "/usr/share/seabios/bios.bin"),
        ),
        (
            "<os firmware='efi'><firmware><feature enabled='no' name='secure-boot'/></firmware>",
            Firmware("uefi"),
        ),
    ],
)
def test_uefi_is_told_from_bios(system: str, firmware: Firmware) -> None:
    assert domain(PLAIN.replace("<os>", system)).firmware == firmware


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [
        ("<memory>2048</memory>", 2),
        ("<memory unit='GiB'>3</memory>", 3072),
        ("<memory unit='bytes'>1048576</memory>", 1),
    ],
)
def test_memory_is_in_mebibytes_whatever_its_unit(text: str, mebibytes: int) -> None:
    xml = f"<domain type='test'><name>x</name><uuid>u</uuid>{text}<vcpu>1</vcpu></domain>"
    assert (domain(xml).memory, domain(xml).current_memory) == (mebibytes, mebibytes)


def test_an_agent_that_is_not_connected_is_told_from_none() -> None:
    channel = "<channel type='unix'><target type='virtio' name='{}'{}/></channel>"
    assert devices(channel.format("org.qemu.guest_agent.0", "")).agent is False
    assert devices(channel.format("org.qemu.guest_agent.0", " state='disconnected'")).agent is False
    assert devices(channel.format("com.redhat.spice.0", " state='connected'")).agent is None


def test_a_display_on_a_socket_is_told_by_its_path() -> None:
    found = devices("<graphics type='vnc' socket='/run/v'><listen type='socket' socket='/run/v'/></graphics>")
    assert found.graphics[0] == Graphics("vnc", "/run/v")


def test_a_custom_cpu_has_a_model() -> None:
    found = domain(PLAIN.replace("<devices>", "<cpu mode='custom' match='exact'><model>Skylake</model></cpu><devices>"))
    assert (found.cpu_mode, found.cpu_model) == ("custom", "Skylake")
