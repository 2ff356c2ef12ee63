#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module maintenance_report."""

from __future__ import annotations

DOCUMENTATION = r"""
module: maintenance_report
version_added: 0.1.0
short_description: Keep a trace of the maintenance of KVM hosts, and make a page with pictures of it
description:
  - Adds what happened to a trace, which is a file with one JSON object in each line (NDJSON), and makes a page of HTML
    from it - how full hosts were before and after, what was done when and how long it took, every VM, and what was not
    done, with the reasons.
  - The page is one file. It needs no script, fetches nothing, is readable on light and dark screens and on paper, and
    its pictures are told in words as well.
  - The roles for maintenance call it when they are told a trace. It runs on the controller, asks no host and needs no
    libvirt.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
attributes:
  idempotent:
    support: partial
    details:
      - O(events) are added each time. The same trace makes the same page.
  diff_mode:
    details:
      - Of the page only its hash is shown.
options:
  trace:
    description:
      - The file. It is made when the first event is added; its directory must be there.
      - Several tasks may add to it at the same time. A line that cannot be read, because somebody was killed while he
        wrote it, is left out and counted.
    type: path
    required: true
  events:
    description:
      - What happened. Keys other than these are kept in the trace.
      - C(event) is a word for it, and needed. C(moved), C(stopped), C(started) and C(evacuated) are about VMs,
        C(cordoned), C(drained), C(verified), C(restored), C(rebooted), C(fence) and C(rolled) about hosts. C(failed),
        C(refused), C(skipped) and C(cancelled) say that something was not done. C(look), C(plan) and C(move) are in the
        list of all events only. Any other word is shown as it is.
      - C(at) is when it had happened, in seconds since 1970 or as ISO 8601, in UTC where it tells no zone. The default
        is now.
      - C(seconds) is how long it took until then. Where it is told, the event is a bar in the timeline.
      - C(host) is the host, for a VM the one on which it was; C(vm) the VM; C(dest) the host on which it is since then.
      - C(code) and C(message) tell why something was not done.
      - C(hosts) tells how full hosts were then, by their names, as RV(kvmops.lifecycle.host_info#module:host.placement)
        or as much of it as C(memory), C(cpus) and C(vms). The first one of each host is shown as what was before, and
        the last one as what is after.
    type: list
    elements: dict
    default: []
  html:
    description:
      - Where the page is written. Without it none is.
    type: path
  title:
    description:
      - The title of the page.
    type: str
    default: Maintenance of KVM hosts
seealso:
  - module: kvmops.lifecycle.host_info
"""

EXAMPLES = r"""
- name: Make a page of what the roles have traced
  kvmops.lifecycle.maintenance_report:
    trace: "{{ playbook_dir }}/maintenance.ndjson"
    html: "{{ playbook_dir }}/maintenance.html"
    title: New kernels in Hall 2
  delegate_to: localhost
  run_once: true

- name: Add something of one's own
  kvmops.lifecycle.maintenance_report:
    trace: "{{ playbook_dir }}/maintenance.ndjson"
    events:
      - event: firmware updated
        host: "{{ inventory_hostname }}"
        seconds: 84
  delegate_to: localhost
"""

RETURN = r"""
steps:
  description: What was done, in order; in check mode, what would be.
  returned: success
  type: list
  elements: str
  sample: [add to trace, write report]
events:
  description: How many events the trace has.
  returned: success
  type: int
broken:
  description: How many lines of it could not be read.
  returned: success
  type: int
summary:
  description: What the trace comes to.
  returned: success
  type: dict
  contains:
    began:
      description: When the first thing began, ISO 8601, UTC.
      type: str
      returned: always
    seconds:
      description: From then to the end of the last one.
      type: float
      returned: always
    moved:
      description: How many moves of VMs came to their end.
      type: int
      returned: always
    failed:
      description: How many things failed or were refused, tries that were repeated included.
      type: int
      returned: always
    skipped:
      description: How many were skipped or cancelled.
      type: int
      returned: always
    hosts:
      description: With which hosts something was done.
      type: list
      elements: str
      returned: always
done:
  description: The hosts that a roll through the cluster was done with, since the last one that was begun afresh.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import Clock
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.reporting import report
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_machine


def decide(params: t.Mapping[str, t.Any]) -> Plan:
    """What is added and written."""
    return report(params, Clock())


def main() -> None:
    """Entry point."""
    run_machine(
        {
            "trace": {"type": "path", "required": True},
            "events": {"type": "list", "elements": "dict", "default": []},
            "html": {"type": "path"},
            "title": {"type": "str", "default": "Maintenance of KVM hosts"},
        },
        decide,
    )


if __name__ == "__main__":
    main()
