# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal of an operation in progress."""

from __future__ import annotations

import os
import platform
import typing as t
from dataclasses import replace
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
JSON = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text(max_size=3), max_size=2))


def test_a_journal_begins_as_this_process_before_its_first_step() -> None:
    journal = Journal.begin("delete", NOW, power_before="running")
    assert journal.tell() == {
        "action": "delete",
        "since": "2026-01-02T03:04:05Z",
        "node": platform.node(),
        "pid": os.getpid(),
        "step": "",
    }
    assert journal.data == {"power_before": "running"}
    assert journal.ours
    assert Journal.begin("migrate", NOW, dest="qemu+tls://kvm2/system").tell()["dest"] == "qemu+tls://kvm2/system"


def test_a_step_adds_to_what_is_known_and_changes_nothing_else() -> None:
    begun = Journal.begin("shelve", NOW, a=1, b=1)
    later = begun.at("save", b=2).at("undefine", c=3)
    assert later == replace(begun, step="undefine", data={"a": 1, "b": 2, "c": 3})
    assert (begun.step, begun.data) == ("", {"a": 1, "b": 1})


def test_a_journal_of_another_machine_is_not_ours() -> None:
    assert not replace(Journal.begin("delete", NOW), node="elsewhere").ours


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_data_come_back_as_they_were(data: dict[str, t.Any]) -> None:
    text = replace(Journal.begin("delete", NOW), data=data).dump_data()
    assert text.isascii()
    assert Journal.load_data(text) == data


def test_no_text_is_no_data() -> None:
    assert Journal.load_data("") == {}


@pytest.mark.parametrize("text", ["{", "[]", "null", "1", '"x"', "{'a': 1}", " ", "\0", "{} {}", "[" * 100_000])
def test_garbage_is_refused_as_invalid(text: str) -> None:
    with pytest.raises(Invalid, match="journal in the VM's metadata cannot be read"):
        Journal.load_data(text)
