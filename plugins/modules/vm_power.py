#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_power."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_power
version_added: 0.1.0
short_description: Run, stop, pause, suspend and reboot VMs
description:
  - Brings VMs that libvirt knows, however they were made, into a power state, and returns when they are in it.
  - One task handles many VMs concurrently.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.override_lock
attributes:
  idempotent:
    support: partial
    details:
      - Every state but V(rebooted) is idempotent; a reboot is done each time.
options:
  state:
    description:
      - V(running) boots a stopped VM, resumes a paused one, restores the memory of a suspended one and wakes one that
        put itself to sleep.
      - V(stopped) asks the guest to shut down, again every O(shutdown_retry_interval) seconds, and pulls the plug after
        O(shutdown_timeout) seconds. A paused or suspended VM is resumed for that, unless O(force=true). It returns when
        the VM is off; a VM that is still shutting down is not.
      - V(paused) stops the virtual CPUs; memory stays. A stopped or suspended VM is started for that, paused.
      - V(suspended) writes memory to disk (libvirt's managed save) and ends QEMU; V(running) restores it.
      - V(rebooted) reboots, see O(reboot).
    type: str
    choices: [running, stopped, paused, suspended, rebooted]
    required: true
  reboot:
    description:
      - V(soft) asks the guest to shut down as for O(state=stopped) and boots it again. If it does not go down within
        O(shutdown_timeout) seconds, it becomes a hard reboot; RV(vms[].figures.shutdown) tells.
      - V(hard) pulls the plug and boots again. It also boots a stopped VM, and takes a VM out of the status ERROR.
      - Either way the VM gets a new QEMU process and so the changes of its definition that were waiting for a boot.
    type: str
    choices: [soft, hard]
    default: soft
  force:
    description:
      - Do not ask the guest. O(state=stopped) pulls the plug at once, and of a suspended VM discards the saved memory.
        O(reboot=hard) of a suspended VM discards it as well.
    type: bool
    default: false
  shutdown_mode:
    description:
      - How the guest is asked to shut down. V(acpi) presses the power button, V(agent) uses the QEMU guest agent,
        V(auto) lets libvirt choose.
    type: str
    choices: [auto, acpi, agent]
    default: auto
  shutdown_timeout:
    description:
      - Seconds until a guest that does not shut down loses its power. V(0) does not wait.
    type: int
    default: 60
  shutdown_retry_interval:
    description:
      - Seconds after which the guest is asked again; many ignore the power button while they boot.
    type: int
    default: 10
  wait_timeout:
    description:
      - Seconds that a rebooted guest has until its agent answers. A VM whose agent did not answer before the reboot is
        not waited for.
    type: int
    default: 120
seealso:
  - module: kvmops.lifecycle.vm
  - module: kvmops.lifecycle.vm_info
"""

EXAMPLES = r"""
- name: Three VMs run
  kvmops.lifecycle.vm_power:
    name: [web1, web2, db1]
    state: running

- name: The database shuts down in its own time, at most ten minutes
  kvmops.lifecycle.vm_power:
    name: db1
    state: stopped
    shutdown_timeout: 600

- name: Reboot, and see that the guest came back
  kvmops.lifecycle.vm_power:
    name: web1
    state: rebooted
    wait_timeout: 300
  register: reboot

- name: Memory goes to disk
  kvmops.lifecycle.vm_power:
    name: web2
    state: suspended
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
      sample: [shut_down, start, prove]
    figures:
      description: Details of what was done.
      type: dict
      returned: when there is such a VM
      contains:
        shutdown:
          description: V(guest) when the guest shut down by itself, V(forced) when the plug was pulled.
          type: str
          returned: when it was shut down
        shutdown_seconds:
          description: How long it took.
          type: float
          returned: when the guest was asked
        shutdown_requests:
          description: How often the guest was asked.
          type: int
          returned: when the guest was asked
        shutdown_refusals:
          description: Why it could not be asked.
          type: list
          elements: str
          returned: when that was so and the plug was pulled
        restored_memory:
          description: Whether a managed save image was restored.
          type: bool
          returned: when it was started
        guest_answered:
          description: Whether the guest agent answered after the reboot; V(false) when there was none before it.
          type: bool
          returned: when it was rebooted
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

from functools import partial

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, override_lock, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.power import Patience, Power
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.power import route
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM gets to the state asked for."""
    guest, seen, state = vm.there()
    ask = context.params
    way = route(state, ask["state"], name=vm.name, reboot=ask["reboot"], force=ask["force"])
    if not seen.persistent and {"shut_down", "power_off", "wait_off", "save"} & set(way.operations):
        raise Refused(
            f"VM {vm.name} is transient: without power it would be gone from libvirt.",
            hint="Remove it with the module vm and state: absent, or define it first.",
            status=state.status,
        )
    patience = Patience(
        ask["shutdown_mode"], ask["shutdown_timeout"], ask["shutdown_retry_interval"], ask["wait_timeout"]
    )
    power = Power(guest, patience, context.clock)
    steps = [Step(operation, partial(power.operate, operation)) for operation in way.operations]
    if way.clears_error:
        steps.append(Step("clear_error", lambda: guest.remember(guest.recall().unmarked("error"))))
    before = {"status": state.status, "power_state": state.power_state}
    after = {"status": way.status, "power_state": way.power_state} if steps else before
    return Plan(before=before, after=after, steps=steps, action=way.action)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            **override_lock(),
            "state": {
                "type": "str",
                "choices": ["running", "stopped", "paused", "suspended", "rebooted"],
                "required": True,
            },
            "reboot": {"type": "str", "choices": ["soft", "hard"], "default": "soft"},
            "force": {"type": "bool", "default": False},
            "shutdown_mode": {"type": "str", "choices": ["auto", "acpi", "agent"], "default": "auto"},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
            "wait_timeout": {"type": "int", "default": 120},
        },
        decide,
    )


if __name__ == "__main__":
    main()
