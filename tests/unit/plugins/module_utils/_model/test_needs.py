# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a VM needs of its host, as its XML tells."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.needs import Device, Needs, read_needs


def needs(*, devices: str = "", extra: str = "") -> Needs:
    """Of a VM with these elements."""
    root = ET.fromstring(
        f"<domain><name>a</name><memory unit='MiB'>64</memory><vcpu cpuset='0-2'>1</vcpu>{extra}<devices>{devices}"
        "</devices></domain>"
    )
    return read_needs(root)


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (
            "<hostdev type='usb'><source><vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>",
            Device("usb", "0x1234 0xbeef"),
        ),
        ("<hostdev type='usb'><source><address bus='1' device='4'/></source></hostdev>", Device("usb", "1:4")),
        (
            "<hostdev type='pci'><source><address domain='0' bus='0x3b' slot='0x1f' function='7'/></source></hostdev>",
            Device("pci", "0000:3b:1f.7"),
        ),
        ("<hostdev type='mdev'><source><address uuid='c2e4'/></source></hostdev>", Device("mdev", "c2e4")),
        (
            (
                "<interface type='hostdev'><source>"
                "<address type='pci' domain='0' bus='1' slot='0' function='1'/></source>"
                "<teaming type='transient' persistent='ua-x'/></interface>"
            ),
            Device("pci", "0000:01:00.1", teamed=True),
        ),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", Device("vdpa", "/dev/vhost-vdpa-0")),
        (
            (
                "<disk type='nvme'><source><address domain='0' bus='1' slot='0' function='0'/></source>"
                "<target dev='vdb'/></disk>"
            ),
            Device("nvme", "0000:01:00.0"),
        ),
        (
            "<input type='passthrough'><source evdev='/dev/input/event3'/></input>",
            Device("input", "/dev/input/event3"),
        ),
        ("<smartcard mode='host'/>", Device("smartcard", "host")),
    ],
)
def test_devices_of_the_host_are_named_as_people_know_them(device: str, found: Device) -> None:
    assert needs(devices=device).devices == (found,)


def test_a_keyboard_is_no_device_of_the_host() -> None:
    ours = "<input type='keyboard' bus='ps2'/><smartcard mode='passthrough' type='spicevmc'/>"
    assert needs(devices=ours).devices == ()


def test_the_highest_cpu_and_node_are_found_in_lists() -> None:
    found = needs(extra="<cputune><vcpupin cpuset='4-7,^6'/><emulatorpin cpuset='1,12'/></cputune>")
    assert (found.cpus, found.nodes) == (12, -1)
    assert needs(extra="<numatune><memory nodeset='0-3'/></numatune>").nodes == 3
    assert needs().cpus == 2


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("", {}),
        ("<memoryBacking><locked/></memoryBacking>", {}),
        ("<memoryBacking><hugepages/></memoryBacking>", {0: 65536}),
        ("<memoryBacking><hugepages><page size='2' unit='M'/></hugepages></memoryBacking>", {2048: 65536}),
        ("<memoryBacking><hugepages><page size='1048576'/></hugepages></memoryBacking>", {1048576: 65536}),
    ],
)
def test_huge_pages_are_counted_by_their_size(text: str, pages: dict[int, int]) -> None:
    assert needs(extra=text).pages == pages


def test_paths_that_consoles_use_are_told_apart_by_who_makes_them() -> None:
    devices = """
    <serial type='file'><source path='/logs/a'/></serial>
    <console type='pty'><source path='/dev/pts/3'/><log file='/logs/b'/></console>
    <console type='pty'><log file='/logs/b'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/agent'/></channel>
    <channel type='unix'><source mode='bind' path='/sockets/mine'/></channel>
    <channel type='unix'><source mode='connect' path='/sockets/theirs'/></channel>
    <serial type='dev'><source path='/dev/ttyS4'/></serial>
    <interface type='vhostuser'><source type='unix' path='/ovs/a' mode='client'/></interface>
    <interface type='vhostuser'><source type='unix' path='/ovs/b' mode='server'/></interface>
    """
    found = needs(devices=devices)
    assert found.outputs == ("/logs/a", "/logs/b", "/sockets/mine")
    assert found.sockets == ("/dev/ttyS4", "/sockets/theirs", "/ovs/a")


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.1.1", "0.0.0.0", "::", "::1", "localhost"])
def test_addresses_that_every_host_has_are_none_to_look_at(address: str) -> None:
    listen = f"<graphics type='vnc' listen='{address}'><listen type='address' address='{address}'/></graphics>"
    assert needs(devices=listen).listens == ()


def test_an_address_that_several_displays_have_is_looked_at_once() -> None:
    old = "<graphics type='vnc' listen='192.0.2.1'/>"
    new = "<graphics type='spice'><listen type='address' address='192.0.2.1'/></graphics>"
    assert needs(devices=old + new).listens == ("192.0.2.1",)


def test_what_a_direct_boot_and_the_firmware_need_are_files() -> None:
    system = """<os firmware='efi'><loader type='pflash'>/fw/CODE.fd</loader><nvram template='/fw/VARS.fd'>/n.fd</nvram>
    <kernel>/k</kernel><initrd>/i</initrd></os>"""
    found = needs(extra=system)
    assert (found.boot_files, found.firmware) == (("/k", "/i"), ("/fw/CODE.fd", "/fw/VARS.fd"))
    assert needs(extra="<os><loader>bios.bin</loader></os>").firmware == ()


@pytest.mark.parametrize(
    ("cpu", "found"),
    [
        ("<cpu><feature policy='require' name='invtsc'/></cpu>", ("invtsc",)),
        ("<cpu><feature name='invtsc'/></cpu>", ("invtsc",)),
        ("<cpu><feature policy='disable' name='invtsc'/></cpu>", ()),
        ("<cpu mode='host-passthrough' migratable='on'/>", ()),
    ],
)
def test_what_no_other_host_can_continue_is_named(cpu: str, found: t.Sequence[str]) -> None:
    assert needs(extra=cpu).unmovable_cpu == found
