#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_origin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_origin
version_added: 0.1.0
short_description: Note where VMs are and whether they run, to bring them back later
description:
  - Writes into the metadata of a VM on which host it is and what its guest is doing, before it is moved away for a
    time. The note travels with the VM, and tells later where it belongs.
  - A note that is there already stays as it is, so that the first of several moves counts.
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
      - V(present) means that the VM has such a note, V(absent) that it has none.
    type: str
    choices: [present, absent]
    default: present
  reason:
    description:
      - Why it is moved, for people.
    type: str
    default: ""
seealso:
  - module: kvmops.lifecycle.vm_migrate
  - module: kvmops.lifecycle.vm_info
"""

EXAMPLES = r"""
- name: Note where these VMs belong
  kvmops.lifecycle.vm_origin:
    name: [web1, db1]
    reason: new memory on Friday

- name: They stay where they are now
  kvmops.lifecycle.vm_origin:
    name: [web1, db1]
    state: absent
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
        origin:
          description: The note; V(null) without one.
          type: dict
          returned: always
          contains:
            host:
              description: The host name of the KVM host that it was on, as libvirt tells it.
              type: str
              returned: always
              sample: kvm1
            since:
              description: When that was noted, in UTC.
              type: str
              returned: always
              sample: "2026-01-01T00:00:00Z"
            power:
              description: What the guest was doing, such as V(running), V(paused), V(suspended) or V(off).
              type: str
              returned: always
            reason:
              description: Why it was noted.
              type: str
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import stamp
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import demand
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.facts import condition
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Origin
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import check_text
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM gets its note, or loses it."""
    guest, _seen, state = vm.there()
    held = vm.instance.origin
    reason = check_text(context.params["reason"], what="reason")
    wanted: Origin | None = None
    if context.params["state"] == "present":
        now = stamp(context.clock.now())
        wanted = held or Origin(context.host.name, now, condition(state.condition), reason)
    action = "note_origin" if wanted else "forget_origin"
    demand(action, state, name=vm.name)
    steps = [] if wanted == held else [Step(action, lambda: guest.remember(replace(guest.recall(), origin=wanted)))]
    return Plan(
        before=_tell(held),
        after=_tell(wanted),
        steps=steps,
        action=action,
        figures={"origin": dict(vars(wanted)) if wanted else None},
    )


def _tell(origin: Origin | None) -> dict[str, object]:
    """For the diff: what is the same in check mode."""
    return {"origin": {"host": origin.host, "power": origin.power, "reason": origin.reason} if origin else None}


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "reason": {"type": "str", "default": ""},
        },
        decide,
    )


if __name__ == "__main__":
    main()
