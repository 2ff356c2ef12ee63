# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is done about a VM that a migration has left on two hosts: over everything that the two can look like."""

from __future__ import annotations

import itertools
import typing as t
from dataclasses import replace

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import recovery
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Mark
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.recovery import (
    ABSENT,
    ALIVE,
    DESTINATION,
    END,
    FINISH,
    FORMS,
    GIVING,
    HELD,
    OFF,
    POWER_OFF_DESTINATION,
    POWER_OFF_SOURCE,
    REMOVE_DESTINATION,
    REMOVE_SOURCE,
    RESUME_DESTINATION,
    RESUME_POSTCOPY,
    RESUME_SOURCE,
    SOURCE,
    TAKING,
    Copy,
    Verdict,
    judge,
    read,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import (
    PAUSED,
    RUNNING,
    SHUTOFF,
    Observation,
)

Say = t.Callable[..., Copy]

OURS = Journal("live_migrate", "2026-01-01T00:00:00Z", "kvm1", 7)
OTHERS = Journal("live_migrate", "2026-02-02T00:00:00Z", "kvm3", 9)
GONE = Copy()


def copies(forms: t.Sequence[str]) -> list[Copy]:
    """Everything that one side can look like."""
    found = [Copy()]
    for form in forms:
        if form == ABSENT:
            continue
        for journal in (None, OURS, OTHERS):
            plain = Copy(form, persistent=True, journal=journal)
            found.append(plain)
            if form == ALIVE:
                found.append(replace(plain, arrived=True))
            if form == OFF:
                found += [replace(plain, left=True), replace(plain, saved=True), replace(plain, origin=True)]
    return found


HERE = copies([form for form in FORMS if form != TAKING])
THERE = copies([form for form in FORMS if form != GIVING])
PAIRS = [(here, there) for here, there in itertools.product(HERE, THERE) if here.there or there.there]
ASKED = list(itertools.product((False, True), (False, True), ("", SOURCE, DESTINATION)))


def verdicts() -> t.Iterator[tuple[Copy, Copy, dict[str, t.Any], Verdict]]:
    for here, there in PAIRS:
        for shared, resumable, truth in ASKED:
            asked: dict[str, t.Any] = {"shared": shared, "resumable": resumable, "truth": truth}
            yield here, there, asked, judge(here, there, **asked)


def after(here: Copy, there: Copy, steps: t.Sequence[str]) -> tuple[Copy, Copy]:
    """The world when the steps were taken."""
    for step in steps:
        if step == REMOVE_SOURCE:
            here = Copy()
        elif step == REMOVE_DESTINATION:
            there = Copy()
        elif step in (POWER_OFF_SOURCE, RESUME_SOURCE):
            here = replace(here, form=OFF if step == POWER_OFF_SOURCE else ALIVE)
        elif step in (POWER_OFF_DESTINATION, RESUME_DESTINATION):
            there = replace(there, form=OFF if step == POWER_OFF_DESTINATION else ALIVE)
        elif step == RESUME_POSTCOPY:
            here, there = replace(here, form=OFF, left=True), replace(there, form=ALIVE, arrived=True)
        elif step == END:
            here = replace(here, journal=None)
        else:
            assert step == FINISH
            there = replace(there, journal=None)
    return here, there


# ---- what holds whatever there is


def test_a_copy_is_removed_only_when_another_is_there_to_stay() -> None:
    for here, there, asked, verdict in verdicts():
        removed = {REMOVE_SOURCE, REMOVE_DESTINATION} & set(verdict.steps)
        assert len(removed) < 2, (here, there, asked)
        if removed:
            left = after(here, there, verdict.steps)
            assert any(copy.form in (OFF, ALIVE) for copy in left), (here, there, asked)


def test_nothing_is_done_while_nobody_can_tell() -> None:
    for here, there, asked, verdict in verdicts():
        assert bool(verdict.truth) != verdict.undecided, (here, there, asked)
        if verdict.undecided:
            assert verdict.steps == (), (here, there, asked)
        assert verdict.why.endswith("."), verdict


def test_what_a_human_says_decides_whatever_is_unclear() -> None:
    for here, there in PAIRS:
        for shared, resumable in itertools.product((False, True), repeat=2):
            if not judge(here, there, shared=shared, resumable=resumable).undecided:
                continue
            for truth, chosen in ((SOURCE, here), (DESTINATION, there)):
                verdict = judge(here, there, shared=shared, resumable=resumable, truth=truth)
                assert verdict.truth == (truth if chosen.there else ""), (here, there, truth)
                assert bool(verdict.steps) == chosen.there, (here, there, truth)


def test_what_a_human_says_does_not_decide_against_what_is_clear() -> None:
    for here, there, asked, verdict in verdicts():
        clear = judge(here, there, shared=asked["shared"], resumable=asked["resumable"])
        if clear.truth and asked["truth"] not in ("", clear.truth) and RESUME_POSTCOPY not in clear.steps:
            assert verdict.undecided, (here, there, asked)


def test_the_second_run_finds_nothing_to_do() -> None:
    for here, there, asked, verdict in verdicts():
        if verdict.truth:
            again = judge(*after(here, there, verdict.steps), **asked)
            assert (again.steps, again.truth) == ((), verdict.truth), (here, there, asked)


def test_at_most_one_copy_runs_afterwards() -> None:
    for here, there, asked, verdict in verdicts():
        if verdict.truth:
            forms = [copy.form for copy in after(here, there, verdict.steps)]
            assert forms.count(ALIVE) <= 1, (here, there, asked)
            assert not {HELD, GIVING, TAKING} & set(forms), (here, there, asked)


def test_a_guest_goes_on_here_only_when_none_can_have_gone_on_there() -> None:
    for here, there, asked, verdict in verdicts():
        if RESUME_SOURCE in verdict.steps and not asked["truth"]:
            assert here.form == HELD, (here, there)
            assert there.form in (ABSENT, HELD), (here, there)


def test_a_guest_that_went_on_elsewhere_is_never_resumed() -> None:
    for here, there, asked, verdict in verdicts():
        if here.form == GIVING:
            assert RESUME_SOURCE not in verdict.steps, (there, asked)


def test_a_guest_that_is_alive_is_never_taken_without_a_word_from_a_human() -> None:
    for here, there, asked, verdict in verdicts():
        if not asked["truth"]:
            if here.form == ALIVE:
                assert REMOVE_SOURCE not in verdict.steps, (here, there)
            if there.form == ALIVE:
                assert REMOVE_DESTINATION not in verdict.steps, (here, there)


def test_saved_memory_is_never_taken_without_a_word_from_a_human() -> None:
    for here, there, asked, verdict in verdicts():
        if not asked["truth"]:
            assert not (here.saved and REMOVE_SOURCE in verdict.steps), (here, there)
            assert not (there.saved and REMOVE_DESTINATION in verdict.steps), (here, there)


def test_the_way_back_of_a_cold_move_is_left_alone() -> None:
    for here, there, asked, verdict in verdicts():
        if here.origin and there.form in (OFF, ALIVE) and asked["truth"] in ("", DESTINATION):
            assert verdict == judge(here, there, **asked), (here, there)
            assert REMOVE_SOURCE not in verdict.steps, (here, there, asked)


# ---- what failures look like


@pytest.mark.parametrize(
    ("here", "there", "steps"),
    [
        pytest.param(Copy(ALIVE), GONE, (), id="nothing is the matter"),
        pytest.param(GONE, Copy(ALIVE, arrived=True), (), id="it has moved"),
        pytest.param(Copy(ALIVE, journal=OURS), GONE, (END,), id="the link was cut, or the destination lost power"),
        pytest.param(Copy(OFF, journal=OURS), GONE, (END,), id="the source lost power, and is back"),
        pytest.param(GONE, Copy(ALIVE, arrived=True, journal=OURS), (FINISH,), id="the module died at the end"),
        pytest.param(GONE, Copy(OFF, journal=OURS), (FINISH,), id="and then the guest shut down"),
        pytest.param(Copy(HELD, journal=OURS), GONE, (RESUME_SOURCE, END), id="the source's libvirtd died at the end"),
        pytest.param(
            Copy(HELD, journal=OURS),
            Copy(ALIVE, arrived=True, journal=OURS),
            (REMOVE_SOURCE, FINISH),
            id="the source never heard that it runs there",
        ),
        pytest.param(
            Copy(HELD, journal=OURS),
            Copy(HELD),
            (REMOVE_DESTINATION, RESUME_SOURCE, END),
            id="it was handed to nobody",
        ),
        pytest.param(Copy(ALIVE, journal=OURS), Copy(HELD), (REMOVE_DESTINATION, END), id="one that never ran"),
        pytest.param(
            Copy(OFF, journal=OURS),
            Copy(ALIVE, journal=OURS),
            (REMOVE_SOURCE, FINISH),
            id="the source lost power before it heard",
        ),
        pytest.param(
            Copy(OFF, left=True), Copy(ALIVE, arrived=True), (REMOVE_SOURCE,), id="virsh migrate left a definition"
        ),
        pytest.param(Copy(OFF, left=True), Copy(OFF), (REMOVE_SOURCE,), id="and the guest has shut down since"),
        pytest.param(
            Copy(ALIVE, arrived=True), Copy(OFF, left=True), (REMOVE_DESTINATION,), id="it came back from there"
        ),
        pytest.param(
            Copy(GIVING, journal=OURS),
            Copy(TAKING, journal=OURS),
            (RESUME_POSTCOPY, REMOVE_SOURCE, FINISH),
            id="post-copy, link cut",
        ),
        pytest.param(
            Copy(OFF, left=True, journal=OURS),
            Copy(ALIVE, arrived=True, journal=OURS),
            (REMOVE_SOURCE, FINISH),
            id="post-copy that went on by itself",
        ),
    ],
)
def test_what_signs_tell_is_put_right(here: Copy, there: Copy, steps: tuple[str, ...]) -> None:
    verdict = judge(here, there, shared=True, resumable=True)
    assert not verdict.undecided
    assert verdict.steps == steps


@pytest.mark.parametrize(
    ("here", "there", "to_source", "to_destination"),
    [
        pytest.param(
            Copy(ALIVE), Copy(ALIVE, arrived=True), (REMOVE_DESTINATION,), (REMOVE_SOURCE,), id="it runs on both"
        ),
        pytest.param(
            Copy(ALIVE, journal=OURS),
            Copy(ALIVE, journal=OURS),
            (REMOVE_DESTINATION, END),
            (REMOVE_SOURCE, FINISH),
            id="both went on at the end of a migration",
        ),
        pytest.param(Copy(OFF), Copy(OFF), (REMOVE_DESTINATION,), (REMOVE_SOURCE,), id="off on both, by somebody"),
        pytest.param(
            Copy(OFF), Copy(ALIVE), (REMOVE_DESTINATION,), (REMOVE_SOURCE,), id="another tool's VM with its UUID"
        ),
        pytest.param(
            Copy(GIVING, journal=OURS), GONE, (POWER_OFF_SOURCE, END), (), id="post-copy, the destination lost power"
        ),
        pytest.param(
            GONE,
            Copy(TAKING, journal=OURS),
            (),
            (POWER_OFF_DESTINATION, FINISH),
            id="post-copy, the source lost power for good",
        ),
        pytest.param(
            Copy(OFF, journal=OURS),
            Copy(TAKING, journal=OURS),
            (REMOVE_DESTINATION, END),
            (POWER_OFF_DESTINATION, REMOVE_SOURCE, FINISH),
            id="post-copy, the source lost power and is back",
        ),
        pytest.param(
            Copy(HELD, journal=OURS),
            Copy(OFF, journal=OURS),
            (REMOVE_DESTINATION, RESUME_SOURCE, END),
            (REMOVE_SOURCE, FINISH),
            id="it may have run there",
        ),
        pytest.param(GONE, Copy(HELD), (), (RESUME_DESTINATION,), id="the only copy never ran"),
        pytest.param(
            Copy(OFF, saved=True),
            Copy(ALIVE, arrived=True),
            (REMOVE_DESTINATION,),
            (REMOVE_SOURCE,),
            id="its memory was saved here",
        ),
    ],
)
def test_what_no_sign_tells_is_asked(
    here: Copy, there: Copy, to_source: tuple[str, ...], to_destination: tuple[str, ...]
) -> None:
    verdict = judge(here, there, shared=True, resumable=True)
    assert verdict.undecided
    assert judge(here, there, shared=True, resumable=True, truth=SOURCE).steps == to_source
    assert judge(here, there, shared=True, resumable=True, truth=DESTINATION).steps == to_destination


def test_a_definition_beside_disks_of_its_own_may_have_run() -> None:
    here, there = Copy(ALIVE, journal=OURS), Copy(OFF, journal=OURS)
    assert judge(here, there, shared=True, resumable=True).steps == (REMOVE_DESTINATION, END)
    assert judge(here, there, shared=False, resumable=True).undecided


def test_a_broken_post_copy_is_given_up_when_a_human_says_so_or_libvirt_is_old() -> None:
    here, there = Copy(GIVING, journal=OURS), Copy(TAKING, journal=OURS)
    assert judge(here, there, shared=True, resumable=False).undecided
    given_up = (POWER_OFF_DESTINATION, REMOVE_SOURCE, FINISH)
    assert judge(here, there, shared=True, resumable=True, truth=DESTINATION).steps == given_up
    given_up = (REMOVE_DESTINATION, POWER_OFF_SOURCE, END)
    assert judge(here, there, shared=True, resumable=True, truth=SOURCE).steps == given_up


# ---- reading


def seen(state: int, reason: int, instance: Instance | None = None, *, saved: bool = False) -> Observation:
    return Observation("web1", "u", state, reason, saved, True, instance or Instance())


@pytest.mark.parametrize(
    ("state", "reason", "source", "job", "form", "moving"),
    [
        (RUNNING, 1, True, False, ALIVE, False),
        (RUNNING, 1, True, True, ALIVE, True),
        (RUNNING, 6, True, False, ALIVE, False),
        (PAUSED, 1, True, False, ALIVE, False),
        (PAUSED, 5, True, False, ALIVE, False),
        (PAUSED, 2, True, False, HELD, False),
        (PAUSED, 2, False, True, HELD, True),
        (PAUSED, 12, True, True, GIVING, True),
        (PAUSED, 13, True, True, GIVING, False),
        (RUNNING, 10, False, False, TAKING, False),
        (RUNNING, 11, False, True, TAKING, False),
        (PAUSED, 13, False, True, TAKING, False),
        (SHUTOFF, 1, True, False, OFF, False),
    ],
)
def test_libvirts_states_are_read(state: int, reason: int, source: bool, job: bool, form: str, moving: bool) -> None:
    copy = read(seen(state, reason), job=job, source=source)
    assert (copy.form, copy.moving) == (form, moving)


def test_signs_are_read() -> None:
    assert read(None, job=False, source=True) == GONE
    assert read(seen(SHUTOFF, 4), job=False, source=True).left
    assert read(seen(SHUTOFF, 5, saved=True), job=False, source=True).saved
    assert read(seen(RUNNING, 2), job=False, source=False).arrived
    assert read(seen(RUNNING, 1, Instance(journal=OURS)), job=False, source=True).journal == OURS
    cold = Journal("migrate", "2026-01-01T00:00:00Z", "kvm1", 7)
    assert read(seen(SHUTOFF, 1, Instance(journal=cold)), job=False, source=True).journal is None
    resized = Instance(marks=(Mark("resized", "2026-01-01T00:00:00Z"),))
    assert read(seen(SHUTOFF, 1, resized), job=False, source=True).origin
    assert not read(seen(RUNNING, 1, resized), job=False, source=True).origin
    assert recovery.ACTION == "recover"
