# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is launched, and how a VM that is there differs from what is asked."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Domain, Interface, read_domain
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.launch import (
    GIB,
    Asked,
    Difference,
    There,
    compare,
    config_bus,
    lay_out_disks,
    place_networks,
    root_size,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import Nic, stable_mac

UUID = "3b9b2f44-4c0b-4e0e-9f0c-0c4c0b3a7f11"
SINCE = "2026-01-01T00:00:00Z"
SMALL = Flavor(2, 1024, 10, (5, 1), 512, "m1.small")


def targets(flavor: Flavor, disk_bus: str, cdrom_bus: str, *, config: bool = True) -> dict[str, str]:
    disks = lay_out_disks("/s/u", flavor, disk_bus=disk_bus, cdrom_bus=cdrom_bus, config=config)
    return {disk.path.removeprefix("/s/u/"): disk.target for disk in disks}


# ---- disks


@pytest.mark.parametrize(
    ("disk_bus", "cdrom_bus", "expected"),
    [
        ("virtio", "sata", "vda vdb vdc vdd sda"),
        ("virtio", "ide", "vda vdb vdc vdd hda"),
        ("scsi", "scsi", "sda sdb sdc sdd sde"),
        ("scsi", "sata", "sda sdb sdc sdd sde"),  # one row of names for both
        ("sata", "ide", "sda sdb sdc sdd hda"),
        ("ide", "ide", "hda hdb hdc hdd hde"),
    ],
)
def test_disks_have_names_of_their_bus_in_order(disk_bus: str, cdrom_bus: str, expected: str) -> None:
    files = ["root.qcow2", "ephemeral0.qcow2", "ephemeral1.qcow2", "swap.qcow2", "config.iso"]
    assert targets(SMALL, disk_bus, cdrom_bus) == dict(zip(files, expected.split()))


def test_what_the_flavor_has_not_is_not_laid_out() -> None:
    assert targets(Flavor(1, 1), "virtio", "sata", config=False) == {"root.qcow2": "vda"}
    assert targets(Flavor(1, 1, swap=1), "virtio", "sata", config=False) == {"root.qcow2": "vda", "swap.qcow2": "vdb"}
    assert targets(Flavor(1, 1), "virtio", "sata") == {"root.qcow2": "vda", "config.iso": "sda"}


@given(
    ephemerals=st.integers(0, 40),
    swap=st.integers(0, 1),
    config=st.booleans(),
    disk_bus=st.sampled_from(["virtio", "scsi", "sata", "ide"]),
    cdrom_bus=st.sampled_from(["sata", "ide", "scsi"]),
)
def test_no_two_disks_share_a_name_or_a_file(
    ephemerals: int, swap: int, config: bool, disk_bus: str, cdrom_bus: str
) -> None:
    flavor = Flavor(1, 1, ephemeral=(1,) * ephemerals, swap=swap)
    shared = disk_bus != "virtio" and (disk_bus == "ide") == (cdrom_bus == "ide")
    try:
        found = targets(flavor, disk_bus, cdrom_bus, config=config)
    except Invalid:
        assert 1 + ephemerals + swap + (config and shared) > 26
        return
    assert len(set(found.values())) == len(found) == 1 + ephemerals + swap + config
    assert all(len(target) == 3 and target[2].isalpha() for target in found.values())


def test_a_flavor_with_more_disks_than_names_is_refused() -> None:
    assert targets(Flavor(1, 1, ephemeral=(1,) * 25), "virtio", "sata")["ephemeral24.qcow2"] == "vdz"
    with pytest.raises(Invalid, match="Flavor big has more disks than the bus virtio has names"):
        targets(Flavor(1, 1, ephemeral=(1,) * 26, name="big"), "virtio", "sata")


@pytest.mark.parametrize(
    ("machine", "disk_bus", "bus"),
    [
        ("pc-q35-7.2", "virtio", "scsi"),
        ("pc-i440fx-7.2", "scsi", "scsi"),
        ("pc-q35-7.2", "sata", "sata"),
        ("q35", "ide", "sata"),
        ("pc-i440fx-7.2", "ide", "ide"),
        ("virt-7.2", "sata", "scsi"),
    ],
)
def test_the_config_drive_is_on_a_bus_that_the_guest_surely_knows(machine: str, disk_bus: str, bus: str) -> None:
    assert config_bus(machine, disk_bus) == bus


@given(st.integers(0, 100), st.integers(0, 100 * GIB))
def test_the_root_disk_is_as_large_as_the_flavor_says_and_never_smaller_than_the_image(gib: int, image: int) -> None:
    flavor = Flavor(1, 1, root=gib)
    if gib and gib * GIB < image:
        with pytest.raises(Invalid, match=r"root disk of \d+ GiB, and the image needs"):
            root_size(flavor, image)
    else:
        assert root_size(flavor, image) == (gib * GIB or image)


def test_an_image_that_just_fits_fits() -> None:
    assert root_size(Flavor(1, 1, root=2), 2 * GIB) == 2 * GIB
    with pytest.raises(Invalid, match=r"Flavor m1 has a root disk of 2 GiB, .* 2\.00 GiB") as caught:
        root_size(Flavor(1, 1, root=2, name="m1"), 2 * GIB + 1)
    assert "root: 0" in caught.value.hint


# ---- networks


def test_cards_without_an_address_get_a_stable_one() -> None:
    placed = place_networks(
        UUID, [Nic("bridge", "br0"), Nic("network", "n", "52:54:00:00:00:01"), Nic("bridge", "br0")]
    )
    assert [nic.mac for nic in placed] == [stable_mac(UUID, 0), "52:54:00:00:00:01", stable_mac(UUID, 2)]


def test_two_cards_with_one_address_are_refused() -> None:
    with pytest.raises(Invalid, match="same MAC address"):
        place_networks(UUID, [Nic("bridge", "br0"), Nic("bridge", "br1", stable_mac(UUID, 0))])


# ---- differences

XML = f"""
<domain type='kvm'>
  <name>web1</name>
  <uuid>{UUID}</uuid>
  <title>The shop</title>
  <description>ask Ada</description>
  <memory unit='MiB'>1024</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/s/{UUID}/root.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='{stable_mac(UUID, 0)}'/><source bridge='br0'/><model type='virtio'/>
    </interface>
  </devices>
</domain>
"""
DOMAIN = read_domain(ET.fromstring(XML))
LAUNCH = Launch(SINCE, "root@kvm1", "/i/debian.qcow2", "/s/_base/ab.qcow2", "qcow2", "ab", "/s", {"cloud_init": "cd"})
OURS = There(DOMAIN, Instance(flavor=SMALL, launch=LAUNCH), autostart=False, root_size=10 * GIB, off=True)
FOREIGN = replace(OURS, instance=Instance())
SAME = Asked(
    image="/i/debian.qcow2",
    flavor=SMALL,
    networks=(Nic("bridge", "br0"),),
    title="The shop",
    description="ask Ada",
    autostart=False,
    firmware="bios",
    machine="pc-q35-7.2",
    domain_type="kvm",
    storage="/s",
    cloud_init="cd",
)


def one(asked: Asked, there: There = OURS) -> Difference:
    (found,) = compare(asked, there)
    return found


def test_what_is_the_same_does_not_differ() -> None:
    assert compare(SAME, OURS) == []
    assert compare(SAME, FOREIGN) == []


def test_what_is_not_said_is_not_compared() -> None:
    assert compare(Asked(), OURS) == []
    assert compare(Asked(), FOREIGN) == []


# Another value for every option: what was there, and how it is made so; without a way, it cannot be.
OTHERS: dict[str, tuple[t.Any, t.Any, str]] = {
    "title": ("Shop", "The shop", "set_title"),
    "description": ("", "ask Ada", "set_description"),
    "autostart": (True, False, "set_autostart"),
    "image": ("/i/other.qcow2", "/i/debian.qcow2", ""),
    "storage": ("/t", "/s", ""),
    "cloud_init": ("ef", "cd", ""),
    "firmware": ("uefi", "bios", ""),
    "domain_type": ("qemu", "kvm", ""),
    "machine": ("pc-i440fx-7.2", "pc-q35-7.2", ""),
}


@pytest.mark.parametrize("option", OTHERS)
def test_an_option_that_differs_says_from_what_to_what_and_how(option: str) -> None:
    wanted, have, operation = OTHERS[option]
    found = one(replace(SAME, **{option: wanted}))
    assert (found.option, found.before, found.after, found.operation) == (option, have, wanted, operation)
    assert bool(found.why) != bool(operation)
    if operation:
        assert found.argument == wanted
    else:
        assert "it is decided at the launch" in found.why


def test_every_option_is_compared() -> None:
    assert set(OTHERS) | {"flavor", "networks", "image_id"} == set(vars(SAME))


@pytest.mark.parametrize(
    ("image", "image_id", "same"),
    [
        ("debian", None, True),  # also when another image has that name now
        ("d-1", None, True),
        ("d-1-by-another-name", "d-1", True),
        ("fedora", "f-1", False),
        ("/i/debian.qcow2", None, False),
    ],
)
@pytest.mark.parametrize("launched", ["debian", "d-1"])
def test_an_image_of_a_store_is_the_same_by_any_of_its_names(
    image: str, image_id: str | None, same: bool, launched: str
) -> None:
    known = replace(LAUNCH, image=launched, image_id="d-1", store="directory", place="/images")
    there = replace(OURS, instance=replace(OURS.instance, launch=known))
    asked = Asked(image=image, image_id="d-1" if same and launched == "d-1" else image_id)
    found = compare(asked, there)
    assert [each.option for each in found] == ([] if same else ["image"])


def test_all_differences_are_told_at_once() -> None:
    asked = replace(SAME, **{option: wanted for option, (wanted, _have, _operation) in OTHERS.items()})
    assert {each.option for each in compare(asked, OURS)} == set(OTHERS)


@pytest.mark.parametrize("option", ["image", "storage", "cloud_init"])
def test_what_a_vm_that_others_made_does_not_tell_is_not_compared(option: str) -> None:
    assert compare(replace(SAME, **{option: OTHERS[option][0]}), FOREIGN) == []


@pytest.mark.parametrize("option", ["title", "autostart", "firmware", "machine", "domain_type"])
def test_what_a_vm_that_others_made_does_tell_is_compared(option: str) -> None:
    assert one(replace(SAME, **{option: OTHERS[option][0]}), FOREIGN).option == option


def test_cloud_init_that_is_asked_later_is_a_difference_too() -> None:
    without = replace(OURS, instance=replace(OURS.instance, launch=replace(LAUNCH, spec={})))
    found = one(Asked(cloud_init="cd"), without)
    assert (found.before, found.after, found.operation) == ("none", "cd", "")
    assert "first boot only" in found.why


@pytest.mark.parametrize(
    ("have", "want", "same"),
    [
        ("pc-q35-7.2", "q35", True),
        ("pc-q35-7.2", "pc-q35-7.2", True),
        ("pc-q35-7.2", "pc-q35-8.0", False),
        ("pc-q35-7.2", "pc", False),
        ("pc-i440fx-7.2", "pc", True),
        ("pc-i440fx-7.2", "q35", False),
        ("virt-7.2", "virt", False),
    ],
)
def test_a_machines_alias_means_any_of_its_versions(have: str, want: str, same: bool) -> None:
    assert bool(compare(Asked(machine=want), replace(OURS, domain=replace(DOMAIN, machine=have)))) != same


# ---- flavors


def test_cpus_and_memory_change_together_while_the_vm_is_off() -> None:
    wanted = replace(SMALL, vcpus=4)
    found = one(replace(SAME, flavor=wanted))
    assert (found.before, found.after) == ({"vcpus": 2, "memory": 1024}, {"vcpus": 4, "memory": 1024})
    assert (found.operation, found.argument) == ("resize", wanted)
    found = one(replace(SAME, flavor=wanted), replace(OURS, off=False))
    assert found.operation == ""
    assert "state: stopped first" in found.why


def test_the_name_of_a_flavor_is_a_label() -> None:
    assert compare(replace(SAME, flavor=replace(SMALL, name="other")), OURS) == []


def test_the_root_disk_grows_also_while_the_vm_runs_and_never_shrinks() -> None:
    larger, smaller = replace(SMALL, root=20), replace(SMALL, root=9)
    for there in (OURS, replace(OURS, off=False), FOREIGN):
        found = one(Asked(flavor=larger), there)
        assert (found.before, found.after, found.operation) == ({"root": 10}, {"root": 20}, "grow_root")
        assert found.argument == larger
        found = one(Asked(flavor=smaller), there)
        assert (found.operation, found.why) == ("", "a disk cannot shrink without losing data")


@pytest.mark.parametrize("there", [replace(OURS, root_size=None), replace(OURS, root_size=7 * GIB + 1)])
def test_a_root_size_that_is_not_said_or_not_known_is_not_compared(there: There) -> None:
    flavor = SMALL if there.root_size is None else replace(SMALL, root=0)
    assert compare(replace(SAME, flavor=flavor), there) == []


@pytest.mark.parametrize(
    "wanted", [replace(SMALL, ephemeral=(5,)), replace(SMALL, ephemeral=(1, 5)), replace(SMALL, swap=0)]
)
def test_other_disks_are_decided_at_the_launch(wanted: Flavor) -> None:
    found = one(replace(SAME, flavor=wanted))
    assert (found.option, found.operation) == ("flavor", "")
    assert found.before == {"ephemeral": [5, 1], "swap": 512}
    assert compare(replace(SAME, flavor=wanted), FOREIGN) == []


def test_cpus_and_root_may_differ_at_once() -> None:
    found = compare(Asked(flavor=replace(SMALL, vcpus=4, root=20)), OURS)
    assert [each.operation for each in found] == ["resize", "grow_root"]


# ---- network cards


def with_cards(*cards: Nic, domain: Domain = DOMAIN) -> There:
    interfaces = tuple(Interface(nic.mac, nic.kind, nic.source, model=nic.model) for nic in cards)
    return replace(OURS, domain=replace(domain, interfaces=interfaces))


def card(source: str, mac: int | None = None, model: str = "virtio") -> Nic:
    return Nic("bridge", source, f"52:54:00:00:00:{mac:02x}" if mac is not None else "", model)


def operations(asked: t.Sequence[Nic], there: There) -> list[tuple[str, Nic]]:
    found = compare(Asked(networks=tuple(asked)), there)
    assert all(each.option == "networks" for each in found)
    return [(each.operation, each.argument) for each in found]


def test_a_card_that_is_missing_is_attached_with_a_stable_address() -> None:
    placed = replace(card("br1"), mac=stable_mac(UUID, 1))
    assert operations([card("br0"), card("br1")], OURS) == [("attach_network", placed)]


def test_a_card_that_is_too_much_is_detached() -> None:
    have = Nic("bridge", "br0", stable_mac(UUID, 0))
    assert operations([], OURS) == [("detach_network", have)]


def test_a_card_on_another_bridge_is_plugged_in_elsewhere() -> None:
    assert operations([card("br1")], OURS) == [("update_network", replace(card("br1"), mac=stable_mac(UUID, 0)))]


def test_the_model_of_a_card_cannot_change() -> None:
    found = one(Asked(networks=(card("br0", model="e1000e"),)))
    assert found.operation == ""
    assert "another MAC address" in found.why


def test_the_cards_of_a_vm_that_others_made_keep_their_addresses() -> None:
    there = with_cards(card("br0", 1), card("br1", 2))
    assert operations([card("br0"), card("br1")], there) == []
    assert operations([card("br1"), card("br0")], there) == []
    assert operations([card("br1")], there) == [("detach_network", card("br0", 1))]


def test_a_card_with_an_address_is_not_taken_by_one_without() -> None:
    there = with_cards(card("br0", 1), card("br0", 2))
    assert operations([card("br0"), card("br0", 1)], there) == []
    assert operations([card("br0"), card("br0", 2)], there) == []


def test_addresses_are_the_same_in_any_case() -> None:
    there = with_cards(Nic("bridge", "br0", "52:54:00:AA:BB:CC"))
    assert operations([Nic("bridge", "br0", "52:54:00:aa:bb:cc")], there) == []


CARDS = st.lists(
    st.builds(card, st.sampled_from(["br0", "br1"]), st.none() | st.integers(0, 4)), max_size=5, unique_by=id
)
STABLE = st.integers(0, 4).map(lambda index: replace(card("br0"), mac=stable_mac(UUID, index)))


@given(
    asked=CARDS,
    have=st.lists(st.builds(card, st.sampled_from(["br0", "br1"]), st.integers(0, 4)) | STABLE, max_size=5),
)
def test_once_the_differences_are_made_up_for_there_are_none(asked: list[Nic], have: list[Nic]) -> None:
    cards = {nic.mac: nic for nic in have}
    try:
        differences = compare(Asked(networks=tuple(asked)), with_cards(*cards.values()))
    except Invalid:  # two with one address
        return
    for each in differences:
        if each.operation == "attach_network":
            assert each.argument.mac not in cards
            cards[each.argument.mac] = each.argument
        elif each.operation == "update_network":
            assert cards[each.argument.mac] != each.argument
            cards[each.argument.mac] = each.argument
        else:
            assert each.operation == "detach_network"
            del cards[each.argument.mac]
    assert len(cards) == len(asked)
    assert sorted(nic.source for nic in cards.values()) == sorted(nic.source for nic in asked)
    assert {nic.mac for nic in asked if nic.mac} <= set(cards)
    assert compare(Asked(networks=tuple(asked)), with_cards(*cards.values())) == []
