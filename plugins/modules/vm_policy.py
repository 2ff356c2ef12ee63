#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_policy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_policy
version_added: 0.1.0
short_description: Say what shall become of VMs when their host is emptied, or dies
description:
  - Writes into the metadata of a VM how it is moved when its host is emptied for maintenance, how early it is brought
    back when its host died, and which VMs it belongs with, or apart from.
  - It is what planners look at. A task that moves a VM by name is not bound by it.
  - Options that the task does not give stay as they are.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.override_lock
options:
  state:
    description:
      - V(present) means that the VM has what the other options say, V(absent) that nothing of it is remembered.
    type: str
    choices: [present, absent]
    default: present
  strategy:
    description:
      - What becomes of the VM when its host is emptied. With V(live) it is moved while it runs; with V(cold) it is
        stopped, moved and started there; with V(stop) it is stopped, and started again when the host is back; with
        V(leave) nobody touches it.
      - V(default) is what the task that empties the host says.
    type: str
    choices: [default, live, cold, stop, leave]
  priority:
    description:
      - The VM with the higher number is brought back first from a host that died. VMs have V(0) unless told otherwise.
    type: int
  groups:
    description:
      - All groups that the VM is in. V([]) takes it out of all.
      - A group is what has the same name on VMs of any host. Its policy should be the same on all of them.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the group.
        type: str
        required: true
      policy:
        description:
          - With V(affinity) the VMs of the group are on one host, with V(anti-affinity) no two of them are. The soft
            ones are kept where that is possible.
        type: str
        choices: [affinity, anti-affinity, soft-affinity, soft-anti-affinity]
        required: true
seealso:
  - module: kvmops.lifecycle.vm_info
"""

EXAMPLES = r"""
- name: The two databases are never on the same host, and come back first
  kvmops.lifecycle.vm_policy:
    name: [db1, db2]
    priority: 100
    groups:
      - {name: db, policy: anti-affinity}

- name: A test machine may be stopped for the time of a maintenance
  kvmops.lifecycle.vm_policy:
    name: test1
    strategy: stop
"""

RETURN = r"""
vms:
  description: One entry a VM, in the order of O(name).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The VM's name.
      type: str
      returned: always
      sample: web1
    uuid:
      description: Its UUID.
      type: str
      returned: when there is such a VM
    host:
      description: The host name of the KVM host, as libvirt tells it.
      type: str
      returned: when there is such a VM
    status:
      description: Its status in Nova's words; in check mode, the one it would have.
      type: str
      returned: when there is such a VM
      sample: ACTIVE
    power_state:
      description: What the hypervisor tells, in Nova's words.
      type: str
      returned: when there is such a VM
      sample: RUNNING
    task_state:
      description: The transition under way in another process; empty when there is none.
      type: str
      returned: when there is such a VM
    changed:
      description: Whether this VM was changed.
      type: bool
      returned: always
    steps:
      description: What was done; in check mode, what would be.
      type: list
      elements: str
      returned: when there is such a VM
    figures:
      description: Details.
      type: dict
      returned: when there is such a VM
      contains:
        policy:
          description: What is remembered; V(null) when nothing is.
          type: dict
          returned: always
          contains:
            strategy:
              description: Like O(strategy); empty for what the task says that empties the host.
              type: str
              returned: always
            priority:
              description: Like O(priority).
              type: int
              returned: always
            groups:
              description: Like O(groups).
              type: list
              elements: dict
              returned: always
    seconds:
      description: How long this VM took.
      type: float
      returned: when it did not fail
    failed:
      description: That this VM failed.
      type: bool
      returned: when it did
    msg:
      description: What was being done, what went wrong, and the way out.
      type: str
      returned: when it failed
    code:
      description: >-
        The kind of failure: V(invalid), V(not_found), V(ambiguous), V(refused), V(locked), V(busy), V(timed_out),
        V(unreachable), V(denied), V(no_space), V(unsupported) or V(failed).
      type: str
      returned: when it failed
"""

from dataclasses import replace

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    Spec,
    connection,
    override_lock,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import demand
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    GROUP_POLICIES,
    STRATEGIES,
    Group,
    Policy,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import check_text
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject

GROUP: Spec = {
    "name": {"type": "str", "required": True},
    "policy": {"type": "str", "choices": list(GROUP_POLICIES), "required": True},
}


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM gets its policy."""
    guest, _seen, state = vm.there()
    held = vm.instance.policy
    wanted = _wanted(context, held)
    demand("set_policy", state, name=vm.name)

    def put() -> None:
        guest.remember(replace(guest.recall(), policy=wanted))

    steps = [] if wanted == held else [Step("set_policy", put)]
    return Plan(
        before={"policy": held.tell() if held else None},
        after={"policy": wanted.tell() if wanted else None},
        steps=steps,
        action="set_policy",
        figures={"policy": wanted.tell() if wanted else None},
    )


def _wanted(context: Context, held: Policy | None) -> Policy | None:
    """What the VM shall have. A policy that says nothing is none."""
    ask = context.params
    if ask["state"] == "absent":
        return None
    wanted = held or Policy()
    if ask["strategy"] is not None:
        wanted = replace(wanted, strategy="" if ask["strategy"] == "default" else ask["strategy"])
    if ask["priority"] is not None:
        wanted = replace(wanted, priority=ask["priority"])
    if ask["groups"] is not None:
        names = [check_text(group["name"], what="groups.name", lines=False) for group in ask["groups"]]
        if len(set(names)) < len(names) or not all(names):
            raise Invalid("Two of groups have the same name, or one has none.", hint="Name each group once.")
        wanted = replace(wanted, groups=tuple(Group(**group) for group in ask["groups"]))
    return None if wanted == Policy() else wanted


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            **override_lock(),
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "strategy": {"type": "str", "choices": ["default", *STRATEGIES]},
            "priority": {"type": "int"},
            "groups": {"type": "list", "elements": "dict", "options": GROUP},
        },
        decide,
    )


if __name__ == "__main__":
    main()
