# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action table, row by row against Nova's, and what its refusals say."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Busy, Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import (
    ACTIONS,
    ANY,
    LAUNCHED,
    Verdict,
    demand,
    demand_idle,
    judge,
    refusal,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import TASKS, State, status_of


class Row(t.NamedTuple):
    """A row of Nova's table.

    :param allowed: vm_states, "any", or "launched" for any but one that was never launched.
    :param task: The guard of the task_state: "none", "any", or what may be under way beside nothing.
    :param lock: Whether the lock is honoured; None where Nova's table has nothing to say.
    :param noop: vm_states in which a repetition is a no-op, in the column for modules like ours.
    """

    allowed: str
    task: str
    lock: bool | None
    result: str = ""
    noop: str = ""


# Section 1.4 of Nova's semantics, in its order.
NOVA = {
    "launch": Row("", "none", None, "active", "active"),
    "delete": Row("any", "any", True, "deleted"),
    "soft_delete": Row("launched", "any", True, "soft-delete", "soft-delete"),
    "restore": Row("soft-delete", "none", True, "active", "present"),
    "force_delete": Row("any", "any", True, "deleted"),
    "start": Row("stopped", "none", True, "active", "active"),
    "stop": Row("active error", "none", True, "stopped", "stopped"),
    "reboot": Row("active", "none", True, "active"),
    "reboot_hard": Row(
        "active stopped paused suspended error",
        "rebooting reboot_pending reboot_started rebooting_hard resuming pausing unpausing suspending",
        True,
        "active",
    ),
    "pause": Row("active", "none", True, "paused", "paused"),
    "unpause": Row("paused", "none", True, "active", "active"),
    "suspend": Row("active", "none", True, "suspended", "suspended"),
    "resume": Row("suspended", "none", True, "active", "active"),
    "rescue": Row("active stopped error", "none", True, "rescued", "rescued"),
    "unrescue": Row("rescued", "none", True, "active", "present"),
    "snapshot": Row("active stopped paused suspended", "none", False),
    "backup": Row("active stopped paused suspended", "none", False),
    "rebuild": Row("active stopped error", "none", True),
    "shelve": Row("active stopped paused suspended", "none", True, "shelved", "shelved shelved_offloaded"),
    "shelve_offload": Row("shelved", "none", True, "shelved_offloaded", "shelved_offloaded"),
    "unshelve": Row("shelved shelved_offloaded", "none", True, "active", "active"),
    "migrate": Row("active stopped", "none", True, "resized"),
    "resize": Row("active stopped", "none", True, "resized"),
    "confirm_resize": Row("resized", "none", True, "active", "present"),
    "revert_resize": Row("resized", "none", True, "active", "present"),
    "live_migrate": Row("active paused", "none", True),
    "live_migrate_force_complete": Row("active", "migrating", True),
    "live_migrate_abort": Row("any", "migrating", True),
    "evacuate": Row("active stopped error", "any", False),
    "lock": Row("any", "any", None),
    "unlock": Row("any", "any", None),
    "reset_state": Row("any", "any", False),
    "set_password": Row("active", "none", True),
    "console": Row("any", "any", False),
    "inject_network_info": Row("any", "any", True),
    "fixed_address": Row("any", "any", True),
    "security_group": Row("any", "any", False),
    "attach_interface": Row("active paused stopped", "none", True),
    "attach_volume": Row("active paused stopped resized soft-delete shelved shelved_offloaded", "none", True),
    "crash_dump": Row("active paused rescued resized error", "none", True),
    "metadata": Row("active paused suspended stopped", "any", True),
}

