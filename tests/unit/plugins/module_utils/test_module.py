# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look, plan, act, report: on real domains of libvirt's in-memory driver, with plans that say what happens to them."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import typing as t
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils import _module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import lock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock, parse_stamp
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import NotFound, Refused, TimedOut
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, override_lock, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import instance as memory
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock, Mark
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module, run_query
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject
from tests.unit.hypervisor import Hypervisor, Task, uuid_of

SINCE = "2026-01-01T00:00:00Z"
Decide = Callable[[Context, Subject], Plan]


@pytest.fixture
def log() -> list[str]:
    """What steps did, in order."""
    return []


def module(decide: Decide, *, required: bool = True, **options: t.Any) -> Callable[[], None]:
    """The main() of a module that acts."""
    spec = {**connection(), **selection(required=required), **override_lock()}
    return lambda: run_module(spec, decide, **options)


def fixed(found: Plan, _context: Context, _vm: Subject) -> Plan:
    """Whatever is looked at, that plan."""
    return found


def plan(
    *steps: Step, action: str = "stop", journaled: bool = False, before: str = "ACTIVE", after: str = "SHUTOFF"
) -> Plan:
    """A plan that changes the status, if it has steps."""
    reached = {"status": after, "power_state": "SHUTDOWN"} if steps else {"status": before}
    return Plan({"status": before}, reached, steps, action=action, journaled=journaled)


def steps(log: list[str], *names: str, fails: str = "", error: Exception | None = None, undone: str = "") -> list[Step]:
    """Steps that log themselves; those named in *undone* can be taken back."""

    def make(name: str) -> Step:
        def do() -> None:
            log.append(name)
            if name == fails:
                raise error or Refused(f"{name} failed.")

        return Step(name, do, undo=(lambda: log.append(f"undo {name}")) if name in undone.split() else None)

    return [make(name) for name in names]


def only(told: dict[str, t.Any]) -> dict[str, t.Any]:
    """What was told of the one VM."""
    (vm,) = told["vms"]
    return t.cast("dict[str, t.Any]", vm)


# ---- results


