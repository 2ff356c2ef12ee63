#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_migrate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_migrate
version_added: 0.1.0
short_description: Move VMs to another KVM host
description:
  - Moves VMs to another host, while they run if they do.
  - A migration goes from libvirtd to libvirtd, so it goes on when the module is killed. The same task then joins it, or
    finishes what is left to be done.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.override_lock
  - kvmops.lifecycle._options.destination
  - kvmops.lifecycle._options.placement
options:
  name:
    description:
      - Names or UUIDs of the VMs. Many are handled concurrently in one task, which is much faster than a loop.
      - If some fail, the task fails and RV(vms) tells which and why; the others are done.
      - O(name) or O(moves) is required.
    required: false
  moves:
    description:
      - VMs with different destinations, in place of O(name) and O(dest).
    type: list
    elements: dict
    suboptions:
      name:
        description: Name or UUID of the VM.
        type: str
        required: true
      dest:
        description: Like O(dest), for this VM.
        type: str
        required: true
      method:
        description: Like O(method), for this VM. Without it, O(method) counts.
        type: str
        choices: [auto, live, cold, offline]
  limits:
    description:
      - How many VMs move at the same time with O(state=migrated). The others wait for their turn in the order in which
        they came; who waits for one host does not hold up who goes to another. A VM that waits may be worked on
        meanwhile.
      - All tasks are counted that run on the same machine as this one; with the default O(uri) that is the KVM host
        that the VMs leave. VMs that come from elsewhere count with O(limits.per_destination), as the destination tells
        of them, so tasks of several hosts that begin at the same moment may exceed it a little.
      - O(concurrency) limits one task, beside these. Each migration wants a good part of the network's bandwidth.
    type: dict
    suboptions:
      per_source:
        description: How many leave the same host. V(0) is no limit.
        type: int
        default: 2
      per_destination:
        description: How many go to the same host. V(0) is no limit.
        type: int
        default: 2
  state:
    description:
      - V(migrated) means that the VM is on O(dest). One that is there already, and not here, is left alone.
      - V(checked) looks whether the VM can be moved, changes nothing, and never fails for what it finds. All that
        stands in the way is in RV(vms[].figures.findings), each with a stable reason code. V(migrated) looks for the
        same first, and refuses with all of it before anything is touched.
      - V(recovered) looks at both hosts, this one and O(dest), and puts right what a live migration that died has left.
        That may be a VM that is defined or runs on both, that stands still, whose post-copy migration broke, or whose
        migration was not finished. The only good copy is never removed, and nothing is done when nothing tells which
        one it is; then see O(truth).
      - V(confirmed) is a VM that was moved while it was off and does not wait for that to be confirmed any more (status
        VERIFY_RESIZE); what the host that it left still had of it is gone. V(reverted) is such a VM where it came from,
        as it was; what was written since to disks that were copied is lost. Both can be said on either host.
      - V(aborted) gives up a live migration that is under way, whoever began it, and waits until that is so; the VM
        goes on where it is. What was made for it at the destination is removed.
      - V(forced) brings a live migration to its end that is under way, whoever began it, and waits for that. If it was
        begun with O(policy.on_timeout=post_copy), the guest runs at the destination at once, which fetches the rest;
        else it is held until the rest is there.
    type: str
    choices: [migrated, checked, confirmed, reverted, aborted, forced, recovered]
    default: migrated
  policy:
    description:
      - How a live migration shall come to its end. It goes in rounds, first all of the memory, then what the guest has
        changed meanwhile, and so on, until the rest can be carried over in the time that the guest may stand still.
      - What was done in the course of it, and why, is told in RV(vms[].figures.monitor).
    type: dict
    suboptions:
      downtime:
        description:
          - How long the guest may stand still at the end, in milliseconds, at most.
          - It is allowed 300 ms at first, which is QEMU's own default, and more only when it does not get on, or when
            the migration could end at once.
        type: int
        default: 500
      downtime_steps:
        description:
          - In how many steps that is raised to O(policy.downtime).
        type: int
        default: 5
      bandwidth:
        description:
          - How much may go over the network a second, in MiB. V(0) is no limit.
        type: int
        default: 0
      timeout_per_gib:
        description:
          - How many seconds it may take for each GiB of memory and of each disk that is copied. Two GiB of each are
            counted at the least. V(0) is no limit.
        type: int
        default: 800
      progress_timeout:
        description:
          - How many seconds it may go on without any progress. Progress is that rounds become smaller, or that the
            guest is slowed down more. V(0) is no limit.
        type: int
        default: 150
      on_timeout:
        description:
          - What is done when one of these times is over. With V(abort) the VM stays where it is, and the task fails.
          - With V(force) the guest is held until the rest is there, however long that takes.
          - With V(post_copy) the guest runs at the destination at once, and what is missing is fetched. This is the
            last resort. If the network or one of the hosts fails before all is there, the guest is lost. It is not
            possible with devices of the host, and with O(policy.connections) from QEMU 10.1 on only.
        type: str
        choices: [abort, force, post_copy]
        default: abort
      auto_converge:
        description:
          - Let QEMU slow the guest down if it changes its memory faster than it is carried over. A guest that does not
            is not slowed down.
          - With V(auto) that is so, unless O(policy.on_timeout=post_copy).
        type: str
        choices: [auto, always, never]
        default: auto
      auto_converge_initial:
        description:
          - How much of its time QEMU takes from such a guest at first, in percent. V(0) is QEMU's choice, which is 20.
        type: int
        default: 0
      auto_converge_increment:
        description:
          - How much more each time that this was not enough, in percent. V(0) is QEMU's choice, which is 10.
        type: int
        default: 0
      connections:
        description:
          - Through how many connections the memory goes. One cannot fill a fast network, as one CPU encrypts it.
        type: int
        default: 1
      compression:
        description:
          - How memory is compressed. V(xbzrle), which sends changed pages as differences, and V(mt) go through one
            connection; V(zlib) and V(zstd) go through several, from libvirt 9.4 on. V(mt) is gone from QEMU 9.1 on.
        type: list
        elements: str
        choices: [xbzrle, mt, zlib, zstd]
        default: []
  origin:
    description:
      - For a VM that is moved while it is off, the URI by which O(dest) reaches the libvirtd of the host that the VM
        leaves, to confirm or to revert from there. The default is that host's name, reached as O(dest) is.
    type: str
  older_than:
    description:
      - With O(state=confirmed), only VMs that wait for at least so many seconds.
    type: int
    default: 0
  force:
    description:
      - Where a VM has to be stopped, pull the plug at once, rather than to ask the guest to shut down.
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
  truth:
    description:
      - With O(state=recovered), which copy of the VM shall stay where nothing tells that. The other one is removed,
        with what only it has. A guest whose memory is not whole is switched off.
      - Where the hosts tell which copy is the good one, saying the other one is refused.
    type: str
    choices: [source, destination]
  while_disabled:
    description:
      - With O(state=migrated), move VMs only for as long as this host is disabled for scheduling (see
        M(kvmops.lifecycle.host_schedulable)). Those whose turn has not come when it is enabled stay, with the code
        V(cancelled), and the task fails for them; those that are under way go on. So the work of a long task is called
        off by enabling the host.
      - The task must run on the KVM host itself.
    type: bool
    default: false
  progress:
    description:
      - Whether to show how far each VM is while it moves, in the output of the playbook. There is at most one line for
        a VM every three seconds, and only when there is something new to say.
      - The module then runs as an asynchronous job, for as long as it takes. It ends its work also when the controller
        or the connection to it dies.
      - Nothing is shown in check mode, with C(async) and with C(no_log).
    type: bool
    default: true
  method:
    description:
      - How the VM is moved. With V(auto) that is V(live) when it runs or is paused, V(offline) when it is off and the
        destination sees all its disks, and V(cold) when it is off and has disks to carry.
      - With V(cold), a VM that runs is stopped, moved and started there.
      - A VM that is moved while it is off has the status VERIFY_RESIZE until the user says O(state=confirmed) or
        O(state=reverted). Until then its definition and its disks stay on the host that it left, as the way back.
    type: str
    choices: [auto, live, cold, offline]
    default: auto
  overcommit:
    description:
      - For the room that copied disks need at the destination, count what they take now, and not what they may grow to.
    type: bool
    default: false