# Actions that Nova has no row for: it repairs by itself what a migration left.
OURS = ("recover", "set_policy", "note_origin", "forget_origin")
# Where we differ on purpose: the docstring of the table says why. What is added to Nova's states, and what is taken.
ALLOWED_TOO = {
    "launch": "building",  # one that died is finished
    "start": "rescued",
    "stop": "rescued paused suspended",
    "reboot": "rescued",
    "reboot_hard": "rescued",
    "pause": "stopped",
    "suspend": "paused",
}
NOT_ALLOWED = {
    "live_migrate_abort": "building error rescued resized shelved shelved_offloaded soft-delete stopped suspended",
    "console": "building shelved_offloaded",
    "inject_network_info": "building",
    "fixed_address": "building",
    "security_group": "building",
}
NOOP_TOO = {
    "launch": "stopped paused suspended",
    "unshelve": "stopped paused suspended",  # the power state comes back
}
# An error or a soft deletion may lie on top of the state that the action ends.
PRESENT = LAUNCHED - {"error", "soft-delete"}


def states(words: str) -> frozenset[str]:
    return {"any": ANY, "launched": LAUNCHED}.get(words) or frozenset(words.split())


def state_of(vm_state: str, action: str = "") -> State:
    """A VM in *vm_state*, with *action* under way."""
    return State(
        condition="running",
        vm_state=vm_state,
        task_state=TASKS.get(action, ""),
        power_state="RUNNING",
        status=status_of(vm_state),
        marked=True,
        running=f"{action} since 2026-01-01T00:00:00Z" if action else "",
    )


def test_the_table_has_the_actions_that_nova_has() -> None:
    assert [action for action in ACTIONS if action not in OURS] == list(NOVA)
    assert set(OURS) <= set(ACTIONS)


@pytest.mark.parametrize("action", NOVA)
def test_a_row_is_that_of_nova_but_for_what_is_declared(action: str) -> None:
    nova, ours = NOVA[action], ACTIONS[action]
    allowed = states(nova.allowed) | states(ALLOWED_TOO.get(action, ""))
    # What is there already is a no-op.
    noop = PRESENT - allowed if nova.noop == "present" else states(nova.noop) | states(NOOP_TOO.get(action, ""))
    assert ours.allowed == allowed - states(NOT_ALLOWED.get(action, "")) - noop
    assert ours.noop == noop
    assert ours.result == nova.result
    assert ours.idle == (nova.task != "any")
    assert ours.during == (frozenset() if nova.task in ("any", "none") else states(nova.task))
    if nova.lock is not None:
        assert ours.lock == nova.lock


def test_who_takes_the_lock_away_is_not_refused_for_it() -> None:
    assert not ACTIONS["lock"].lock
    assert not ACTIONS["unlock"].lock


def test_every_difference_is_one() -> None:
    for action, words in ALLOWED_TOO.items():
        assert not states(words) & states(NOVA[action].allowed)
    for action, words in NOT_ALLOWED.items():
        assert states(words) <= states(NOVA[action].allowed)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_row_is_of_one_piece(action: str) -> None:
    row = ACTIONS[action]
    assert row.allowed <= ANY
    assert row.noop <= ANY
    assert not row.allowed & row.noop
    assert row.result in {"", "deleted", *ANY}
    assert {judge(action, vm_state) for vm_state in row.allowed} == {Verdict.ALLOWED}
    assert {judge(action, vm_state) for vm_state in ANY - row.allowed - row.noop} <= {Verdict.REFUSED}


EVERY = [(action, vm_state) for action in ACTIONS for vm_state in sorted(ANY)]
BY_VERDICT = {verdict: [each for each in EVERY if judge(*each) is verdict] for verdict in Verdict}


def test_what_is_allowed_is_to_be_done_and_what_is_there_is_not() -> None:
    assert {demand(action, state_of(vm_state), name="web1") for action, vm_state in BY_VERDICT[Verdict.ALLOWED]} == {
        True
    }
    assert {demand(action, state_of(vm_state), name="web1") for action, vm_state in BY_VERDICT[Verdict.NOOP]} == {False}


