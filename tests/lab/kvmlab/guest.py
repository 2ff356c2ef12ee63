# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests want of the lab's guests: XML, console, counter, agent; through virsh in the host."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

from . import util
from .lab import IMAGES, SHARED, Lab
from .util import LabError

MEMORY_MIB = 96
MEMORY_GENERIC_MIB = 128  # the generic kernel is bigger
MEMORY_UEFI_MIB = 192  # the firmware needs more than the guest

_XML = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os{firmware}>
    <type arch='x86_64' machine='{machine}'>hvm</type>{secure}{os}
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>{devices}
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{disk}'/>
      <target dev='{target}' bus='{bus}'/>
    </disk>
    <interface type='{nic}'>
      <mac address='{mac}'/>
      <source {nic}='{network}'/>
      <model type='virtio'/>
    </interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='file'><source path='{console}' append='on'/></serial>{more}
  </devices>
</domain>
"""

_TARGETS = {"virtio": "vda", "scsi": "sda", "sata": "sda", "ide": "hda"}

# What the console of a guest without /sbin/init says, again and again.
NO_INIT = "Kernel panic - not syncing: "


def domain_xml(
    name: str,
    disk: str,
    console: str,
    *,
    mac: str = "52:54:00:00:00:64",
    memory: int = 0,
    bus: str = "virtio",
    machine: str = "",
    network: str = "br0",
    uefi: bool = False,
    devices: str = "",
    os: str = "",
) -> str:
    """A domain that boots the lab's guest image. `devices` and `os` are more XML for these elements."""
    return _XML.format(
        name=name,
        memory=memory or (MEMORY_UEFI_MIB if uefi else MEMORY_MIB),
        firmware=" firmware='efi'" if uefi else "",
        # Nothing in the image is signed. Without this word Debian's libvirt takes a firmware that asks for it.
        secure="<firmware><feature enabled='no' name='secure-boot'/></firmware>" if uefi else "",
        machine=machine or ("pc" if bus == "ide" else "q35"),
        os=os or "<boot dev='hd'/>",
        disk=disk,
        console=console,
        bus=bus,
        target=_TARGETS[bus],
        devices="<controller type='scsi' model='virtio-scsi'/>" if bus == "scsi" else "",
        nic="bridge" if network == "br0" else "network",
        network=network,
        mac=mac,
        more=devices,
    )


