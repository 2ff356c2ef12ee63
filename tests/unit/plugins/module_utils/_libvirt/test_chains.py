# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What VMs that are off build upon, with images by qemu-img."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.chains import Chains
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.domain import Image
from ansible_collections.kvmops.lifecycle.plugins.modules import vm
from tests.unit.hypervisor import Hypervisor, Task, uuid_of


def image(path: Path, backing: str = "", kind: str = "qcow2") -> str:
    """An image by qemu-img, over another if it has a name; the name is not looked into."""
    options = ["-u", "-b", backing, "-F", "qcow2"] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, path, "1M"], check=True)
    return str(path)


@pytest.fixture
def chain(tmp_path: Path) -> dict[str, str]:
    """Three layers; the names in the headers are relative, as other tools like them."""
    return {
        "base": image(tmp_path / "base.qcow2"),
        "middle": image(tmp_path / "middle.qcow2", "base.qcow2"),
        "top": image(tmp_path / "top.qcow2", "./middle.qcow2"),
    }


def sources(kvm: Hypervisor, path: str, image_format: str = "qcow2") -> tuple[list[str], bool]:
    found = Chains(kvm.host).below(Image("file", path, image_format))
    return [Path(layer.image.source).name for layer in found.layers], found.known


def test_a_chain_is_followed_to_its_end(kvm: Hypervisor, chain: dict[str, str]) -> None:
    assert sources(kvm, chain["top"]) == (["top.qcow2", "middle.qcow2", "base.qcow2"], True)


def test_an_image_is_what_it_is_declared_to_be(kvm: Hypervisor, chain: dict[str, str], tmp_path: Path) -> None:
    assert sources(kvm, chain["top"], "raw") == (["top.qcow2"], True)
    assert sources(kvm, chain["top"], "") == (["top.qcow2"], False)
    assert sources(kvm, image(tmp_path / "i.raw", kind="raw"), "qcow2") == (["i.raw"], False)


def test_a_chain_whose_end_is_gone_or_that_bites_its_tail_is_not_known(kvm: Hypervisor, tmp_path: Path) -> None:
    assert sources(kvm, image(tmp_path / "a", "gone")) == (["a", "gone"], False)
    one, _other = image(tmp_path / "one", str(tmp_path / "other")), image(tmp_path / "other", str(tmp_path / "one"))
    assert sources(kvm, one) == (["one", "other", "one"], False)


def test_a_file_belongs_to_every_vm_that_builds_upon_it(kvm: Hypervisor, chain: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("top.qcow2")
    kvm.define("a", disks=[str(tmp_path / "link")], running=False)
    kvm.define("b", disks=[chain["middle"]], running=False)
    kvm.define("c", disks=[str(tmp_path / "gone.qcow2"), ""], running=False)
    owners = Chains(kvm.host).owners()
    assert {Path(path).name: set(uuids) for path, uuids in owners.items() if "./" not in path} == {
        "link": {uuid_of(1)},
        "top.qcow2": {uuid_of(1)},
        "middle.qcow2": {uuid_of(1), uuid_of(2)},
        "base.qcow2": {uuid_of(1), uuid_of(2)},
        "gone.qcow2": {uuid_of(3)},
    }
    assert set(owners[chain["middle"]]) == {uuid_of(1), uuid_of(2)}


def test_a_disk_that_a_vm_which_is_off_builds_upon_is_not_removed(
    kvm: Hypervisor, task: Task, chain: dict[str, str]
) -> None:
    kvm.define("template", disks=[chain["middle"]], running=False)
    kvm.define("clone", disks=[chain["top"]], running=False)
    told = task(vm.main, name="template", state="absent", remove_disks=["vda"], check=True)["vms"][0]
    assert told["figures"]["kept_disks"] == {chain["middle"]: f"VM {uuid_of(2)} uses it too"}
