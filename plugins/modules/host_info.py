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
  gather:
    description:
      - What to tell besides. V(migration) is what matters when VMs are moved to the host and from it.
      - V(placement) is what has to be known to choose hosts for VMs. With V(dirty_rate) it has how much of their memory
        guests change; measuring that takes more than a second.
    type: list
    elements: str
    choices: [migration, placement, dirty_rate]
    default: []
seealso:
  - module: kvmops.lifecycle.host_schedulable
  - module: kvmops.lifecycle.vm_info
  - module: kvmops.lifecycle.vm_migrate
"""

EXAMPLES = r"""
- name: Look at the host
  kvmops.lifecycle.host_info:
    storage: [/var/lib/libvirt/images, /srv/vms]
  register: this

- name: Say what is left when all its VMs are on
  ansible.builtin.debug:
    msg: "{{ this.host.memory.total - this.host.memory.defined }} MiB"

- name: Look at what migrations need
  kvmops.lifecycle.host_info:
    gather: [migration]
  register: this

- name: See that the certificates last for another month
  ansible.builtin.assert:
    that: item.not_after is none or item.not_after > '%Y-%m-%dT%H:%M:%SZ' | strftime(now().timestamp() + 30 * 86400)
  loop: "{{ this.host.migration.certificates }}"
  loop_control:
    label: "{{ item.path }}"

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
        source:
          description: Of a pool of the type V(netfs), the file system, server and directory; else empty.
          type: str
          returned: always
          sample: nfs filer:/srv/vms
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
    scheduling:
      description:
        - Whether VMs are planned onto the host, as M(kvmops.lifecycle.host_schedulable) says; V(null) when the task
          does not run on the KVM host itself.
        - If that cannot be read, the host counts as disabled, and the reason says so.
      type: dict
      returned: always
      contains:
        enabled:
          description: Whether they are.
          type: bool
          returned: always
        reason:
          description: Why not; empty when they are.
          type: str
          returned: always
        since:
          description: Since when not, in UTC; empty when they are.
          type: str
          returned: always
          sample: "2026-01-01T00:00:00Z"
        by:
          description: Who disabled it, as user and machine; empty when they are.
          type: str
          returned: always
          sample: root@kvm1
    placement:
      description: What has to be known to choose hosts for VMs. Memory is in MiB, storage in bytes.
      type: dict
      returned: with V(placement) or V(dirty_rate) in O(gather)
      contains:
        name:
          description: The host name, as libvirt tells it.
          type: str
          returned: always
        arch:
          description: The architecture.
          type: str
          returned: always
        scheduling:
          description: Like RV(host.scheduling).
          type: dict
          returned: always
        memory:
          description: V(total), what could be had (V(available)), and what the VMs may take that are on (V(running)).
          type: dict
          returned: always
          sample: {total: 257850, available: 190223, running: 65536}
        cpus:
          description: How many CPUs (threads) are on, and how many the VMs have that are on.
          type: dict
          returned: always
          sample: {total: 64, running: 48}
        cpu_models:
          description: The CPU models that VMs can have here.
          type: list
          elements: str
          returned: always
        machines:
          description: The machine types for VMs of the host's own architecture.
          type: list
          elements: str
          returned: always
        libvirt:
          description: The version of libvirtd.
          type: str
          returned: always
        qemu:
          description: The version of QEMU.
          type: str
          returned: always
        networks:
          description: The libvirt networks that are active.
          type: list
          elements: str
          returned: always
        links:
          description: Bridges and network devices, without those of VMs.
          type: list
          elements: str
          returned: always
        storage:
          description:
            - File systems that disks of VMs lie on, or could lie on, with those of O(storage). When the task does not
              run on the KVM host itself, the active storage pools with a directory.
          type: list
          elements: dict
          returned: always
          contains:
            path:
              description: The mount point, or the directory of the pool.
              type: str
              returned: always
            shared:
              description:
                - Of a network or cluster file system, its type and source; empty for one of the host's own. Two hosts
                  with the same in the same place most likely see the same files.
                - It is a planner's guess. Before a VM is moved, M(kvmops.lifecycle.vm_migrate) proves it with a file.
              type: str
              returned: always
              sample: nfs filer:/srv/vms
            capacity:
              description: Its size.
              type: int
              returned: always
            available:
              description: What is left of it.
              type: int
              returned: always
        vms:
          description: The VMs, by name.
          type: list
          elements: dict
          returned: always
          contains:
            name:
              description: The VM's name.
              type: str
              returned: always
            uuid:
              description: Its UUID.
              type: str
              returned: always
            status:
              description: Its status in Nova's words.
              type: str
              returned: always
            condition:
              description: What the guest is doing, V(running), V(paused), V(off), V(suspended) (its memory is saved),
                V(going_down), V(asleep) or V(crashed).
              type: str
              returned: always
            task_state:
              description: The transition under way; empty when there is none.
              type: str
              returned: always
            locked:
              description: Whether it is locked.
              type: bool
              returned: always
            persistent:
              description: Whether it is defined; else it ends with its guest.
              type: bool
              returned: always
            autostart:
              description: Whether it is started when libvirtd starts.
              type: bool
              returned: always
            memory:
              description: What it may take.
              type: int
              returned: always
            vcpus:
              description: How many CPUs it has.
              type: int
              returned: always
            arch:
              description: Its architecture.
              type: str
              returned: always
            machine:
              description: Its machine type.
              type: str
              returned: always
            cpu:
              description: Its CPU model, or V(host-passthrough) for the host's own CPU; empty when its definition does
                not say.
              type: str
              returned: always
            disks:
              description: Its disks that have a medium.
              type: list
              elements: dict
              returned: always
              contains:
                target:
                  description: The name in libvirt.
                  type: str
                  returned: always
                path:
                  description: The file or device; of a network disk, the protocol and the name.
                  type: str
                  returned: always
                bytes:
                  description: What its top layer takes on the host's storage; V(0) when that is not known.
                  type: int
                  returned: always
                size:
                  description: How large the disk is; V(0) when that is not known.
                  type: int
                  returned: always
                readonly:
                  description: Whether nobody writes to it.
                  type: bool
                  returned: always
                network:
                  description: Whether QEMU reaches it over the network by itself, so that no host has it.
                  type: bool
                  returned: always
            networks:
              description: The libvirt networks of its cards.
              type: list
              elements: str
              returned: always
            links:
              description: The bridges and network devices of its cards.
              type: list
              elements: str
              returned: always
            devices:
              description: Devices of the host that it was given and cannot do without.
              type: list
              elements: str
              returned: always
              sample: ["pci 0000:01:00.0"]
            strategy:
              description: As said with O(kvmops.lifecycle.vm_policy#module:strategy); empty by default.
              type: str
              returned: always
            priority:
              description: As said with O(kvmops.lifecycle.vm_policy#module:priority).
              type: int
              returned: always
            groups:
              description: As said with O(kvmops.lifecycle.vm_policy#module:groups).
              type: list
              elements: dict
              returned: always
            origin:
              description: As noted by M(kvmops.lifecycle.vm_origin); V(null) without such a note.
              type: dict
              returned: always
            dirty_rate:
              description: How many MiB of its memory the guest changes a second; V(null) when it was not measured.
              type: int
              returned: always
    migration:
      description: What matters when VMs are moved to this host and from it. From RV(host.migration.addresses) on it is
        V(null) when the task does not run on the KVM host itself, as libvirt does not tell it.
      type: dict
      returned: with V(migration) in O(gather)
      contains:
        cpu_models:
          description: The CPU models that VMs can have here; V(null) when unknown, and so the next.
          type: list
          elements: str
          returned: always
        huge_pages:
          description: How many huge pages are free, by their size in KiB.
          type: dict
          returned: always
          sample: {"2048": 512}
        links:
          description: Bridges and network devices.
          type: list
          elements: str
          returned: always
        filters:
          description: The names of the network filters.
          type: list
          elements: str
          returned: always
        addresses:
          description: To what the host resolves its own name, which is where others send VMs to unless told otherwise.
          type: list
          elements: str
          returned: always
        resolvable:
          description: Whether it resolves it at all.
          type: bool
          returned: always
        listening:
          description: On which addresses libvirtd and sshd take connections, as far as they have their usual ports.
          type: list
          elements: dict
          returned: always
          contains:
            service:
              description: V(tls) or V(tcp) of libvirtd, or V(ssh).
              type: str
              returned: always
            port:
              description: The port.
              type: int
              returned: always
            address:
              description: The address.
              type: str
              returned: always
        ports:
          description: The first and the last port on which VMs are taken; V(null) also when C(qemu.conf) may not be
            read, and so the next two.
          type: dict
          returned: always
          sample: {first: 49152, last: 49215}
        address:
          description: The host name or address to which VMs are sent in place of the host name; empty when none is set.
          type: str
          returned: always
        keepalive:
          description: For connections to other hosts, seconds between two questions whether they are there, and how
            many of them may go without an answer.
          type: dict
          returned: always
          sample: {interval: 5, count: 5}
        certificates:
          description: The certificates for libvirt's connections and for what QEMU sends.
          type: list
          elements: dict
          returned: always
          contains:
            purpose:
              description: V(libvirt) or V(qemu).
              type: str
              returned: always
            role:
              description: V(authority), V(client) for VMs that leave, or V(server) for VMs that come.
              type: str
              returned: always
            path:
              description: The file.
              type: str
              returned: always
            key:
              description: The file of its key; empty for an authority.
              type: str
              returned: always
            missing:
              description: Those of the two files that are not there.
              type: list
              elements: str
              returned: always
            problem:
              description: Why it cannot be read; empty when it can, or is not there.
              type: str
              returned: always
            subject:
              description: Whose it is; empty when it cannot be read, and so the next.
              type: str
              returned: always
            issuer:
              description: Who issued it.
              type: str
              returned: always
            names:
              description: The host names and addresses that it is for.
              type: list
              elements: str
              returned: always
            not_before:
              description: Since when it is valid, in UTC; V(null) when it cannot be read, and so the next.
              type: str
              returned: always
            not_after:
              description: Until when it is valid.
              type: str
              returned: always
              sample: "2036-11-19T00:09:03Z"
        checks_clients:
          description: Whether QEMU wants a certificate of the host that a VM comes from; V(null) also when C(qemu.conf)
            may not be read.
          type: bool
          returned: always
        time:
          description: What time it is there, in UTC. Certificates depend on it.
          type: str
          returned: always
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
    return {"host": tell_host(context, context.params["storage"], context.params["gather"])}


def main() -> None:
    """Entry point."""
    run_query(
        {
            **connection(),
            "storage": {"type": "list", "elements": "path", "default": ["/var/lib/libvirt/images"]},
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": ["migration", "placement", "dirty_rate"],
                "default": [],
            },
        },
        ask,
    )


if __name__ == "__main__":
    main()
