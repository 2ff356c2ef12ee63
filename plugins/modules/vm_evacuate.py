#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_evacuate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_evacuate
version_added: 0.1.0
short_description: Bring the VMs of a dead KVM host up on one that survives
description:
  - Runs on a host that survives. It defines and starts VMs of a dead host there, from the records that the dead host
    kept on shared storage, with the disks that are seen from here.
  - First a tombstone is set beside the record. It keeps other survivors from evacuating the same VM, and the dead host,
    should it come back, from starting it.
  - A VM that cannot be brought up whole is refused, with all that stands in the way. When another host has its disks
    open, it was not dead. Then the VM is not started, and nothing is left behind.
  - It does not make sure that the host is dead, it only demands to be told what proves it. The role
    P(kvmops.lifecycle.host_evacuate#role) looks, fences and plans.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.image_store
  - kvmops.lifecycle._options.dead_host
options:
  uri:
    description:
      - How libvirt is reached. The task must run on the KVM host itself, so a remote URI is refused.
  name:
    description:
      - Names or UUIDs of the VMs, as the records have them. Without it, all that are not evacuated yet.
    required: false
  evidence:
    description:
      - What proves that the host is dead, in a sentence. It is written to the tombstone.
    type: str
    required: true
  start:
    description:
      - V(recorded) lets a VM do what it did on the dead host. One that was suspended is off.
      - V(running) starts all, V(stopped) none.
    type: str
    choices: [recorded, running, stopped]
    default: recorded
  lock_timeout:
    description:
      - Seconds that a VM whose disks are locked is tried again. A cluster file system may let go of the locks of a dead
        host after a minute only.
    type: int
    default: 60
seealso:
  - module: kvmops.lifecycle.vm_records_info
  - module: kvmops.lifecycle.host_probe
"""

EXAMPLES = r"""
- name: Bring up here what ran on kvm1, which was switched off at its power supply
  kvmops.lifecycle.vm_evacuate:
    host: kvm1
    evidence: switched off at the power supply by Ada

- name: Bring up two VMs, one with new firmware variables
  kvmops.lifecycle.vm_evacuate:
    host: kvm1
    name: [db1, web1]
    lose: [nvram]
    evidence: fenced by IPMI, chassis power is off

- name: Bring up a web server whose disk was on the dead host, with a new disk of its image
  kvmops.lifecycle.vm_evacuate:
    host: kvm1
    name: [web2]
    lose: [disks]
    evidence: fenced by IPMI, chassis power is off
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
        token:
          description: The generation that the VM has since.
          type: str
          returned: when it is evacuated
        record_at:
          description: When the record was written.
          type: str
          returned: when it is evacuated
        attempts:
          description: How often it was started. More than once means that its disks were locked for a while.
          type: int
          returned: when it was started
        lost:
          description:
            - What the VM was brought up without, because it lay on the dead host alone. Each has C(kind), a word of
              O(lose), and C(path). A disk has C(target) besides, and C(role), which is V(root) when it was made anew
              from its image, V(ephemeral) or V(swap) when it was made anew and is empty, and V(config) for the drive
              of cloud-init.
          type: list
          elements: dict
          returned: when it is evacuated
        base:
          description: The base image that the root disk was made of anew.
          type: str
          returned: when it was
        ejected:
          description: Media of drives that are not seen from here and were taken out, by target.
          type: dict
          returned: when there were any
    msg:
      description: What was being done, what went wrong, and the way out.
      type: str
      returned: when it failed
    code:
      description: >-
        The kind of failure: V(invalid), V(not_found), V(ambiguous), V(refused), V(locked), V(busy), V(in_use),
        V(timed_out), V(unreachable), V(denied), V(no_space), V(unsupported) or V(failed).
      type: str
      returned: when it failed
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    connection,
    dead_host,
    image_store,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.evacuate import all_left, evacuate, is_left
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.records import LOSSES
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(required=False),
            **image_store(),
            **dead_host(LOSSES),
            "evidence": {"type": "str", "required": True},
            "start": {"type": "str", "choices": ["recorded", "running", "stopped"], "default": "recorded"},
            "lock_timeout": {"type": "int", "default": 60},
        },
        evacuate,
        may_be_missing=True,
        everything=is_left,
        elsewhere=all_left,
    )


if __name__ == "__main__":
    main()
