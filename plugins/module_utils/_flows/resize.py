# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Giving a VM another size (Nova: resize): with a restart and a second thought, or while it runs."""

from __future__ import annotations

from dataclasses import replace

from .._core.errors import Invalid, NotFound, Refused
from .._core.plan import Plan, Step
from .._libvirt.resizer import Resizer
from .._model import resize as rules
from .._model.actions import demand
from .._model.resize import Asked, Reshape
from .._task import Context, Side, Subject
from . import cold
from .inplace import RESIZE, Resizing
from .migrate import destination, find


def resize(context: Context, vm: Subject) -> Plan:
    """Give a VM the size that the task says, unless it has it; or finish what a run that died has begun."""
    asked = asked_size(context)
    if context.params["dest"]:
        there = destination(context)
        if there.host.name != context.host.name:
            find(context, vm, there)
            if vm.made().host is context.host:
                return _elsewhere(context, vm, there, asked)
            context = context.at(there)  # it is there already
    if vm.guest is None:
        raise NotFound(f"There is no VM with the name or UUID {vm.name!r} on {context.host.name}.", name=vm.name)
    if context.params["hotplug"]:
        return _Plugging(context, vm, asked).plan()
    return Resizing(context, vm, asked).plan()


def _elsewhere(context: Context, vm: Subject, there: Side, asked: Asked) -> Plan:
    """Give a VM another size and another host."""
    if context.params["hotplug"]:
        raise Invalid("A VM that moves is stopped: there is nothing to plug into.", hint="Leave out hotplug or dest.")
    work = Resizing(context, vm, asked)
    _domain, _sizes, shape = work.look()
    moved = work.record.shape if work.record else None
    if moved and (moved.vcpus, moved.memory, moved.flavor) != (shape.vcpus, shape.memory, shape.flavor):
        demand(RESIZE, work.state, name=vm.name)
    return cold.move(context, vm, there, shape)


def asked_size(context: Context) -> Asked:
    """What the task says.

    :raises Invalid: Nothing.
    """
    flavor = context.params["flavor"] or {}
    asked = Asked(**{key: value for key, value in flavor.items() if key != "ephemeral"})
    if flavor.get("ephemeral") is not None:
        asked = replace(asked, ephemeral=tuple(flavor["ephemeral"]))
    if replace(asked, name=None) == Asked():
        raise Invalid("The flavor says no size.", hint="Say at least one of vcpus, memory, root, ephemeral and swap.")
    return asked


class _Plugging(Resizing):
    """More for one VM that runs: nothing is restarted, and there is nothing to confirm."""

    def plan(self) -> Plan:
        """What there is to do."""
        name, instance = self.guest.name, self.seen.instance
        domain, sizes, shape = self.look()
        before = {**self.as_it_is(), "flavor": rules.tell_sizes(domain, instance.flavor, sizes)}
        known = instance.flavor is None or replace(instance.flavor, name="") == replace(
            shape.flavor or instance.flavor, name=""
        )
        if not rules.changes(domain, shape) and known:
            return Plan(before=before, after=before)
        demand(RESIZE, self.state, name=name)
        if self.state.condition != "running":
            raise Refused(
                f"VM {name} is {self.state.status}: there is no running guest that could be given more.",
                hint="Leave out hotplug.",
                status=self.state.status,
            )
        plug = rules.plugging(self.guest.xml(inactive=True), shape, name=name)
        resizer = Resizer(self.guest, self.context.clock)
        steps = []
        if plug.vcpus is not None:
            steps.append(Step("plug_vcpus", lambda: resizer.set_vcpus(plug.vcpus or 0)))
        if plug.balloon is not None:
            steps.append(Step("give_memory", lambda: resizer.set_memory(plug.balloon or 0)))
        if plug.module is not None:
            steps.append(Step("plug_memory", lambda: self.guest.attach(rules.module_element(plug))))
        if shape.grown:
            steps.append(Step("grow_disks", lambda: self._grow(shape)))
        if shape.flavor:
            steps.append(Step("remember", lambda: self._remember(shape)))
        after = {**before, "flavor": rules.tell_after(before["flavor"], shape, domain)}
        return Plan(before=before, after=after, steps=steps, action=RESIZE)

    def _grow(self, shape: Reshape) -> None:
        for growth in shape.grown:
            self.guest.resize_disk(growth.target, growth.size)

    def _remember(self, shape: Reshape) -> None:
        self.guest.remember(replace(self.guest.recall(), flavor=shape.flavor))
