# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is done in the course of a migration, decided over recorded ones.

The traces are of a guest with 128 MiB in the lab (libvirt 9.0, QEMU 7.2), asked twice a second. In all but ``idle`` it
changes 20 MiB of its memory as fast as it can, and 8 MiB a second are carried (20 in ``block``).
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid, Refused, Unsupported
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.migration import (
    ARRIVED,
    BROKEN,
    GIB,
    MIB,
    STAYED,
    UNDER_WAY,
    Course,
    Decision,
    Ends,
    Policy,
    Statistics,
    begin,
    completed,
    decide,
    demand_possible,
    never_stopped,
    numbers,
    outcome,
    read_policy,
    read_statistics,
)

TRACES = Path(__file__).parent / "traces"
NAMES = ("auto_converge", "auto_converge_quick", "block", "forced", "idle", "post_copy", "stuck")
ASKED: dict[str, t.Any] = {
    "downtime": 500,
    "downtime_steps": 5,
    "bandwidth": 0,
    "timeout_per_gib": 800,
    "progress_timeout": 150,
    "on_timeout": "abort",
    "auto_converge": "auto",
    "auto_converge_initial": 0,
    "auto_converge_increment": 0,
    "connections": 1,
    "compression": [],
}
ENDS = Ends(libvirt=(9, 0, 0), qemu=(7, 2, 22), newest_qemu=(7, 2, 22), runs=True)


def trace(name: str) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads((TRACES / f"{name}.json").read_text(encoding="utf-8")))


def looks(name: str) -> list[Statistics]:
    return [read_statistics(sample, sample["at"]) for sample in trace(name)["samples"]]


def replay(name: str, policy: Policy, limit: float | None = None) -> list[Decision]:
    """What would have been done in the course of a trace, if nothing of it had had an effect."""
    course, decisions = Course(), []
    for now in looks(name):
        course = course.seen(now)
        decision = decide(policy, course, now, limit)
        if decision:
            decisions.append(decision)
            course = course.done(decision)
    return decisions


# ---- in its course


def test_a_guest_that_is_idle_is_left_alone() -> None:
    assert replay("idle", Policy(), limit=1600) == []


def test_a_guest_that_does_not_get_on_may_stand_still_for_longer_step_by_step_and_not_before_the_second_round() -> None:
    decisions = replay("stuck", Policy())
    assert [decision.value for decision in decisions] == [340, 380, 420]
    assert all(decision.what == "downtime" for decision in decisions)
    assert decisions[0].at >= next(now.at for now in looks("stuck") if now.iteration == 2) + 3
    assert all(later.at - one.at >= 3 for one, later in zip(decisions, decisions[1:]))
    assert "MiB a second" in decisions[0].why


def test_a_downtime_that_would_do_at_once_is_allowed_at_once() -> None:
    # In the third round the guest paused for a moment: 558 ms would have done.
    decisions = replay("auto_converge", Policy(downtime=700))
    first = decisions[0]
    assert (first.what, first.value, first.at) == ("downtime", 620, 18.61)
    assert "558 ms" in first.why


def test_a_downtime_below_that_of_qemu_is_set_as_soon_as_memory_goes() -> None:
    (first, *others) = replay("idle", Policy(downtime=100))
    assert (first.what, first.value, others) == ("downtime", 100, [])
    assert first.at == next(now.at for now in looks("idle") if now.phase == "memory")
    assert Policy(downtime=100).steps == (100,)


@pytest.mark.parametrize("on_timeout", ["abort", "force", "post_copy"])
def test_what_makes_no_progress_is_brought_to_its_end_as_the_policy_says(on_timeout: str) -> None:
    policy = Policy(progress_timeout=8, on_timeout=on_timeout, downtime=300)
    (last,) = replay("stuck", policy)
    assert last.what == on_timeout
    assert 23 < last.at < 30
    assert "no progress for 8 seconds" in last.why


