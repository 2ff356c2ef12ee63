#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module drain_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drain_plan
version_added: 0.1.0
short_description: Plan where the VMs of a KVM host go
description:
  - Takes what all hosts of a cluster told of themselves, and plans the moves that empty a host, bring its VMs back to
    it, or bring them up elsewhere after it has died.
  - The plan counts what all its moves together take of memory, CPUs and storage, and regards CPU models, machine types,
    networks, storage that hosts share, groups of VMs that belong together or apart, and hosts that are out of
    scheduling. It spreads VMs by load.
  - A VM that cannot be moved is a blocker, with a reason code that does not change, a sentence, and a way out. All of
    them are told at once.
  - It asks nobody and moves nothing, so it runs anywhere, such as on the controller. The same facts give the same plan.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
attributes:
  check_mode:
    support: full
    details:
      - This module does not modify state.
  diff_mode:
    support: full
    details:
      - The diff is how full the hosts are before and after the plan.
  idempotent:
    support: full
    details:
      - RV(ignore:changed) tells whether the plan has anything to do. It has nothing to do once it was carried out.
options:
  hosts:
    description:
      - By the name of each host that answered, the RV(kvmops.lifecycle.host_info#module:host.placement) that it told.
    type: dict
    required: true
  drain:
    description:
      - The host that shall be empty. It is one of O(hosts).
    type: str
  restore:
    description:
      - The host to which VMs return that were there before a drain. It is one of O(hosts), and takes VMs even while it
        is out of scheduling.
    type: str
  evacuate:
    description:
      - The host that is dead. If it is one of O(hosts), that is ignored.
    type: str
  vms:
    description:
      - The VMs that the dead host had, as they stand in RV(kvmops.lifecycle.host_info#module:host.placement).
      - One with a name of a host in C(evacuated) is left alone, as it was brought there already.
      - A disk with C(anew) was lost, and is made anew or left out. It needs room at the destination, and the host need
        not see it.
    type: list
    elements: dict
  strategy:
    description:
      - What becomes of VMs that are on, unless M(kvmops.lifecycle.vm_policy) has said it of the VM.
      - V(live) moves them while they run, V(cold) while they are off, V(stop) shuts them down, to be started when the
        host returns, V(leave) leaves them alone.
    type: str
    choices: [live, cold, stop, leave]
    default: live
  stopped:
    description:
      - What becomes of VMs that are off. V(move) moves them too; their disks are carried if hosts do not share them.
    type: str
    choices: [leave, move]
    default: leave
  limits:
    description:
      - How full hosts may become. The defaults are those that Nova has.
    type: dict
    suboptions:
      cpu_ratio:
        description:
          - How many CPUs of VMs that are on there may be for each of the host's (Nova,
            C(initial_cpu_allocation_ratio)).
        type: float
        default: 4.0
      memory_ratio:
        description:
          - How much memory VMs that are on may take for what the host has without its reserve (Nova,
            C(initial_ram_allocation_ratio)). Whatever this says, no VM goes where its memory cannot be had now.
        type: float
        default: 1.0
      disk_ratio:
        description:
          - How much of a file system may be used when disks have been carried there (Nova,
            C(initial_disk_allocation_ratio)).
        type: float
        default: 1.0
      memory_reserve:
        description:
          - MiB that are the host's own (Nova, C(reserved_host_memory_mb)).
        type: int
        default: 512
      reserve_hosts:
        description:
          - How many of the largest hosts that remain may fail afterwards, and all VMs still find memory and CPUs.
        type: int
        default: 0
  overcommit:
    description:
      - For the room that carried disks need, count what they take now, and not what they may grow to.
    type: bool
    default: false
  destinations:
    description:
      - The hosts that VMs may go to, of those that are in scheduling. Without this, all of them.
    type: list
    elements: str
  dest_storage:
    description:
      - The directory at destinations that takes the disks that are carried. Without this, they lie where they lay.
    type: path
  shared_storage:
    description:
      - Names of disks (V(vdb)), files or directories that all hosts see, where the facts do not tell it.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - What is known to be impossible, for example from M(kvmops.lifecycle.vm_migrate) with C(state=checked).
    type: list
    elements: dict
    default: []
    suboptions:
      vm:
        description:
          - The name or the UUID of the VM.
        type: str
        required: true
      dest:
        description:
          - The host, as in O(hosts).
        type: str
        required: true
      code:
        description:
          - The reason code.
        type: str
        default: excluded
      why:
        description:
          - A sentence.
        type: str
        default: ""
  override_lock:
    description:
      - Move VMs that are locked with M(kvmops.lifecycle.vm_lock) as well.
    type: bool
    default: false
  approved:
    description:
      - An earlier RV(plan). Its moves are planned again as they are, as far as they have not been made yet, and nothing
        else.
      - It is refused when VMs, what they need, hosts or their scheduling have changed since, or a move is not possible
        any more. The error says what has changed.
    type: dict
  fail_incomplete:
    description:
      - Fail when something stands in the way of the plan. Otherwise RV(plan.complete) tells it.
    type: bool
    default: false
seealso:
  - module: kvmops.lifecycle.host_info
  - module: kvmops.lifecycle.host_schedulable
  - module: kvmops.lifecycle.vm_policy
  - module: kvmops.lifecycle.vm_migrate
"""

EXAMPLES = r"""
- name: Look at all hosts
  kvmops.lifecycle.host_info:
    gather: [placement]
  register: seen

- name: Plan how to empty kvm1
  kvmops.lifecycle.drain_plan:
    hosts: "{{ dict(ansible_play_hosts | zip(looks | map(attribute='placement'))) }}"
    drain: kvm1
    limits:
      reserve_hosts: 1
  vars:
    looks: "{{ ansible_play_hosts | map('extract', hostvars, ['seen', 'host']) }}"
  register: drain
  delegate_to: localhost
  run_once: true

- name: Show it
  ansible.builtin.debug:
    msg: "{{ drain.plan.table }}"
  run_once: true
"""

RETURN = r"""
plan:
  description: The plan.
  returned: success
  type: dict
  contains:
    kind:
      description: V(drain), V(restore) or V(evacuate).
      type: str
      returned: always
    host:
      description: The host that it is about.
      type: str
      returned: always
    complete:
      description: Whether nothing stands in the way. If something does, the moves are those that are possible.
      type: bool
      returned: always
    moves:
      description: The moves, in the order in which they shall be made; the cheapest first, and in an evacuation those
        with the highest priority.
      type: list
      elements: dict
      returned: always
      contains:
        vm:
          description: The VM's name.
          type: str
          returned: always
        uuid:
          description: Its UUID.
          type: str
          returned: always
        source:
          description: The host that it is on.
          type: str
          returned: always
        dest:
          description: The host that it goes to.
          type: str
          returned: always
        how:
          description: V(live); V(cold), while it is off; V(offline) when it is off and only its definition moves;
            V(start) when it is started from what is on shared storage.
          type: str
          returned: always
        shared:
          description: Whether the destination sees its disks, so that they need not be carried.
          type: bool
          returned: always
        memory:
          description: Its memory in MiB.
          type: int
          returned: always
        cost:
          description: MiB that have to be carried, if the guest changes nothing meanwhile.
          type: int
          returned: always
        why:
          description: Why it goes there; for people.
          type: str
          returned: always
    stops:
      description: VMs that are shut down where they are, with C(vm), C(uuid) and C(why).
      type: list
      elements: dict
      returned: always
    starts:
      description: VMs that ran on the host before it was emptied and are off, with C(vm), C(uuid), C(memory) and
        C(why).
      type: list
      elements: dict
      returned: always
    stays:
      description: VMs that are left where they are, with C(vm), C(uuid), C(code) and C(why).
      type: list
      elements: dict
      returned: always
    blockers:
      description: What stands in the way. C(vm) and C(uuid) are empty for what is about the cluster.
      type: list
      elements: dict
      returned: always
      contains:
        vm:
          description: The VM's name.
          type: str
          returned: always
        uuid:
          description: Its UUID.
          type: str
          returned: always
        code:
          description: The reason code. It does not change, and the guide has them all.
          type: str
          returned: always
          sample: memory_promised
        message:
          description: What is the matter.
          type: str
          returned: always
        way_out:
          description: What would allow it.
          type: str
          returned: always
    hosts:
      description: How full each host is C(before) and C(after), with C(vms) that are on, C(memory) and C(memory_limit)
        in MiB, C(cpus) and C(cpus_limit), and C(load), the larger share of both in percent.
      type: dict
      returned: always
    basis:
      description: What the plan was made from and does not change by itself. It is for O(approved).
      type: dict
      returned: always
    fingerprint:
      description: A hash of that. It is the same as long as nothing of it changes.
      type: str
      returned: always
    table:
      description: The plan as lines of a table, for people.
      type: list
      elements: str
      returned: always
code:
  description: The kind of failure, V(invalid) or V(refused).
  returned: on failure
  type: str
details:
  description: >-
    For an approved plan that was refused, C(changed) has what has changed since, as sentences. With
    O(fail_incomplete=true), C(plan) is the plan.
  returned: on failure
  type: dict
"""

import typing as t

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import Spec, override_lock, placement
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement import (
    DRAIN,
    EVACUATE,
    RESTORE,
    Order,
    plan,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement_search import Limits
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.placement_tell import occupancy
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_pure

SPEC: Spec = {
    **placement(),
    **override_lock(),
    "hosts": {"type": "dict", "required": True},
    DRAIN: {"type": "str"},
    RESTORE: {"type": "str"},
    EVACUATE: {"type": "str"},
    "vms": {"type": "list", "elements": "dict"},
    "strategy": {"type": "str", "choices": ["live", "cold", "stop", "leave"], "default": "live"},
    "stopped": {"type": "str", "choices": ["leave", "move"], "default": "leave"},
    "limits": {
        "type": "dict",
        "apply_defaults": True,
        "options": {
            "cpu_ratio": {"type": "float", "default": 4.0},
            "memory_ratio": {"type": "float", "default": 1.0},
            "disk_ratio": {"type": "float", "default": 1.0},
            "memory_reserve": {"type": "int", "default": 512},
            "reserve_hosts": {"type": "int", "default": 0},
        },
    },
    "overcommit": {"type": "bool", "default": False},
    "destinations": {"type": "list", "elements": "str"},
    "exclude": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "vm": {"type": "str", "required": True},
            "dest": {"type": "str", "required": True},
            "code": {"type": "str", "default": "excluded"},
            "why": {"type": "str", "default": ""},
        },
    },
    "approved": {"type": "dict"},
    "fail_incomplete": {"type": "bool", "default": False},
}


def answer(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The plan."""
    kind = next(kind for kind in (DRAIN, RESTORE, EVACUATE) if params[kind] is not None)
    found = plan(
        Order(
            kind=kind,
            host=params[kind],
            hosts=params["hosts"],
            vms=params["vms"] or (),
            limits=Limits(**params["limits"], overcommit=params["overcommit"]),
            dest_storage=params["dest_storage"] or "",
            **{
                key: params[key]
                for key in (
                    "strategy",
                    "stopped",
                    "destinations",
                    "exclude",
                    "approved",
                    "override_lock",
                    "shared_storage",
                )
            },
        )
    )
    if params["fail_incomplete"] and not found["complete"]:
        told = " ".join(f"{each['message']} {each['way_out']}".rstrip() for each in found["blockers"])
        raise Refused(f"The {kind} of {params[kind]} cannot be planned as a whole: {told}", plan=found)
    return {
        "changed": bool(found["moves"] or found["stops"] or found["starts"]),
        "plan": found,
        "diff": {
            "before": occupancy(found, "before"),
            "after": occupancy(found, "after"),
            "before_header": f"hosts before the {kind} of {params[kind]}",
            "after_header": "hosts after it",
        },
    }


def main() -> None:
    """Entry point."""
    run_pure(
        SPEC,
        answer,
        required_one_of=[(DRAIN, RESTORE, EVACUATE)],
        mutually_exclusive=[(DRAIN, RESTORE, EVACUATE)],
        required_by={EVACUATE: ("vms",)},
    )


if __name__ == "__main__":
    main()
