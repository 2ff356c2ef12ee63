# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Errors: sentences for people, codes for playbooks."""

from __future__ import annotations

import typing as t

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import errors
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError, Locked, Refused


def kinds(base: type[LifecycleError] = LifecycleError) -> t.Iterator[type[LifecycleError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def test_every_kind_has_a_code_of_its_own() -> None:
    assert sorted(kind.code for kind in kinds() if kind.__module__ == errors.__name__) == [
        "ambiguous",
        "busy",
        "cancelled",
        "denied",
        "failed",
        "in_use",
        "invalid",
        "locked",
        "no_space",
        "not_found",
        "refused",
        "timed_out",
        "unreachable",
        "unsupported",
    ]
    # What others make of them, for themselves, users know by the same code.
    assert not any("code" in vars(kind) for kind in kinds() if kind.__module__ != errors.__name__)


def test_the_way_out_is_part_of_the_sentence() -> None:
    assert str(Refused("VM web1 is PAUSED.", hint="Use state: running first.")) == (
        "VM web1 is PAUSED. Use state: running first."
    )
    assert str(Refused("VM web1 is PAUSED.")) == "VM web1 is PAUSED."


def test_details_are_kept_beside_the_sentence() -> None:
    error = Locked("VM web1 is locked.", since="2026-01-01T00:00:00Z", reason="audit")
    assert error.details == {"since": "2026-01-01T00:00:00Z", "reason": "audit"}
    assert "audit" not in str(error)
    assert isinstance(error, Refused)
