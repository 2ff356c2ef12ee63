# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the definition of a rescued VM looks, and how the one before is got back."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, Unsupported
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import instance as memory
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import rescue
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import read_domain
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock, Mark, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.rescue import Began, Order, Record

RECORD = Record(
    definition="<domain><devices><disk><source file='/own'/><target dev='vda'/></disk></devices></domain>",
    power="running",
    layout="stable",
    device="disk",
    bus="virtio",
    image="fix",
    image_id="7",
    place="there",
    base="/b",
    sha256="00",
    disk="/r.qcow2",
    seed="/r.iso",
    nvram="/r.fd",
)


def disk(target: str, bus: str, more: str = "", device: str = "disk", path: str = "") -> str:
    return (
        f"<disk type='file' device='{device}'><source file='{path or f'/{target}'}'/>"
        f"<target dev='{target}' bus='{bus}'/>{more}</disk>"
    )


def domain(*devices: str, system: str = "", machine: str = "q35", attributes: str = "") -> ET.Element:
    return ET.fromstring(
        f"<domain><name>web1</name><os{attributes}><type machine='pc-{machine}-7.2'>hvm</type>{system}</os>"
        f"<devices>{''.join(devices)}</devices></domain>"
    )


def order(layout: str = "stable", bus: str = "virtio", seed: str = "", nvram: str = "") -> Order:
    return Order(layout, "disk", bus, "/rescue", seed, nvram)


def disks(root: ET.Element) -> list[tuple[str, str, str, int | None]]:
    return [(each.target, each.bus, each.image.source, each.boot) for each in read_domain(root).disks]


# ---- what is remembered


def test_a_record_is_read_back_and_one_that_is_damaged_is_refused() -> None:
    mark = RECORD.mark("then")
    assert (mark.state, mark.since, Record.load(mark)) == ("rescued", "then", RECORD)
    assert RECORD.files == ["/r.qcow2", "/r.iso", "/r.fd"]
    assert replace(RECORD, seed="", nvram="").files == ["/r.qcow2"]
    assert "definition" not in RECORD.tell()
    with pytest.raises(Invalid, match="disk"):
        Record.load(replace(mark, data={key: value for key, value in mark.data.items() if key != "disk"}))


def test_the_journal_is_read_back() -> None:
    began = Began("paused", ran=False, disk="/x")
    assert Began.load(began.dump()) == began
    with pytest.raises(Invalid, match="power"):
        Began.load({})


def test_leftovers_are_files_of_rescues_that_no_mark_names() -> None:
    own = (OwnDisk("root", "vda", "/own"), OwnDisk("rescue", "disk", "/r.qcow2"), OwnDisk("rescue", "disk", "/old"))
    assert rescue.leftovers(Instance(disks=own, marks=(RECORD.mark("then"), Mark("error", "now")))) == ["/old"]
    assert rescue.leftovers(Instance(disks=own)) == ["/r.qcow2", "/old"]


def test_all_disks_of_a_vm_are_those_that_it_has_and_those_that_it_had() -> None:
    here = read_domain(domain(disk("vda", "virtio", path="/r.qcow2")))
    assert rescue.whole(here, ()) is here
    found = rescue.whole(here, (RECORD.mark("then"),)).disks
    assert [each.image.source for each in found] == ["/r.qcow2", "/own"]
    assert len(rescue.whole(read_domain(domain(disk("vdb", "virtio", path="/own"))), (RECORD.mark("x"),)).disks) == 1


@pytest.mark.parametrize(
    ("condition", "power"),
    [
        ("running", "running"),
        ("asleep", "running"),
        ("crashed", "running"),
        ("paused", "paused"),
        ("suspended", "suspended"),
        ("stopped", "stopped"),
        ("going_down", "stopped"),
    ],
)
def test_what_a_guest_did_before(condition: str, power: str) -> None:
    assert rescue.power_of(condition) == power


# ---- a definition and its metadata

