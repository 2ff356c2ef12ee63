#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_shelve."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_shelve
version_added: 0.1.0
short_description: Shelve VMs, let go of the host, and bring them back on any host
description:
  - Puts a VM with everything that belongs to it into an image store, so that its host can let go of it and any host
    that reaches the store can bring it back. UUID, MAC addresses, machine type, variables of UEFI and the lock of
    M(kvmops.lifecycle.vm_lock) stay.
  - A shelf is a set of images, one for each local disk, and for the variables of UEFI, the config drive, the saved
    memory and the definition. The first one is called after the VM, as C(web1-shelved). All are protected, and none is
    a snapshot. A disk is stored as what differs from its base image. A base that the store does not have is put there
    once, for all VMs that are made of it.
  - Volumes on network storage stay where they are and are named in the shelf. VMs with disks that cannot be copied are
    refused.
  - If the module is killed, the same task, run again, finishes what it began, and so does the task that takes it back.
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
  - python3-libnbd (libnbd 1.14 or newer) and qemu-utils on the KVM host
  - oslo.utils 7.3 or newer with cryptography, where base images have to be put into the store, and to unshelve
options:
  name:
    description:
      - Names or UUIDs of the VMs, also of those that no host has because they are offloaded. Many are handled
        concurrently in one task.
      - Required unless O(state=offloaded). Without it, that is about all VMs of the host that were shelved with
        O(offload=later) into O(image_store).
    required: false
  state:
    description:
      - V(shelved) shuts the VM down and stores it. It stays defined, and its disks stay where they are, so that it can
        be brought back at once.
      - V(offloaded) stores it if it is not yet, reads what was stored back (O(verify)), and then removes everything of
        the VM from the host - its definition with variables of UEFI, saved memory and records of checkpoints, its
        disks, and its fixed addresses in the libvirt networks.
      - V(unshelved) brings it back and removes the shelf. While its host has it, it is simply started. An offloaded VM
        is brought back on the host on which the task runs.
    type: str
    choices: [shelved, offloaded, unshelved]
    required: true
  offload:
    description:
      - With O(state=shelved), what becomes of the VM on its host. V(now) is the same as O(state=offloaded). V(later)
        lets a task with O(state=offloaded) and without O(name) offload it. With V(never) only a task does that names
        it.
      - Of a VM that is shelved already only V(now) has a meaning.
    type: str
    choices: [now, later, never]
    default: later
  older_than:
    description:
      - With O(state=offloaded), seconds since a VM was shelved after which it is offloaded. Others are left alone, also
        those that are not shelved.
    type: int
  verify:
    description:
      - Before a host lets go of a VM, and before a shelf is removed - V(full) reads every image of the shelf, and the
        bases that they build upon, back from the store and compares its sha256. V(quick) sees that they are there and
        asks the store for their sizes and hashes.
    type: str
    choices: [full, quick]
    default: full
  memory:
    description:
      - Whether the memory of a suspended VM is stored as well. Otherwise it is lost, as if its power had failed. A
        suspended VM is refused until this is said.
      - Of no meaning for other VMs.
    type: bool
  compress:
    description:
      - Compress the images of disks that are stored whole. It takes several times as long. Those that are stored as
        what differs from a base are not compressed.
    type: bool
    default: false
  bandwidth:
    description:
      - MiB per second at most that are read from the disks of a VM, or pulled in from its shelf; V(0) is no limit.
    type: int
    default: 0
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
  start:
    description:
      - How an offloaded VM is brought back.
      - V(instant) starts it on the images in the store, whatever their size, and pulls the data in while it runs. If
        the store goes away meanwhile, the guest's I/O waits for it.
      - V(copied) copies them first.
    type: str
    choices: [instant, copied]
    default: instant
  power:
    description:
      - With O(state=unshelved), what the VM is afterwards. V(before) is what it was before it was shelved. One that was
        paused is started, as its memory was lost. One whose memory was stored is suspended.
    type: str
    choices: [before, running, stopped]
    default: before
  wait_for:
    description:
      - With O(state=unshelved) and O(start=instant), when the task ends. V(pulled) waits until all data are on the
        host, and then removes the shelf. V(running) ends when the VM runs. The same task, run again, does the rest.
    type: str
    choices: [pulled, running]
    default: pulled
  wait_timeout:
    description:
      - Seconds until the data of an unshelved VM must be on the host. When they have passed the task fails, the VM goes
        on, and the same task, run again, waits on.
    type: int
    default: 3600
  storage:
    description:
      - The directory of the host below which an offloaded VM gets its disks and its base images. By default they get
        the paths that they had.
    type: path
  override_claim:
    description:
      - Bring a VM back though another host does so already, or still has it. Only for when that host is dead for
        certain, as the VM would run twice.
    type: bool
    default: false