def test_a_guest_that_is_slowed_down_makes_progress() -> None:
    policy = Policy(progress_timeout=8, downtime=300)
    assert replay("auto_converge", policy) == []
    assert replay("auto_converge_quick", policy) == []


def test_the_first_round_is_progress_however_long_it_takes() -> None:
    first_round = [now.at for now in looks("stuck") if now.iteration == 1]
    assert first_round[-1] - first_round[0] > 10
    (last,) = replay("stuck", Policy(progress_timeout=6, downtime=300))
    assert last.at > first_round[-1] + 6


def test_time_that_is_over_is_over_whatever_the_progress() -> None:
    (last,) = replay("stuck", Policy(), limit=10)
    began = next(now.at for now in looks("stuck") if now.phase != "prepare")
    assert last.what == "abort"
    assert 10 <= last.at - began < 11
    assert "within 10 seconds" in last.why


@pytest.mark.parametrize("on_timeout", ["force", "post_copy"])
def test_while_disks_are_copied_there_is_no_end_that_could_be_forced(on_timeout: str) -> None:
    (last,) = replay("block", Policy(on_timeout=on_timeout), limit=3)
    assert last.what == "abort"
    assert f"{on_timeout} is of no use" in last.why


def test_no_limits_are_no_limits() -> None:
    policy = Policy(timeout_per_gib=0, progress_timeout=0, downtime=300)
    assert policy.seconds(GIB, [GIB]) is None
    assert replay("stuck", policy, limit=policy.seconds(GIB, [])) == []


@pytest.mark.parametrize("over", ["abort", "force", "post_copy"])
def test_nothing_is_done_after_the_last_thing(over: str) -> None:
    course = replace(Course(), over=over)
    for now in looks("stuck"):
        course = course.seen(now)
        assert decide(Policy(progress_timeout=1), course, now, 1) is None


def test_time_is_given_by_size_and_for_two_gib_of_each_at_the_least() -> None:
    assert Policy().seconds(96 * MIB, []) == 1600
    assert Policy(timeout_per_gib=100).seconds(8 * GIB, [GIB, 10 * GIB]) == 2000


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_of_every_moment_can_be_shown(name: str) -> None:
    told = [now.tell() for now in looks(name)]
    assert all(0 <= each["percent"] <= 99 for each in told)
    phases = [each["phase"] for each in told]
    assert phases == sorted(phases, key=["prepare", "disks", "memory"].index)
    assert ("disks" in phases) == (name == "block")


# ---- at the start


def test_auto_converge_is_asked_for_unless_it_may_come_to_a_post_copy() -> None:
    assert begin(Policy(), runs=True)[:2] == (True, False)
    assert begin(Policy(auto_converge="never"), runs=True)[:2] == (False, False)
    assert begin(Policy(on_timeout="post_copy"), runs=True)[:2] == (False, True)


def test_a_guest_that_stands_still_needs_neither() -> None:
    for on_timeout in ("abort", "post_copy"):
        auto_converge, post_copy, (said,) = begin(Policy(on_timeout=on_timeout), runs=False)
        assert not auto_converge
        assert not post_copy
        assert "stand still" in said.why


