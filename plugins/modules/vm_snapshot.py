#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_snapshot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
version_added: 0.1.0
short_description: Snapshots and backups of VMs into an image store
description:
  - Copies disks of a VM, as they are at one point in time, into an image store, while the VM runs on. The VM may also
    be paused, stopped or suspended.
  - A snapshot is a set of images, one for each disk, tied by properties. The first disk's image has the name O(image)
    and the manifest of the set; the others are called after it and the disk, as C(before-update-vdb). New VMs are
    launched from the first disk's image by M(kvmops.lifecycle.vm).
  - The disks of a running VM are copied by a libvirt backup job in pull mode. The guest is not stopped for a full
    image. It is held for the start of the job, some tens of milliseconds whatever the size of its disks, when its file
    systems are frozen (O(quiesce)) and for O(form=delta). RV(vms[].figures.held_ms) tells how long.
  - What the guest overwrites while its disks are copied is put aside in scratch files (O(scratch)).
  - If the module is killed, a small process that it left lets the guest go on and ends the backup job; the same task,
    run again, removes the rest and finishes.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.image_store
attributes:
  idempotent:
    support: partial
    details:
      - A snapshot or backup is known by its O(image) and its VM, and made once. A backup without O(image) gets a name
        with the time in it, and is made each time.
requirements:
  - python3-libnbd (libnbd 1.14 or newer) and qemu-utils on the KVM host
