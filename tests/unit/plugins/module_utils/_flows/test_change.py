# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making a VM that is there what is asked, on real domains of libvirt's in-memory driver."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch, Mark
from ansible_collections.kvmops.lifecycle.plugins.modules import vm
from tests.unit.hypervisor import Hypervisor, Task, uuid_of

SINCE = "2026-01-01T00:00:00Z"
FLAVOR = {"vcpus": 2, "memory": 512}


def test_what_people_read_is_changed_while_the_vm_runs(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    told = task.quartet(vm.main, name="web1", title="The <shop>", description="ask Ada\n& Grace", autostart=True)
    assert told["vms"][0]["steps"] == ["set_title", "set_description", "set_autostart"]
    assert kvm.domain().findtext("title") == "The <shop>"
    assert kvm.domain().findtext("description") == "ask Ada\n& Grace"
    assert kvm.guest().autostart()
    task.quartet(vm.main, name="web1", title="", description="", autostart=False)
    assert kvm.domain().find("title") is None


def test_what_is_not_said_stays(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    task(vm.main, name="web1", title="The shop", autostart=True)
    assert not task(vm.main, name="web1")["changed"]
    assert not task(vm.main, name="web1", title="The shop")["changed"]
    assert kvm.guest().autostart()


def test_cpus_and_memory_change_while_the_vm_is_off(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    told = task(vm.main, name="web1", flavor={**FLAVOR, "vcpus": 4})
    assert told["code"] == "refused"
    assert "flavor" in told["msg"]
    assert "use vm_power with state: stopped first" in told["msg"]
    kvm.guest().power_off()
    done = task.quartet(vm.main, name="web1", flavor={"vcpus": 4, "memory": 1024})
    assert done["vms"][0]["figures"]["differences"] == [
        {"option": "flavor", "before": FLAVOR, "after": {"vcpus": 4, "memory": 1024}}
    ]
    assert kvm.domain().findtext("vcpu") == "4"
    assert kvm.domain().findtext("memory") == kvm.domain().findtext("currentMemory") == str(1024 * 1024)


def test_a_flavor_that_we_remember_is_remembered_as_it_is_now(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", running=False)
    known = Flavor(2, 512, 0, name="small")
    kvm.remember(Instance(flavor=known))
    task(vm.main, name="web1", flavor={**FLAVOR, "vcpus": 4, "name": "larger"})
    assert kvm.recall().flavor == Flavor(4, 512, 0, name="larger")


def test_a_refusal_is_in_words(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    told = task(vm.main, name="web1", flavor={**FLAVOR, "vcpus": 4})
    assert "flavor (vcpus 2, memory 512 → vcpus 4, memory 512): the VM must be off" in told["msg"]


def test_everything_that_cannot_be_is_told_at_once_and_nothing_is_done(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    launch = Launch(SINCE, "root@kvm1", "/i/a.qcow2", "/s/_base/ab.qcow2", "qcow2", "ab", "/s")
    kvm.remember(Instance(launch=launch))
    told = task(vm.main, name="web1", image="/i/b.qcow2", storage="/t", firmware="uefi", title="new")
    assert told["msg"].startswith("VM web1 cannot become what is asked. ")
    for option in ("image (/i/a.qcow2 → /i/b.qcow2)", "storage (/s → /t)", "firmware (bios → uefi)"):
        assert option in told["msg"]
    assert [each["option"] for each in told["details"]["differences"]] == ["image", "storage", "firmware", "title"]
    assert kvm.domain().find("title") is None


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"title": "two\nlines"}, "title cannot contain the character U+000A"),
        ({"description": "a\rb"}, "description cannot contain the character U+000D"),
        ({"description": "a\x07b"}, "description cannot contain the character U+0007"),
        ({"networks": [{"bridge": "br0", "mac": "ff:ff:ff:ff:ff:ff"}]}, "cannot be the MAC address"),
        ({"uuid": "nonsense"}, "is not a UUID"),
        ({"flavor": {"vcpus": 0, "memory": 1}}, "vcpus is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_check_mode_already(
    kvm: Hypervisor, task: Task, params: dict[str, t.Any], said: str
) -> None:
    kvm.define("web1")
    for check in (True, False):
        told = task(vm.main, name="web1", check=check, **params)
        assert told["code"] == "invalid"
        assert said in told["msg"]


def test_the_uuid_of_another_vm_is_not_taken_for_this_one(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2")
    assert "failed" not in task(vm.main, name="web1", uuid=uuid_of(1).upper())
    told = task(vm.main, name="web1", uuid=uuid_of(2))
    assert told["code"] == "refused"
    assert f"VM web1 has the UUID {uuid_of(1)}" in told["msg"]


def test_a_vm_in_a_state_of_its_own_is_left_alone(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.remember(Instance().marked(Mark("soft-delete", SINCE, {"reclaim_at": SINCE})))
    told = task(vm.main, name="web1", title="new")
    assert told["code"] == "refused"
    assert "VM web1 is SOFT_DELETED" in told["msg"]
    assert "state: restored first" in told["msg"]


def test_what_a_task_has_to_say_to_launch_a_vm_is_told(kvm: Hypervisor, task: Task, tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(512))
    for params, said in (
        ({}, "to launch one, image and flavor are needed"),
        ({"image": "/i/a.qcow2"}, "to launch one, image and flavor are needed"),
        (
            {"image": str(image), "image_format": "raw", "flavor": FLAVOR, "secure_boot": True},
            "Say firmware: uefi as well.",
        ),
    ):
        assert said in task(vm.main, name="new", check=True, **params)["msg"]
    told = task(vm.main, name="../etc/x", image="/i/a.qcow2", flavor=FLAVOR)
    assert (told["code"], kvm.names()) == ("invalid", [])


def test_what_we_remember_is_kept_when_a_vm_is_changed(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", running=False)
    known = Instance(foreign=("<later />",), journal=None, flavor=Flavor(2, 512))
    kvm.remember(known)
    task(vm.main, name="web1", title="new", flavor={**FLAVOR, "vcpus": 4})
    assert kvm.recall() == replace(known, flavor=Flavor(4, 512))


def test_a_launch_that_died_is_finished_by_launching_not_by_changing(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.remember(Instance(journal=Journal("launch", SINCE, "elsewhere", 1)))
    assert "image and flavor are needed" in task(vm.main, name="web1", title="new")["msg"]