@pytest.mark.parametrize("vm_state", sorted(ANY))
def test_a_refusal_names_the_vm_the_action_the_status_and_a_way_out(vm_state: str) -> None:
    for action in [action for action, refused_in in BY_VERDICT[Verdict.REFUSED] if refused_in == vm_state]:
        with pytest.raises(Refused) as caught:
            demand(action, state_of(vm_state), name="web1")
        error = caught.value
        assert error.message == f"VM web1 is {status_of(vm_state)}: {action} is not allowed in that status."
        assert error.hint
        assert error.details == {"status": status_of(vm_state), "action": action}
        assert error.code == "refused"


# Where a way out leads, by what the hint says: the vm_states that the VM may have afterwards.
LEADS_TO = {
    "Finish the launch": {"active", "stopped"},
    "Look at the VM, then use vm_power with state: rebooted, reboot: hard": {"active"},
    "Use vm_power with state: running first.": {"active"},
    "Use vm_power with state: stopped first.": {"stopped"},
    "Use vm_rescue with state: unrescued first.": {"active", "stopped"},
    "Use vm_resize with state: confirmed": {"active", "stopped"},
    "Use vm_shelve with state: unshelved first.": {"active", "stopped"},
    "Use vm_shelve with state: shelved first.": {"shelved"},
    "Use the module vm with state: restored first.": {"active", "stopped"},
}


def reached_from(vm_state: str, action: str) -> set[str]:
    """Where the VM is after *action* was refused and the user did what the refusal said, again and again."""
    reached: set[str] = set()
    for _round in range(5):
        if judge(action, vm_state) is not Verdict.REFUSED:
            return {*reached, vm_state}
        hint = refusal(action, state_of(vm_state), name="web1").hint
        (found,) = [leads for said, leads in LEADS_TO.items() if hint.startswith(said)]
        reached.add(vm_state)
        vm_state = min(found)  # "active", if it may be that
    raise AssertionError(f"going round in circles: {sorted(reached)}")


@pytest.mark.parametrize("vm_state", sorted(ANY))
def test_the_way_out_leads_out(vm_state: str) -> None:
    for action in [action for action, refused_in in BY_VERDICT[Verdict.REFUSED] if refused_in == vm_state]:
        assert reached_from(vm_state, action)


def test_a_reason_and_a_way_out_of_the_callers_own_take_the_place_of_the_tables() -> None:
    error = refusal("stop", state_of("paused"), name="web1", why=" because it is transient", hint="Define it.")
    assert str(error) == "VM web1 is PAUSED: stop is not allowed because it is transient. Define it."


@pytest.mark.parametrize("under_way", ["delete", "reboot", "live_migrate", "confirm_resize", "unheard of"])
def test_what_wants_no_other_task_is_refused_as_busy_while_one_is_under_way(under_way: str) -> None:
    for action, row in ACTIONS.items():
        state = state_of(min(row.allowed), under_way)
        if not row.idle or TASKS.get(under_way, "") in row.during:
            demand_idle(action, state, name="web1")
            assert demand(action, state, name="web1")
            continue
        said = f"VM web1 is busy: {under_way} since .*, and {action} wants no other task"
        with pytest.raises(Busy, match=said) as caught:
            demand(action, state, name="web1")
        assert "vm_status" in caught.value.hint


def test_a_no_op_is_none_whatever_is_under_way() -> None:
    assert not demand("stop", state_of("stopped", "start"), name="web1")


def test_a_hard_reboot_saves_a_vm_that_hangs_in_a_reboot_and_spares_one_that_is_half_removed() -> None:
    demand_idle("reboot_hard", state_of("active", "reboot"), name="web1")
    for under_way in ("delete", "launch", "shelve", "live_migrate"):
        with pytest.raises(Busy):
            demand_idle("reboot_hard", state_of("active", under_way), name="web1")


def test_a_guest_that_goes_down_by_itself_is_no_operation() -> None:
    demand_idle("start", replace(state_of("active"), condition="going_down", task_state="powering-off"), name="web1")
