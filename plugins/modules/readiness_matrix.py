#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module readiness_matrix."""

from __future__ import annotations

DOCUMENTATION = r"""
module: readiness_matrix
version_added: 0.1.0
short_description: Judge from which KVM host VMs can be moved to which
description:
  - Takes what M(kvmops.lifecycle.host_readiness) told on each host, and says for each pair of hosts whether VMs can go
    from the one to the other, or what stands in the way.
  - It asks nobody and changes nothing, so it runs anywhere, such as on the controller.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
options:
  hosts:
    description:
      - By the name of each host the RV(kvmops.lifecycle.host_readiness#module:readiness) that it told; nothing for a
        host that could not be asked. The names are those of O(kvmops.lifecycle.host_readiness#module:peers).
    type: dict
    required: true
  clock_tolerance:
    description:
      - Seconds by which two clocks may differ.
    type: int
    default: 10
  expires_within:
    description:
      - Days. A certificate that expires sooner is told.
    type: int
    default: 14
seealso:
  - module: kvmops.lifecycle.host_readiness
"""

EXAMPLES = r"""
- name: Judge
  kvmops.lifecycle.readiness_matrix:
    hosts: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, ['seen', 'readiness']))) }}"
  delegate_to: localhost
  run_once: true
  register: judged

- name: Show it
  ansible.builtin.debug:
    msg: "{{ judged.table }}"
  run_once: true
"""

RETURN = r"""
ready:
  description: Whether nothing stands in the way between any two hosts.
  returned: success
  type: bool
matrix:
  description: By source and destination, whether it is C(ready), the C(codes) and the C(findings), those that stand in
    the way first. A finding has C(code), C(severity) (V(blocker) or V(warning)), C(message) and C(way_out).
  returned: success
  type: dict
  sample: {kvm1: {kvm2: {codes: [], findings: [], ready: true}}, kvm2: {kvm1: {codes: [], findings: [], ready: true}}}
table:
  description: The same as lines for people, a row for each source and a column for each destination.
  returned: success
  type: list
  elements: str
  sample: ["from \\ to  kvm1   kvm2", "kvm1       -      ready", "kvm2       ready  -"]
code:
  description: The kind of failure, V(invalid).
  returned: on failure
  type: str
"""

import typing as t

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.readiness import Limits, judge
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_pure


def answer(params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The judgement."""
    hosts = {str(name): facts or None for name, facts in params["hosts"].items()}
    try:
        return judge(hosts, Limits(params["clock_tolerance"], params["expires_within"]))
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise Invalid(
            f"What stands in hosts is not what host_readiness tells: {type(exc).__name__} {exc}.",
            hint="Give the value 'readiness' of its result for each host.",
        ) from exc


def main() -> None:
    """Entry point."""
    run_pure(
        {
            "hosts": {"type": "dict", "required": True},
            "clock_tolerance": {"type": "int", "default": 10},
            "expires_within": {"type": "int", "default": 14},
        },
        answer,
    )


if __name__ == "__main__":
    main()