TEXT = """<domain type='kvm' xmlns:q='urn:q'>
  <name>wéb</name>
  {metadata}
  <description>a &lt;metadata> b</description>
  <devices><x><metadata>not this</metadata></x></devices>
</domain>
"""
FOREIGN = """<metadata xmlns:o="urn:o">
    <t:tool xmlns:t="urn:t"><metadata>nor this</metadata><t:x a=">"/></t:tool><o:y/>{ours}
  </metadata>"""
OURS = '<kvmops:instance xmlns:kvmops="urn:kvmops:lifecycle:instance" schema="1">{}</kvmops:instance>'


def test_a_definition_is_split_and_joined_without_touching_what_others_wrote() -> None:
    lock = OURS.format("<kvmops:lock since='then'>&gt;</kvmops:lock>")
    definition, metadata = rescue.split(TEXT.format(metadata=FOREIGN.format(ours=f"\n    {lock}")))
    assert metadata == FOREIGN.format(ours="")
    assert definition == TEXT.format(metadata="").replace("</name>\n  \n", "</name>\n")
    text = rescue.join(definition, metadata, Instance(lock=Lock("now", "a\rb")))
    assert ["".join(each.split()) for each in rescue.split(text)] == [
        "".join(each.split()) for each in (definition, metadata)
    ]
    assert memory.find(ET.fromstring(text)) == Instance(lock=Lock("now", "a\rb"))


@pytest.mark.parametrize(
    "metadata", ["", "<metadata/>", f"<metadata>{OURS.format('')}</metadata>", "<metadata>\n</metadata>"]
)
def test_a_definition_without_metadata_of_others(metadata: str) -> None:
    definition, left = rescue.split(TEXT.format(metadata=metadata))
    assert "urn:kvmops" not in definition + left
    text = rescue.join(definition, left, Instance(lock=Lock("now")))
    assert memory.find(ET.fromstring(text)) == Instance(lock=Lock("now"))
    assert len(ET.fromstring(text).findall("metadata")) == 1


SECRETS = (
    "<graphics type='vnc' passwd='one'/><graphics type='spice' passwd='two' passwdValidTo='2030'/>"
    "<disk type='network'><source name='x'><host name='h'/><cookies><cookie name='k'>v</cookie></cookies></source>"
    "<target dev='vdb' bus='virtio'/></disk>"
)


def test_secrets_come_from_the_definition_of_the_rescued_vm() -> None:
    secure = domain(disk("vda", "virtio"), SECRETS)
    plain = domain(disk("vda", "virtio"), SECRETS)
    for node in plain.iterfind("devices/graphics"):
        del node.attrib["passwd"]
    source = plain.find("devices/disk/source[@name='x']")
    assert source is not None
    source.remove(source[1])
    definition = ET.tostring(plain, encoding="unicode")
    stable = rescue.lay_out(secure, order(), name="web1")
    back = rescue.restored(definition, stable)
    assert [node.get("passwd") for node in back.iterfind("devices/graphics")] == ["one", "two"]
    assert back.findtext("devices/disk/source/cookies/cookie") == "v"
    rescue.demand_return(definition, stable, secure, name="web1", layout="stable")
    classic = rescue.lay_out(secure, order("classic"), name="web1")
    with pytest.raises(Unsupported) as error:
        rescue.demand_return(definition, classic, secure, name="web1", layout="classic")
    assert "layout: stable" in error.value.hint
    # One that was changed meanwhile is the new one, one that was taken away is gone.
    for node, word in zip(stable.iterfind("devices/graphics"), ("new", "")):
        node.set("passwd", word)
    back = rescue.restored(definition, stable)
    assert [node.get("passwd") for node in back.iterfind("devices/graphics")] == ["new", None]


# ---- the layouts


