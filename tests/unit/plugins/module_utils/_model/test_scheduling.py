# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts in and out of scheduling: what is kept of it, and whose reason counts."""

from __future__ import annotations

import json

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.scheduling import (
    Scheduling,
    disable,
    dump,
    enable,
    load,
    unknown,
)

SINCE = "2026-01-01T00:00:00Z"
OURS = Scheduling(False, "memory", SINCE, "ada@kvm1")
DAMAGED = unknown("the file is damaged.")


@pytest.mark.parametrize("kept", [OURS, Scheduling(), Scheduling(False), Scheduling(False, 'größe "\n')])
def test_what_is_kept_is_read_back(kept: Scheduling) -> None:
    assert load(dump(kept), "/f") == kept


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "enabled": "no"}', "[" * 9999])
def test_a_damaged_file_means_disabled_and_says_so(text: str) -> None:
    found = load(text, "/var/f")
    assert (found.enabled, found.known, found.reason) == (False, False, "/var/f is damaged.")


def test_a_file_of_another_version_means_disabled_even_if_it_says_otherwise() -> None:
    found = load(json.dumps({"schema": 2, "enabled": True}), "/f")
    assert (found.enabled, found.known) == (False, False)
    assert "another version" in found.reason


@pytest.mark.parametrize(
    ("found", "only", "wanted"),
    [
        (Scheduling(), None, Scheduling()),
        (Scheduling(), "memory", Scheduling()),
        (OURS, None, Scheduling()),
        (OURS, "memory", Scheduling()),
        (OURS, "fans", OURS),
        (OURS, "", OURS),
        (DAMAGED, "memory", DAMAGED),
        (DAMAGED, None, Scheduling()),
    ],
)
def test_a_host_is_enabled_unless_another_has_a_reason(found: Scheduling, only: str | None, wanted: Scheduling) -> None:
    assert enable(found, only) == wanted


NEW = Scheduling(False, "fans", "later", "bob@kvm1")


@pytest.mark.parametrize(
    ("found", "only", "wanted"),
    [
        (Scheduling(), None, NEW),
        (Scheduling(), "memory", NEW),
        (OURS, None, OURS),
        (OURS, "disk", OURS),
        (OURS, "memory", NEW),
        (Scheduling(False, "fans", SINCE, "ada"), "fans", Scheduling(False, "fans", SINCE, "ada")),
        (DAMAGED, None, NEW),
        (DAMAGED, "memory", NEW),
    ],
)
def test_who_disabled_a_host_first_has_the_say(found: Scheduling, only: str | None, wanted: Scheduling) -> None:
    assert disable(found, "fans", only, since="later", by="bob@kvm1") == wanted
