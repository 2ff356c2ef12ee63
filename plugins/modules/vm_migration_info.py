#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_migration_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migration_info
version_added: 0.1.0
short_description: Tell which VMs are being migrated, and how far they are
description:
  - Returns the live migrations that run on a host, of VMs that leave it and of VMs that come, whatever tool began them.
  - It waits for no VM. One that is busy with something else is named in RV(silent).
  - How far a migration is, only the host knows that the VM leaves.
  - Sizes are in bytes, rates in bytes a second.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
  - kvmops.lifecycle._options
options:
  name:
    description:
      - Names or UUIDs of the VMs. Without it, all VMs.
      - A name that no VM has is no error. It is listed in RV(missing), as of a VM that has left meanwhile.
    type: list
    elements: str
    aliases:
      - names
seealso:
  - module: kvmops.lifecycle.vm_migrate
"""

EXAMPLES = r"""
- name: What moves?
  kvmops.lifecycle.vm_migration_info:
  register: now

- name: Say how far it is
  ansible.builtin.debug:
    msg: "{{ item.name }} to {{ item.dest }}: {{ item.percent }} %, {{ item.remaining | human_readable }} to go"
  loop: "{{ now.migrations | selectattr('direction', 'eq', 'out') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Wait until nothing moves, on a remote host
  kvmops.lifecycle.vm_migration_info:
    uri: qemu+tls://kvm1.example.com/system
  delegate_to: localhost
  register: now
  until: not now.migrations and not now.silent
  retries: 60
  delay: 5
"""

RETURN = r"""
missing:
  description: Names and UUIDs from O(name) that no VM has.
  returned: always
  type: list
  elements: str
silent:
  description: The names of VMs that did not answer within a second, so that it is not known whether they migrate.
  returned: always
  type: list
  elements: str
migrations:
  description: One entry for each VM that migrates, in the order of O(name), or sorted by name.
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
      returned: always
    host:
      description: The host name of the KVM host, as libvirt tells it.
      type: str
      returned: always
    direction:
      description: V(out) when the VM leaves this host, V(in) when it comes.
      type: str
      returned: always
      sample: out
    phase:
      description: What is under way. It is V(prepare) while the destination gets ready, V(disks) while disks are
        copied, V(memory), or V(post_copy) when the guest runs at the destination already; V(null) when it is not known,
        and so the figures below where the VM comes.
      type: str
      returned: always
      sample: memory
    percent:
      description: How much of disks and memory has been carried, not counting what has to be carried again.
      type: int
      returned: always
    remaining:
      description: How much is still to be carried.
      type: int
      returned: always
    rate:
      description: How much is carried a second.
      type: int
      returned: always
    dirty_rate:
      description: How much memory the guest changes a second; 0 while that is not known.
      type: int
      returned: always
    iteration:
      description: The number of the round in which memory is carried, from 1.
      type: int
      returned: always
    expected_downtime_ms:
      description: For how long the guest would stand still if the rest were carried now, in milliseconds; 0 while that
        is not known.
      type: int
      returned: always
    throttle:
      description: How much of its time auto-converge takes from the guest, in percent.
      type: int
      returned: always
    seconds:
      description: For how long it has been running.
      type: float
      returned: always
    dest:
      description: Where the VM goes, as a libvirt URI; empty when a tool other than this collection began it, and so
        the next.
      type: str
      returned: always
      sample: qemu+tls://kvm2/system
    since:
      description: Since when the task moves it, in UTC.
      type: str
      returned: always
    by:
      description: The process that began it; V(null) when a tool other than this collection did.
      type: dict
      returned: always
      contains:
        action:
          description: What it does.
          type: str
          returned: always
          sample: live_migrate
        node:
          description: The machine that it runs on.
          type: str
          returned: always
        pid:
          description: Its number there.
          type: int
          returned: always
    operation:
      description: What a task of this collection on this machine is doing to the VM at this moment, with its progress;
        V(null) when none is.
      type: dict
      returned: always
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.migrations import tell_migrations
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_query
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context


def ask(context: Context) -> dict[str, object]:
    """What was found."""
    return tell_migrations(context, context.params["name"])


def main() -> None:
    """Entry point."""
    run_query({**connection(), "name": {"type": "list", "elements": "str", "aliases": ["names"]}}, ask)


if __name__ == "__main__":
    main()