def test_a_plan_is_carried_out_and_told_as_it_is_then(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")

    def decide(_context: Context, vm: Subject) -> Plan:
        guest, _seen, _state = vm.there()

        def power_off() -> dict[str, str]:
            guest.power_off()
            return {"shutdown": "forced"}

        return plan(Step("power_off", power_off))

    told = task(module(decide), name="web1")
    vm = only(told)
    assert told["changed"]
    assert vm.pop("seconds") >= 0
    assert vm == {
        "name": "web1",
        "uuid": uuid_of(1),
        "host": kvm.host.name,
        "status": "SHUTOFF",
        "power_state": "SHUTDOWN",
        "task_state": "",
        "changed": True,
        "steps": ["power_off"],
        "figures": {"shutdown": "forced"},
    }
    assert "diff" not in told


def test_what_is_told_is_what_is_there_and_not_what_was_planned(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    kvm.define("web1")
    vm = only(task(module(lambda _context, _vm: plan(*steps(log, "nothing"))), name="web1"))
    assert (vm["status"], vm["power_state"]) == ("ACTIVE", "RUNNING")


def test_nothing_to_do_changes_nothing_and_takes_no_lock(kvm: Hypervisor, task: Task, lock_directory: Path) -> None:
    kvm.define("web1")
    calls = []

    def decide(_context: Context, vm: Subject) -> Plan:
        calls.append(vm.name)
        return replace(plan(), figures={"kept": 1}, warnings=["careful"])

    told = task(module(decide), name="web1", diff=True)
    assert not told["changed"]
    assert (only(told)["changed"], only(told)["steps"], only(told)["figures"]) == (False, [], {"kept": 1})
    assert told["diff"] == []
    assert "web1: careful" in str(told["warnings"])
    assert calls == ["web1"]
    assert not lock_directory.exists()


def test_check_mode_tells_what_would_be_and_does_nothing(
    kvm: Hypervisor, task: Task, log: list[str], lock_directory: Path
) -> None:
    kvm.define("web1")
    told = task(module(lambda _context, _vm: plan(*steps(log, "a", "b"))), name="web1", check=True)
    vm = only(told)
    assert told["changed"]
    assert (vm["steps"], vm["status"], vm["power_state"]) == (["a", "b"], "SHUTOFF", "SHUTDOWN")
    assert log == []
    assert not lock_directory.exists()


@pytest.mark.parametrize("check", [False, True])
def test_the_diff_is_the_plans_and_is_told_when_it_is_asked_for(
    kvm: Hypervisor, task: Task, log: list[str], check: bool
) -> None:
    kvm.define("web1", "web2")

    def decide(_context: Context, vm: Subject) -> Plan:
        return plan(*steps(log, "a")) if vm.name == "web2" else plan()

    told = task(module(decide), name=["web1", "web2"], check=check, diff=True)
    assert told["diff"] == [
        {
            "before": {"status": "ACTIVE"},
            "after": {"status": "SHUTOFF", "power_state": "SHUTDOWN"},
            "before_header": "web2",
            "after_header": "web2",
        }
    ]


def test_figures_come_from_the_plan_and_from_every_step(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    made = replace(
        plan(Step("a", lambda: {"a": 1, "c": 1}), Step("b", lambda: {"b": 2, "c": 2})), figures={"p": 0, "a": 0}
    )
    assert only(task(module(lambda _context, _vm: made), name="web1"))["figures"] == {"p": 0, "a": 1, "b": 2, "c": 2}


# ---- many VMs


def test_one_that_fails_does_not_stop_the_others_and_all_are_told_in_order(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1", "web2", "web3")

    def decide(_context: Context, vm: Subject) -> Plan:
        if vm.name == "web2":
            raise Refused("VM web2 is PAUSED.", hint="Resume it.", status="PAUSED")
        return plan(*steps(log, f"do {vm.name}"))

    told = task(module(decide), name=["web3", "nope", "web2", "web1"])
    assert [(vm["name"], vm.get("failed", False), vm["changed"]) for vm in told["vms"]] == [
        ("web3", False, True),
        ("nope", True, False),
        ("web2", True, False),
        ("web1", False, True),
    ]
    assert sorted(log) == ["do web1", "do web3"]
    assert told["msg"].startswith(
        "2 of 4 VMs failed. There is no VM with the name or UUID 'nope' here. VM web2 is PAUSED."
    )
    assert (told["code"], told["changed"]) == ("not_found", True)
    failed = told["vms"][2]
    assert (failed["msg"], failed["code"]) == ("VM web2 is PAUSED. Resume it.", "refused")
    assert (failed["details"], failed["status"]) == ({"status": "PAUSED"}, "ACTIVE")


def test_the_error_of_the_only_vm_is_the_error_of_the_task(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")

    def decide(_context: Context, _vm: Subject) -> Plan:
        raise Refused("VM web1 is PAUSED.", status="PAUSED")

    told = task(module(decide), name="web1")
    assert (told["msg"], told["code"], told["details"]) == ("VM web1 is PAUSED.", "refused", {"status": "PAUSED"})


def test_a_vm_that_fails_half_way_tells_what_was_done(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    kvm.define("web1")
    vm = only(task(module(lambda _context, _vm: plan(*steps(log, "a", "b", "c", fails="b"))), name="web1"))
    assert (vm["failed"], vm["changed"], vm["steps"], vm["msg"]) == (True, True, ["a"], "b failed.")


def test_a_vm_is_found_by_its_name_or_uuid_and_counts_once(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2")
    told = task(module(lambda _context, _vm: plan()), name=[uuid_of(2).upper(), "web1", "web2", uuid_of(1)])
    assert [vm["name"] for vm in told["vms"]] == ["web2", "web1"]


def test_a_name_that_is_the_uuid_of_another_is_ambiguous(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", uuid_of(1))
    told = task(module(lambda _context, _vm: plan()), name=[uuid_of(1)])
    assert (told["code"], only(told)["name"]) == ("ambiguous", uuid_of(1))
    assert uuid_of(2) in told["msg"]
    assert "web1" in told["msg"]


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (2, 2), (0, 1)])
def test_as_many_at_once_as_is_allowed(kvm: Hypervisor, task: Task, concurrency: int, most: int) -> None:
    names = [f"web{number}" for number in range(6)]
    kvm.define(*names)
    inside, seen, guard, together = 0, 0, threading.Lock(), threading.Barrier(most)

    def step() -> None:
        nonlocal inside, seen
        with guard:
            inside += 1
            seen = max(seen, inside)
        together.wait(10)
        with guard:
            inside -= 1

    told = task(module(lambda _context, _vm: plan(Step("a", step))), name=names, concurrency=concurrency)
    assert seen == most
    assert [vm["changed"] for vm in told["vms"]] == [True] * 6


def test_without_names_the_module_says_which_vms_it_is_about(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2", "web3", running=False)
    kvm.remember(Instance().marked(Mark("error", SINCE)), "web2")
    main = module(
        lambda _context, _vm: plan(),
        required=False,
        everything=lambda vm: bool(vm.state and vm.state.status == "ERROR"),
    )
    assert [vm["name"] for vm in task(main)["vms"]] == ["web2"]
    assert [vm["name"] for vm in task(main, name="web1")["vms"]] == ["web1"]
    assert task(main, name=[])["vms"] == []


def test_vms_may_have_options_of_their_own(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2")
    seen: list[tuple[str, str, str]] = []

    def decide(context: Context, vm: Subject) -> Plan:
        seen.append((vm.name, context.params["dest"], context.params["uri"]))
        return plan()

    entry = {"name": {"type": "str", "required": True}, "dest": {"type": "str"}}
    spec = {**connection(), **selection(required=False), **override_lock(), "dest": {"type": "str", "default": "kvm9"}}
    spec["moves"] = {"type": "list", "elements": "dict", "options": entry}

    def moves(*orders: tuple[str, str | None]) -> dict[str, t.Any]:
        listed = [{"name": name, "dest": dest} for name, dest in orders]
        return task(lambda: run_module(spec, decide, may_be_missing=True, each="moves"), moves=listed, concurrency=1)

    told = moves(("web2", "kvm2"), (uuid_of(1), "kvm3"), ("away", "kvm2"))
    assert [vm["name"] for vm in told["vms"]] == ["web2", "web1", "away"]
    # In turn to each host; results are in the order of the task.
    assert [(name, dest) for name, dest, _uri in seen] == [("web2", "kvm2"), ("web1", "kvm3"), ("away", "kvm2")]
    twice = moves(("web1", "kvm2"), (uuid_of(1), "kvm3"))
    assert (twice["failed"], twice["code"]) == (True, "invalid")
    seen.clear()
    moves(("web1", "kvm2"), ("web2", "kvm2"), ("away", "kvm3"))
    assert [dest for _name, dest, _uri in seen] == ["kvm2", "kvm3", "kvm2"]
    seen.clear()
    task(lambda: run_module(spec, decide, each="moves"), name=["web1"])
    moves(("web1", None))
    assert [dest for _name, dest, _uri in seen] == ["kvm9", "kvm9"]


def test_a_vm_waits_for_its_turn_without_its_lock_and_is_looked_at_again(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")
    done = False

    def decide(_context: Context, _vm: Subject) -> Plan:
        return plan() if done else plan(*steps(log, "one"))

    @contextlib.contextmanager
    def turn(_context: Context, vm: Subject, _plan: Plan) -> t.Iterator[None]:
        nonlocal done
        assert lock.holder(key(kvm)) is None
        log.append(f"turn of {vm.name}")
        done = "twice" in log
        yield
        log.append("over")

    for check in (True, False):
        task(module(decide, turn=turn), name="web1", check=check)
    assert log == ["turn of web1", "one", "over"]
    log[:] = ["twice"]  # what there was to do has been done meanwhile
    assert not task(module(decide, turn=turn), name="web1")["changed"]
    assert log == ["twice", "turn of web1", "over"]


def test_metadata_that_cannot_be_read_are_an_error_of_their_vm_alone(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2")
    domain = kvm.connection.lookupByName("web1")
    domain.setMetadata(2, "<instance schema='99'/>", memory.PREFIX, memory.NAMESPACE, 2)
    told = task(module(lambda _context, _vm: plan()), name=["web1", "web2"])
    assert [vm.get("code") for vm in told["vms"]] == ["unsupported", None]
    assert told["vms"][0]["name"] == "web1"


# ---- VMs that come and go


def test_a_name_that_no_vm_has_is_decided_upon_where_that_may_be(kvm: Hypervisor, task: Task) -> None:
    def decide(_context: Context, vm: Subject) -> Plan:
        assert (vm.guest, vm.state, vm.instance) == (None, None, Instance())

        def define() -> None:
            kvm.define(vm.name)
            vm.guest = kvm.guest(vm.name)

        return plan(Step("define", define), action="launch", before="ABSENT", after="ACTIVE")

    main = module(decide, may_be_missing=True)
    checked = only(task(main, name="new", check=True))
    assert (checked["status"], checked.get("uuid")) == ("ACTIVE", None)
    assert kvm.names() == []
    vm = only(task(main, name="new"))
    assert (vm["name"], vm["uuid"], vm["status"], vm["changed"]) == ("new", uuid_of(1), "ACTIVE", True)


def test_a_vm_that_somebody_made_meanwhile_is_seen_under_the_lock(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    def decide(_context: Context, vm: Subject) -> Plan:
        if vm.guest:
            return plan()
        kvm.define(vm.name)  # somebody else does
        return plan(*steps(log, "define"), action="launch", before="ABSENT")

    vm = only(task(module(decide, may_be_missing=True), name="new"))
    assert (vm["changed"], vm["uuid"], vm["status"]) == (False, uuid_of(1), "ACTIVE")
    assert log == []


def test_a_vm_that_is_gone_afterwards_is_told_as_absent(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")

    def decide(_context: Context, _vm: Subject) -> Plan:
        return plan(Step("remove", kvm.clear), action="delete", after="ABSENT")

    vm = only(task(module(decide), name="web1"))
    assert (vm["status"], vm["power_state"], vm["uuid"]) == ("ABSENT", "NOSTATE", uuid_of(1))


def test_a_vm_that_vanishes_before_the_lock_is_taken_is_an_error_of_its_own(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")

    def decide(_context: Context, _vm: Subject) -> Plan:
        kvm.clear()
        return plan(*steps(log, "a"))

    vm = only(task(module(decide), name="web1"))
    assert (vm["code"], vm["status"]) == ("not_found", "ABSENT")
    assert log == []


# ---- the user's lock


def test_a_locked_vm_is_refused_with_the_reason_and_the_way_out(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    kvm.define("web1")
    kvm.remember(Instance(lock=Lock(SINCE, "audit")))
    main = module(lambda _context, _vm: plan(*steps(log, "a")))
    for check in (False, True):
        told = task(main, name="web1", check=check)
        assert told["code"] == "locked"
        assert told["msg"] == (
            f"VM web1 is locked since {SINCE} (audit): stop is refused."
            " Unlock it with vm_lock, or say override_lock: true."
        )
        assert told["details"] == {"since": SINCE, "reason": "audit"}
    assert log == []
    assert task(main, name="web1", override_lock=True)["changed"]


def test_a_lock_refuses_neither_what_changes_nothing_nor_what_does_not_ask_for_it(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")
    kvm.remember(Instance(lock=Lock(SINCE)))
    assert "failed" not in task(module(lambda _context, _vm: plan()), name="web1")
    assert task(module(lambda _context, _vm: plan(*steps(log, "a"), action="snapshot")), name="web1")["changed"]


def test_a_lock_that_comes_between_looking_and_acting_is_respected(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    kvm.define("web1")

    def decide(_context: Context, _vm: Subject) -> Plan:
        kvm.remember(Instance(lock=Lock(SINCE)))  # somebody else does
        return plan(*steps(log, "a"))

    assert task(module(decide), name="web1")["code"] == "locked"
    assert log == []


# ---- one operation at a time


def key(kvm: Hypervisor, name: str = "web1") -> str:
    return lock.key_of(kvm.host.name, name)


def test_the_lock_is_held_while_steps_are_done_and_tells_what_is_done(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    held: list[t.Any] = []

    def decide(_context: Context, _vm: Subject) -> Plan:
        held.append(lock.holder(key(kvm)))
        return plan(Step("a", lambda: held.append(lock.holder(key(kvm)))))

    task(module(decide), name="web1")
    assert held[0] is None
    assert held[1] == held[2]
    assert {**held[1], "since": SINCE} == {"name": "web1", "action": "stop", "since": SINCE, "pid": os.getpid()}
    parse_stamp(held[1]["since"])
    assert lock.holder(key(kvm)) is None


def test_a_vm_that_somebody_works_on_is_busy(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    kvm.define("web1", "web2")
    with lock.hold(key(kvm), {"action": "reboot", "since": SINCE, "pid": 4711}, name="web1"):
        told = task(module(lambda _context, vm: plan(*steps(log, vm.name))), name=["web1", "web2"])
    busy, done = told["vms"]
    assert (busy["code"], done["changed"], log) == ("busy", True, ["web2"])
    assert f"reboot has been running since {SINCE} (process 4711)" in busy["msg"]
    assert (busy["status"], busy["task_state"]) == ("REBOOT", "rebooting")


def test_who_does_the_same_is_waited_for_and_its_end_is_seen(
    kvm: Hypervisor, task: Task, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm.define("web1")
    twin = contextlib.ExitStack()
    twin.enter_context(lock.hold(key(kvm), {"action": "stop", "dest": "kvm2", "pid": 4711}, name="web1"))

    def sleep(_clock: Clock, _seconds: float) -> None:
        log.append("waits")
        if len(log) == 2:
            kvm.guest().power_off()
            twin.close()

    monkeypatch.setattr(Clock, "sleep", sleep)

    def decide(_context: Context, vm: Subject) -> Plan:
        assert vm.state
        if vm.state.status == "SHUTOFF":
            return plan(before="SHUTOFF")
        return replace(plan(*steps(log, "power_off")), waits=True, tells={"dest": "kvm2"})

    vm = only(task(module(decide), name="web1"))
    assert (vm["changed"], vm["status"], log) == (False, "SHUTOFF", ["waits", "waits"])


@pytest.mark.parametrize("told", [{"action": "stop", "dest": "kvm3"}, {"action": "reboot", "dest": "kvm2"}])
def test_who_does_something_else_is_not_waited_for(
    kvm: Hypervisor, task: Task, log: list[str], told: dict[str, str]
) -> None:
    kvm.define("web1")
    found = replace(plan(*steps(log, "a")), waits=True, tells={"dest": "kvm2"})
    with lock.hold(key(kvm), {**told, "since": SINCE, "pid": 4711}, name="web1"):
        vm = only(task(module(partial(fixed, found)), name="web1"))
    assert (vm["code"], log) == ("busy", [])


def test_a_plan_beside_the_operation_under_way_goes_without_its_lock(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")
    decided = []

    def decide(_context: Context, _vm: Subject) -> Plan:
        decided.append(1)
        return replace(plan(*steps(log, "abort")), beside=True)

    with lock.hold(key(kvm), {"action": "live_migrate", "since": SINCE, "pid": 4711}, name="web1"):
        vm = only(task(module(decide), name="web1"))
    assert (vm["changed"], vm["steps"], log, len(decided)) == (True, ["abort"], ["abort"], 1)


def test_it_is_looked_and_planned_again_under_the_lock(kvm: Hypervisor, task: Task, log: list[str]) -> None:
    kvm.define("web1")
    seen = []

    def decide(_context: Context, vm: Subject) -> Plan:
        assert vm.state
        seen.append(vm.state.status)
        if vm.state.status == "SHUTOFF":
            return plan(before="SHUTOFF")
        kvm.guest().power_off()  # somebody else does
        return plan(*steps(log, "power_off"))

    vm = only(task(module(decide), name="web1"))
    assert seen == ["ACTIVE", "SHUTOFF"]
    assert (vm["changed"], vm["status"], log) == (False, "SHUTOFF", [])


# ---- the journal


def journals(kvm: Hypervisor, *names: str) -> tuple[list[Step], list[Journal | None]]:
    """Steps that note the journal that they find."""
    found: list[Journal | None] = []
    return [Step(name, lambda: found.append(kvm.recall().journal)) for name in names], found


def test_the_journal_is_written_before_each_step_and_gone_at_the_end(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.remember(Instance(lock=Lock(SINCE)))
    made, found = journals(kvm, "a", "b")
    task(module(lambda _context, _vm: plan(*made, action="delete", journaled=True)), name="web1", override_lock=True)
    assert [journal and (journal.action, journal.step, journal.node, journal.pid) for journal in found] == [
        ("delete", "a", platform.node(), os.getpid()),
        ("delete", "b", platform.node(), os.getpid()),
    ]
    assert kvm.recall() == Instance(lock=Lock(SINCE))


def test_a_plan_that_needs_no_journal_writes_none(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    made, found = journals(kvm, "a")
    task(module(lambda _context, _vm: plan(*made)), name="web1")
    assert found == [None]


def test_the_journal_of_a_dead_process_of_this_machine_is_taken_over(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    dead = replace(Journal("delete", SINCE, platform.node(), 4711, "a"), data={"power_before": "running"})
    kvm.remember(Instance(journal=dead))
    made, found = journals(kvm, "b")
    told = task(module(lambda _context, _vm: plan(*made, action="delete", journaled=True)), name="web1")
    assert told["changed"]
    assert found == [replace(dead, step="b")]
    assert kvm.recall().journal is None


def test_the_journal_of_another_operation_is_replaced(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    kvm.remember(Instance(journal=Journal("soft_delete", SINCE, platform.node(), 4711, "mark")))
    made, found = journals(kvm, "a")
    task(module(lambda _context, _vm: plan(*made, action="delete", journaled=True)), name="web1")
    (journal,) = found
    assert journal is not None
    assert (journal.action, journal.step) == ("delete", "a")
    assert journal.since != SINCE


@pytest.mark.parametrize("check", [False, True])
def test_the_journal_of_another_machine_is_refused_and_the_way_out_is_told(
    kvm: Hypervisor, task: Task, log: list[str], check: bool
) -> None:
    kvm.define("web1")
    kvm.remember(Instance(journal=Journal("delete", SINCE, "elsewhere", 4711, "undefine")))
    told = task(module(lambda _context, _vm: plan(*steps(log, "a"), action="delete")), name="web1", check=check)
    assert told["code"] == "busy"
    assert told["msg"] == (
        f"VM web1 is busy: delete since {SINCE}, by process 4711 of the machine elsewhere."
        " Run that task again from elsewhere, or clear it with vm_status if it is dead."
    )
    assert told["details"]["running"]["step"] == "undefine"
    assert log == []
    assert task(module(lambda _context, _vm: plan(*steps(log, "a"), action="reset_state")), name="web1")["changed"]


def test_a_flow_may_begin_its_own_journal(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")
    made, found = journals(kvm, "a")

    def decide(context: Context, vm: Subject) -> Plan:
        vm.journal = Journal.begin("soft_delete", context.clock.now(), power_before="running")
        return plan(*made, action="soft_delete", journaled=True)

    task(module(decide), name="web1")
    assert found[0]
    assert dict(found[0].data) == {"power_before": "running"}


# ---- failures


def test_what_failed_is_taken_back_with_all_that_came_before_it_the_newest_first(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")
    made = steps(log, "a", "b", "c", "d", fails="c", undone="a c d")
    told = task(module(lambda _context, _vm: plan(*made, action="delete", journaled=True)), name="web1")
    assert log == ["a", "b", "c", "undo c", "undo a"]
    assert told["msg"] == "c failed."
    assert kvm.recall().journal is None


def test_what_lasts_is_not_taken_back_and_the_rest_of_the_plan_is_for_itself(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")
    for fails, undone, kept in (("b", ["undo b", "undo a"], False), ("c", [], True), ("d", ["undo d"], False)):
        log.clear()
        a, b, c, d = steps(log, "a", "b", "c", "d", fails=fails, undone="a b d")
        made = [a, replace(b, lasting=True), c, d]
        task(module(partial(fixed, plan(*made, action="delete", journaled=True))), name="web1")
        assert [line for line in log if line.startswith("undo")] == undone
        assert (kvm.recall().journal is not None) is kept


def test_what_cannot_be_taken_back_keeps_its_journal_for_the_next_run(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")

    def main(fails: str) -> Callable[[], None]:
        made = steps(log, "a", "b", fails=fails)
        return module(lambda _context, _vm: plan(*made, action="delete", journaled=True))

    assert task(main("b"), name="web1")["failed"]
    journal = kvm.recall().journal
    assert journal
    assert (journal.action, journal.step) == ("delete", "b")
    assert task(main(""), name="web1")["changed"]
    assert kvm.recall().journal is None
    assert log == ["a", "b", "a", "b"]


def test_when_taking_back_fails_both_are_told_and_the_journal_stays(
    kvm: Hypervisor, task: Task, log: list[str]
) -> None:
    kvm.define("web1")

    def undo() -> None:
        raise TimedOut("The disk does not let go.")

    made = [steps(log, "a", undone="a")[0], Step("b", lambda: None, undo=undo), *steps(log, "c", fails="c")]
    told = task(module(lambda _context, _vm: plan(*made, action="delete", journaled=True)), name="web1")
    assert told["code"] == "refused"
    assert told["msg"] == "c failed. Taking it back failed as well: The disk does not let go."
    assert log == ["a", "c"]  # what came before is not taken back from under it
    journal = kvm.recall().journal
    assert journal
    assert journal.step == "c"


def test_an_error_met_in_handling_another_is_not_taken_for_a_failure_to_take_back(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1")

    def do() -> None:
        try:
            raise TimedOut("The guest does not shut down.")
        except TimedOut:
            raise Refused("Failed to power VM web1 off.") from None

    told = task(module(lambda _context, _vm: plan(Step("shut_down", do))), name="web1")
    assert (told["msg"], told["code"]) == ("Failed to power VM web1 off.", "refused")


@pytest.mark.parametrize("where", ["decide", "step"])
def test_an_error_of_the_program_is_not_swallowed(kvm: Hypervisor, task: Task, log: list[str], where: str) -> None:
    kvm.define("web1")

    def decide(_context: Context, _vm: Subject) -> Plan:
        if where == "decide":
            raise ZeroDivisionError
        return plan(
            *steps(log, "a", "b", fails="b", error=ZeroDivisionError(), undone="a"), action="delete", journaled=True
        )

    with pytest.raises(ZeroDivisionError):
        task(module(decide), name="web1")
    assert log == ([] if where == "decide" else ["a", "b", "undo a"])
    assert kvm.recall().journal is None
    assert lock.holder(key(kvm)) is None


# ---- around the work


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("qemu+unix:///system?socket=/nowhere/libvirt-sock", "unreachable"),
        ("test:///nowhere/host.xml", "failed"),
        ("nonsense:///", "unreachable"),
    ],
)
def test_a_host_that_cannot_be_reached_is_told_by_its_uri(task: Task, uri: str, code: str) -> None:
    told = task(module(lambda _context, _vm: plan()), name="web1", uri=uri)
    assert told["code"] == code
    assert f"Failed to connect to {uri}: " in told["msg"]


def test_without_libvirts_library_it_is_said_what_to_install(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_module, "MISSING", "Traceback: no module named libvirt")
    assert "libvirt-python" in task(module(lambda _context, _vm: plan()), name="web1")["msg"]


def test_a_question_is_answered_or_failed(kvm: Hypervisor, task: Task) -> None:
    kvm.define("web1", "web2")
    spec = {**connection()}
    told = task(lambda: run_query(spec, lambda context: {"names": [guest.name for guest in context.host.guests()]}))
    assert (told["names"], told["changed"]) == (["web1", "web2"], False)

    def ask(_context: Context) -> dict[str, t.Any]:
        raise NotFound("There is no such thing.", hint="Look elsewhere.", name="x")

    told = task(lambda: run_query(spec, ask))
    assert (told["msg"], told["code"]) == ("There is no such thing. Look elsewhere.", "not_found")
    assert told["details"] == {"name": "x"}
