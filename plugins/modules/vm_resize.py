#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_resize."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_resize
version_added: 0.1.0
short_description: Give VMs another size, with a second thought
description:
  - Gives a VM other CPUs, memory and disk sizes. It is stopped, defined with the new size and started if it ran. Then
    it has the status VERIFY_RESIZE until the user says O(state=confirmed) or O(state=reverted).
  - A disk that grows gets a file over it and is not touched before the resize is confirmed. So O(state=reverted) gives
    the old definition and the old disks back, to the bit. What was written to disks that grew is lost then; to all
    others, nothing is. Confirming merges these files while the guest runs, without a pause.
  - With O(dest) the VM moves to another host as well, while it is off. What it was stays where it is, defined, off and
    with its disks, until the user confirms or reverts, which can be done on either host.
  - With O(hotplug=true) a running guest is given more at once, as far as it allows; then there is nothing to confirm.
  - A disk cannot shrink. CPUs and memory can, and a swap disk is made anew.
  - If the module is killed, the same task finishes what was begun. If the VM does not run with the new size, it has the
    old one again and is started; the task fails and says so.
  - "VMs may be ACTIVE or SHUTOFF. They need not have been launched by this collection; then only CPUs, memory and the
    root disk can change. Disks that grow must be files."
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.override_lock
  - kvmops.lifecycle._options.destination
  - kvmops.lifecycle._options.placement
attributes:
  idempotent:
    support: full
requirements:
  - qemu-img
options:
  name:
    description:
      - Names or UUIDs of VMs.
      - With O(state=confirmed) it may be left out; then it is about all VMs of the host that wait for it.
    type: list
    elements: str
    aliases: [names]
  concurrency:
    description:
      - How many VMs are handled at the same time.
    type: int
    default: 5
  state:
    description:
      - V(resized) is a VM of O(flavor), whether that was confirmed or not.
      - V(confirmed) is a VM that does not wait for that any more; the way back is gone.
      - V(reverted) is the same, with the size that it had.
    type: str
    choices: [resized, confirmed, reverted]
    default: resized
  flavor:
    description:
      - The size. What is not said stays as it is.
    type: dict
    suboptions:
      name:
        description: A label.
        type: str
      vcpus:
        description: Virtual CPUs. The topology of CPUs in the definition is fitted to it.
        type: int
      memory:
        description: Memory in MiB.
        type: int
      root:
        description: The root disk in GiB; V(0) leaves it.
        type: int
      ephemeral:
        description: Extra disks, in GiB each. They can grow and become more.
        type: list
        elements: int
      swap:
        description: A disk for swap, in MiB; V(0) means none. One of another size is a new one, and empty.
        type: int
  hotplug:
    description:
      - Give a running guest more without a restart. It is refused, before anything is changed, if that is less of
        something, more than its definition allows, or about disks that come or go.
    type: bool
    default: false
  overcommit:
    description:
      - With O(dest), move the VM also where there is no room for its disks once they are full.
    type: bool
    default: false
  origin:
    description:
      - With O(dest), the URI by which that host reaches the libvirtd of the host that the VM leaves, to confirm or to
        revert from there. The default is that host's name, reached as O(dest) is.
    type: str
  older_than:
    description:
      - With O(state=confirmed), only VMs that wait for at least so many seconds. A timer that confirms what nobody has
        reverted needs no more.
    type: int
    default: 0
  wait_for:
    description:
      - When a VM that is started counts as running. V(running) means that QEMU runs two seconds later, V(agent) that
        the guest agent has opened its channel.
    type: str
    choices: [running, agent]
    default: running
  wait_timeout:
    description:
      - Seconds that the agent has with O(wait_for=agent).
    type: int
    default: 120
  force:
    description:
      - Pull the plug at once, rather than to ask the guest to shut down.
    type: bool
    default: false
  shutdown_timeout:
    description:
      - Seconds until a guest that does not shut down loses its power.
    type: int
    default: 60
  shutdown_retry_interval:
    description:
      - Seconds after which the guest is asked to shut down again.
    type: int
    default: 10
seealso:
  - module: kvmops.lifecycle.vm
  - module: kvmops.lifecycle.vm_info
"""

EXAMPLES = r"""
- name: Twice the memory and a larger disk; as it was before if it does not come up
  kvmops.lifecycle.vm_resize:
    name: web1
    flavor:
      memory: 4096
      root: 40
    wait_for: agent

