# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Asking a guest to go, waiting for it, and the plug at the end, on a clock that jumps."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import TimedOut
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.power import Patience, Power
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock
from tests.unit.fakes import FakeGuest, JumpingClock

PATIENCE = Patience(timeout=60, retry_interval=10, answer=120)


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


def power(guest: FakeGuest, patience: Patience = PATIENCE) -> Power:
    return Power(guest, patience, guest.clock)


# ---- shutting down


def test_a_guest_that_goes_by_itself_is_not_forced(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, goes_down_after=4)
    figures = power(guest).operate("shut_down")
    assert (figures["shutdown"], figures["shutdown_requests"]) == ("guest", 1)
    assert 4 <= figures["shutdown_seconds"] <= 4.5
    assert guest.asked == [0]


def test_a_guest_that_does_not_hear_is_asked_again_and_again(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, deaf_for=1025, goes_down_after=2)  # it has run for 1000 seconds
    figures = power(guest).operate("shut_down")
    assert (figures["shutdown"], figures["shutdown_requests"]) == ("guest", 4)
    assert guest.asked == pytest.approx([0, 10, 20, 30], abs=1)


def test_a_guest_that_never_goes_loses_its_power_at_the_deadline(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, goes_down_after=None)
    figures = power(guest).operate("shut_down")
    assert (figures["shutdown"], figures["shutdown_requests"]) == ("forced", 6)
    assert figures["shutdown_seconds"] == pytest.approx(60)
    assert guest.condition == "stopped"
    assert "shutdown_refusals" not in figures


def test_without_time_it_is_asked_once_and_forced_at_once(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock)
    figures = power(guest, Patience(timeout=0)).operate("shut_down")
    assert figures == {"shutdown": "forced", "shutdown_seconds": 0, "shutdown_requests": 1}


def test_that_it_could_not_be_asked_is_told_when_it_had_to_be_forced(clock: JumpingClock) -> None:
    refuses = {"ask_to_shut_down": "Failed to ask: internal error."}
    guest = FakeGuest("running", clock, refuses=refuses)
    figures = power(guest, Patience("acpi", timeout=25)).operate("shut_down")
    assert figures["shutdown_refusals"] == ["Failed to ask: internal error."]
    assert (figures["shutdown"], figures["shutdown_requests"]) == ("forced", 3)


def test_refusals_are_not_told_of_a_guest_that_went(clock: JumpingClock) -> None:
    guest = FakeGuest("going_down", clock, goes_down_after=3, refuses={"ask_to_shut_down": "It goes down already."})
    figures = power(guest).operate("shut_down")
    assert (figures["shutdown"], figures["shutdown_requests"]) == ("guest", 1)
    assert "shutdown_refusals" not in figures


def test_a_guest_that_goes_down_already_is_waited_for_and_not_asked(clock: JumpingClock) -> None:
    guest = FakeGuest("going_down", clock, goes_down_after=30)
    figures = power(guest).operate("wait_off")
    assert (figures["shutdown"], figures["shutdown_requests"], guest.asked) == ("guest", 0, [])


def test_a_guest_that_hangs_in_its_shutdown_loses_its_power(clock: JumpingClock) -> None:
    guest = FakeGuest("going_down", clock, goes_down_after=None)
    assert power(guest).operate("wait_off")["shutdown"] == "forced"
    assert guest.condition == "stopped"


def test_a_guest_that_somebody_else_ends_was_forced(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock)
    guest.power_off()
    assert power(guest).operate("shut_down")["shutdown"] == "forced"


def test_a_guest_that_crashes_instead_of_going_is_ended(clock: JumpingClock) -> None:
    guest = FakeGuest("crashed", clock)
    assert power(guest).operate("wait_off")["shutdown"] == "forced"
    assert guest.condition == "stopped"


@pytest.mark.parametrize("operation", ["shut_down", "power_off"])
def test_a_transient_vm_ends_with_its_guest(clock: JumpingClock, operation: str) -> None:
    guest = FakeGuest("running", clock, persistent=False)
    assert power(guest).operate(operation)["shutdown"] == {"shut_down": "guest", "power_off": "forced"}[operation]


# ---- proof of a reboot


def reboot(guest: FakeGuest, *operations: str) -> dict[str, t.Any]:
    """The figures of a reboot."""
    using, figures = power(guest), {}
    for operation in (*operations, "start", "prove"):
        figures.update(using.operate(operation))
    return figures


