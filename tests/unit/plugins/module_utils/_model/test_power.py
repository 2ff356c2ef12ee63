# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what a guest is doing to what it shall be doing."""

from __future__ import annotations

import itertools
import typing as t
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Busy, LifecycleError, Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.power import Patience, Power
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import ACTIONS, ANY, Verdict, judge
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Mark
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.power import Route, route
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import CONDITIONS, State, condition, read
from tests.unit.fakes import FakeGuest, JumpingClock

TARGETS = ("running", "stopped", "paused", "suspended", "rebooted")
# The condition in which a guest is at the target.
REACHED = {**{target: target for target in TARGETS}, "rebooted": "running"}
# How one may ask: target, kind of reboot, force.
WAYS = [
    (target, reboot, force)
    for target in TARGETS
    for reboot in (("soft", "hard") if target == "rebooted" else ("soft",))
    for force in (False, True)
]
EVERYTHING = [(doing, *way) for doing, way in itertools.product(CONDITIONS, WAYS)]

# What is refused, and what the refusal says is the way out.
REFUSED = {
    ("stopped", "suspended"): "Use state: running first.",
    ("going_down", "suspended"): "Use state: running first.",
    ("crashed", "suspended"): "Use state: running first.",
    ("paused", "soft"): "Say reboot: hard, or use state: running first.",
    ("suspended", "soft"): "Use state: running first.",
    ("stopped", "soft"): "Say reboot: hard, or use state: running first.",
    ("asleep", "soft"): "Say reboot: hard, or use state: running first.",
    ("crashed", "soft"): "Say reboot: hard, or use state: running first.",
}

# The operations, for every condition and target that is not refused.
OPERATIONS = {
    "running": {
        "running": "",
        "stopped": "shut_down",
        "stopped force": "power_off",
        "paused": "pause",
        "suspended": "save",
        "soft": "shut_down start prove",
        "hard": "power_off start prove",
    },
    "paused": {
        "running": "resume",
        "stopped": "resume shut_down",
        "stopped force": "power_off",
        "paused": "",
        "suspended": "save",
        "hard": "power_off start prove",
    },
    "suspended": {
        "running": "start",
        "stopped": "start shut_down",
        "stopped force": "discard_save",
        "paused": "start_paused",
        "suspended": "",
        "hard force": "discard_save start prove",
    },
    "stopped": {
        "running": "start",
        "stopped": "",
        "stopped force": "",
        "paused": "start_paused",
        "hard": "start prove",
    },
    "going_down": {
        "running": "wait_off start",
        "stopped": "wait_off",
        "stopped force": "power_off",
        "paused": "wait_off start_paused",
        "soft": "wait_off start prove",
        "hard": "power_off start prove",
    },
    "asleep": {
        "running": "wake",
        "stopped": "wake shut_down",
        "stopped force": "power_off",
        "paused": "wake pause",
        "suspended": "wake save",
        "hard": "power_off start prove",
    },
    "crashed": {
        "running": "power_off start",
        "stopped": "power_off",
        "stopped force": "power_off",
        "paused": "power_off start_paused",
        "hard": "power_off start prove",
    },
}


def state_of(doing: str, *marks: str) -> State:
    """A VM that is *doing* that, with marks."""
    guest = FakeGuest(doing, JumpingClock())
    guest.remember(Instance(marks=tuple(Mark(mark, "2026-01-01T00:00:00Z") for mark in marks)))
    return read(guest.look())


def way(doing: str, target: str, reboot: str = "soft", force: bool = False, *marks: str) -> Route:
    return route(state_of(doing, *marks), target, name="web1", reboot=reboot, force=force)


def refused(doing: str, target: str, reboot: str, force: bool) -> bool:
    if (doing, target, reboot) == ("suspended", "rebooted", "hard"):
        return not force
    return (doing, reboot if target == "rebooted" else target) in REFUSED


ALLOWED = [each for each in EVERYTHING if not refused(*each)]


def test_the_fake_does_what_its_condition_says() -> None:
    assert [state_of(doing).condition for doing in CONDITIONS] == list(CONDITIONS)


@pytest.mark.parametrize(("doing", "target", "reboot", "force"), ALLOWED)
def test_the_operations_are_these(doing: str, target: str, reboot: str, force: bool) -> None:
    found = way(doing, target, reboot, force)
    table = OPERATIONS[doing]
    key = reboot if target == "rebooted" else target
    assert found.operations == tuple(table.get(f"{key} force" if force else key, table.get(key, "?")).split())
    assert not found.clears_error


@pytest.mark.parametrize(("doing", "target", "reboot", "force"), [each for each in EVERYTHING if refused(*each)])
def test_what_cannot_be_is_refused_with_the_status_and_a_way_out(
    doing: str, target: str, reboot: str, force: bool
) -> None:
    with pytest.raises(Refused) as caught:
        way(doing, target, reboot, force)
    assert state_of(doing).status in caught.value.message
    assert caught.value.details["status"] == state_of(doing).status
    if (doing, target, reboot) == ("suspended", "rebooted", "hard"):
        assert "because its saved memory would be lost" in caught.value.message
        assert caught.value.hint == "Say force: true to lose it, or use state: running first."
    else:
        assert caught.value.hint == REFUSED[doing, reboot if target == "rebooted" else target]


