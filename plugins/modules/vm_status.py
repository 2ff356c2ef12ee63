#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_status."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_status
version_added: 0.1.0
short_description: Reset the status of VMs that are stuck
description:
  - Clears the journal of an operation that died and that nobody will finish, and sets or clears the status ERROR. It is
    Nova's C(reset-state), and the last resort. Running the task that died again finishes it, and is nearly always
    better.
  - It touches nothing but what the collection remembers of the VM. The guest, its definition and its disks stay as they
    are.
  - States that hold what is needed to leave them, such as SOFT_DELETED, are not forgotten. They show again when the
    status ERROR is cleared.
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
      - V(active) clears the status ERROR. The VM then has the status that libvirt tells, for example SHUTOFF.
      - V(error) sets the status ERROR. Until it is cleared, most modules refuse the VM.
      - Either clears the journal.
    type: str
    choices: [active, error]
    required: true
seealso:
  - module: kvmops.lifecycle.vm_info
"""

EXAMPLES = r"""
- name: The launch died with its host, and the disk was mended by hand
  kvmops.lifecycle.vm_status:
    name: web1
    state: active

- name: Nobody uses this VM before it was looked at
  kvmops.lifecycle.vm_status:
    name: web2
    state: error
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
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import status
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import demand
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Mark
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """What this VM's metadata shall forget or say."""
    guest, seen, state = vm.there()
    demand("reset_state", state, name=vm.name)
    held = seen.instance
    wanted = replace(held, journal=None).unmarked("error")
    if context.params["state"] == "error":
        since = next((mark.since for mark in held.marks if mark.state == "error"), stamp(context.clock.now()))
        wanted = wanted.marked(Mark("error", since))
    steps = []
    if wanted != held:
        steps.append(Step("reset_state", lambda: guest.remember(wanted)))
    reached = status.read(replace(seen, instance=wanted, running=None))
    journal = held.journal.tell() if held.journal else None
    before = {"status": state.status, "task_state": state.task_state, "journal": journal}
    after = {"status": reached.status, "task_state": reached.task_state, "journal": None}
    return Plan(before=before, after=after if steps else before, steps=steps, action="reset_state")


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            "state": {"type": "str", "choices": ["active", "error"], "required": True},
        },
        decide,
    )


if __name__ == "__main__":
    main()
