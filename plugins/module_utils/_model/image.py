# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What the properties of an image mean for a VM that is launched from it (Nova: useful image properties)."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from .._core.errors import Invalid
from .flavor import Flavor
from .snapshot import inherited

# Longer values are no properties of hardware, and the metadata of a VM is no place for them.
_LONGEST = 255
_BUSES = ("virtio", "scsi", "sata", "ide")
_FIRMWARES = ("bios", "uefi")
_SECURE = {"required": True, "optional": False, "disabled": False}
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What is told of one image, and would be wrong of the next one. (What a VM needs, its flavor tells.)
_OF_ONE = ("base_image_ref", "instance_uuid", "owner_id", "owner_specified.", "user_id")


@dataclass(frozen=True)
class Traits:
    """What an image wants of a VM's hardware; empty and ``None`` where it does not say.

    :param disk_bus: ``hw_disk_bus``.
    :param machine: ``hw_machine_type``.
    :param firmware: ``hw_firmware_type``.
    :param secure_boot: ``os_secure_boot``.
    :param nic_model: ``hw_vif_model``.
    """

    disk_bus: str = ""
    machine: str = ""
    firmware: str = ""
    secure_boot: bool | None = None
    nic_model: str = ""


def read_traits(properties: t.Mapping[str, str], *, image: str) -> Traits:
    """The traits in the properties of *image*.

    :raises Invalid: It wants something that there is not.
    """

    def word(name: str, known: t.Collection[str] = ()) -> str:
        value = properties.get(name, "")
        if value and (value not in known if known else not _WORD.fullmatch(value)):
            raise Invalid(
                f"Image {image} has the property {name} with the value {value!r}, which is not known here.",
                hint=f"Say in the task what the VM shall have, or change the property to {', '.join(known)}."
                if known
                else "Change the property.",
                property=name,
            )
        return value

    secure = word("os_secure_boot", _SECURE)
    return Traits(
        disk_bus=word("hw_disk_bus", _BUSES),
        machine=word("hw_machine_type"),
        firmware=word("hw_firmware_type", _FIRMWARES),
        secure_boot=_SECURE[secure] if secure else None,
        nic_model=word("hw_vif_model"),
    )


def kept(properties: t.Mapping[str, str]) -> dict[str, str]:
    """What a VM remembers of the image that it was launched from (Nova: system metadata ``image_*``), so that images
    made of it can have the same."""
    return {
        key: value
        for key, value in inherited(properties).items()
        if not key.startswith(_OF_ONE) and len(value) <= _LONGEST and value.isprintable() and key.isprintable()
    }


def check_fits(flavor: Flavor, *, image: str, size: int, min_disk: int, min_ram: int) -> None:
    """See that a VM of *flavor* is large enough for an image, as Nova does before a launch.

    :param size: Of the image's content, in bytes; what is in it may be larger.
    :param min_disk: GiB of the root disk. A flavor whose root disk is as large as the image (0) has enough.
    :param min_ram: MiB.
    :raises Invalid: It is not.
    """
    name = flavor.name or "given"
    if flavor.memory < min_ram:
        raise Invalid(
            f"Flavor {name} has {flavor.memory} MiB of memory, and image {image} needs {min_ram} MiB (min_ram).",
            hint="Use a larger flavor.",
        )
    if flavor.root and flavor.root < max(min_disk, size / (1 << 30)):
        needed = f"{min_disk} GiB (min_disk)" if flavor.root < min_disk else f"{size / (1 << 30):.2f} GiB"
        raise Invalid(
            f"Flavor {name} has a root disk of {flavor.root} GiB, and image {image} needs {needed}.",
            hint="Use a larger flavor, or root: 0 for the size of the image.",
        )