options:
  state:
    description:
      - V(present) makes the snapshot, unless the store has it.
      - V(absent) removes all its images, also when the VM is gone. It is refused while other images build upon one of
        them, and while one of them is protected.
    type: str
    choices: [present, absent]
    default: present
  image:
    description:
      - Name of the snapshot. Snapshots of different VMs may have the same.
      - Without it, a backup is called after the VM, O(backup_type) and the time.
    type: str
  disks:
    description:
      - Which disks. V(root) is the first one, V(all) are all that lie on the host and are the VM's own; others are
        named by target, as V(vdb).
      - Disks on network storage (RBD, iSCSI, NBD) are volumes that their storage takes snapshots of; they are copied
        only when they are named, and listed in RV(vms[].figures.left) else. So are read-only and encrypted disks.
    type: list
    elements: str
    default: [all]
  form:
    description:
      - V(full) makes images that are whole disks.
      - V(delta) stores only what differs from the image that a disk was made of, which must be in the same store. Such
        an image can be launched and restored, with its parent; other software must not use it, so it is declared
        C(raw).
    type: str
    choices: [full, delta]
    default: full
  compress:
    description:
      - Compress the images. It takes several times as long, and the compressed image is first written to O(scratch).
      - Deltas and increments are not compressed.
    type: bool
    default: false
  memory:
    description:
      - Store the memory of a suspended VM as well (libvirt's save image).
    type: bool
    default: false
  quiesce:
    description:
      - Whether the file systems of a running guest are frozen, through its agent, for the point in time.
      - V(required) fails when they cannot be, V(preferred) goes on without, and tells so in RV(vms[].figures.quiesced).
    type: str
    choices: [required, preferred, never]
    default: preferred
  quiesce_timeout:
    description:
      - Seconds that the agent has for the freeze, and for the thaw.
    type: int
    default: 20
  bandwidth:
    description:
      - MiB per second at most that are read from the disks of a VM; V(0) is no limit.
    type: int
    default: 0
  scratch:
    description:
      - Directory on the host for what the guest overwrites while its disks are copied; QEMU must be allowed to write
        there. By default it is the directory of the VM's first disk.
      - At least 256 MiB must be free. When less than half of that is left, the copying is given up before the guest has
        to wait for room.
    type: path
  properties:
    description:
      - Properties of the images, beside those that are written anyway (as Nova does, C(image_type), C(instance_uuid),
        C(base_image_ref), C(backup_type) and what the VM's own image had).
    type: dict
    default: {}
  backup_type:
    description:
      - Makes it a backup of that type, V(daily) for example. Backups of a VM and type are counted by O(rotation).
    type: str
  rotation:
    description:
      - How many backups of O(backup_type) are kept, the new one included. The oldest are removed, once the new one is
        complete and seen to be whole. Only complete backups count.
      - Older backups that increments build upon stay as long as they are needed, and can be restored as well.
    type: int
  incremental:
    description:
      - Store only what was written since the last backup of the same O(backup_type) and disks.
      - QEMU remembers that in the qcow2 files (libvirt's checkpoints). If it cannot be told, because QEMU was killed
        for example, the backup is a full one (O(form)), and RV(vms[].figures.why_full) tells why.
      - A stopped VM is started with its CPUs stopped for that, and powered off again.
    type: bool
    default: false
  full_every:
    description:
      - Every how manieth backup is a full one, where O(incremental=true). By default as many as O(rotation), or 7.
      - Not more than O(rotation) + O(full_every) - 1 backups are in the store at any time.
    type: int
seealso:
  - module: kvmops.lifecycle.vm_rebuild
  - module: kvmops.lifecycle.image
  - name: Backup XML format
    description: What a backup job is.
    link: https://libvirt.org/formatbackup.html
"""

EXAMPLES = r"""
- name: Keep what the VM is before it is updated
  kvmops.lifecycle.vm_snapshot:
    name: web1
    image: web1-before-update
    quiesce: required

- name: A backup every night, of which a week is kept; only what changed is stored
  kvmops.lifecycle.vm_snapshot:
    name: "{{ groups['vms'] }}"
    backup_type: daily
    rotation: 7
    incremental: true
    bandwidth: 200
    image_store:
      path: /srv/backups

- name: Into Glance, as a delta over the image that the VM was launched from
  kvmops.lifecycle.vm_snapshot:
    name: web1
    image: web1-golden
    disks: root
    form: delta
    image_store:
      type: glance
      cloud: mycloud

- name: Remove it
  kvmops.lifecycle.vm_snapshot:
    name: web1
    image: web1-before-update
    state: absent
"""

RETURN = r"""
vms:
  description: One entry for each VM.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the VM.
      type: str
      returned: always
    uuid:
      description: UUID of the VM.
      type: str
      returned: when it exists
    host:
      description: The KVM host.
      type: str
      returned: always
    status:
      description: Status as in Nova, V(ABSENT) when there is no such VM.
      type: str
      returned: always
    power_state:
      description: Power state as in Nova.
      type: str
      returned: always
    task_state:
      description: What is under way, as in Nova; empty when nothing is.
      type: str
      returned: always
    changed:
      description: Whether anything was done; in check mode, whether anything would be.
      type: bool
      returned: always
    steps:
      description: What was done, in order; in check mode, what would be.
      type: list
      elements: str
      returned: always
      sample: [copy_disks, complete, rotate]
    figures:
      description: Figures of the snapshot.
      type: dict
      returned: always
      contains:
        image:
          description: Name of the snapshot.
          type: str
          returned: when it is there
        images:
          description: >-
            Its images: C(id), C(role) (V(disk) or V(memory)), C(disk), C(form), C(parent), C(size) and C(virtual_size)
            in bytes, C(sha256).
          type: list
          elements: dict
          returned: when it is there
        bytes:
          description: Bytes that they take in the store.
          type: int
          returned: when it is there
        at:
          description: The point in time, UTC.
          type: str
          returned: when it is there
        quiesced:
          description: Whether the guest's file systems were frozen at that point.
          type: bool
          returned: when it is there
        not_quiesced:
          description: Why they were not, though that was wanted.
          type: str
          returned: when it was made now and is not quiesced
        held_ms:
          description: Milliseconds that the guest stood still.
          type: int
          returned: when it was made now
        left:
          description: Disks that were not copied, each with the reason.
          type: dict
          returned: when it is there
        increment:
          description: Whether it holds only what was written since the last backup.
          type: bool
          returned: when it was made now with O(incremental=true)
        why_full:
          description: Why it does not.
          type: str
          returned: when it was made now with O(incremental=true) and is a full one
        removed_backups:
          description: Names of the backups that were removed.
          type: list
          elements: str
          returned: when backups were rotated
        kept_backups:
          description: Backups older than those that O(rotation) keeps, each with the reason why it stays.
          type: dict
          returned: when backups were rotated
        removed_images:
          description: Identifiers of the images that were removed.
          type: list
          elements: str
          returned: when the snapshot was removed
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
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, image_store, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.snapshot import remove, take
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How this snapshot comes to be there, or not."""
    return {"present": take, "absent": remove}[context.params["state"]](context, vm)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            **image_store(),
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "image": {"type": "str"},
            "disks": {"type": "list", "elements": "str", "default": ["all"]},
            "form": {"type": "str", "choices": ["full", "delta"], "default": "full"},
            "compress": {"type": "bool", "default": False},
            "memory": {"type": "bool", "default": False},
            "quiesce": {"type": "str", "choices": ["required", "preferred", "never"], "default": "preferred"},
            "quiesce_timeout": {"type": "int", "default": 20},
            "bandwidth": {"type": "int", "default": 0},
            "scratch": {"type": "path"},
            "properties": {"type": "dict", "default": {}},
            "backup_type": {"type": "str"},
            "rotation": {"type": "int"},
            "incremental": {"type": "bool", "default": False},
            "full_every": {"type": "int"},
        },
        decide,
        may_be_missing=True,
        required_if=[("state", "absent", ["image"])],
    )


if __name__ == "__main__":
    main()
