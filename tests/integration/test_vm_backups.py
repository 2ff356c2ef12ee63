# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook backups and its role, run as a timer would run them."""

from __future__ import annotations

import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk

STORE = "/srv/backups"
DISKS = "/var/lib/libvirt/images"


@pytest.fixture(autouse=True)
def store(lab: Lab) -> t.Iterator[None]:
    """Two hosts, each with an image store of its own."""
    for host in lab.hosts:
        lab.sh(host, f"rm -rf {STORE}")
    yield
    for host in lab.hosts:
        lab.sh(host, f"rm -rf {STORE}")


def format_disk(lab: Lab, name: str, host: str = "kvm1") -> None:
    """The disk of a VM, empty."""
    lab.sh(host, f"qemu-img create -q -f qcow2 {DISKS}/{name}.qcow2 4M")


def make(lab: Lab, name: str, host: str = "kvm1") -> None:
    """A VM with an empty disk, which is off."""
    format_disk(lab, name, host)
    define(lab, name, host=host, devices=file_disk(f"{DISKS}/{name}.qcow2", "qcow2", "vda"))


def test_backups_are_made_of_what_is_chosen_whatever_fails(lab: Lab, play: Playbook) -> None:
    for name in ("web1", "web2", "web-scratch", "other"):
        make(lab, name)
    make(lab, "db1", "kvm2")
    lab.sh("kvm1", f"rm {DISKS}/web2.qcow2")
    chosen = {"vm_backups_patterns": ["web.*"], "vm_backups_exclude": [".*-scratch"]}
    options = {**chosen, "vm_backups_image_store": {"path": STORE}, "vm_backups_rotation": 1}

    def backup(**extra: t.Any) -> tuple[int, dict[str, Result]]:
        played = play.ours("backups", **{**options, **extra})
        facts = {
            each["host"]: each["result"].get("ansible_facts", {})
            for each in played.results
            if each["task"] == "kvmops.lifecycle.vm_backups : Report"
        }
        assert "Traceback" not in played.output, played.output
        return played.returncode, {host: told["vm_backups_report"] for host, told in facts.items()}

    code, reports = backup(vm_backups_names=["db1", "nobody"])
    assert code != 0
    assert [each["vm"] for each in reports["kvm1"]["done"]] == ["web1"]
    assert [each["vm"] for each in reports["kvm1"]["failed"]] == ["web2"]
    assert [each["vm"] for each in reports["kvm2"]["done"]] == ["db1"]
    assert reports["kvm2"]["missing"] == ["nobody"]
    first = reports["kvm1"]["done"][0]
    assert first["image"].startswith("web1-daily")

    format_disk(lab, "web2")
    code, reports = backup(vm_backups_incremental=False)
    assert code == 0
    again = {each["vm"]: each for each in reports["kvm1"]["done"]}
    assert sorted(again) == ["web1", "web2"]
    assert again["web1"]["removed"] == [first["image"]]
    assert reports["kvm2"]["done"] == []