def test_the_stable_layout_leaves_all_disks_and_boots_from_the_last() -> None:
    original = domain(
        disk("vda", "virtio", "<boot order='1'/><address type='pci'/>"),
        disk("vdc", "virtio", "<boot order='3'/>"),
        disk("sda", "sata", device="cdrom"),
        "<interface><boot order='2'/></interface><hostdev><boot order='4'/></hostdev><tpm/>",
        system="<boot dev='hd'/><boot dev='network'/><kernel>k</kernel><initrd>i</initrd><cmdline/><bootmenu/>",
    )
    before = ET.tostring(original)
    root = rescue.lay_out(original, order(), name="web1")
    assert ET.tostring(original) == before
    assert disks(root) == [
        ("vda", "virtio", "/vda", None),
        ("vdc", "virtio", "/vdc", None),
        ("sda", "sata", "/sda", None),
        ("vdd", "virtio", "/rescue", 1),
    ]
    assert [node.tag for node in root.findall("os/*")] == ["type", "bootmenu"]
    assert [node.get("order") for node in root.iter("boot")] == ["1"]
    assert root.find("devices/tpm") is None
    assert root.find("devices/disk/address") is not None
    assert root.findtext("devices/disk/serial") == rescue.SERIAL
    assert root.find("devices/controller") is None


def test_the_classic_layout_has_the_rescue_disk_in_the_place_of_the_root_disk_and_no_other() -> None:
    original = domain(
        disk("sdb", "scsi", device="cdrom"),
        disk("sda", "scsi", "<boot order='1'/><address type='drive' unit='0'/><serial>mine</serial>"),
        disk("vda", "virtio"),
        "<controller type='scsi'/>",
    )
    root = rescue.lay_out(original, order("classic", bus="scsi"), name="web1")
    assert disks(root) == [("sda", "scsi", "/rescue", 1), ("sdb", "scsi", "/sda", None)]
    first, second = root.findall("devices/disk")
    assert (first.find("address") is not None, second.find("address")) == (True, None)
    assert (first.findtext("serial"), second.findtext("serial")) == (rescue.SERIAL, "mine")
    assert len(root.findall("devices/controller")) == 1
    for without, bus in ((domain(disk("sda", "scsi", device="cdrom")), "scsi"), (domain(disk("fda", "sd")), "sd")):
        with pytest.raises(Invalid) as error:
            rescue.lay_out(without, order("classic", bus=bus), name="web1")
        assert error.value.hint == "Say layout: stable."


def test_data_for_cloud_init_have_a_drive_and_the_vms_own_are_left_out() -> None:
    own = domain(disk("vda", "virtio"), disk("sda", "scsi", device="cdrom"))
    root = rescue.lay_out(own, replace(order(seed="/seed"), drop=("sda",)), name="web1")
    assert [each[:3] for each in disks(root)] == [
        ("vda", "virtio", "/vda"),
        ("vdb", "virtio", "/rescue"),
        ("sda", "scsi", "/seed"),
    ]
    controller = root.find("devices/controller")
    assert controller is not None
    assert controller.attrib == {"type": "scsi", "model": "virtio-scsi"}
    root = rescue.lay_out(domain(disk("hda", "ide"), machine="i440fx"), order(bus="ide", seed="/seed"), name="web1")
    assert [each[:2] for each in disks(root)] == [("hda", "ide"), ("hdb", "ide"), ("hdc", "ide")]


def test_variables_of_uefi_are_other_ones() -> None:
    own = domain(disk("vda", "virtio"), system="<loader type='pflash'>/c</loader><nvram template='/t'>/own</nvram>")
    root = rescue.lay_out(own, order(nvram="<nvram template='/t'>/new</nvram>"), name="web1")
    assert [node.text for node in root.findall("os/nvram")] == ["/new"]
    assert [node.text for node in rescue.lay_out(own, order(), name="web1").findall("os/nvram")] == ["/own"]
    assert rescue.has_variables(own)
    assert rescue.has_variables(domain(attributes=" firmware='efi'"))
    assert not rescue.has_variables(domain())
    for loader in ("stateless='yes' type='pflash'", "type='rom'"):
        assert not rescue.has_variables(domain(system=f"<loader {loader}>/c</loader>", attributes=" firmware='efi'"))


