# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The XML of new domains, held against libvirt's own schema and read back as libvirt understood it."""

from __future__ import annotations

import itertools
import typing as t
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.xml import build_domain, interface_node, nic_xml
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Domain, Graphics, read_domain
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock, find
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.launch import Order, config_bus, lay_out_disks
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import Nic

UUID = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11"
FLAVOR = Flavor(2, 512, 1, (1, 2), 64, "m1")
INSTANCE = Instance(flavor=FLAVOR, lock=Lock("2026-01-01T00:00:00Z", "<&>"))
NETWORKS = (Nic("bridge", "br0", "52:54:00:00:00:01"), Nic("network", "default", "52:54:00:00:00:02", "e1000e"))


def order(*, machine: str = "pc-q35-7.2", disk_bus: str = "virtio", config: bool = True, **more: t.Any) -> Order:
    cdrom_bus = config_bus(machine, disk_bus)
    return Order(
        name="web1",
        flavor=FLAVOR,
        disks=lay_out_disks(f"/s/{UUID}", FLAVOR, disk_bus=disk_bus, cdrom_bus=cdrom_bus, config=config),
        networks=NETWORKS,
        console_log=f"/s/{UUID}/console.log",
        machine=machine,
        disk_bus=disk_bus,
        config_bus=cdrom_bus,
        **more,
    )


@pytest.fixture(scope="module")
def connection() -> Iterator[t.Any]:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def built(wanted: Order, domain_type: str = "kvm") -> str:
    return build_domain(wanted, uuid=UUID, domain_type=domain_type, arch="x86_64", instance=INSTANCE)


def defined(connection: t.Any, xml: str, *, validated: bool = False) -> ET.Element:
    """As libvirt writes it back, if asked after it has held it against its schema."""
    domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validated else 0)
    try:
        return ET.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    finally:
        domain.undefine()


FIRMWARE: list[dict[str, t.Any]] = [
    {"firmware": "bios"},
    {"firmware": "uefi"},
    {"firmware": "uefi", "secure_boot": True},
]


