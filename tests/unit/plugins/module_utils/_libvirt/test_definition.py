# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A definition from another host, made to fit this one."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.definition import Below, Definition
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, OwnDisk

DOMAIN = """<domain type='kvm'><name>web1</name><os{firmware}><type>hvm</type>{nvram}</os><devices>
<emulator>/usr/bin/qemu</emulator>
<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' rerror_policy='report'/>
<source dev='/dev/vg/a'/><target dev='vda' bus='virtio'/><boot order='1'/></disk>
<disk type='file' device='cdrom'><source file='/media.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
<disk type='file' device='cdrom'><source file='/o/config.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
<serial type='pty'><log file='/o/console.log' append='on'/></serial>
<serial type='file'><source path='/elsewhere/b.log'/></serial>
</devices></domain>"""


@pytest.fixture
def definition() -> Definition:
    return Definition(DOMAIN.format(firmware="", nvram=""))


def node(definition: Definition, path: str) -> ET.Element:
    found = definition.root.find(path)
    assert found is not None
    return found


def test_what_is_no_definition_is_refused() -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        Definition(b"\x00")


def test_a_disk_is_laid_upon_images_that_are_all_told(definition: Definition) -> None:
    policies = definition.policies("vda")
    definition.place("vda", "/i/a.qcow2")
    definition.lay_upon("vda", [Below("nbd", "/run/s", "qcow2", "e"), Below("file", "/i/_base/b.raw", "raw")])
    (disk, *_others) = definition.domain.disks
    assert (disk.image.source, disk.chain_known, disk.boot) == ("/i/a.qcow2", True, 1)
    assert [(image.kind, image.source, image.format) for image in disk.backing] == [
        ("network", "e", "qcow2"),
        ("file", "/i/_base/b.raw", "raw"),
    ]
    assert node(definition, "devices/disk/backingStore/source/host").attrib == {"transport": "unix", "socket": "/run/s"}
    driver = node(definition, "devices/disk/driver")
    assert (driver.get("error_policy"), driver.get("rerror_policy"), driver.get("cache")) == ("stop", "stop", "none")
    # And as it was, in the end.
    definition.settle("vda", "/i/b.qcow2", policies)
    assert definition.domain.disks[0].image.source == "/i/b.qcow2"
    assert node(definition, "devices/disk").find("backingStore") is None
    driver = node(definition, "devices/disk/driver")
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "rerror_policy": "report"}


def test_a_disk_that_is_not_there_is_told(definition: Definition) -> None:
    with pytest.raises(Invalid, match="vdz"):
        definition.place("vdz", "/i/a.qcow2")


def test_media_that_are_not_here_are_taken_out(definition: Definition, tmp_path: Path) -> None:
    here = tmp_path / "media.iso"
    here.touch()
    definition.point("sda", str(here))
    assert definition.eject_missing(but=["/o/config.iso"]) == {}
    definition.point("sda", "/media.iso")
    assert definition.eject_missing(but=["/o/config.iso"]) == {"sda": "/media.iso"}
    assert [disk.image.source for disk in definition.domain.disks] == ["/dev/vg/a", "", "/o/config.iso"]


def test_consoles_follow_the_directory_of_the_vm(definition: Definition) -> None:
    definition.move_logs("/o", "/n")
    assert node(definition, "devices/serial/log").get("file") == "/n/console.log"
    assert definition.root.findall("devices/serial/source")[0].get("path") == "/elsewhere/b.log"


def test_another_program_may_run_it(definition: Definition) -> None:
    definition.run_on("/opt/qemu")
    assert definition.domain.emulator == "/opt/qemu"


@pytest.mark.parametrize(
    ("nvram", "path"),
    [("", "/var/lib/libvirt/qemu/nvram/web1_VARS.fd"), ("<nvram>/v.fd</nvram>", "/v.fd")],
)
def test_the_variables_of_the_firmware_have_a_file_also_when_none_is_named(nvram: str, path: str) -> None:
    assert Definition(DOMAIN.format(firmware=" firmware='efi'", nvram=nvram)).nvram() == path


def test_what_is_remembered_is_in_it(definition: Definition) -> None:
    instance = Instance(disks=(OwnDisk("root", "vda", "/i/a.qcow2"),))
    definition.remember(Instance())
    definition.remember(instance)
    assert Definition(definition.text).instance == instance
    metadata: t.Any = definition.root.find("metadata")
    assert len(metadata) == 1