def test_the_defaults_of_the_module_are_those_of_the_policy() -> None:
    assert read_policy(ASKED) == Policy()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"downtime": 0}, "downtime is 0"),
        ({"downtime_steps": 0}, "downtime_steps is 0"),
        ({"bandwidth": -1}, "bandwidth is -1"),
        ({"connections": 0}, "connections is 0"),
        ({"connections": 256}, "connections is 256"),
        ({"auto_converge_initial": 100}, "auto_converge_initial is 100"),
        ({"timeout_per_gib": -1}, "timeout_per_gib is -1"),
        ({"on_timeout": "post_copy", "auto_converge": "always"}, "auto_converge: always"),
        ({"on_timeout": "post_copy", "compression": ["mt"]}, "post-copy with compression: mt"),
        ({"connections": 2, "compression": ["xbzrle"]}, "one connection only"),
        ({"connections": 2, "compression": ["mt"]}, "one connection only"),
        ({"compression": ["zstd"]}, "several connections only"),
        ({"connections": 2, "compression": ["zlib", "zstd"]}, "QEMU takes one"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(asked: dict[str, t.Any], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_policy({**ASKED, **asked})
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("policy", "ends", "error"),
    [
        (Policy(on_timeout="post_copy"), replace(ENDS, host_devices=True), Refused),
        (Policy(on_timeout="post_copy", connections=2), replace(ENDS, qemu=(10, 0, 3)), Unsupported),
        (Policy(compression=("mt",)), replace(ENDS, newest_qemu=(9, 1, 0)), Unsupported),
        (Policy(compression=("zstd",), connections=2), ENDS, Unsupported),
        (Policy(on_timeout="post_copy", connections=2), replace(ENDS, qemu=(10, 1, 0)), None),
        (Policy(on_timeout="post_copy", connections=2), replace(ENDS, runs=False), None),
        (Policy(on_timeout="post_copy"), replace(ENDS, runs=False, host_devices=True), None),
        (Policy(compression=("zstd",), connections=2), replace(ENDS, libvirt=(9, 4, 0)), None),
        (Policy(compression=("mt",)), ENDS, None),
        (Policy(connections=8), ENDS, None),
    ],
)
def test_what_the_vm_or_a_host_cannot_do_is_refused_before_anything_is_begun(
    policy: Policy, ends: Ends, error: type[Exception] | None
) -> None:
    if error is None:
        demand_possible(policy, ends, name="web1")
        return
    with pytest.raises(error, match="web1"):
        demand_possible(policy, ends, name="web1")


def test_versions_are_compared_by_their_numbers() -> None:
    assert numbers("10.1.0") > numbers("9.4.0") >= (9, 4)


# ---- afterwards


def test_figures_are_those_of_the_destination_and_of_what_was_seen() -> None:
    last = looks("block")[-1]
    figures = completed(trace("block")["completed"], last)
    assert figures["total_seconds"] == 18.723
    assert figures["downtime_ms"] == 114
    assert figures["memory_bytes"] == 253986834
    assert figures["disk_bytes"] == 96 * MIB  # which the destination does not tell
    assert figures["rounds"] == 11


def test_after_a_post_copy_the_figures_are_what_was_seen() -> None:
    last = looks("post_copy")[-1]
    figures = completed({"type": 0}, last)
    assert figures["total_seconds"] == last.at
    assert figures["memory_bytes"] == last.memory_processed
    assert "downtime_ms" not in figures


def test_nothing_is_told_of_what_nobody_saw() -> None:
    assert completed({}, None) == {}


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        ((1, 1), None, STAYED),
        ((3, 1), (5, 1), STAYED),
        (None, (1, 1), ARRIVED),
        ((5, 4), (3, 1), ARRIVED),
        ((1, 1), (3, 2), UNDER_WAY),
        ((3, 11), (1, 1), UNDER_WAY),
        ((3, 12), (3, 12), BROKEN),
        ((3, 12), None, BROKEN),
        (None, (3, 12), BROKEN),
        (None, None, BROKEN),
        ((5, 1), None, BROKEN),
    ],
)
def test_what_has_become_of_it_is_told_by_both_ends(
    here: tuple[int, int] | None, there: tuple[int, int] | None, said: str
) -> None:
    assert outcome(here, there) == said


@pytest.mark.parametrize(
    ("here", "certain"),
    [((1, 1), True), ((1, 5), True), ((1, 6), False), ((3, 1), False), ((3, 2), False), ((5, 1), False), (None, False)],
)
def test_a_vm_that_was_not_stopped_for_the_switch_is_nowhere_else(here: tuple[int, int] | None, certain: bool) -> None:
    assert never_stopped(here) is certain
