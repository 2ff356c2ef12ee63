#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_lock."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_lock
version_added: 0.1.0
short_description: Lock VMs against changes, with a reason
description:
  - A locked VM is refused by every module of this collection that changes it, with the reason, unless
    its option C(override_lock) is V(true).
  - The lock is kept in the VM's own metadata, so it travels with the VM. It does not bind other tools, such as
    C(virsh).
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
options:
  state:
    description:
      - Whether the VM is locked.
    type: str
    choices: [locked, unlocked]
    default: locked
  reason:
    description:
      - Why, for those who are refused. When it is not given, the reason of a VM that is locked already stays.
    type: str
seealso:
  - module: kvmops.lifecycle.vm_power
  - module: kvmops.lifecycle.vm
"""

EXAMPLES = r"""
- name: Nobody touches the database during the audit
  kvmops.lifecycle.vm_lock:
    name: db1
    state: locked
    reason: audit until Friday, ask Ada

- name: The audit is over
  kvmops.lifecycle.vm_lock:
    name: db1
    state: unlocked
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import stamp
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import demand
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Lock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import check_text
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM gets its lock, or loses it."""
    guest, _seen, state = vm.there()
    held = vm.instance.lock
    reason = context.params["reason"]
    if reason is not None:
        check_text(reason, what="reason")
    wanted = None
    if context.params["state"] == "locked":
        wanted = held or Lock(since=stamp(context.clock.now()), reason=reason or "")
        if reason is not None:
            wanted = replace(wanted, reason=reason)
    action = "lock" if wanted else "unlock"
    demand(action, state, name=vm.name)
    steps = [] if wanted == held else [Step(action, lambda: guest.remember(replace(guest.recall(), lock=wanted)))]
    return Plan(before=_tell(held), after=_tell(wanted) if steps else _tell(held), steps=steps, action=action)


def _tell(lock: Lock | None) -> dict[str, object]:
    return {"locked": lock is not None, "reason": lock.reason if lock else None}


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            "state": {"type": "str", "choices": ["locked", "unlocked"], "default": "locked"},
            "reason": {"type": "str"},
        },
        decide,
    )


if __name__ == "__main__":
    main()