# To hold a domain against the schema takes its time: every firmware with every bus, and of the rest each value often.
REST: list[dict[str, t.Any]] = [
    {"domain_type": "kvm", "machine": "pc-q35-7.2", "graphics": "vnc", "cpu_mode": "host-model"},
    {"domain_type": "qemu", "machine": "pc-q35-7.2", "graphics": "none", "config": False},
    {"domain_type": "kvm", "machine": "pc-i440fx-7.2", "graphics": "spice", "cpu_model": "Skylake-Client"},
    {"domain_type": "qemu", "machine": "pc-i440fx-7.2", "graphics": "vnc", "cpu_mode": "maximum"},
    {"domain_type": "kvm", "machine": "pc-i440fx-7.2", "graphics": "none", "config": False},
    {"domain_type": "qemu", "machine": "pc-q35-7.2", "graphics": "spice", "graphics_listen": "::1"},
    {"domain_type": "kvm", "machine": "", "graphics": "vnc", "cpu_mode": "host-passthrough"},
]
COMBINATIONS = [
    {"disk_bus": disk_bus, **firmware, **rest}
    for (firmware, disk_bus), rest in zip(
        itertools.product(FIRMWARE, ("virtio", "scsi", "sata", "ide")), itertools.cycle(REST)
    )
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_libvirts_schema_takes_every_combination(connection: t.Any, options: dict[str, t.Any]) -> None:
    domain_type = options["domain_type"]
    wanted = order(**{option: value for option, value in options.items() if option != "domain_type"})
    found = read_domain(defined(connection, built(wanted, domain_type), validated=True))
    assert (found.type, found.arch, found.machine) == (domain_type, "x86_64", wanted.machine)
    assert found.firmware.kind == wanted.firmware
    assert found.firmware.secure_boot == wanted.secure_boot
    assert [(disk.target, disk.image.path) for disk in found.disks] == [
        (disk.target, disk.path) for disk in sorted(wanted.disks, key=in_libvirts_order)
    ]
    assert found.cpu_model == wanted.cpu_model
    assert [each.type for each in found.graphics] == ([] if wanted.graphics == "none" else [wanted.graphics])


def in_libvirts_order(disk: t.Any) -> tuple[str, str]:
    """libvirt sorts disks by bus and name."""
    return disk.target[:2] if disk.role != "config" else "zz", disk.target


def test_the_schema_is_really_asked(connection: t.Any) -> None:
    with pytest.raises(libvirt.libvirtError, match="failed to validate"):
        defined(connection, built(order()).replace("<devices>", "<devices><bogus/>"), validated=True)


@pytest.fixture
def whole(connection: t.Any) -> Domain:
    """A domain with everything in it."""
    wanted = order(
        title="The <shop>", description="ask Ada\n& Grace", firmware="uefi", secure_boot=True, graphics="vnc"
    )
    return read_domain(defined(connection, built(wanted)))


def test_libvirt_understands_what_was_ordered(whole: Domain) -> None:
    assert (whole.name, whole.uuid, whole.title, whole.description) == ("web1", UUID, "The <shop>", "ask Ada\n& Grace")
    assert (whole.vcpus, whole.max_vcpus, whole.memory, whole.current_memory) == (2, 2, 512, 512)
    assert [(nic.kind, nic.source, nic.mac, nic.model) for nic in whole.interfaces] == [
        ("bridge", "br0", "52:54:00:00:00:01", "virtio"),
        ("network", "default", "52:54:00:00:00:02", "e1000e"),
    ]
    assert whole.graphics == (Graphics("vnc", "127.0.0.1"),)
    assert whole.console_log == f"/s/{UUID}/console.log"
    assert whole.agent is False


def test_disks_are_qcow2_and_the_config_drive_is_a_cdrom_that_nobody_writes_to(whole: Domain) -> None:
    root, *_others, config = sorted(whole.disks, key=lambda disk: disk.device == "cdrom")
    assert (root.device, root.image.format, root.readonly, root.bus) == ("disk", "qcow2", False, "virtio")
    assert (config.device, config.image.format, config.readonly) == ("cdrom", "raw", True)


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough", "directsync"])
def test_disks_have_the_cache_that_is_asked_and_give_space_back(connection: t.Any, cache: str) -> None:
    found = defined(connection, built(order(disk_cache=cache)))
    drivers = [node.attrib for node in found.iterfind("devices/disk[@device='disk']/driver")]
    assert len(drivers) == 4
    assert {driver["cache"] for driver in drivers} == {cache}
    assert {driver["discard"] for driver in drivers} == {"unmap"}


def test_what_we_remember_is_in_the_definition(connection: t.Any) -> None:
    found = defined(connection, built(order()))
    assert find(found) == INSTANCE


def test_clocks_are_tuned_where_kvm_keeps_them(connection: t.Any) -> None:
    assert defined(connection, built(order(), "kvm")).find("clock/timer[@name='rtc']") is not None
    assert defined(connection, built(order(), "qemu")).find("clock/timer") is None


@pytest.mark.parametrize(
    ("disk_bus", "config", "there"), [("scsi", False, True), ("sata", True, False), ("virtio", True, True)]
)
def test_a_scsi_controller_is_there_when_a_disk_needs_it(
    connection: t.Any, disk_bus: str, config: bool, there: bool
) -> None:
    found = defined(connection, built(order(disk_bus=disk_bus, config=config)))
    assert (found.find("devices/controller[@model='virtio-scsi']") is not None) == there


def test_a_bios_may_not_ask_for_secure_boot_features(connection: t.Any) -> None:
    found = defined(connection, built(order(firmware="bios")))
    assert found.find("os/firmware") is None
    assert found.find("features/smm") is None


def test_text_of_the_user_never_becomes_markup(connection: t.Any) -> None:
    nasty = "</title><devices><disk/></devices><title>&'\""
    found = defined(connection, built(order(title=nasty, description=nasty, machine="pc-q35-7.2")))
    assert (found.findtext("title"), found.findtext("description")) == (nasty, nasty)
    evil = replace(order(), networks=(Nic("bridge", "br0'/><x y='", "52:54:00:00:00:01"),))
    assert read_domain(ET.fromstring(built(evil))).interfaces[0].source == "br0'/><x y='"


def test_a_card_to_attach_is_one_of_a_domain() -> None:
    domain = ET.fromstring(built(order()))
    for nic in NETWORKS:
        node = interface_node(domain, nic.mac.upper())
        assert node is not None
        assert ET.canonicalize(ET.tostring(node, encoding="unicode")) == ET.canonicalize(nic_xml(nic))
    assert interface_node(domain, "52:54:00:00:00:03") is None
    assert interface_node(ET.fromstring("<domain><devices><interface/></devices></domain>"), "") is None