class Guest:
    """One guest on a host of the lab. `host` follows it when it moves: set it."""

    def __init__(self, lab: Lab, host: str, name: str, directory: str = SHARED) -> None:
        self.lab = lab
        self.host = host
        self.name = name
        self.disk = f"{directory}/{name}.qcow2"
        self.console_file = f"{directory}/{name}.console.log"
        self.memory = 0  # the default

    def virsh(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """What virsh says on the guest's host."""
        return self.lab.run_in(self.host, "virsh", "--quiet", *words, check=check, timeout=timeout).stdout.strip()

    def make_disk(self, image: str = "guest.qcow2") -> None:
        """A disk of its own, a full copy of an image of the lab; and an empty console."""
        self.lab.run_in(self.host, "cp", f"{IMAGES}/{image}", self.disk)
        self.lab.run_in(self.host, "rm", "-f", self.console_file)
        self.memory = MEMORY_GENERIC_MIB if "generic" in image else 0

    def define(self, **options: Any) -> None:
        """Define it; see domain_xml() for the options."""
        options.setdefault("memory", self.memory)
        xml = domain_xml(self.name, self.disk, self.console_file, **options)
        self.lab.run_in(self.host, "virsh", "--quiet", "define", "/dev/stdin", stdin=xml)

    def start(self) -> None:
        self.virsh("start", self.name)

    def state(self) -> str:
        return self.virsh("domstate", self.name, check=False)

    # ---- console

    def console(self) -> str:
        """All it has said on its serial console, without the prompt that what it says next would begin behind."""
        done = self.lab.run_in(self.host, "cat", self.console_file, check=False)
        return re.sub(r"^\S+ login: ", "", done.stdout.replace("\r", ""), flags=re.M)

    def wait_console(self, pattern: str, seconds: float = 90, count: int = 1) -> str:
        """Wait until the console has the pattern (count times); returns the last match."""
        end = time.monotonic() + seconds
        while True:
            text = self.console()
            found = list(re.finditer(pattern, text, re.M))
            if len(found) >= count:
                return found[-1][0]
            if time.monotonic() > end:
                raise LabError(f"{self.name}: no {pattern!r} on the console in {seconds} s. Its end:\n{text[-2000:]}")
            time.sleep(0.2)

    def wait_up(self, boots: int = 1, seconds: float = 90) -> None:
        """Wait until it has booted so many times, and its agent answers."""
        self.wait_console("^GUEST-UP ", seconds, boots)
        self.wait_agent(seconds)

    def counter(self) -> int:
        """The last number that the guest told on the console, which it did after it was on its disk."""
        found = re.findall(r"^(?:.*login: )?c (\d+) [\d.]+$", self.console(), re.M)
        return int(found[-1]) if found else 0

    def wait_counter(self, more: int = 2, seconds: float = 30) -> int:
        """Wait until it has counted on."""
        goal = self.counter() + more
        if not util.wait_for(lambda: self.counter() >= goal, seconds, 0.2):
            raise LabError(f"{self.name} does not count: {self.counter()} < {goal} after {seconds} s")
        return self.counter()

    def crashes(self) -> list[str]:
        """Signs on the console that its memory was spoilt."""
        signs = r"^.*(?:panic|Oops|BUG:|segfault|general protection|DIRTY-CORRUPT|EXT4-fs error).*$"
        return re.findall(signs, self.console(), re.M)

    # ---- agent

    def agent(self, command: str, timeout: int = 10, **arguments: Any) -> Any:
        """One command of the guest agent; its return value."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        text = self.virsh("qemu-agent-command", "--timeout", str(timeout), self.name, json.dumps(request))
        return json.loads(text)["return"]

    def wait_agent(self, seconds: float = 60) -> None:
        if not util.wait_for(self.answers, seconds, 0.3):
            raise LabError(f"{self.name}: the guest agent does not answer within {seconds} s")

    def answers(self) -> bool:
        """Whether the agent answers at this moment; it has three seconds."""
        try:
            self.agent("guest-ping", timeout=3)
        except LabError:
            return False
        return True

    def hang_agent(self) -> None:
        """Let the agent hold its channel open and answer nothing, until wake_agent() or the next boot. From then on the
        power button does nothing but to wake it: it is what is left to tell the guest something."""
        wake = "printf '#!/bin/sh\\nkillall -CONT qemu-ga\\n' >/etc/acpi/PWRF/00000080"
        self.execute(f"{wake}; sleep 1; killall -STOP qemu-ga; echo AGENT-HANGS >/dev/console", wait=False)
        self.wait_console("^AGENT-HANGS")

    def wake_agent(self) -> None:
        """The opposite."""
        self.virsh("shutdown", self.name, "--mode", "acpi")
        self.wait_agent()

    def execute(self, script: str, wait: bool = True, seconds: float = 60) -> tuple[int, str]:
        """Run a shell script in the guest. Returns exit code and output; (0, "") at once when not waiting."""
        started = self.agent("guest-exec", path="/bin/sh", arg=["-c", script], capture_output=wait)
        if not wait:
            return 0, ""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = self.agent("guest-exec-status", pid=started["pid"])
            if status["exited"]:
                output = b"".join(base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data"))
                return int(status.get("exitcode", 128 + status.get("signal", 0))), output.decode(errors="replace")
            time.sleep(0.1)
        raise LabError(f"{self.name}: {script!r} is not done after {seconds} s")

    # ---- broken, and repaired from a rescue system

    def run(self, script: str, seconds: float = 60) -> str:
        """Run a shell script in the guest that must not fail; what it says."""
        code, said = self.execute(f"set -e; {script}", seconds=seconds)
        if code:
            raise LabError(f"{self.name}: exit code {code} of {script!r}: {said}")
        return said.strip()

    def break_init(self) -> None:
        """Take /sbin/init from its root file system: from the next boot on its kernel panics, boots again, and so on.
        The console says :data:`NO_INIT`."""
        self.run("rm /sbin/init; sync")

    def break_loader(self, disk: str = "vda") -> None:
        """Take its boot loaders away, of BIOS and of UEFI: from the next boot on its console stays empty."""
        self.run(
            f"dd if=/dev/zero of=/dev/{disk} bs=440 count=1 conv=notrunc 2>/dev/null;"
            f" mount -t vfat /dev/{disk}1 /mnt; rm -r /mnt/EFI; umount /mnt; sync"
        )

    def repair_init(self, disk: str) -> None:
        """In a rescue system: undo :meth:`break_init` of the guest whose root disk is *disk* (``vda``)."""
        self.run(f"mount -t ext4 /dev/{disk}2 /mnt; ln -s ../bin/busybox /mnt/sbin/init; umount /mnt; sync")

    def repair_loader(self, disk: str, own: str) -> None:
        """In a rescue system: undo :meth:`break_loader`, with the boot loaders of the rescue disk *own*."""
        self.run(
            f"dd if=/dev/{own} of=/dev/{disk} bs=440 count=1 conv=notrunc 2>/dev/null; mkdir -p /tmp/own;"
            f" mount -t vfat -o ro /dev/{own}1 /tmp/own; mount -t vfat /dev/{disk}1 /mnt;"
            " cp -R /tmp/own/EFI /mnt/; umount /mnt; umount /tmp/own; sync"
        )

    def counter_on_disk(self) -> list[int]:
        """All numbers in the guest's log: 1, 2, 3, ... when none was lost and none came twice."""
        return [int(line) for line in self.execute("cat /data/log")[1].split()]