seealso:
  - module: kvmops.lifecycle.host_schedulable
  - module: kvmops.lifecycle.vm_power
"""

EXAMPLES = r"""
- name: Two web servers to another host, while they run
  kvmops.lifecycle.vm_migrate:
    name: [web1, web2]
    dest: kvm2.example.com

- name: To different hosts, four at the same time
  kvmops.lifecycle.vm_migrate:
    moves:
      - {name: web1, dest: kvm2.example.com}
      - {name: web2, dest: kvm3.example.com}
      - {name: db1, dest: kvm2.example.com}
    limits:
      per_source: 4

- name: Look whether it could be moved, and how
  kvmops.lifecycle.vm_migrate:
    name: db1
    dest: kvm2.example.com
    state: checked
  register: check

- name: Stop when anything stands in the way
  ansible.builtin.assert:
    that: check.vms[0].figures.migratable
    fail_msg: "{{ check.vms[0].figures.findings | map(attribute='code') | join(', ') }}"

- name: A busy database, over a network of its own, held at the end if it does not come to one by itself
  kvmops.lifecycle.vm_migrate:
    name: db1
    dest: kvm2.example.com
    migration_network: -mig
    policy:
      downtime: 2000
      progress_timeout: 60
      on_timeout: force

- name: Give up a migration that another play began
  kvmops.lifecycle.vm_migrate:
    name: db1
    dest: kvm2.example.com
    state: aborted

