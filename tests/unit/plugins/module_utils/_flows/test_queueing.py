# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turns of VMs that move, which are called off by enabling their host."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import line
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Cancelled
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import queueing
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import cordon
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.storage import storage_of
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.scheduling import Scheduling
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Side, Subject
from tests.unit.fakes import JumpingClock
from tests.unit.hypervisor import Hypervisor

PLAN = Plan({}, {}, action="live_migrate")
ASKED = {
    "state": "migrated",
    "dest": "kvm2",
    "dest_transport": "tls",
    "insecure_tcp": False,
    "limits": {"per_source": 1, "per_destination": 0},
    "while_disabled": True,
}


@pytest.fixture(autouse=True)
def cordoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is disabled."""
    monkeypatch.setattr(cordon, "PATH", str(tmp_path / "scheduling.json"))
    cordon.write_scheduling(Scheduling(enabled=False, reason="memory"))


class Enabling(JumpingClock):
    """The machine is enabled while somebody waits."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        cordon.write_scheduling(Scheduling())


def context(kvm: Hypervisor, **options: t.Any) -> Context:
    """A task for which the other host is this one by another name."""
    made = Context(kvm.host, {**ASKED, **options}, Enabling(), storage_of(kvm.host))
    side = Side(kvm.host, made.storage, "qemu+tls://kvm2/system")
    made.once("side qemu+tls://kvm2/system", lambda: side)
    return made


def subject(kvm: Hypervisor, name: str) -> Subject:
    """A VM that is looked at."""
    guest = kvm.guest(name)
    return Subject(name, guest, guest.look())


def move(task: Context, vm: Subject) -> None:
    """What must not come about."""
    with queueing.turn(task, vm, PLAN):
        pytest.fail("it has moved")


def test_who_waits_stays_when_the_host_is_enabled_and_who_moves_goes_on(kvm: Hypervisor) -> None:
    kvm.define("web1", "web2")
    task = context(kvm)
    with queueing.turn(task, subject(kvm, "web1"), PLAN):
        with pytest.raises(Cancelled, match=r"VM web2 stays: .* is enabled for scheduling") as caught:
            move(task, subject(kvm, "web2"))
        assert "host_schedulable" in caught.value.hint
        assert [line.moves(ticket) for ticket in line.tickets(queueing.LINE)] == [True]
    assert line.tickets(queueing.LINE) == []


def test_an_enabled_host_is_no_obstacle_unless_that_was_asked_for_nor_for_what_was_begun(kvm: Hypervisor) -> None:
    kvm.define("web1")
    cordon.write_scheduling(Scheduling())
    with queueing.turn(context(kvm, while_disabled=False), subject(kvm, "web1"), PLAN):
        assert len(line.tickets(queueing.LINE)) == 1
    kvm.remember(replace(kvm.recall(), journal=Journal("live_migrate", "then", kvm.node, 1)))
    with queueing.turn(context(kvm), subject(kvm, "web1"), PLAN):
        assert len(line.tickets(queueing.LINE)) == 1
    kvm.remember(replace(kvm.recall(), journal=None))
    with pytest.raises(Cancelled):
        move(context(kvm), subject(kvm, "web1"))