@pytest.mark.parametrize("operation", ["shut_down", "power_off"])
def test_a_guest_whose_agent_answered_before_proves_that_it_is_back(clock: JumpingClock, operation: str) -> None:
    guest = FakeGuest("running", clock, agent_after=30)
    assert reboot(guest, operation)["guest_answered"]
    assert clock.seconds >= 30


def test_a_guest_without_an_agent_is_not_waited_for(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock)
    assert reboot(guest, "power_off")["guest_answered"] is False
    assert clock.seconds < 1


def test_a_guest_whose_agent_does_not_come_back_is_an_error(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=121)
    with pytest.raises(TimedOut, match="waiting for the guest agent of VM web1 after the reboot after 120 seconds"):
        reboot(guest, "power_off")


def test_an_agent_that_ended_in_a_shutdown_that_hung_was_one_all_the_same(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=30, agent_ends=True, goes_down_after=None)
    figures = reboot(guest, "shut_down")
    assert (figures["shutdown"], figures["guest_answered"]) == ("forced", True)


# ---- memory


@pytest.mark.parametrize("saved_as", ["running", "paused"])
def test_restored_memory_runs_however_it_was_saved(clock: JumpingClock, saved_as: str) -> None:
    guest = FakeGuest("suspended", clock, saved_as=saved_as)
    assert power(guest).operate("start") == {"restored_memory": True}
    assert (guest.condition, guest.boots) == ("running", 0)


@pytest.mark.parametrize("saved_as", ["running", "paused"])
def test_restored_memory_stays_paused_when_that_is_asked(clock: JumpingClock, saved_as: str) -> None:
    guest = FakeGuest("suspended", clock, saved_as=saved_as)
    assert power(guest).operate("start_paused") == {"restored_memory": True}
    assert (guest.condition, guest.boots) == ("paused", 0)


def test_a_boot_restores_nothing(clock: JumpingClock) -> None:
    guest = FakeGuest("stopped", clock)
    assert power(guest).operate("start") == {"restored_memory": False}
    assert (guest.condition, guest.boots) == ("running", 1)


def test_what_was_remembered_since_the_save_is_written_into_the_restored_domain(clock: JumpingClock) -> None:
    class Stale(FakeGuest):
        """libvirt restores the running domain with the metadata of the time of the save."""

        live = Instance()

        def remember(self, instance: Instance) -> None:
            self.memory = self.live = instance

    guest = Stale("suspended", clock)
    guest.memory = Instance(lock=Lock("2026-01-01T00:00:00Z"))
    power(guest).operate("start")
    assert guest.live == guest.memory


def test_a_guest_whose_agent_hangs_is_asked_by_acpi(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0, agent_hangs=True, goes_down_after=3)
    told = power(guest).operate("shut_down")
    assert told["shutdown"] == "guest"
    assert guest.ways == ["acpi"]


def test_a_guest_whose_agent_answers_is_asked_as_libvirt_chooses(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0, goes_down_after=3)
    power(guest).operate("shut_down")
    assert guest.ways == ["auto"]


def test_a_hanging_agent_that_alone_may_ask_is_told(clock: JumpingClock) -> None:
    guest = FakeGuest("running", clock, agent_after=0, agent_hangs=True, goes_down_after=3)
    told = power(guest, Patience("agent", timeout=60)).operate("shut_down")
    assert told["shutdown"] == "forced"
    assert told["shutdown_refusals"] == ["The agent of VM web1 does not answer."]
    assert guest.ways == []


def test_a_guest_that_was_not_running_gets_the_time_from_its_agent(clock: JumpingClock) -> None:
    for condition, operation, sets in (
        ("paused", "resume", 1),
        ("suspended", "start", 1),
        ("suspended", "start_paused", 0),
        ("stopped", "start", 0),
    ):
        guest = FakeGuest(condition, clock, agent_after=0)
        power(guest).operate(operation)
        assert (condition, operation, guest.times_set) == (condition, operation, sets)
        without = FakeGuest(condition, clock)
        power(without).operate(operation)
        assert without.times_set == 0


def test_every_other_operation_is_one_call(clock: JumpingClock) -> None:
    for operation, before, after in (
        ("pause", "running", "paused"),
        ("wake", "asleep", "running"),
        ("save", "running", "suspended"),
        ("discard_save", "suspended", "stopped"),
        ("power_off", "crashed", "stopped"),
    ):
        guest = FakeGuest(before, clock)
        power(guest).operate(operation)
        assert ("suspended" if guest.image else guest.condition) == after
