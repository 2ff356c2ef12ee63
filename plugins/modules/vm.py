#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
version_added: 0.1.0
short_description: Launch, remove and restore VMs
description:
  - Launches VMs from images in an image store or from image files, and removes VMs that libvirt knows, however they
    were made.
  - A launch is one operation. If it fails, what it made is taken away again. If it is killed, the VM has the status
    BUILD, and the same task finishes it.
  - Options that are not given are not compared when the VM is there already. What is given and differs is changed where
    that can be, and refused with the reason where not; then nothing is changed.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.override_lock
  - kvmops.lifecycle._options.image_store
requirements:
  - "For O(state=present): oslo.utils 7.3 or newer with cryptography"
  - "For O(state=present): qemu-img; with a remote O(uri) for deltas only"
  - "For O(cloud_init): pycdlib"
options:
  name:
    description:
      - Names of the VMs, or UUIDs of VMs that exist. Many are handled concurrently in one task.
      - Required unless O(state=purged), where it narrows the choice.
    required: false
  state:
    description:
      - V(present) launches a VM that is not there, and changes one that is there.
      - V(absent) shuts the VM down as O(shutdown_timeout) says, removes the disks that a launch made and those of
        O(remove_disks), and its definition with NVRAM, saved memory, snapshot and checkpoint records. Other disks are
        kept and reported. With O(reclaim_after) it is only stopped and marked as deleted.
      - Of a VM that was shelved by M(kvmops.lifecycle.vm_shelve), V(absent) removes the shelf as well, which must be in
        O(image_store). That is so too when no host has the VM any more. Such a VM cannot be soft-deleted.
      - V(restored) brings a soft-deleted VM back, with the power state and autostart that it had.
      - V(purged) removes, as V(absent) does, the soft-deleted VMs whose time has come, and no others.
    type: str
    choices: [present, absent, restored, purged]
    default: present
  uuid:
    description:
      - The UUID of a new VM. Random when not given. With several names it cannot be given.
    type: str
  image:
    description:
      - What a launch starts from; required for that. An absolute path is an image file on the machine on which the
        module runs; anything else is the name or the identifier of an image in O(image_store).
      - It is copied once into the base cache below O(storage), verified on the way, and the root disks of all VMs
        launched from it are overlays of that copy. A delta is composed with the images that it lies upon, without
        copying them together.
      - It is refused if it is not what O(image_format) or the store says, or refers to another file.
      - A VM that is there is compared with what its launch was told, so a newer image of the same name makes no
        difference.
    type: str
  image_format:
    description:
      - The format of O(image) if that is a file. It is declared, never guessed. Stores know it of their images.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  flavor:
    description:
      - The size. Required to launch.
      - Of a VM that is there, CPUs and memory can change while it is off, and the root disk can grow.
    type: dict
    suboptions:
      name:
        description: A label.
        type: str
        default: ""
      vcpus:
        description: Virtual CPUs.
        type: int
        required: true
      memory:
        description: Memory in MiB.
        type: int
        required: true
      root:
        description: The root disk in GiB; V(0) means as large as the image.
        type: int
        default: 0
      ephemeral:
        description: Extra empty disks, in GiB each.
        type: list
        elements: int
        default: []
      swap:
        description: A disk for swap, in MiB; V(0) means none. It is empty; the guest formats it.
        type: int
        default: 0
  networks:
    description:
      - The network cards, in order. Of a VM that is there, cards are added, replugged and removed until it has just
        these.
      - None when not given at the launch.
    type: list
    elements: dict
    suboptions:
      bridge:
        description: The bridge on the host that it is plugged into.
        type: str
      network:
        description: The libvirt network that it is plugged into.
        type: str
      mac:
        description:
          - Its address. When not given, it follows from the VM's UUID and the position of the card, and so is stable.
        type: str
      model:
        description: Its model. What the image's property C(hw_vif_model) says when not given, else V(virtio).
        type: str
  cloud_init:
    description:
      - NoCloud data for the guest's first boot, on a read-only CD-ROM labelled C(cidata). The instance ID is the VM's
        UUID, the host name its name.
    type: dict
    suboptions:
      user_data:
        description: The text of C(user-data).
        type: str
        default: ""
      network_config:
        description: The text of C(network-config).
        type: str
        default: ""
      meta_data:
        description: More keys for C(meta-data).
        type: dict
        default: {}
  firmware:
    description:
      - The firmware. When not given at the launch, what the image's property C(hw_firmware_type) says, else V(bios).
    type: str
    choices: [bios, uefi]
  secure_boot:
    description:
      - Whether UEFI checks signatures. For launches with O(firmware=uefi).
      - When not given, what the image's property C(os_secure_boot) requires, else V(false).
    type: bool
  machine:
    description:
      - The machine type. When not given at the launch, what the image's property C(hw_machine_type) says, else V(q35)
        on x86_64, else what libvirt chooses.
    type: str
  domain_type:
    description:
      - V(kvm), or V(qemu) for software emulation. The better one that the host has when not given at the launch.
    type: str
    choices: [kvm, qemu]
  cpu_mode:
    description:
      - The CPU that the guest of a launch sees, as in the domain XML. V(host-model) with KVM when neither this nor
        O(cpu_model) is given, else what libvirt chooses.
    type: str
    choices: [host-model, host-passthrough, maximum]
  cpu_model:
    description:
      - A named CPU model, so that the guest of a launch can migrate to any host that has it.
    type: str
  disk_bus:
    description:
      - The bus of the disks of a launch. When not given, what the image's property C(hw_disk_bus) says, else V(virtio).
    type: str
    choices: [virtio, scsi, sata, ide]
  disk_cache:
    description:
      - QEMU's cache mode for the disks of a launch. V(none) needs a file system with direct I/O.
    type: str
    choices: [none, writeback, writethrough, directsync]
    default: none
  graphics:
    description:
      - The display of a launch.
    type: str
    choices: [vnc, spice, none]
    default: vnc
  graphics_listen:
    description:
      - The address of the host on which the display of a launch listens.
    type: str
    default: 127.0.0.1
  storage:
    description:
      - The directory of the host below which a launch puts the VM's directory, named by its UUID, and the base cache.
        C(/var/lib/libvirt/images) when not given at the launch.
    type: str
  title:
    description:
      - A line about the VM.
    type: str
  description:
    description:
      - Some lines about the VM.
    type: str
  autostart:
    description:
      - Whether the VM is started when libvirtd starts.
    type: bool
  start:
    description:
      - Whether a launch starts the VM. It does nothing to a VM that is there; that is M(kvmops.lifecycle.vm_power)'s to
        do.
    type: bool
    default: true
  remove_disks:
    description:
      - With O(state=absent), disks to remove beside those that a launch made, as device names (V(vdb)) or paths.
    type: list
    elements: str
    default: []
  reclaim_after:
    description:
      - With O(state=absent), seconds until the VM is due to be purged. It is stopped and marked, and everything of it
        is kept. V(0) removes it at once, also if it was soft-deleted before.
    type: int
    default: 0
  force:
    description:
      - With O(state=absent), pull the plug at once.
    type: bool
    default: false
  shutdown_timeout:
    description:
      - With O(state=absent), seconds until a guest that does not shut down loses its power.
    type: int
    default: 60
  shutdown_retry_interval:
    description:
      - Seconds after which the guest is asked to shut down again.
    type: int
    default: 10
