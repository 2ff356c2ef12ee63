#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_info
version_added: 0.1.0
short_description: Tell everything about one, some or all VMs
description:
  - Returns status, definition, disks with their chains and sizes, network cards with their addresses, displays,
    metadata and statistics of VMs, whatever tool made them.
  - It asks for all VMs at once wherever libvirt can, so one task about a thousand VMs takes little longer than one
    about a single VM. Do not loop over it.
  - One VM that cannot be read in full does not spoil the rest. What is missing and why stands in its
    RV(vms[].problems).
  - Memory is in MiB, storage and traffic in bytes, time in seconds.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.image_store
options:
  name:
    description:
      - Names or UUIDs of the VMs. Without it, all VMs.
      - A name that no VM has is no error. It is listed in RV(missing).
      - With O(image_store) also VMs that are on its shelves, and that no host has.
    type: list
    elements: str
    aliases:
      - names
  status:
    description:
      - Tell only about VMs in one of these statuses, for example V(ACTIVE). Without it, in any.
    type: list
    elements: str
    choices:
      - ACTIVE
      - BUILD
      - ERROR
      - HARD_REBOOT
      - MIGRATING
      - PASSWORD
      - PAUSED
      - REBOOT
      - REBUILD
      - RESCUE
      - RESIZE
      - REVERT_RESIZE
      - SHELVED
      - SHELVED_OFFLOADED
      - SHUTOFF
      - SOFT_DELETED
      - SUSPENDED
      - VERIFY_RESIZE
  gather:
    description:
      - What to tell. Names, status and what the collection remembers of the VM are always told, so V(status) stands
        for these alone.
      - V(config) is the machine, V(disks), V(interfaces) and V(graphics) its devices.
      - V(statistics) is what it has used since it was switched on.
      - V(guest) asks the QEMU guest agent for host name, operating system, file systems and addresses. It is not
        gathered by default, because the guest has to answer.
      - V(all) is everything.
    type: list
    elements: str
    choices: [all, status, config, disks, interfaces, graphics, statistics, guest]
    default: [status, config, disks, interfaces, graphics, statistics]
  guest_timeout:
    description:
      - Seconds that the guest agent of a VM has for each answer. Agents are asked at the same time, and one that hangs
        holds up nothing else.
    type: int
    default: 10
  image_store:
    description:
      - Tell what this image store has on its shelves (M(kvmops.lifecycle.vm_shelve)) as well. VMs that no host has are
        listed then, with the status V(SHELVED_OFFLOADED), and RV(vms[].shelf) is complete.
      - Without it no image store is asked, so this option has no default.
seealso:
  - module: kvmops.lifecycle.host_info
  - module: kvmops.lifecycle.vm
"""

EXAMPLES = r"""
- name: Look at all VMs of the host
  kvmops.lifecycle.vm_info:
  register: here

- name: Say which are locked, and why
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.lock.reason }}"
  loop: "{{ here.vms | selectattr('locked') }}"
  loop_control:
    label: "{{ item.name }}"

- name: Look for VMs that need help, on a remote host
  kvmops.lifecycle.vm_info:
    uri: qemu+tls://kvm1.example.com/system
    gather: [status]
    status: [ERROR, PAUSED]
  delegate_to: localhost
  register: troubled

- name: Find the VMs that no host has
  kvmops.lifecycle.vm_info:
    status: [SHELVED_OFFLOADED]
    gather: [status]
    image_store:
      path: /srv/images
  register: offloaded

- name: Get the address of a VM
  kvmops.lifecycle.vm_info:
    name: web1
    gather: [interfaces, guest]
  register: web1

- name: Wait for it
  ansible.builtin.wait_for:
    host: "{{ (web1.vms[0].interfaces | map(attribute='addresses') | flatten | first).address }}"
    port: 443
"""

RETURN = r"""
missing:
  description: Names and UUIDs from O(name) that no VM has.
  returned: always
  type: list
  elements: str
