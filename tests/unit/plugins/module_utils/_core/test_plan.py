# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans: what changes, and what is said of it, comes from one object."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step

VALUES = st.dictionaries(st.text(max_size=3), st.integers() | st.none() | st.text(max_size=3), max_size=3)


def step(name: str = "start") -> Step:
    return Step(name, lambda: None)


@given(VALUES, VALUES)
def test_a_plan_that_changes_something_needs_steps(before: dict[str, object], after: dict[str, object]) -> None:
    if before == after:
        assert not Plan(before, after).changed
    else:
        with pytest.raises(ValueError, match="needs steps"):
            Plan(before, after)
    assert Plan(before, after, [step()]).changed


def test_steps_that_end_where_they_began_are_a_change_all_the_same() -> None:
    reboot = Plan({"status": "ACTIVE"}, {"status": "ACTIVE"}, [step("shut_down"), step()])
    assert reboot.changed


def test_the_diff_is_what_ansible_shows() -> None:
    plan = Plan({"status": "SHUTOFF"}, {"status": "ACTIVE"}, [step()])
    assert plan.diff("web1") == {
        "before": {"status": "SHUTOFF"},
        "after": {"status": "ACTIVE"},
        "before_header": "web1",
        "after_header": "web1",
    }


def test_the_diff_is_a_copy() -> None:
    before = {"status": "SHUTOFF"}
    plan = Plan(before, before)
    plan.diff("web1")["before"]["status"] = "ERROR"
    assert before == {"status": "SHUTOFF"}
