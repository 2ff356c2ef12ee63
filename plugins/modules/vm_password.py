#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_password."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_password
version_added: 0.1.0
short_description: Set the password of a user in VMs
description:
  - Sets a password in the running guest, through its QEMU guest agent, without knowing the one that it replaces.
  - A password cannot be read back, so it is set each time and the task always says that it changed something.
  - A VM without an agent, or with one that does not answer, is told as an error, and nothing is changed.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.override_lock
attributes:
  idempotent:
    support: none
    details:
      - A password cannot be read back.
options:
  password:
    description:
      - The password, in one line. It is not shown anywhere, and the collection does not remember it.
    type: str
    required: true
  encrypted:
    description:
      - O(password) is a hash of it as C(crypt) makes it (C($6$...)), which is written as it is. The password itself is
        then not sent to the KVM host at all. Windows does not take hashes.
    type: bool
    default: false
  user:
    description:
      - Whose password it is. The guest must have that user.
      - Without it V(root), or V(Administrator) in a guest whose agent says that it is Windows.
    type: str
  guest_timeout:
    description:
      - Seconds that the guest agent has for each answer.
    type: int
    default: 10
notes:
  - In check mode the agent is asked whether it answers. Whether the guest has that user shows only when the password is
    set.
seealso:
  - module: kvmops.lifecycle.vm_info
    description: Tells with O(kvmops.lifecycle.vm_info#module:gather=guest) whether an agent answers.
"""

EXAMPLES = r"""
- name: Get back into the VM
  kvmops.lifecycle.vm_password:
    name: web1
    password: "{{ new_password }}"

- name: Give ada a password that only its hash leaves the controller of
  kvmops.lifecycle.vm_password:
    name: [web1, web2]
    user: ada
    password: "{{ new_password | ansible.builtin.password_hash('sha512') }}"
    encrypted: true
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
      description: Its status in Nova's words.
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
    figures:
      description: What it was done to.
      type: dict
      returned: when there is such a VM
      contains:
        user:
          description: Whose password it is.
          type: str
          returned: when it did not fail
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    LifecycleError,
    TimedOut,
    Unreachable,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, override_lock, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.actions import demand
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.password import (
    WINDOWS,
    check_password,
    check_user,
    user_of,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """How the password is set. The agent is asked here already, so that one that is not there changes nothing."""
    guest, _seen, state = vm.there()
    params = context.params
    check_password(params["password"], encrypted=params["encrypted"])
    if params["user"] is not None:
        check_user(params["user"])
    demand("set_password", state, name=vm.name)
    system = _ask_agent(guest, params["guest_timeout"])
    if params["encrypted"] and system == WINDOWS:
        raise Unsupported(f"The guest of VM {vm.name} is Windows, which takes no hash.", hint="Say encrypted: false.")
    user = params["user"] or user_of(system)

    def set_password() -> None:
        try:
            guest.set_password(
                user, params["password"], encrypted=params["encrypted"], patience=params["guest_timeout"]
            )
        except (Unreachable, TimedOut) as exc:
            exc.hint = "The agent may have set it all the same. Run the task again when the agent answers."
            raise
        except LifecycleError as exc:
            exc.hint = (
                exc.hint or "See that the guest has that user, and that its agent may run guest-set-user-password."
            )
            raise

    return Plan(
        before={"user": user, "password": "what it was"},
        after={"user": user, "password": "what the task says"},
        steps=[Step("set_password", set_password)],
        action="set_password",
        figures={"user": user},
    )


def _ask_agent(guest: Guest, patience: int) -> str:
    """The guest's operating system as its agent calls it; empty when unknown.

    :raises Unsupported: The VM has no channel for an agent.
    :raises Unreachable: It has, and no agent answers.
    """
    connected = guest.agent_connected()
    if connected is None:
        raise Unsupported(
            f"VM {guest.name} has no channel for the QEMU guest agent, which sets passwords.",
            hint="Add the channel org.qemu.guest_agent.0 to its definition, and install qemu-guest-agent in the guest.",
        )
    if not connected:
        raise Unreachable(
            f"The guest agent of VM {guest.name} does not run.",
            hint="Install and start qemu-guest-agent in the guest, or wait until it has booted.",
        )
    return guest.system(patience=patience)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            **override_lock(),
            "password": {"type": "str", "required": True, "no_log": True},
            "encrypted": {"type": "bool", "default": False},
            "user": {"type": "str"},
            "guest_timeout": {"type": "int", "default": 10},
        },
        decide,
    )


if __name__ == "__main__":
    main()
