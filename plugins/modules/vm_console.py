#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_console."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_console
version_added: 0.1.0
short_description: Read, wait for, reach and picture the consoles of VMs
description:
  - Returns what VMs have said on their serial consoles, and waits until they say something; tells at which address
    their displays are, or makes a link to the console proxy that opens one of them for a short time; and takes pictures
    of their screens, as PNG files on the controller.
  - Nothing of a VM is changed. It works on every VM that libvirt knows, however that was made.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
requirements:
  - "For links to the console proxy: jwcrypto on the machine on which the module runs (package C(python3-jwcrypto))"
  - "For screenshots: Pillow on the machine on which the module runs (package C(python3-pil))"
attributes:
  check_mode:
    support: full
    details:
      - VMs are looked at in check mode too, and waited for. No file is written on the controller.
  diff_mode:
    support: none
    details:
      - Nothing but pictures is written.
  idempotent:
    support: partial
    details:
      - The same picture is not written again. A screen may show another one by the next time.
options:
  type:
    description:
      - V(log) returns the newest part of what the VM said on its serial console, also of a VM that is off. It is read
        from the files that the console is written to, with those that were rotated away. A console that is a terminal
        (C(pty)) without a log is listened to for O(listen) seconds.
      - V(url) returns the address of the display of a running VM, as it is now; with O(proxy), a link that opens it in
        a browser.
      - V(screenshot) stores a picture of what the screen of a running VM shows as a PNG file, see O(dest).
    type: str
    choices: [log, url, screenshot]
    default: log
  lines:
    description:
      - How many lines of the log to return at most. A last line that has not ended counts as one. V(0) returns none,
        which is enough to get RV(vms[].position).
      - Without it, as many as fit into O(max_size).
    type: int
  max_size:
    description:
      - How many bytes of the log to return at most. The oldest lines are left out, as a whole. Only a single line that
        is longer is cut.
    type: int
    default: 102400
  after:
    description:
      - What earlier tasks returned as RV(vms[].position). Only what VMs said later is returned, and looked at for
        O(wait_for).
      - A position is still good when the log was rotated, or emptied by the start of the VM. It belongs to its VM, so
        those of many VMs may stand here in any order.
    type: list
    elements: str
    default: []
  wait_for:
    description:
      - A regular expression of Python. The task waits until it is found in the log, in which V(^) and V($) are the ends
        of lines.
      - What the log has already counts as well, as far as O(max_size) reaches back. With O(after), only what came after
        that, and all of it.
      - A VM that is off is waited for, too.
    type: str
  wait_timeout:
    description:
      - Seconds until a VM on whose console O(wait_for) was not found has failed. Its log is returned all the same.
    type: int
    default: 300
  listen:
    description:
      - Seconds for which a console without a log is listened to when there is nothing to wait for.
    type: int
    default: 2
  proxy:
    description:
      - Return a link to a console proxy, as the role P(kvmops.lifecycle.console_proxy#role) sets one up, that shows the
        VM's VNC display in a browser.
      - Whoever has the link sees and uses the VM's screen without being asked for anything. So it is a secret, works
        once, and does so for a short time only.
    type: dict
    suboptions:
      url:
        description:
          - The proxy's address as browsers reach it, without a path, for example V(https://kvm1.example.com:6080).
        type: str
        required: true
      key:
        description:
          - The private key whose public part the proxy has, an EC key on the curve P-256 in PEM, as text.
          - It is used on the machine on which the module runs, and kept out of all that the task tells. To keep it on
            the controller, delegate the task to V(localhost) and use a remote O(uri).
        type: str
        required: true
      ttl:
        description:
          - Seconds in which the link has to be opened. A connection that was made goes on after that.
          - The clocks of the proxy and of the machine on which the module runs should not differ by a large part of it.
        type: int
        default: 600
      host:
        description:
          - The address at which the proxy reaches the VM's display. Without it, the one at which that listens, which is
            V(127.0.0.1) for most VMs and right for a proxy on the VM's own host.
          - It must be given for displays that listen at all addresses.
        type: str
  dest:
    description:
      - The PNG file on the controller for O(type=screenshot). For more than one VM, or when it is a directory or ends
        with V(/), it is the directory in which each VM has the file V(NAME.png).
      - A relative path begins where the playbook is. Directories that are missing are made.
      - Others on the controller cannot read it, as a screen may show what is not for them.
    type: path
seealso:
  - module: kvmops.lifecycle.vm_info
  - module: kvmops.lifecycle.vm_power
  - ref: ansible_collections.kvmops.lifecycle.docsite.guide_consoles
    description: Guide to consoles
"""

EXAMPLES = r"""
- name: What did it say last?
  kvmops.lifecycle.vm_console:
    name: web1
    lines: 20
  register: console

- name: Show it
  ansible.builtin.debug:
    msg: "{{ console.vms[0].log.splitlines() }}"

- name: See how far the logs of both are
  kvmops.lifecycle.vm_console:
    name: [web1, web2]
    lines: 0
  register: before

- name: Reboot
  kvmops.lifecycle.vm_power:
    name: [web1, web2]
    state: rebooted

- name: Wait until both ask for a login again
  kvmops.lifecycle.vm_console:
    name: [web1, web2]
    after: "{{ before.vms | map(attribute='position') }}"
    wait_for: 'login: $'

- name: Where is its display?
  kvmops.lifecycle.vm_console:
    name: web1
    type: url
  register: display

- name: Make a link that opens the display in a browser, for one minute
  kvmops.lifecycle.vm_console:
    name: web1
    type: url
    uri: qemu+tls://kvm1.example.com/system
    proxy:
      url: https://kvm1.example.com:6080
      key: "{{ lookup('ansible.builtin.file', 'console_proxy.key') }}"
      ttl: 60
  delegate_to: localhost
  register: link

- name: Take pictures of the screens
  kvmops.lifecycle.vm_console:
    name: [web1, web2]
    type: screenshot
    dest: screens/
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
      description: Its status in Nova's words, when the task began.
      type: str
      returned: when there is such a VM
      sample: ACTIVE
    power_state:
      description: What the hypervisor told then, in Nova's words.
      type: str
      returned: when there is such a VM
      sample: RUNNING
    changed:
      description: Whether a file on the controller was written, or would be.
      type: bool
      returned: always
    log:
      description:
        - The newest part of the console's log. Bytes that are no UTF-8 are replaced, and lines end with a line feed
          alone.
        - The guest writes what it likes into it, passwords included when it is told to.
      type: str
      returned: O(type=log)
    truncated:
      description: Whether the log has more before that, or had it once, as far as it is asked for.
      type: bool
      returned: O(type=log)
    position:
      description:
        - The end of the log, for O(after). With O(wait_for), the end of what was found, so that the next task can wait
          for what comes after it.
      type: str
      returned: O(type=log)
    source:
      description: The file on the host that the console is written to; empty when it is not.
      type: str
      returned: O(type=log)
    reason:
      description: Why there is no log; empty when there is one.
      type: str
      returned: O(type=log)
    matched:
      description: Whether O(wait_for) was found.
      type: bool
      returned: O(type=log) with O(wait_for)
    match:
      description: What it matched; V(null) when it was not found.
      type: str
      returned: O(type=log) with O(wait_for)
      sample: "web1 login: "
    groups:
      description: What the groups in it matched.
      type: list
      elements: str
      returned: O(type=log) with O(wait_for)
    url:
      description:
        - The address of the first display, as virt-viewer takes it; or, with O(proxy), the link, which is a secret.
        - The address V(127.0.0.1) is one on the KVM host.
      type: str
      returned: O(type=url)
      sample: vnc://127.0.0.1:5900
    expires:
      description: Until when the link has to be opened, UTC.
      type: str
      returned: O(type=url) with O(proxy)
      sample: "2026-01-01T12:00:00Z"
    displays:
      description: All displays that can be reached.
      type: list
      elements: dict
      returned: O(type=url)
      contains:
        type:
          description: V(vnc) or V(spice).
          type: str
          returned: always
        listen:
          description: The address that it listens at, or the path of its socket.
          type: str
          returned: always
        port:
          description: The port; V(null) without one.
          type: int
          returned: always
        tls_port:
          description: The port for TLS; V(null) without one.
          type: int
          returned: always
        websocket:
          description: The port at which it speaks VNC through a websocket; V(null) without one.
          type: int
          returned: always
        url:
          description: Its address.
          type: str
          returned: always
    dest:
      description: The PNG file on the controller.
      type: str
      returned: O(type=screenshot)
      sample: /home/ada/screens/web1.png
    checksum:
      description: The SHA-256 of that file.
      type: str
      returned: O(type=screenshot)
    width:
      description: Of the screen, in pixels.
      type: int
      returned: O(type=screenshot)
    height:
      description: Of the screen, in pixels.
      type: int
      returned: O(type=screenshot)
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, selection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.console import look
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_queries


def main() -> None:
    """Entry point."""
    run_queries(
        {
            **connection(),
            **selection(),
            "type": {"type": "str", "choices": ["log", "url", "screenshot"], "default": "log"},
            "lines": {"type": "int"},
            "max_size": {"type": "int", "default": 102400},
            "after": {"type": "list", "elements": "str", "default": []},
            "wait_for": {"type": "str"},
            "wait_timeout": {"type": "int", "default": 300},
            "listen": {"type": "int", "default": 2},
            "proxy": {
                "type": "dict",
                "options": {
                    "url": {"type": "str", "required": True},
                    "key": {"type": "str", "required": True, "no_log": True},
                    "ttl": {"type": "int", "default": 600},
                    "host": {"type": "str"},
                },
            },
            "dest": {"type": "path"},
        },
        look,
        required_if=[("type", "screenshot", ["dest"])],
    )


if __name__ == "__main__":
    main()
