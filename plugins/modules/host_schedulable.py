#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_schedulable."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_schedulable
version_added: 0.1.0
short_description: Take a KVM host out of scheduling, with a reason, or put it back
description:
  - No VM is planned onto a host that is disabled. It is what Nova calls disabling a compute service, and others
    cordoning a node. VMs that are there stay.
  - It binds what chooses hosts by itself, such as the roles that empty hosts. A task that names a host, for example as
    O(kvmops.lifecycle.vm_migrate#module:dest), is not refused.
  - It is kept on the host, in C(/var/lib/kvmops/scheduling.json). While this file is there and cannot be read, the host
    counts as disabled.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
options:
  uri:
    description:
      - How libvirt is reached. The task must run on the KVM host itself, so a remote URI is refused.
  state:
    description:
      - V(enabled) means that VMs may be planned onto the host, V(disabled) that they may not.
    type: str
    choices: [enabled, disabled]
    required: true
  reason:
    description:
      - Why the host is disabled, for people and for O(only_reason).
      - Of a host that is disabled already the reason stays, and the task warns, unless O(only_reason) is that reason.
    type: str
    default: ""
  only_reason:
    description:
      - With O(state=enabled), leave a host alone that is disabled for any reason but this one. So whoever disables a
        host for a time does not enable one that somebody else has disabled too.
      - With O(state=disabled), the reason that is replaced by O(reason).
    type: str
seealso:
  - module: kvmops.lifecycle.host_info
"""

EXAMPLES = r"""
- name: Nothing new comes to this host
  kvmops.lifecycle.host_schedulable:
    state: disabled
    reason: new memory on Friday, ask Ada

- name: It may be used again, unless somebody else has a reason against it
  kvmops.lifecycle.host_schedulable:
    state: enabled
    only_reason: new memory on Friday, ask Ada
"""

RETURN = r"""
host:
  description: The host.
  returned: success
  type: dict
  contains:
    name:
      description: The host name, as libvirt tells it.
      type: str
      returned: always
      sample: kvm1
    scheduling:
      description: Whether VMs are planned onto it; in check mode, whether they would be.
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
steps:
  description: What was done; in check mode, what would be.
  returned: success
  type: list
  elements: str
"""

import getpass
import platform
from functools import partial

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.clock import stamp
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Refused
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.cordon import read_scheduling, write_scheduling
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.names import check_text
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.scheduling import Scheduling, disable, enable
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_host
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context


def decide(context: Context) -> Plan:
    """How the host gets into scheduling, or out of it."""
    ask, name = context.params, context.host.name
    if not context.host.local:
        raise Refused(
            f"Whether VMs are planned onto {name} is kept there, and {context.host.uri} is reached from elsewhere.",
            hint="Run the task on the host itself, with the default uri.",
        )
    reason, only = check_text(ask["reason"], what="reason"), ask["only_reason"]
    found = read_scheduling()
    warnings = []
    if ask["state"] == "enabled":
        wanted = enable(found, only)
    else:
        since, by = stamp(context.clock.now()), f"{getpass.getuser()}@{platform.node()}"
        wanted = disable(found, reason, only, since=since, by=by)
        if reason and wanted.reason != reason:
            warnings.append(f"{name} is disabled for another reason already, which stays: {found.reason or 'none'}")
    steps = [] if wanted == found else [Step(ask["state"][:-1], partial(write_scheduling, wanted))]
    return Plan(
        before=_tell(found),
        after=_tell(wanted),
        steps=steps,
        figures={"host": {"name": name, "scheduling": wanted.tell()}},
        warnings=warnings,
    )


def _tell(scheduling: Scheduling) -> dict[str, object]:
    """For the diff: what is the same in check mode."""
    return {"enabled": scheduling.enabled, "reason": scheduling.reason}


def main() -> None:
    """Entry point."""
    run_host(
        {
            **connection(),
            "state": {"type": "str", "choices": ["enabled", "disabled"], "required": True},
            "reason": {"type": "str", "default": ""},
            "only_reason": {"type": "str"},
        },
        decide,
    )


if __name__ == "__main__":
    main()