- name: It is well so
  kvmops.lifecycle.vm_resize:
    name: web1
    state: confirmed

- name: It is not
  kvmops.lifecycle.vm_resize:
    name: web1
    state: reverted

- name: More CPUs at once, without a restart
  kvmops.lifecycle.vm_resize:
    name: db1
    flavor:
      vcpus: 8
    hotplug: true

- name: Confirm what nobody has reverted for a day
  kvmops.lifecycle.vm_resize:
    state: confirmed
    older_than: 86400

- name: Larger, and on a host that has room for it
  kvmops.lifecycle.vm_resize:
    name: db1
    flavor:
      memory: 65536
    dest: kvm2.example.com
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
      sample: VERIFY_RESIZE
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
      sample: [stop, stage, swap, start]
    figures:
      description: Details of what was done.
      type: dict
      returned: when there is such a VM
      contains:
        resize:
          description: What waits or waited to be confirmed, as RV(kvmops.lifecycle.vm_info#module:vms[].resize).
          type: dict
          returned: when there is or was one
        since:
          description: Since when it waits.
          type: str
          returned: when that is not long enough for O(older_than)
        method:
          description: How it moved, V(cold) or V(offline).
          type: str
          returned: with O(dest), when it moved
        source:
          description: The host name of the KVM host that it left.
          type: str
          returned: with O(dest), when it moved
        dest:
          description: The host name of the one it went to.
          type: str
          returned: with O(dest), when it moved
        disks:
          description: >-
            How each disk went, by target. It is V(shared), V(copied), V(network), or V(empty) for a drive without a
            medium.
          type: dict
          returned: with O(dest), when it moved
        sent_bytes:
          description: How much of its disks was carried over; holes are not.
          type: int
          returned: with O(dest), when it moved, and not all of its disks were shared
        bases_sent_bytes:
          description: How much of base images was carried over, that the destination did not have.
          type: int
          returned: with O(dest), when it moved, and not all of its disks were shared
        kept_disks:
          description: Files on the host that it left which are kept, each with the reason.
          type: dict
          returned: when it had moved and was confirmed
        merged:
          description: The disks that became what was written to them since the resize, by target.
          type: list
          elements: str
          returned: when disks had grown and it was confirmed
        removed_files:
          description: Files that were removed.
          type: list
          elements: str
          returned: when it was confirmed or reverted
        start_seconds:
          description: How long it took until the VM ran.
          type: float
          returned: when it was started
        shutdown:
          description: V(guest) when the guest shut down by itself, V(forced) when the plug was pulled.
          type: str
          returned: when it was shut down
        shutdown_seconds:
          description: How long it took.
          type: float
          returned: when the guest was asked to shut down
        shutdown_requests:
          description: How often the guest was asked.
          type: int
          returned: when the guest was asked to shut down
        shutdown_refusals:
          description: Why it could not be asked.
          type: list
          elements: str
          returned: when that was so and the plug was pulled
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    connection,
    destination,
    override_lock,
    placement,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.cold import confirm, revert, waits
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.resize import resize
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM becomes what is asked."""
    return {"resized": resize, "confirmed": confirm, "reverted": revert}[context.params["state"]](context, vm)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(required=False),
            **override_lock(),
            **destination(),
            **placement(),
            "state": {"type": "str", "choices": ["resized", "confirmed", "reverted"], "default": "resized"},
            "flavor": {
                "type": "dict",
                "options": {
                    "name": {"type": "str"},
                    "vcpus": {"type": "int"},
                    "memory": {"type": "int"},
                    "root": {"type": "int"},
                    "ephemeral": {"type": "list", "elements": "int"},
                    "swap": {"type": "int"},
                },
            },
            "hotplug": {"type": "bool", "default": False},
            "overcommit": {"type": "bool", "default": False},
            "origin": {"type": "str"},
            "older_than": {"type": "int", "default": 0},
            "wait_for": {"type": "str", "choices": ["running", "agent"], "default": "running"},
            "wait_timeout": {"type": "int", "default": 120},
            "force": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
        },
        decide,
        may_be_missing=True,
        everything=waits,
        required_if=[("state", "resized", ["name", "flavor"]), ("state", "reverted", ["name"])],
    )


if __name__ == "__main__":
    main()