- name: Let a VM stay that was moved while it was off; what the other host still has of it goes
  kvmops.lifecycle.vm_migrate:
    name: archive
    dest: kvm2.example.com
    state: confirmed

- name: Put right what a migration has left, after a host had died in it
  kvmops.lifecycle.vm_migrate:
    name: web1
    dest: kvm2.example.com
    state: recovered
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
      description: The host name of the KVM host that it is on, as libvirt tells it.
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
      sample: [migrate, finish]
    figures:
      description: Details of what was done.
      type: dict
      returned: when there is such a VM
      contains:
        method:
          description: How it moved.
          type: str
          returned: when there was something to do
          sample: live
        source:
          description: The host name of the KVM host that it left.
          type: str
          returned: when there was something to do
        dest:
          description: The host name of the one it went to.
          type: str
          returned: when there was something to do
        migratable:
          description: Whether nothing stands in the way.
          type: bool
          returned: with O(state=checked)
        findings:
          description: All that stands in the way, or should be known before, what stands in the way first.
          type: list
          elements: dict
          returned: with O(state=checked)
          contains:
            code:
              description: The reason code.
                R(The guide, ansible_collections.kvmops.lifecycle.docsite.guide_migrate_checks) explains each.
              type: str
              returned: always
              sample: bridge_missing
            severity:
              description: V(blocker) or V(warning).
              type: str
              returned: always
            message:
              description: What is the matter.
              type: str
              returned: always
              sample: kvm2 has no bridge br1, which card 52:54:00:12:34:56 is on.
            way_out:
              description: What would allow it; empty when there is nothing to be said.
              type: str
              returned: always
        disks:
          description: How each disk goes, by target. It is V(shared), V(copied), V(network), or V(empty) for a drive
            without a medium.
          type: dict
          returned: with O(state=checked), and when it was moved
          sample: {vda: copied, sda: empty}
        to_copy_bytes:
          description: What is copied of the disks. Base images that the destination lacks come on top.
          type: int
          returned: with O(state=checked)
        room:
          description: The room that is needed and free in directories of the destination, in bytes. What is free is
            V(null) when it is not known.
          type: dict
          returned: with O(state=checked)
          sample: {/var/lib/libvirt/images: {needed: 10737418240, free: 96636764160}}
        truth:
          description: On which side the copy is that stays, V(source) or V(destination).
          type: str
          returned: with O(state=recovered)
        why:
          description: What was found, and what it means.
          type: str
          returned: with O(state=recovered)
          sample: The guest runs at the destination, and was not let go on at the source.
        resize:
          description: What waits or waited to be confirmed, as RV(kvmops.lifecycle.vm_info#module:vms[].resize).
          type: dict
          returned: with O(state=confirmed) and O(state=reverted), when there was something to do
        since:
          description: Since when it waits to be confirmed.
          type: str
          returned: when that is not long enough for O(older_than)
        sent_bytes:
          description:
            - How many bytes of files were sent to the destination. Of a VM that was off, those of its disks; of one
              that ran, those of media that nobody writes to, as libvirt copies the disks. Holes are not sent.
          type: int
          returned: when it was moved, and not all of its disks were shared
        bases_sent_bytes:
          description: How many bytes of base images, and of other layers below its disks, the destination did not have.
          type: int
          returned: when it was moved, and not all of its disks were shared
        start_seconds:
          description: How long it took until it ran.
          type: float
          returned: when it was moved while it was off, or back, and started
        removed_files:
          description: Files that were removed.
          type: list
          elements: str
          returned: with O(state=confirmed) and O(state=reverted), when there was something to do, and when disks were
            copied while it ran
        kept_disks:
          description: Files on the host that it left which are kept, each with the reason.
          type: dict
          returned: with O(state=confirmed), when there was something to do, and when disks were copied while it ran
        merged:
          description: The disks that became what was written to them since they had grown, by target.
          type: list
          elements: str
          returned: with O(state=confirmed), when both hosts see disks that had grown
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
        total_seconds:
          description: How long libvirt took.
          type: float
          returned: when it was migrated live
        downtime_ms:
          description: How long the guest stood still, in milliseconds.
          type: int
          returned: when it was migrated live
        memory_bytes:
          description: How much memory was carried over, with what had to be carried again.
          type: int
          returned: when it was migrated live
        disk_bytes:
          description: How much of its disks was carried over.
          type: int
          returned: when it was migrated live
        rounds:
          description: In how many rounds the memory was carried over.
          type: int
          returned: when it was migrated live
        monitor:
          description: What was done in the course of it, in its order.
          type: list
          elements: dict
          returned: when it was migrated live
          contains:
            at:
              description: When, in seconds since it began.
              type: float
            what:
              description: What, such as V(auto_converge), V(downtime), V(force) or V(post_copy).
              type: str
            value:
              description: Of V(downtime), the milliseconds that the guest may stand still from then on.
              type: int
            why:
              description: Why, in words.
              type: str
        lost_leases:
          description: Fixed addresses that a network of libvirt gave the VM and the one at the destination cannot, by
            MAC address, each with the reason.
          type: dict
          returned: when there are such
        lost_checkpoints:
          description: Checkpoints whose bitmaps did not come along.
          type: list
          elements: str
          returned: when there are such
        forced:
          description: V(post_copy) or V(pause).
          type: str
          returned: with O(state=forced), when there was something to do
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
        The kind of failure: V(invalid), V(not_found), V(ambiguous), V(refused), V(cancelled), V(locked), V(busy),
        V(timed_out), V(unreachable), V(denied), V(no_space), V(unsupported) or V(failed).
      type: str
      returned: when it failed
"""

import typing as t

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    connection,
    destination,
    override_lock,
    placement,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.cold import confirm, revert
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.migrate import abort, force, migrate
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.preflight import check
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.queueing import turn
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.recover import recover
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject

METHODS = ["auto", "live", "cold", "offline"]
MOVE: dict[str, dict[str, t.Any]] = {
    "name": {"type": "str", "required": True},
    "dest": {"type": "str", "required": True},
    "method": {"type": "str", "choices": METHODS},
}

POLICY: dict[str, dict[str, t.Any]] = {
    "downtime": {"type": "int", "default": 500},
    "downtime_steps": {"type": "int", "default": 5},
    "bandwidth": {"type": "int", "default": 0},
    "timeout_per_gib": {"type": "int", "default": 800},
    "progress_timeout": {"type": "int", "default": 150},
    "on_timeout": {"type": "str", "choices": ["abort", "force", "post_copy"], "default": "abort"},
    "auto_converge": {"type": "str", "choices": ["auto", "always", "never"], "default": "auto"},
    "auto_converge_initial": {"type": "int", "default": 0},
    "auto_converge_increment": {"type": "int", "default": 0},
    "connections": {"type": "int", "default": 1},
    "compression": {
        "type": "list",
        "elements": "str",
        "choices": ["xbzrle", "mt", "zlib", "zstd"],
        "default": [],
    },
}


_STATES: dict[str, t.Callable[[Context, Subject], Plan]] = {
    "migrated": migrate,
    "checked": check,
    "confirmed": confirm,
    "reverted": revert,
    "aborted": abort,
    "forced": force,
    "recovered": recover,
}


def decide(context: Context, vm: Subject) -> Plan:
    """What there is to do for one VM."""
    if context.params["while_disabled"] and not context.host.local:
        raise Invalid(
            f"while_disabled wants to know whether {context.host.name} is disabled, which only the host itself tells.",
            hint="Run the task on the host, with the default uri.",
        )
    return _STATES[context.params["state"]](context, vm)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(required=False),
            **override_lock(),
            **destination(),
            **placement(),
            "method": {"type": "str", "choices": METHODS, "default": "auto"},
            "overcommit": {"type": "bool", "default": False},
            "state": {
                "type": "str",
                "choices": ["migrated", "checked", "confirmed", "reverted", "aborted", "forced", "recovered"],
                "default": "migrated",
            },
            "policy": {"type": "dict", "apply_defaults": True, "options": POLICY},
            "origin": {"type": "str"},
            "older_than": {"type": "int", "default": 0},
            "force": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
            "truth": {"type": "str", "choices": ["source", "destination"]},
            "moves": {"type": "list", "elements": "dict", "options": MOVE},
            "limits": {
                "type": "dict",
                "apply_defaults": True,
                "options": {key: {"type": "int", "default": 2} for key in ("per_source", "per_destination")},
            },
            "while_disabled": {"type": "bool", "default": False},
            "progress": {"type": "bool", "default": True},
        },
        decide,
        may_be_missing=True,
        each="moves",
        turn=turn,
        required_one_of=[("name", "moves")],
        mutually_exclusive=[("name", "moves"), ("moves", "dest")],
        required_if=[
            ("state", "migrated", ("dest", "moves"), True),
            ("state", "checked", ("dest", "moves"), True),
            ("state", "recovered", ("dest", "moves"), True),
        ],
    )


if __name__ == "__main__":
    main()
