# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_password: what is asked of the guest agent, and what is said when there is none."""

from __future__ import annotations

import json
import typing as t
from types import SimpleNamespace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Subject
from ansible_collections.kvmops.lifecycle.plugins.modules import vm_password
from tests.unit.fakes import FakeGuest, JumpingClock
from tests.unit.hypervisor import Hypervisor, Task

SECRET = "correct horse battery"
HASH = "$6$salt$JkG.h/x"


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


def set_password(guest: FakeGuest, **params: t.Any) -> dict[str, t.Any]:
    """Plan and do it; the figures."""
    asked = {"password": SECRET, "encrypted": False, "user": None, "guest_timeout": 10, **params}
    context: t.Any = SimpleNamespace(params=asked)
    plan = vm_password.decide(context, Subject(guest.name, guest, guest.look()))
    assert SECRET not in json.dumps(plan.diff("web1"))
    for step in plan.steps:
        step.do()
    return dict(plan.figures)


def refused(guest: FakeGuest, **params: t.Any) -> LifecycleError:
    """The error; nothing was set."""
    with pytest.raises(LifecycleError) as caught:
        set_password(guest, **params)
    assert guest.passwords == {}
    return caught.value


def test_the_password_is_set_as_it_is(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0)
    assert set_password(guest) == {"user": "root"}
    set_password(guest, user="ada")
    assert guest.passwords == {"root": (SECRET, False), "ada": (SECRET, False)}


def test_a_hash_is_said_to_be_one(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0)
    set_password(guest, user="ada", password=HASH, encrypted=True)
    assert guest.passwords == {"ada": (HASH, True)}
    assert refused(FakeGuest("running", clock, agent_after=0), encrypted=True).code == "invalid"


def test_the_one_who_rules_windows_is_another_and_has_no_hash(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0, agent_system="mswindows")
    assert set_password(guest) == {"user": "Administrator"}
    assert set_password(guest, user="ada") == {"user": "ada"}
    windows = FakeGuest("running", clock, agent_after=0, agent_system="mswindows")
    assert refused(windows, password=HASH, encrypted=True).code == "unsupported"


def test_an_agent_that_is_not_there_or_hangs_is_an_error_with_a_way_out(clock: JumpingClock) -> None:
    without = refused(FakeGuest("running", clock))
    assert without.code == "unsupported"
    assert "org.qemu.guest_agent.0" in without.hint
    dead = refused(FakeGuest("running", clock, agent_after=5000))
    assert dead.code == "unreachable"
    assert "qemu-guest-agent" in dead.hint
    began = clock.seconds
    hanging = refused(FakeGuest("running", clock, agent_after=0, agent_hangs=True), guest_timeout=7)
    assert hanging.code == "unreachable"
    assert clock.seconds == began + 7


@pytest.mark.parametrize("condition", ["stopped", "paused", "suspended"])
def test_a_guest_that_does_not_run_is_refused(clock: JumpingClock, condition: str) -> None:
    error = refused(FakeGuest(condition, clock, agent_after=0))
    assert error.code == "refused"
    assert "vm_power" in error.hint


def test_an_agent_that_stops_answering_may_have_set_it(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0)
    asked = guest.system

    def then_hangs(*, patience: int) -> str:
        told = asked(patience=patience)
        guest.agent_hangs = True
        return told

    guest.system = then_hangs  # type: ignore[method-assign]
    assert "may have set it" in refused(guest).hint


def test_what_the_agent_refuses_is_told_with_what_to_look_at(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0, refuses={"set_password": "Failed: no such user."})
    error = refused(guest, user="ada")
    assert error.message == "Failed: no such user."
    assert "has that user" in error.hint


@pytest.mark.parametrize("check", [True, False])
def test_the_password_is_nowhere_in_the_result(kvm: Hypervisor, task: Task, check: bool) -> None:
    kvm.define("web1")
    for wrong in ({}, {"user": "a:b"}, {"encrypted": True}):
        told = task(vm_password.main, name="web1", password=SECRET, check=check, diff=True, **wrong)
        assert told["failed"]
        assert SECRET not in json.dumps(told)