seealso:
  - module: kvmops.lifecycle.vm_power
  - module: kvmops.lifecycle.vm_shelve
  - module: kvmops.lifecycle.vm_info
  - module: kvmops.lifecycle.vm_lock
"""

EXAMPLES = r"""
- name: Two web servers from one image
  kvmops.lifecycle.vm:
    name: [web1, web2]
    image: /srv/images/debian-12.qcow2
    flavor:
      vcpus: 2
      memory: 2048
      root: 20
    networks:
      - bridge: br0
    cloud_init:
      user_data: |
        #cloud-config
        ssh_authorized_keys:
          - ssh-ed25519 AAAA… ada

- name: A database server from an image in Glance
  kvmops.lifecycle.vm:
    name: db1
    image: debian-12-genericcloud
    image_store:
      type: glance
      cloud: images
    flavor:
      vcpus: 4
      memory: 8192
      root: 50
    networks:
      - bridge: br0

- name: They start with the host from now on
  kvmops.lifecycle.vm:
    name: [web1, web2]
    autostart: true

- name: Remove one, with a week to think again
  kvmops.lifecycle.vm:
    name: web2
    state: absent
    reclaim_after: 604800

- name: It was needed after all
  kvmops.lifecycle.vm:
    name: web2
    state: restored

- name: Remove what was deleted a week ago or longer
  kvmops.lifecycle.vm:
    state: purged
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
      description: >-
        Its status in Nova's words, V(ABSENT) when there is none, V(SHELVED_OFFLOADED) when only O(image_store) has it;
        in check mode, the one it would have.
      type: str
      returned: always
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
      sample: [define, make_disks, start]
    figures:
      description: Details of what was done.
      type: dict
      returned: when there is such a VM
      contains:
        base:
          description: The file in the base cache that the root disk builds upon.
          type: str
          returned: when the VM was launched
        differences:
          description: What is otherwise than asked and can be changed, each with C(option), C(before) and C(after).
          type: list
          elements: dict
          returned: when a VM that is there was compared with O(state=present)
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
        removed_files:
          description: Files that were removed.
          type: list
          elements: str
          returned: when the VM was removed
        kept_disks:
          description: Files and volumes that the VM had and that were kept, each with the reason.
          type: dict
          returned: when the VM was removed
        left_files:
          description: Files in the VM's own directory that are not ours, and were left.
          type: list
          elements: str
          returned: when there are some
        removed_images:
          description: Identifiers of the images that were removed with its shelf.
          type: list
          elements: str
          returned: when the VM was shelved, and was removed
        kept_images:
          description: Images of its shelf that stay, each with the reason.
          type: dict
          returned: when there are some
        reclaim_at:
          description: When a soft-deleted VM is due to be purged.
          type: str
          returned: when the VM was soft-deleted
          sample: "2026-01-31T12:00:00Z"
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import NotFound
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    connection,
    image_store,
    override_lock,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.change import change
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.launch import make
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.remove import (
    delete,
    discard,
    is_soft_deleted,
    purge,
    restore,
    soft_delete,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM becomes what is asked."""
    state = context.params["state"]
    if state == "present":
        journal = vm.instance.journal
        began = vm.guest is None or (journal is not None and journal.action == "launch")
        return make(context, vm) if began else change(context, vm)
    if vm.guest is None:
        if state == "restored":
            raise NotFound(f"There is no VM with the name or UUID {vm.name!r} here, and so nothing to restore.")
        if state == "absent":
            return discard(context, vm)
        return Plan(before={"status": "ABSENT"}, after={"status": "ABSENT"})
    if state == "absent":
        return soft_delete(context, vm) if context.params["reclaim_after"] else delete(context, vm)
    return {"restored": restore, "purged": purge}[state](context, vm)


def main() -> None:
    """Entry point."""
    flavor = {
        "name": {"type": "str", "default": ""},
        "vcpus": {"type": "int", "required": True},
        "memory": {"type": "int", "required": True},
        "root": {"type": "int", "default": 0},
        "ephemeral": {"type": "list", "elements": "int", "default": []},
        "swap": {"type": "int", "default": 0},
    }
    network = {
        "bridge": {"type": "str"},
        "network": {"type": "str"},
        "mac": {"type": "str"},
        "model": {"type": "str"},
    }
    cloud_init = {
        "user_data": {"type": "str", "default": "", "no_log": True},
        "network_config": {"type": "str", "default": ""},
        "meta_data": {"type": "dict", "default": {}},
    }
    run_module(
        {
            **connection(),
            **selection(required=False),
            **override_lock(),
            **image_store(),
            "state": {"type": "str", "choices": ["present", "absent", "restored", "purged"], "default": "present"},
            "uuid": {"type": "str"},
            "image": {"type": "str"},
            "image_format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "flavor": {"type": "dict", "options": flavor},
            "networks": {
                "type": "list",
                "elements": "dict",
                "options": network,
                "mutually_exclusive": [("bridge", "network")],
                "required_one_of": [("bridge", "network")],
            },
            "cloud_init": {"type": "dict", "options": cloud_init},
            "firmware": {"type": "str", "choices": ["bios", "uefi"]},
            "secure_boot": {"type": "bool"},
            "machine": {"type": "str"},
            "domain_type": {"type": "str", "choices": ["kvm", "qemu"]},
            "cpu_mode": {"type": "str", "choices": ["host-model", "host-passthrough", "maximum"]},
            "cpu_model": {"type": "str"},
            "disk_bus": {"type": "str", "choices": ["virtio", "scsi", "sata", "ide"]},
            "disk_cache": {
                "type": "str",
                "choices": ["none", "writeback", "writethrough", "directsync"],
                "default": "none",
            },
            "graphics": {"type": "str", "choices": ["vnc", "spice", "none"], "default": "vnc"},
            "graphics_listen": {"type": "str", "default": "127.0.0.1"},
            "storage": {"type": "str"},
            "title": {"type": "str"},
            "description": {"type": "str"},
            "autostart": {"type": "bool"},
            "start": {"type": "bool", "default": True},
            "remove_disks": {"type": "list", "elements": "str", "default": []},
            "reclaim_after": {"type": "int", "default": 0},
            "force": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
        },
        decide,
        may_be_missing=True,
        everything=is_soft_deleted,
        required_if=[("state", "present", ["name"]), ("state", "absent", ["name"]), ("state", "restored", ["name"])],
        mutually_exclusive=[("cpu_mode", "cpu_model")],
    )


if __name__ == "__main__":
    main()
