# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbook shelf_offload and its role, run as a timer would run them."""

from __future__ import annotations

import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, task

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
STORE = "/srv/shelves"


@pytest.fixture(autouse=True)
def store(lab: Lab) -> t.Iterator[dict[str, str]]:
    """An image store that is not the default."""
    lab.sh("kvm1", f"rm -rf {STORE}")
    yield {"path": STORE}
    lab.sh("kvm1", f"rm -rf {STORE}")


def offload(play: Playbook, store: dict[str, str], **extra: t.Any) -> Result:
    """Run the playbook with these variables; what its task came to, and the role's report."""
    variables = {"shelf_offload_hosts": "kvm1", "shelf_offload_image_store": store, **extra}
    played = play.ours("shelf_offload", **variables)
    report = played.ok()["result"]["ansible_facts"]["shelf_offload_report"]
    return {**played.results[-2]["result"], "report": report}


def test_hosts_let_go_of_what_waits_for_it_when_its_time_has_come(
    lab: Lab, play: Playbook, launch: Launch, store: dict[str, str]
) -> None:
    launch("stays", "waits", "never", start=False)
    shelve = {"state": "shelved", "image_store": store}
    play([task("vm_shelve", name="waits", **shelve), task("vm_shelve", name="never", offload="never", **shelve)]).ok()

    early = offload(play, store)
    assert not early["changed"]
    assert [vm["name"] for vm in early["vms"]] == ["waits"]
    assert early["report"] == {"offloaded": [], "waiting": ["waits"], "failed": {}}
    assert sorted(lab.domains("kvm1")) == ["never", "stays", "waits"]

    due = offload(play, store, shelf_offload_older_than=0, shelf_offload_verify="quick")
    assert due["changed"]
    assert [(vm["name"], vm["status"]) for vm in due["vms"]] == [("waits", "SHELVED_OFFLOADED")]
    assert due["report"] == {"offloaded": ["waits"], "waiting": [], "failed": {}}
    assert sorted(lab.domains("kvm1")) == ["never", "stays"]

    again = offload(play, store, shelf_offload_older_than=0)
    assert not again["changed"]
    assert again["vms"] == []