@settings(max_examples=20)
@given(
    saved_as=st.sampled_from(["running", "paused"]),
    goes_down_after=st.none() | st.integers(1, 90),
    deaf_for=st.integers(0, 30),
    agent_after=st.none() | st.integers(0, 60),
)
def test_the_operations_lead_to_the_target_whatever_the_guest_is_like(**guest_is: t.Any) -> None:
    for doing, target, reboot, force in ALLOWED:
        clock = JumpingClock()
        guest = FakeGuest(doing, clock, **guest_is)
        found = route(read(guest.look()), target, name=guest.name, reboot=reboot, force=force)
        power = Power(guest, Patience(), clock)
        for operation in found.operations:
            power.operate(operation)
        after = read(guest.look())
        assert after.condition == REACHED[target]
        assert (after.vm_state, after.power_state, after.status) == (found.vm_state, found.power_state, found.status)
        if target == "rebooted":
            assert guest.boots == 1
        # And it is there: there is nothing more to do.
        assert route(after, REACHED[target], name=guest.name).operations == ()


def test_every_operation_fails_in_a_guest_that_is_not_where_the_route_thinks() -> None:
    """The fake lets nothing pass that libvirt would not: else the property above says nothing."""
    elsewhere = {
        "start": "running",
        "start_paused": "running",
        "resume": "running",
        "pause": "paused",
        "wake": "running",
    }
    operations = {operation for each in ALLOWED for operation in way(*each).operations}
    assert set(elsewhere) <= operations
    for operation, doing in {**elsewhere, "save": "stopped", "discard_save": "running"}.items():
        clock = JumpingClock()
        with pytest.raises(LifecycleError):
            Power(FakeGuest(doing, clock), Patience(), clock).operate(operation)


PLAIN = {"running": "active", "paused": "paused", "suspended": "suspended", "stopped": "stopped"}


@pytest.mark.parametrize(("doing", "target", "reboot", "force"), [each for each in EVERYTHING if each[0] in PLAIN])
def test_the_power_tables_say_what_the_action_table_says(doing: str, target: str, reboot: str, force: bool) -> None:
    try:
        found = way(doing, target, reboot, force)
    except Refused as exc:
        verdict = judge(exc.details["action"], PLAIN[doing])
        if (target, reboot, force) == ("rebooted", "hard", False):
            assert (doing, verdict) == ("suspended", Verdict.ALLOWED)  # it wants force, which Nova does without
        else:
            assert verdict is Verdict.REFUSED
        return
    assert judge(found.action, PLAIN[doing]) is (Verdict.ALLOWED if found.operations else Verdict.NOOP)
    # Resuming leads to the target that was asked for, not always to where Nova's resume does.
    if (target, found.action) != ("paused", "resume"):
        assert found.vm_state == ACTIONS[found.action].result


MARKED = sorted(ANY - {"building", "rescued", *PLAIN.values()})


@pytest.mark.parametrize("mark", MARKED)
def test_a_state_that_libvirt_cannot_know_is_decided_by_the_action_table(mark: str) -> None:
    for doing, target, reboot, force in ALLOWED:
        action = way(doing, target, reboot, force).action
        if judge(action, mark) is Verdict.REFUSED:
            with pytest.raises(Refused, match=f"VM web1 is {state_of(doing, mark).status}"):
                way(doing, target, reboot, force, mark)
        else:
            assert way(doing, target, reboot, force, mark).operations == way(doing, target, reboot, force).operations


@pytest.mark.parametrize("doing", sorted(CONDITIONS))
def test_stopping_and_rebooting_hard_lead_out_of_an_error(doing: str) -> None:
    for target in ("stopped", "rebooted"):
        found = way(doing, target, "hard", True, "error")
        assert found.clears_error
        assert found.status == {"stopped": "SHUTOFF", "rebooted": "ACTIVE"}[target]
    for target in ("running", "paused", "suspended"):
        with pytest.raises(Refused, match="reboot: hard, or vm_status"):
            way(doing, target, "soft", False, "error")


def test_a_rescued_vm_may_be_switched_off_and_on_and_stays_rescued() -> None:
    for doing, target, reboot, force in ALLOWED:
        if target in ("paused", "suspended"):
            with pytest.raises(Refused, match=r"VM web1 is RESCUE: .* Use vm_rescue with state: unrescued first\."):
                way(doing, target, reboot, force, "rescued")
        else:
            found = way(doing, target, reboot, force, "rescued")
            assert found.operations == way(doing, target, reboot, force).operations
            assert found.status == "RESCUE"
            assert found.power_state == {"stopped": "SHUTDOWN"}.get(target, "RUNNING")


def test_a_vm_that_is_not_launched_to_its_end_is_refused() -> None:
    building = replace(state_of("running"), vm_state="building", status="BUILD", marked=True)
    for target, reboot, force in WAYS:
        with pytest.raises(Refused, match="Finish the launch"):
            route(building, target, name="web1", reboot=reboot, force=force)


@pytest.mark.parametrize("under_way", ["delete", "live_migrate"])
def test_while_another_operation_is_under_way_power_is_left_alone(under_way: str) -> None:
    busy = replace(state_of("running"), task_state="deleting", running=f"{under_way} since 2026-01-01T00:00:00Z")
    for target, reboot, force in WAYS:
        with pytest.raises(Busy, match=under_way):
            route(busy, target, name="web1", reboot=reboot, force=force)


def test_a_guest_whose_qemu_is_about_to_end_is_going_down() -> None:
    paused, shutting_down = 3, 8
    assert condition(paused, shutting_down, False) == "going_down"