vms:
  description: One entry a VM, in the order of O(name), or sorted by name.
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
      description: The host name of the KVM host, as libvirt tells it; empty for a VM that no host has.
      type: str
      returned: always
    status:
      description: Its status in Nova's words.
      type: str
      returned: always
      sample: ACTIVE
    task_state:
      description: The transition under way, in Nova's words; empty when there is none.
      type: str
      returned: always
      sample: powering-off
    power_state:
      description: What the hypervisor tells, in Nova's words.
      type: str
      returned: always
      sample: RUNNING
    reason:
      description: Why it is in that power state, for people; empty when libvirt does not know.
      type: str
      returned: always
      sample: migrated here
    uptime:
      description:
        - Seconds since its QEMU process began, which is at boot, at the end of a migration or with the restoring of
          saved memory. A reboot by the guest itself does not count.
        - V(null) when it is off, and when the task does not run on the KVM host itself, as libvirt does not tell it.
      type: float
      returned: always
    persistent:
      description: Whether it is defined. A VM that is not is gone when it is switched off.
      type: bool
      returned: always
    autostart:
      description: Whether it is started when libvirtd starts.
      type: bool
      returned: always
    managed_save:
      description: Whether its memory is saved, and restored when it is started.
      type: bool
      returned: always
    snapshots:
      description: How many snapshots of its own libvirt has of it. These are no images.
      type: int
      returned: always
    checkpoints:
      description: How many checkpoints libvirt has of it, for incremental backups.
      type: int
      returned: always
    operation:
      description: What a task of this collection is doing to the VM at this moment; V(null) when none is.
      type: dict
      returned: always
      sample: {action: stop, since: "2026-01-01T12:00:00Z", pid: 4711}
    journal:
      description:
        - How far an operation has come. Without an RV(vms[].operation) beside it, it died on the way, and running that
          task again finishes it.
        - V(null) when there is none.
      type: dict
      returned: always
      contains:
        action:
          description: The operation.
          type: str
          returned: always
        since:
          description: When it began.
          type: str
          returned: always
        node:
          description: The machine on which its process runs or ran.
          type: str
          returned: always
        pid:
          description: The number of that process.
          type: int
          returned: always
        step:
          description: The step that was about to begin.
          type: str
          returned: always
        dest:
          description: Where it goes, as a libvirt URI.
          type: str
          returned: when it moves to another host
    locked:
      description: Whether it is locked by M(kvmops.lifecycle.vm_lock).
      type: bool
      returned: always
    lock:
      description: Since when, and why; V(null) when it is not locked.
      type: dict
      returned: always
      sample: {since: "2026-01-01T12:00:00Z", reason: "audit until Friday"}
    flavor:
      description: The flavor that it was launched with or resized to; V(null) for VMs that other tools made.
      type: dict
      returned: always
      sample: {name: small, vcpus: 2, memory: 2048, root: 20, ephemeral: [], swap: 0}
    launched:
      description: How the collection launched it; V(null) for VMs that other tools made.
      type: dict
      returned: always
      contains:
        at:
          description: When.
          type: str
          returned: always
        by:
          description: By whom.
          type: str
          returned: always
        image:
          description: From which image, as the task named it.
          type: str
          returned: always
        image_id:
          description: Its identifier in the image store; empty for a file.
          type: str
          returned: always
        image_store:
          description: Which store that is; empty for a file.
          type: str
          returned: always
          sample: /var/lib/kvmops/images
        image_properties:
          description: Properties of the image that the VM remembers, so that images made of it have them too.
          type: dict
          returned: always
          sample: {os_type: linux, hw_disk_bus: virtio}
        base:
          description: The file on the host that its root disk is an overlay of.
          type: str
          returned: always
        base_sha256:
          description: Its hash.
          type: str
          returned: always
        storage:
          description: The directory below which its disks lie.
          type: str
          returned: always
    marks:
      description: States that outlast an operation, such as a soft deletion, from the oldest to the newest.
      type: list
      elements: dict
      returned: always
      sample: [{state: soft-delete, since: "2026-01-01T12:00:00Z", data: {}}]
    resize:
      description: >-
        The resize or the cold migration of a VM that waits for it to be confirmed or reverted (status VERIFY_RESIZE);
        V(null) when there is none.
      type: dict
      returned: always
      contains:
        since:
          description: Since when it waits, UTC.
          type: str
          returned: always
        action:
          description: V(resize), or V(migrate) when nothing but the host is another one.
          type: str
          returned: always
        side:
          description: >-
            V(place) when the host is the same, V(moved) on the host that the VM came to, V(origin) on the one that it
            left, which keeps its definition and its files as the way back.
          type: str
          returned: always
        other_host:
          description: The host name of the other host; empty when there is none.
          type: str
          returned: always
        other_uri:
          description: How that host's libvirtd is reached from this one.
          type: str
          returned: always
        from:
          description: The flavor before, C(root) being as large as it was; V(null) when only the host is another one.
          type: dict
          returned: always
        to:
          description: The same, afterwards.
          type: dict
          returned: always
        power_before:
          description: Whether the VM ran, V(running) or V(stopped).
          type: str
          returned: always
        revert_loses:
          description: What is lost when it is reverted, in words; nothing when it is empty.
          type: list
          elements: str
          returned: always
    policy:
      description: What shall become of it when its host is emptied, or dies, as M(kvmops.lifecycle.vm_policy) says.
      type: dict
      returned: always
      contains:
        strategy:
          description: How it is moved; empty for what the task says that empties the host.
          type: str
          returned: always
        priority:
          description: The higher, the earlier it is brought back from a dead host.
          type: int
          returned: always
        groups:
          description: The groups that it is in, each with its policy.
          type: list
          elements: dict
          returned: always
          sample: [{name: db, policy: anti-affinity}]
    origin:
      description: Where it was before it was moved away for a time, as noted by M(kvmops.lifecycle.vm_origin); V(null)
        without such a note.
      type: dict
      returned: always
      contains:
        host:
          description: The host name of that KVM host, as libvirt tells it.
          type: str
          returned: always
        since:
          description: When that was noted, in UTC.
          type: str
          returned: always
        power:
          description: What its guest was doing, such as V(running), V(paused), V(suspended) or V(off).
          type: str
          returned: always
        reason:
          description: Why it was moved.
          type: str
          returned: always
    generation:
      description: What an evacuation has given its definition to tell it from those before it; else empty.
      type: str
      returned: always
    rescue:
      description: The rescue of a VM that was rescued by M(kvmops.lifecycle.vm_rescue); V(null) when there is none.
      type: dict
      returned: always
      contains:
        since:
          description: When it was rescued, UTC.
          type: str
          returned: always
        image:
          description: What the rescue disk is made of.
          type: str
          returned: always
        image_id:
          description: The identifier of that image; empty for a file.
          type: str
          returned: always
        image_store:
          description: What tells its store from others; empty for a file.
          type: str
          returned: always
        layout:
          description: V(stable) or V(classic).
          type: str
          returned: always
        device:
          description: What the rescue disk is, V(disk) or V(cdrom).
          type: str
          returned: always
        bus:
          description: The bus that it is on.
          type: str
          returned: always
        power_before:
          description: What the VM was - V(running), V(paused), V(suspended) or V(stopped).
          type: str
          returned: always
        disk:
          description: The file of the rescue disk.
          type: str
          returned: always
        seed:
          description: The file of the drive with data for cloud-init; empty without.
          type: str
          returned: always
        nvram:
          description: The file with the variables of UEFI meanwhile; empty without UEFI.
          type: str
          returned: always
        base:
          description: The base image below the rescue disk.
          type: str
          returned: always
        sha256:
          description: The hash of its content.
          type: str
          returned: always
    shelf:
      description:
        - The shelf of a VM that was shelved by M(kvmops.lifecycle.vm_shelve); V(null) when there is none.
        - Without O(image_store), and for a shelf in another store, what only the store knows is V(null).
      type: dict
      returned: always
      contains:
        set:
          description: Its identifier.
          type: str
          returned: always
        state:
          description: V(shelved) while its host has the VM, or V(offloaded).
          type: str
          returned: always
        host:
          description: The host that had the VM when it was shelved.
          type: str
          returned: always
        at:
          description: When it was shelved, UTC.
          type: str
          returned: always
        power_before:
          description: What the VM was - V(running), V(paused), V(suspended) or V(stopped).
          type: str
          returned: always
        image_store:
          description: Which store it is in.
          type: str
          returned: while its host has the VM
        offload:
          description: Whether it is to be offloaded, V(later) or V(never).
          type: str
          returned: while its host has the VM
        image:
          description: The name of its first image.
          type: str
          returned: always
        bytes:
          description: Bytes that its images take in the store, without base images.
          type: int
          returned: always
        images:
          description: How many they are.
          type: int
          returned: always
        vcpus:
          description: How many CPUs the VM can have.
          type: int
          returned: always
        memory:
          description: Its memory in MiB.
          type: int
          returned: always
        networks:
          description: Its network cards, each with C(kind), C(source) and C(mac).
          type: list
          elements: dict
          returned: always
        volumes:
          description: Its disks on network storage, which stay where they are, by target.
          type: dict
          returned: always
        claimed_by:
          description: The C(host) that is just bringing it back, C(since) when; V(null) when none is.
          type: dict
          returned: always
    job:
      description: What libvirt itself is doing with the whole VM, such as a migration or a backup; V(null) for nothing.
      type: dict
      returned: always
      sample: {operation: migration_out, seconds: 3.2, done: 104857600, total: 1073741824}
    problems:
      description: What could not be found out about this VM, and why; sentences for people.
      type: list
      elements: str
      returned: always
    config:
      description: The machine as it runs or, when it is off, as it is defined.
      type: dict
      returned: when V(config) is gathered
      contains:
        title:
          description: A line for people.
          type: str
          returned: always
        description:
          description: Some lines for people.
          type: str
          returned: always
        type:
          description: V(kvm), V(qemu) or another domain type.
          type: str
          returned: always
        arch:
          description: The architecture of its CPU.
          type: str
          returned: always
        machine:
          description: The machine type.
          type: str
          returned: always
        emulator:
          description: The path of QEMU.
          type: str
          returned: always
        vcpus:
          description: How many CPUs it has.
          type: int
          returned: always
        max_vcpus:
          description: How many could be plugged in.
          type: int
          returned: always
        memory:
          description: Its memory in MiB.
          type: int
          returned: always
        current_memory:
          description: What of it the balloon leaves to the guest, in MiB.
          type: int
          returned: always
        cpu_mode:
          description: How the CPU is chosen, such as V(host-passthrough); empty for the hypervisor's default.
          type: str
          returned: always
        cpu_model:
          description: The CPU model, if one is set.
          type: str
          returned: always
        firmware:
          description: What it boots with.
          type: dict
          returned: always
          contains:
            kind:
              description: V(bios) or V(uefi).
              type: str
              returned: always
            loader:
              description: The path of the firmware, if known.
              type: str
              returned: always
            nvram:
              description: The path of the VM's UEFI variables, if known.
              type: str
              returned: always
            secure_boot:
              description: Whether it boots signed systems only.
              type: bool
              returned: always
        console_log:
          description: The file on the host that its console is written to; empty without one.
          type: str
          returned: always
        agent_channel:
          description: Whether it has a channel for the QEMU guest agent.
          type: bool
          returned: always
        os:
          description: The operating system, as the tool that made the VM told libosinfo; empty if it did not.
          type: str
          returned: always
          sample: http://debian.org/debian/12
    disks:
      description: Disks, CD-ROM and floppy drives.
      type: list
      elements: dict
      returned: when V(disks) is gathered
      contains:
        target:
          description: Its name in libvirt, unique in the VM. The guest may call it otherwise.
          type: str
          returned: always
          sample: vda
        bus:
          description: What it is plugged into, such as V(virtio).
          type: str
          returned: always
        device:
          description: V(disk), V(cdrom), V(floppy) or V(lun).
          type: str
          returned: always
        kind:
          description: What the image is in, such as V(file), V(block), V(network) or V(volume).
          type: str
          returned: always
        protocol:
          description: For V(network) the protocol, such as V(rbd).
          type: str
          returned: always
        source:
          description: Path, or name in the protocol, or pool and volume; empty for a drive without a medium.
          type: str
          returned: always
        format:
          description: The format of the image, such as V(qcow2).
          type: str
          returned: always
        capacity:
          description: The size of the disk in bytes; V(null) when unknown.
          type: int
          returned: always
        allocation:
          description: What the image takes on the host's storage, without those below it; V(null) when unknown.
          type: int
          returned: always
        readonly:
          description: Whether the guest may only read it.
          type: bool
          returned: always
        shareable:
          description: Whether several VMs may use it at once.
          type: bool
          returned: always
        encrypted:
          description: Whether an image of it is encrypted.
          type: bool
          returned: always
        serial:
          description: The serial number that the guest sees; empty without one.
          type: str
          returned: always
        boot:
          description: Its place in the boot order; V(null) without one.
          type: int
          returned: always
        chain:
          description:
            - The images that make up the disk, from the top one, which is written to, down to the base.
            - A running VM's chain is libvirt's. When it is off, the headers of the images are read or, from another
              machine, the storage pools are asked. An image counts as what the one above it declares it to be; nothing
              is guessed.
          type: list
          elements: dict
          returned: always
          contains:
            kind:
              description: As that of the disk.
              type: str
              returned: always
            protocol:
              description: As that of the disk.
              type: str
              returned: always
            source:
              description: As that of the disk.
              type: str
              returned: always
            format:
              description: The format; empty when the image above does not declare it.
              type: str
              returned: always
            capacity:
              description: The size of the disk in it; V(null) when unknown.
              type: int
              returned: always
            allocation:
              description: What it takes on the host's storage; V(null) when unknown.
              type: int
              returned: always
        chain_known:
          description: Whether RV(vms[].disks[].chain) is whole. Otherwise its last image could not be looked into.
          type: bool
          returned: always
        mirror:
          description: The image that a block job copies to; V(null) without such a job.
          type: dict
          returned: always
        job:
          description: The block job that runs on the disk; V(null) for none.
          type: dict
          returned: always
          sample: {operation: copy, bandwidth: 0, done: 104857600, total: 1073741824}
    interfaces:
      description: Network cards.
      type: list
      elements: dict
      returned: when V(interfaces) is gathered
      contains:
        mac:
          description: The MAC address.
          type: str
          returned: always
        kind:
          description: What it is plugged into, such as V(network), V(bridge) or V(direct).
          type: str
          returned: always
        source:
          description: The name of that network, bridge or device.
          type: str
          returned: always
        bridge:
          description: The bridge it is on. With a libvirt network, it is known only while the VM runs.
          type: str
          returned: always
        model:
          description: The model of the card, such as V(virtio).
          type: str
          returned: always
        tap:
          description: The device on the host, while the VM runs.
          type: str
          returned: always
        filter:
          description: Its libvirt network filter; empty without one.
          type: str
          returned: always
        boot:
          description: Its place in the boot order; V(null) without one.
          type: int
          returned: always
        up:
          description: Whether its link is up.
          type: bool
          returned: always
        addresses:
          description: The IP addresses that are known, of a VM that is on. Each comes once, from the best source.
          type: list
          elements: dict
          returned: always
          contains:
            address:
              description: The address.
              type: str
              returned: always
            prefix:
              description: The length of the network's prefix; V(null) when unknown.
              type: int
              returned: always
            source:
              description:
                - V(agent) when the guest agent told it (gather V(guest)), V(lease) when a libvirt network gave it out,
                  V(arp) when the KVM host has met it on a link.
              type: str
              returned: always
            device:
              description: The card's name in the guest, if the agent told it.
              type: str
              returned: always
            hostname:
              description: The name under which the guest asked for the lease.
              type: str
              returned: always
    graphics:
      description: Displays.
      type: list
      elements: dict
      returned: when V(graphics) is gathered
      contains:
        type:
          description: V(vnc), V(spice) or another.
          type: str
          returned: always
        listen:
          description: The address on the host, or the path of the socket.
          type: str
          returned: always
        port:
          description: The port; V(null) while there is none.
          type: int
          returned: always
        tls_port:
          description: The port for TLS; V(null) while there is none.
          type: int
          returned: always
        websocket:
          description: The port for web sockets; V(null) while there is none.
          type: int
          returned: always
    statistics:
      description: What the VM has used since it was switched on; V(null) when it is off. Unknown figures are V(null).
      type: dict
      returned: when V(statistics) is gathered
      contains:
        cpu:
          description: CPU time in seconds (all, and of it in user mode and in the host's kernel), and how many CPUs.
          type: dict
          returned: always
          sample: {time: 12.5, user: 8.25, system: 4.25, vcpus: 2}
        memory:
          description:
            - Memory in MiB. C(current) is what the balloon leaves to the guest, C(rss) what QEMU takes on the host.
            - C(available), C(unused) and C(usable) are told by the guest's balloon driver, if it is asked to.
          type: dict
          returned: always
          sample: {current: 2048, maximum: 2048, available: 1983, unused: 1401, usable: 1620, rss: 702}
        block:
          description: Traffic of every disk.
          type: list
          elements: dict
          returned: always
          sample:
            - {target: vda, read_requests: 4023, read_bytes: 71303168, write_requests: 1204, write_bytes: 20971520,
               flush_requests: 87}
        net:
          description: Traffic of every network card, as the host sees it. It is joined to a card by the device.
          type: list
          elements: dict
          returned: always
          sample:
            - {tap: vnet0, rx_bytes: 90, rx_packets: 1, rx_errors: 0, rx_drops: 0, tx_bytes: 4200, tx_packets: 60,
               tx_errors: 0, tx_drops: 0}
    guest:
      description: What the guest agent tells.
      type: dict
      returned: when V(guest) is gathered
      contains:
        agent:
          description:
            - V(connected) when the agent answered; V(silent) when it is there and did not, or was not asked because the
              VM is paused; V(disconnected) when it is not there; V(absent) when the VM has no channel for it.
          type: str
          returned: always
        hostname:
          description: The guest's host name; empty when unknown.
          type: str
          returned: always
        os:
          description: The guest's operating system, as C(/etc/os-release) and C(uname) tell it; empty when unknown.
          type: dict
          returned: always
          sample: {id: debian, name: Debian GNU/Linux, version_id: "12", kernel_release: 6.1.0-18-amd64}
        filesystems:
          description: The file systems that the guest has mounted from its disks; none when unknown.
          type: list
          elements: dict
          returned: always
          contains:
            mountpoint:
              description: Where; a drive's letter in Windows.
              type: str
              returned: always
              sample: /
            type:
              description: Its kind.
              type: str
              returned: always
              sample: ext4
            name:
              description: What the guest calls the device that it is on.
              type: str
              returned: always
              sample: vda2
            total:
              description: Its size in bytes, as its users see it; V(null) when the agent does not tell.
              type: int
              returned: always
            used:
              description: How much of it is used, in bytes; V(null) when the agent does not tell.
              type: int
              returned: always
            disks:
              description: The targets of the disks that it lies on, as in RV(vms[].disks[].target).
              type: list
              elements: str
              returned: always
              sample: [vda]
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, image_store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.info import GROUPS, Inquiry
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.status import STATUSES
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_query
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context


def ask(context: Context) -> dict[str, object]:
    """What was found."""
    params = context.params
    gather = set(GROUPS) if "all" in params["gather"] else set(params["gather"])
    shelved = params["image_store"] is not None
    inquiry = Inquiry(context, gather, params["guest_timeout"], shelved=shelved)
    return inquiry.tell(params["name"], params["status"])


def main() -> None:
    """Entry point."""
    store = {**image_store()}
    store["image_store"]["apply_defaults"] = False  # a store is asked only when it is named
    run_query(
        {
            **connection(),
            **store,
            "name": {"type": "list", "elements": "str", "aliases": ["names"]},
            "status": {"type": "list", "elements": "str", "choices": sorted(STATUSES)},
            "gather": {
                "type": "list",
                "elements": "str",
                "choices": ["all", *GROUPS],
                "default": ["status", "config", "disks", "interfaces", "graphics", "statistics"],
            },
            "guest_timeout": {"type": "int", "default": 10},
        },
        ask,
    )


if __name__ == "__main__":
    main()