@pytest.mark.parametrize(
    ("taken", "bus", "target"),
    [
        ([], "virtio", "vda"),
        (["vda", "vdc", "sdz"], "virtio", "vdd"),
        (["sda", "vdb"], "usb", "sdb"),
        (["vdz"], "virtio", "vdaa"),
        (["vdaz", "vdb"], "virtio", "vdba"),
        (["vdzz"], "virtio", "vdaaa"),
        (["hda"], "ide", "hdb"),
        (["hda", "hdd"], "ide", "hdb"),
    ],
)
def test_a_new_disk_comes_last(taken: list[str], bus: str, target: str) -> None:
    assert rescue.next_target(taken, bus) == target


def test_ide_has_four_places() -> None:
    with pytest.raises(Invalid, match="ide") as error:
        rescue.next_target(["hda", "hdb", "hdc", "hdd"], "ide")
    assert "bus: sata" in error.value.hint


@given(st.lists(st.from_regex(r"\Avd[a-z]{1,3}\Z"), unique=True))
def test_a_name_is_never_given_twice(taken: list[str]) -> None:
    target = rescue.next_target(taken, "virtio")
    assert target not in taken
    assert all((len(target), target) > (len(name), name) for name in taken)


@pytest.mark.parametrize(
    ("asked", "properties", "bus", "machine", "found"),
    [
        ((None, None), {}, "scsi", "q35", ("disk", "scsi")),
        ((None, None), {}, "xen", "q35", ("disk", "virtio")),
        ((None, None), {"hw_rescue_device": "cdrom", "hw_rescue_bus": "usb"}, "scsi", "q35", ("cdrom", "usb")),
        (("disk", None), {"hw_rescue_device": "floppy"}, "sata", "q35", ("disk", "sata")),
        ((None, "sata"), {"hw_rescue_bus": "xen"}, "virtio", "q35", ("disk", "sata")),
        (("cdrom", None), {}, "virtio", "q35", ("cdrom", "scsi")),
        (("cdrom", None), {}, "sata", "q35", ("cdrom", "sata")),
        ((None, None), {}, "ide", "i440fx", ("disk", "ide")),
    ],
)
def test_where_the_rescue_disk_goes(
    asked: tuple[str | None, str | None],
    properties: dict[str, str],
    bus: str,
    machine: str,
    found: tuple[str, str],
) -> None:
    root = domain(disk("cd", "sata", device="cdrom"), disk("vda", bus), machine=machine)
    assert rescue.attachment(asked, properties, root, name="web1", image="fix") == found


@pytest.mark.parametrize(
    ("asked", "properties", "way_out"),
    [
        ((None, None), {"hw_rescue_device": "floppy"}, "device"),
        ((None, None), {"hw_rescue_bus": "xen"}, "bus"),
        (("cdrom", "virtio"), {}, "bus: scsi"),
        ((None, None), {"hw_rescue_device": "cdrom", "hw_rescue_bus": "virtio"}, "bus: scsi"),
        ((None, "ide"), {}, "bus: sata"),
        ((None, "usb"), {}, "another bus"),
    ],
)
def test_where_it_cannot_go(asked: tuple[str | None, str | None], properties: dict[str, str], way_out: str) -> None:
    root = domain(disk("vda", "virtio"), "<controller type='usb' model='none'/>")
    with pytest.raises(Invalid) as error:
        rescue.attachment(asked, properties, root, name="web1", image="fix")
    assert way_out in error.value.hint


def test_what_must_be_there_for_the_vm_to_start() -> None:
    root = domain(
        disk("vda", "virtio"),
        disk("vdb", "virtio"),
        disk("sda", "scsi", device="cdrom"),
        disk("sdb", "scsi", device="cdrom").replace("<source ", "<source startupPolicy='optional' "),
        "<disk type='file' device='cdrom'><target dev='sdc' bus='scsi'/></disk>",
    )
    assert rescue.needed(root, "") == rescue.needed(root, "stable") == ["vda", "vdb", "sda"]
    assert rescue.needed(root, "stable", ("sda",)) == ["vda", "vdb"]
    assert rescue.needed(root, "classic") == ["vda"]
    drives = Instance(disks=(OwnDisk("root", "vda", "/a"), OwnDisk("config", "sda", "/c")))
    assert rescue.config_drives(drives) == ("sda",)