seealso:
  - module: kvmops.lifecycle.vm_info
  - module: kvmops.lifecycle.vm_snapshot
  - module: kvmops.lifecycle.vm
"""

EXAMPLES = r"""
- name: Put two VMs on the shelf; they may come back within a day, and then it is quick
  kvmops.lifecycle.vm_shelve:
    name: [web1, web2]
    state: shelved
    image_store:
      path: /srv/images

- name: Every hour, let go of what was shelved a day ago
  kvmops.lifecycle.vm_shelve:
    state: offloaded
    older_than: 86400
    image_store:
      path: /srv/images

- name: Free the host of a VM at once; it is kept in Glance
  kvmops.lifecycle.vm_shelve:
    name: db1
    state: offloaded
    image_store:
      type: glance
      cloud: mycloud

- name: Bring it back on another host; it boots before its disks have come
  kvmops.lifecycle.vm_shelve:
    name: db1
    state: unshelved
    image_store:
      type: glance
      cloud: mycloud

- name: Shelve a suspended VM, with its memory
  kvmops.lifecycle.vm_shelve:
    name: lab1
    state: shelved
    memory: true
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
      returned: when the host has such a VM
    host:
      description: The host name of the KVM host, as libvirt tells it.
      type: str
      returned: always
    status:
      description: >-
        Its status in Nova's words; in check mode, the one it would have. V(SHELVED_OFFLOADED) is a VM that no host has.
      type: str
      returned: always
      sample: SHELVED
    power_state:
      description: What the hypervisor tells, in Nova's words.
      type: str
      returned: always
      sample: SHUTDOWN
    task_state:
      description: The transition under way; empty when there is none.
      type: str
      returned: always
    changed:
      description: Whether this VM was changed.
      type: bool
      returned: always
    steps:
      description: What was done; in check mode, what would be.
      type: list
      elements: str
      returned: always
      sample: [stop, copy_disks, copy_rest, complete, mark]
    figures:
      description: Details of what was done.
      type: dict
      returned: always
      contains:
        set:
          description: The identifier of the shelf.
          type: str
          returned: when the VM is shelved
        image:
          description: The name of its first image.
          type: str
          returned: when it was made or removed
        images:
          description: >-
            Its images: C(id), C(role) (V(disk), V(memory), V(nvram), V(drive) or V(domain)), C(disk), C(form) (V(full)
            or V(delta)), C(parent), C(size) and C(virtual_size) in bytes, C(sha256).
          type: list
          elements: dict
          returned: when it was made
        at:
          description: When the disks were stored, UTC.
          type: str
          returned: when it was made
        bytes:
          description: Bytes that they take in the store, without base images.
          type: int
          returned: when it was made
        put_bases:
          description: Base images that were put into the store, by identifier, each with its size in bytes.
          type: dict
          returned: when it was made
        copy_seconds:
          description: How long the copying of the disks took.
          type: float
          returned: when it was made
        volumes:
          description: Disks on network storage, which stay where they are, by target.
          type: dict
          returned: when it was made
        left:
          description: Drives that are not in the shelf, such as CD-ROMs, by target, each with the reason.
          type: dict
          returned: when it was made
        read_bytes:
          description: Bytes that were read back from the store and compared. A base is read once a task.
          type: int
          returned: when it was offloaded with O(verify=full)
        verify_seconds:
          description: How long that took.
          type: float
          returned: when it was offloaded
        removed_leases:
          description: Fixed addresses that were taken from libvirt networks, C(network) and C(mac).
          type: list
          elements: dict
          returned: when it was offloaded
        removed_files:
          description: Files that were removed from the host.
          type: list
          elements: str
          returned: when it was offloaded
        left_files:
          description: Files in the VM's own directory that are not ours, and were left.
          type: list
          elements: str
          returned: when there are some
        kept_disks:
          description: Files and volumes of the VM that stay on the host, each with the reason.
          type: dict
          returned: when it was offloaded
        offload_at:
          description: When O(older_than) will have passed.
          type: str
          returned: when it has not yet
        image_store:
          description: The image store that has the shelf.
          type: str
          returned: when it is another one than the task's, and O(name) is not given
        removed_images:
          description: Identifiers of the images that were removed from the store.
          type: list
          elements: str
          returned: when the shelf was removed
        kept_images:
          description: >-
            Images of the shelf that stay, as ordinary ones, each with the reason. Other images may build upon one.
          type: dict
          returned: when there are some
        running_seconds:
          description: From the beginning of the task until the VM ran.
          type: float
          returned: when an offloaded VM was started
        start:
          description: How it was started, V(instant) or V(copied).
          type: str
          returned: when an offloaded VM is brought back
        files:
          description: The files of its disks on the host, by target.
          type: dict
          returned: when an offloaded VM is brought back
        pulled_bytes:
          description: Bytes of its disks that were in the store.
          type: int
          returned: when they were pulled in while the VM ran
        pull_seconds:
          description: How long that was waited for.
          type: float
          returned: when they were pulled in while the VM ran
        fetched:
          description: Base images that came to the host meanwhile, by target.
          type: dict
          returned: when there were such
        copied_bytes:
          description: Bytes of its disks that were copied before it was started.
          type: int
          returned: when they were
        bases:
          description: The base images that its disks lie upon, by target.
          type: dict
          returned: when they were copied before it was started
        disk_bytes:
          description: Bytes that its disks take on the host, by target.
          type: dict
          returned: when all data of an offloaded VM are there
        held_milliseconds:
          description: How long its guest stood still, so that QEMU wrote out what it knew of the disks.
          type: int
          returned: when they were pulled in while the VM ran
        leases:
          description: Fixed addresses that were given back to libvirt networks, C(network) and C(mac).
          type: list
          elements: dict
          returned: when there were such
        refused_leases:
          description: Fixed addresses that could not be given, by MAC address, each with the reason.
          type: dict
          returned: when there were such
        overridden_claim:
          description: The host that was bringing the VM back.
          type: str
          returned: when O(override_claim) was needed
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
    image_store,
    override_lock,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.shelve import (
    bring_back,
    check,
    is_due,
    is_here,
    offload,
    offloading,
    shelve,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.unshelve import unshelve
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this VM becomes what is asked."""
    ask = context.params
    check(ask)
    if ask["state"] == "unshelved":
        return bring_back(context, vm) if is_here(vm) else unshelve(context, vm)
    if ask["state"] == "offloaded" or ask["offload"] == "now":
        return offload(context, vm)
    return shelve(context, vm)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(required=False),
            **override_lock(),
            **image_store(),
            "state": {"type": "str", "choices": ["shelved", "offloaded", "unshelved"], "required": True},
            "offload": {"type": "str", "choices": ["now", "later", "never"], "default": "later"},
            "older_than": {"type": "int"},
            "verify": {"type": "str", "choices": ["full", "quick"], "default": "full"},
            "memory": {"type": "bool"},
            "compress": {"type": "bool", "default": False},
            "bandwidth": {"type": "int", "default": 0},
            "force": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
            "start": {"type": "str", "choices": ["instant", "copied"], "default": "instant"},
            "power": {"type": "str", "choices": ["before", "running", "stopped"], "default": "before"},
            "wait_for": {"type": "str", "choices": ["pulled", "running"], "default": "pulled"},
            "wait_timeout": {"type": "int", "default": 3600},
            "storage": {"type": "path"},
            "override_claim": {"type": "bool", "default": False},
        },
        decide,
        may_be_missing=True,
        everything=is_due,
        elsewhere=offloading,
        required_if=[("state", "shelved", ["name"]), ("state", "unshelved", ["name"])],
    )


if __name__ == "__main__":
    main()
