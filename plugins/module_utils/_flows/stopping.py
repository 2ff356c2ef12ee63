# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Taking a VM's power on the way to something else, whatever its status is, with the options that vm_power has."""

from __future__ import annotations

import typing as t
from dataclasses import replace
from functools import partial

from .._core.plan import Step
from .._libvirt.power import Patience, Power
from .._model.power import route
from .._task import Context, Subject


def stop(context: Context, vm: Subject) -> list[Step]:
    """The steps that take a VM's power, if it has any. Saved memory stays; a paused guest cannot be asked."""
    _guest, _seen, state = vm.there()
    if state.condition == "suspended":
        return []
    return [Step(name, partial(_power(context, vm).operate, name)) for name in _operations(context, vm)]


def switch_off(context: Context, vm: Subject) -> dict[str, t.Any]:
    """Take a VM's power, and its saved memory with it; the figures of that."""
    figures: dict[str, t.Any] = {}
    for name in _operations(context, vm):
        figures.update(_power(context, vm).operate(name))
    return figures


def _operations(context: Context, vm: Subject) -> t.Sequence[str]:
    guest, _seen, state = vm.there()
    plain = replace(state, vm_state="active", marked=False, running="")
    force = context.params["force"] or state.condition in ("paused", "suspended")
    return route(plain, "stopped", name=guest.name, force=force).operations


def _power(context: Context, vm: Subject) -> Power:
    ask = context.params
    patience = Patience("auto", ask["shutdown_timeout"], ask["shutdown_retry_interval"])
    return Power(vm.made(), patience, context.clock)
