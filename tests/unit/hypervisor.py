# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's in-memory driver as a KVM host, and modules run against it as Ansible runs them."""

from __future__ import annotations

import json
import platform
import typing as t
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest
from ansible.module_utils import _internal
from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.host import Host
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance

URI = "test:///default"

DOMAIN = """
<domain type='test'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>{disks}</devices>
</domain>
"""


def uuid_of(number: int) -> str:
    """The UUID of the VM that was defined as number *number*, from 1."""
    return f"{number:08x}-abcd-4000-8000-00000000000a"


class Hypervisor:
    """The driver's default host, which lives in this process for as long as anybody is connected to it."""

    def __init__(self) -> None:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self.connection = libvirt.open(URI)
        self.host = Host(self.connection, URI)
        self.node = platform.node()
        self.clear()

    def clear(self) -> None:
        """No VM is left."""
        for domain in self.connection.listAllDomains():
            persistent = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def define(self, *names: str, running: bool = True, disks: t.Sequence[str] = ()) -> None:
        """VMs with UUIDs by number.

        :param disks: Their qcow2 files; an empty one is an empty drive.
        """
        devices = "".join(
            f"<disk type='file' device='{'disk' if path else 'cdrom'}'><driver name='qemu' type='qcow2'/>"
            + (f"<source file='{path}'/>" if path else "")
            + f"<target dev='vd{chr(ord('a') + number)}' bus='virtio'/></disk>"
            for number, path in enumerate(disks)
        )
        for name in names:
            number = len(self.connection.listAllDomains()) + 1
            xml = DOMAIN.format(name=name, uuid=uuid_of(number), disks=devices)
            domain = self.connection.defineXML(xml)
            if running:
                domain.create()

    def guest(self, name: str = "web1") -> Guest:
        """A VM as the collection sees it."""
        return Guest(self.host, self.connection.lookupByName(name))

    def domain(self, name: str = "web1") -> ET.Element:
        """The definition."""
        return self.guest(name).xml(inactive=True)

    def names(self) -> list[str]:
        """All VMs."""
        return sorted(domain.name() for domain in self.connection.listAllDomains())

    def recall(self, name: str = "web1") -> Instance:
        """What is remembered of a VM."""
        return self.guest(name).recall()

    def remember(self, instance: Instance, name: str = "web1") -> None:
        """Change what is remembered of a VM."""
        self.guest(name).remember(instance)


@contextmanager
def hypervisor() -> Iterator[Hypervisor]:
    """One without VMs, and nothing is left of it."""
    made = Hypervisor()
    try:
        yield made
    finally:
        made.clear()
        made.connection.close()


class Task:
    """Runs a module in this process, as a task would."""

    def __init__(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        self.capsys = capsys
        self.base = {"_ansible_remote_tmp": str(tmp_path), "uri": URI}

    def __call__(
        self, main: Callable[[], None], *, check: bool = False, diff: bool = False, **params: t.Any
    ) -> dict[str, t.Any]:
        """What the module said before it ended."""
        asked = {**self.base, **params, "_ansible_check_mode": check, "_ansible_diff": diff}
        self.capsys.readouterr()
        warnings._global_warnings.clear()  # those of the task before, which was another process
        with pytest.MonkeyPatch.context() as patch, patch_module_args(asked):
            # Tests of action plugins in the same process have loaded what makes Ansible take it for a controller.
            patch.setattr(_internal, "is_controller", False)
            with pytest.raises(SystemExit) as ended:
                main()
        told: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        assert bool(told.get("failed")) == bool(ended.value.code)
        return told

    def quartet(self, main: Callable[[], None], **params: t.Any) -> dict[str, t.Any]:
        """Check mode, run, run again, check mode again: the first two change something, and say the same of it."""
        checked = self(main, check=True, diff=True, **params)
        done = self(main, diff=True, **params)
        again = self(main, diff=True, **params)
        checked_again = self(main, check=True, diff=True, **params)
        assert [told["changed"] for told in (checked, done, again, checked_again)] == [True, True, False, False]
        assert checked["diff"] == done["diff"]
        assert again["diff"] == checked_again["diff"] == []
        for before, after in zip(checked["vms"], done["vms"]):
            for key in ("name", "status", "power_state", "steps", "changed"):
                assert (key, before[key]) == (key, after[key])
        for before, after in zip(done["vms"], again["vms"]):
            assert (after["status"], after["power_state"]) == (before["status"], before["power_state"])
        return done
