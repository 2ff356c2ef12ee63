#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
version_added: 0.1.0
short_description: Tell what a KVM host has, and what its VMs take of it
description:
  - Returns versions, CPU, memory, storage, networks and the VMs by status.
  - Memory is in MiB, storage in bytes.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
  - kvmops.lifecycle._options
options:
  storage:
    description:
      - Directories on the host for which to tell how much room there is.
      - When the task does not run on the KVM host itself, it is known only of those that are in an active storage pool.
    type: list
    elements: path
    default: [/var/lib/libvirt/images]
seealso:
  - module: kvmops.lifecycle.vm_info
"""

EXAMPLES = r"""
- name: Look at the host
  kvmops.lifecycle.host_info:
    storage: [/var/lib/libvirt/images, /srv/vms]
  register: this

- name: Say what is left when all its VMs are on
  ansible.builtin.debug:
    msg: "{{ this.host.memory.total - this.host.memory.defined }} MiB"

- name: Stop when a VM here is in trouble
  ansible.builtin.assert:
    that: "'ERROR' not in this.host.vms"
"""

RETURN = r"""
host:
  description: The host.
  returned: always
  type: dict
  contains:
    name:
      description: The host name, as libvirt tells it.
      type: str
      returned: always
      sample: kvm1
    uuid:
      description: The host's UUID, as libvirt tells it.
      type: str
      returned: always
    hypervisor:
      description: The kind of hypervisor.
      type: str
      returned: always
      sample: QEMU
    versions:
      description: Versions of libvirtd, of the library that the module talks to it with, and of the hypervisor.
      type: dict
      returned: always
      sample: {libvirt: 9.0.0, library: 9.0.0, hypervisor: 7.2.22}
    emulator:
      description: The path of the QEMU that new VMs run on when they do not say.
      type: str
      returned: always
    types:
      description: For each architecture the domain types that it can run. Without V(kvm), VMs are emulated and slow.
      type: dict
      returned: always
      sample: {i686: [kvm, qemu], x86_64: [kvm, qemu]}
    machines:
      description: The machine types for VMs of the host's own architecture.
      type: list
      elements: str
      returned: always
    cpu:
      description: The CPUs.
      type: dict
      returned: always
      contains:
        arch:
          description: The architecture.
          type: str
          returned: always
        model:
          description: The model that libvirt knows and that is most like it.
          type: str
          returned: always
        vendor:
          description: The vendor.
          type: str
          returned: always
        features:
          description: What it has in addition to the model.
          type: list
          elements: str
          returned: always
        count:
          description: How many CPUs (threads) are on.
          type: int
          returned: always
        mhz:
          description: Their clock rate.
          type: int
          returned: always
        nodes:
          description: How many NUMA nodes there are.
          type: int
          returned: always
        sockets:
          description: How many sockets there are in all.
          type: int
          returned: always
        cores:
          description: How many cores a socket has.
          type: int
          returned: always
        threads:
          description: How many threads a core has.
          type: int
          returned: always
        defined:
          description: How many CPUs all VMs have, on or off; V(null) when unknown, and so the next.
          type: int
          returned: always
        running:
          description: How many CPUs the VMs have that are on.
          type: int
          returned: always
    memory:
      description: Memory in MiB.
      type: dict
      returned: always
      contains:
        total:
          description: What the host has.
          type: int
          returned: always
        free:
          description: What nobody uses.
          type: int
          returned: always
        available:
          description: What could be had, which is what nobody uses and the page cache.
          type: int
          returned: always
        defined:
          description: What all VMs may take, on or off; V(null) when unknown, and so the next.
          type: int
          returned: always
        running:
          description: What the VMs may take that are on.
          type: int
          returned: always
    storage:
      description: One entry for each directory of O(storage).
      type: list
      elements: dict
      returned: always
      contains:
        path:
          description: The directory.
          type: str
          returned: always
        pool:
          description: The active storage pool that it is in; empty when it is in none.
          type: str
          returned: always
        capacity:
          description: The size of its file system or, from another machine, of the pool; V(null) when unknown.
          type: int
          returned: always
        allocation:
          description: What of it is used; V(null) when unknown.
          type: int
          returned: always
        available:
          description: What is left of it; V(null) when unknown.
          type: int
          returned: always
        disks:
          description: How many disks of VMs lie below it; V(null) when unknown.
          type: int
          returned: always
        promised:
          description: How large these disks would be if they were full. What lies below them in their chains comes on
            top.
          type: int
          returned: always
    pools:
      description: The storage pools.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: The pool's name.
          type: str
          returned: always
        uuid:
          description: Its UUID.
          type: str
          returned: always
        type:
          description: Its type, such as V(dir) or V(rbd).
          type: str
          returned: always
        path:
          description: Its directory; empty when it has none.
          type: str
          returned: always
        active:
          description: Whether it is active.
          type: bool
          returned: always
        autostart:
          description: Whether it is started when libvirtd starts.
          type: bool
          returned: always
        persistent:
          description: Whether it is defined.
          type: bool
          returned: always
        capacity:
          description: Its size; V(null) while it is not active.
          type: int
          returned: always
        allocation:
          description: What of it is used; V(null) while it is not active.
          type: int
          returned: always
        available:
          description: What is left of it; V(null) while it is not active.
          type: int
          returned: always
    networks:
      description: The libvirt networks.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: The network's name.
          type: str
          returned: always
        uuid:
          description: Its UUID.
          type: str
          returned: always
        bridge:
          description: The bridge on the host; empty without one.
          type: str
          returned: always
        forward:
          description: V(nat), V(route), V(bridge) or another mode; empty for an isolated network.
          type: str
          returned: always
        active:
          description: Whether it is active.
          type: bool
          returned: always
        autostart:
          description: Whether it is started when libvirtd starts.
          type: bool
          returned: always
        persistent:
          description: Whether it is defined.
          type: bool
          returned: always
    vms:
      description: The names of the VMs by status, in Nova's words. A status that no VM has is not there.
      type: dict
      returned: always
      sample: {ACTIVE: [db1, web1], SHUTOFF: [old]}
    problems:
      description: What could not be found out, and why; sentences for people.
      type: list
      elements: str
      returned: always
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.host import tell_host
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_query
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context


def ask(context: Context) -> dict[str, object]:
    """What was found."""
    return {"host": tell_host(context, context.params["storage"])}


def main() -> None:
    """Entry point."""
    run_query(
        {
            **connection(),
            "storage": {"type": "list", "elements": "path", "default": ["/var/lib/libvirt/images"]},
        },
        ask,
    )


if __name__ == "__main__":
    main()
