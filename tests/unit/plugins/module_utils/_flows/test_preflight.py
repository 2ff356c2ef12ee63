# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of findings, and of what libvirt says of VMs that migrate."""

from __future__ import annotations

import typing as t
from types import SimpleNamespace

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.preflight import demand
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.migrations import IN, OUT, moving
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.preflight import BLOCKER, WARNING, Finding

NO_ROOM = Finding("no_room", BLOCKER, "The disks need more.", "Make room there.")
OLDER = Finding("libvirt_older", WARNING, "libvirt is older.", "Update it.")


def test_a_refusal_has_all_findings_and_says_those_that_stand_in_the_way() -> None:
    snapshots = Finding("has_snapshots", BLOCKER, "There are snapshots.", "Make room there.")
    with pytest.raises(Refused) as raised:
        demand([NO_ROOM, snapshots, OLDER], "web1")
    assert str(raised.value) == ("VM web1 cannot be moved: The disks need more. There are snapshots. Make room there.")
    assert [each["code"] for each in raised.value.details["findings"]] == ["no_room", "has_snapshots", "libvirt_older"]


def test_warnings_stand_in_no_way() -> None:
    demand([OLDER], "web1")
    demand([], "web1")


def guest(answer: t.Any) -> t.Any:
    """A VM whose job is that, or whose libvirt raises that error."""

    def job() -> dict[str, t.Any]:
        if isinstance(answer, libvirt.libvirtError):
            raise answer
        return t.cast("dict[str, t.Any]", answer)

    return SimpleNamespace(name="web1", domain=SimpleNamespace(jobStats=job))


def error(code: int) -> libvirt.libvirtError:
    """What libvirt raises."""
    exc = libvirt.libvirtError("no")
    exc.err = (code, 10, "no", libvirt.VIR_ERR_ERROR, None, None, None, 0, 0)
    return exc


def test_what_a_vm_does_is_known_by_its_job() -> None:
    unbounded, none = libvirt.VIR_DOMAIN_JOB_UNBOUNDED, libvirt.VIR_DOMAIN_JOB_NONE
    leaves = guest({"type": unbounded, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT})
    between = guest({"type": unbounded})
    comes = guest(error(libvirt.VIR_ERR_OPERATION_UNSUPPORTED))
    others = [
        guest({"type": none}),
        guest({"type": unbounded, "operation": libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}),
        guest(error(libvirt.VIR_ERR_OPERATION_INVALID)),  # it is off meanwhile
        guest(error(libvirt.VIR_ERR_NO_DOMAIN)),
    ]
    found, silent = moving([leaves, *others, between, comes])
    assert [(each.guest, each.direction) for each in found] == [(leaves, OUT), (between, OUT), (comes, IN)]
    assert silent == []
