# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the properties of an image mean for a VM."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.image import (
    Traits,
    check_fits,
    kept,
    read_traits,
)

GIB = 1 << 30


def test_an_image_that_says_nothing_wants_nothing() -> None:
    assert read_traits({"os_type": "linux"}, image="i") == Traits()


def test_what_an_image_wants_is_read() -> None:
    properties = {
        "hw_disk_bus": "scsi",
        "hw_machine_type": "pc-q35-7.2",
        "hw_firmware_type": "uefi",
        "os_secure_boot": "required",
        "hw_vif_model": "e1000",
    }
    assert read_traits(properties, image="i") == Traits("scsi", "pc-q35-7.2", "uefi", True, "e1000")


@pytest.mark.parametrize(("value", "wanted"), [("required", True), ("optional", False), ("disabled", False)])
def test_secure_boot_is_wanted_where_it_is_required(value: str, wanted: bool) -> None:
    assert read_traits({"os_secure_boot": value}, image="i").secure_boot is wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hw_disk_bus", "usb"),
        ("hw_firmware_type", "efi"),
        ("os_secure_boot", "yes"),
        ("hw_machine_type", "q35'/>"),
        ("hw_vif_model", "-e1000"),
    ],
)
def test_what_there_is_not_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(Invalid, match=f"Image debian has the property {name} with the value") as caught:
        read_traits({name: value}, image="debian")
    assert caught.value.details == {"property": name}


def test_a_vm_remembers_what_images_made_of_it_inherit() -> None:
    properties = {
        "os_type": "linux",
        "hw_disk_bus": "scsi",
        "owner": "Ada",
        "kvmops_form": "delta",
        "os_glance_import": "x",
        "image_type": "snapshot",
        "instance_uuid": "0a0b",
        "base_image_ref": "1",
        "owner_specified.openstack.sha256": "ab",
        "essay": "x" * 256,
        "odd": "a\x07b",
    }
    assert kept(properties) == {"os_type": "linux", "hw_disk_bus": "scsi", "owner": "Ada"}


@pytest.mark.parametrize(
    ("flavor", "limits", "said"),
    [
        (Flavor(1, 512, 10), {}, ""),
        (Flavor(1, 512, 10), {"min_ram": 512, "min_disk": 10, "size": 10 * GIB}, ""),
        (Flavor(1, 511, 10), {"min_ram": 512}, "511 MiB of memory, and image i needs 512 MiB (min_ram)"),
        (Flavor(1, 512, 9), {"min_disk": 10}, "a root disk of 9 GiB, and image i needs 10 GiB (min_disk)"),
        (Flavor(1, 512, 9), {"size": 9 * GIB + 1}, "a root disk of 9 GiB, and image i needs 9.00 GiB"),
        (Flavor(1, 512, 0), {"min_disk": 10, "size": 99 * GIB}, ""),
    ],
)
def test_a_flavor_has_to_be_large_enough(flavor: Flavor, limits: dict[str, t.Any], said: str) -> None:
    asked = {"size": 0, "min_disk": 0, "min_ram": 0, **limits}
    if not said:
        check_fits(flavor, image="i", **asked)
        return
    with pytest.raises(Invalid) as caught:
        check_fits(flavor, image="i", **asked)
    assert said in caught.value.message
