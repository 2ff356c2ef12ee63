# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which base images may go."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.purge import Cached, Purge, about_to_use, choose


def base(name: str, parent: str = "", idle: float = 1000, hosts: tuple[str, ...] = ("kvm1",)) -> Cached:
    return Cached(name, parent, 1, idle, hosts)


def chosen(*bases: Cached, older_than: float = 100, gone: t.Sequence[str] = (), **users: str) -> Purge:
    return choose(bases, users, older_than=older_than, host="kvm1", gone=gone)


def test_what_nobody_uses_goes_and_what_somebody_uses_stays() -> None:
    found = chosen(base("a"), base("b"), b="VM web1")
    assert found == Purge(("a",), {"b": "VM web1 uses it"}, ())


@pytest.mark.parametrize(("idle", "goes"), [(99.9, False), (100, True), (0, False)])
def test_what_was_used_lately_stays(idle: float, goes: bool) -> None:
    found = chosen(base("a", idle=idle))
    assert found.remove == (("a",) if goes else ())
    assert goes or found.keep == {"a": f"it was used {int(idle)} seconds ago"}


def test_what_another_host_has_used_stays_and_is_let_go_of() -> None:
    found = chosen(base("a", hosts=("kvm1", "kvm2")), base("b", hosts=("kvm2", "kvm3")))
    assert found == Purge((), {"a": "kvm2 may use it", "b": "kvm2, kvm3 may use it"}, ("a",))
    assert chosen(base("a", hosts=("kvm1", "kvm2")), gone=["kvm2"]).remove == ("a",)
    # The last one takes it away.
    assert chosen(base("a", hosts=())).remove == ("a",)


def test_what_a_kept_delta_lies_upon_stays_to_the_bottom() -> None:
    bases = [base("a"), base("b", "a"), base("c", "b"), base("d", "c"), base("e", "a")]
    found = chosen(*bases, c="VM web1")
    assert found.remove == ("d", "e")
    assert found.keep == {"c": "VM web1 uses it", "b": "c lies upon it", "a": "c lies upon it"}


@given(st.permutations("abcd"))
def test_none_goes_before_those_that_lie_upon_it(order: list[str]) -> None:
    parents = {"a": "", "b": "a", "c": "b", "d": "c"}
    found = chosen(*[base(name, parents[name]) for name in order])
    assert found.remove == ("d", "c", "b", "a")


def test_bases_that_lie_upon_each_other_are_no_trap() -> None:
    assert set(chosen(base("a", "b"), base("b", "a")).remove) == {"a", "b"}
    assert set(chosen(base("a", "b"), base("b", "a"), a="VM x").keep) == {"a", "b"}


@pytest.mark.parametrize(
    ("action", "storage", "known", "may"),
    [
        ("launch", "/s", "", True),
        ("launch", "/s", "/s/_base/ab.qcow2", False),
        ("launch", "/other", "", False),
        ("rebuild", "/s", "/s/_base/ab.qcow2", True),
        ("rebuild", None, "", True),
        ("delete", "/s", "/s/_base/ab.qcow2", False),
        ("snapshot", "/s", "", False),
    ],
)
def test_an_operation_that_is_not_finished_may_be_about_to_use_any_base(
    action: str, storage: str | None, known: str, may: bool
) -> None:
    assert about_to_use(action, storage, known, "/s") is may
