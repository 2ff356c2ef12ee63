# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looking whether VMs can be moved, on real hosts of which much is broken at once."""

from __future__ import annotations

import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk, task, wait_for
from tests.lab.kvmlab.lab import SHARED

IMAGES = "/var/lib/libvirt/images"
MAC = "52:54:00:aa:00:01"
GIB = 1 << 30

# What "ours" is plugged into, and all that kvm1 alone has of it.
MADE = """
ip link add br7 type bridge
mkdir -p /opt/consoles /opt/qemu
ln -s /usr/bin/qemu-system-x86_64 /opt/qemu/emulator
echo kernel >/opt/qemu/kernel
echo "<network><name>ours</name><bridge name='virbr7'/></network>" >/tmp/n.xml
virsh -q net-define /tmp/n.xml
echo "<filter name='ours' chain='root'/>" >/tmp/f.xml
virsh -q nwfilter-define /tmp/f.xml
"""
UNMADE = """
virsh -q net-undefine ours
virsh -q nwfilter-undefine ours
rm -rf /opt/consoles /opt/qemu
ip link del br7
"""
BROKEN = """
<emulator>/opt/qemu/emulator</emulator>
{disk}
<interface type='bridge'><mac address='{mac}'/><source bridge='br7'/><filterref filter='ours'/></interface>
<interface type='network'><mac address='52:54:00:aa:00:02'/><source network='ours'/></interface>
<disk type='volume'><source pool='nowhere' volume='v'/><target dev='vdb'/></disk>
<serial type='file'><source path='/opt/consoles/ours.log'/></serial>
<graphics type='vnc'><listen type='address' address='{address}'/></graphics>
<filesystem type='mount'><source dir='/srv'/><target dir='data'/></filesystem>
<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='6' slot='0' function='0'/></source></hostdev>
<shmem name='ring' role='peer'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>
"""
EXTRA = """
<cpu mode='custom' match='exact' check='partial'><model>Skylake-Server</model>
  <feature policy='require' name='invtsc'/></cpu>
<cputune><vcpupin vcpu='0' cpuset='700'/></cputune>
"""


def check(play: Playbook, name: str = "ours", *, host: str = "kvm1", **arguments: t.Any) -> Result:
    """The figures of a check, which never says that it changed anything."""
    told = play(task("vm_migrate", name=name, state="checked", **{"dest": "kvm2", **arguments}), host=host).ok()
    assert not told["result"]["changed"]
    (vm,) = told["result"]["vms"]
    assert vm["steps"] == []
    return t.cast("Result", vm["figures"])


def codes(figures: Result, severity: str = "blocker") -> set[str]:
    """The reason codes of one severity."""
    return {finding["code"] for finding in figures["findings"] if finding["severity"] == severity}


def remains(lab: Lab) -> list[t.Any]:
    """Files, pools and VMs of both hosts."""
    return [
        (lab.files(host, IMAGES), lab.files(host, SHARED), lab.sh(host, "virsh -q pool-list --all"), lab.domains(host))
        for host in ("kvm1", "kvm2")
    ]


def test_a_vm_that_can_be_moved_has_no_findings(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"cd {IMAGES}; qemu-img create -q -f qcow2 off.qcow2 1G; echo x >a.iso")
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {SHARED}/on.qcow2 8M")
    iso = f"<disk type='file' device='cdrom'><source file='{IMAGES}/a.iso'/><target dev='sda'/></disk>"
    bridge = f"<interface type='bridge'><mac address='{MAC}'/><source bridge='br0'/></interface>"
    define(
        lab,
        "on",
        devices=file_disk(f"{SHARED}/on.qcow2", "qcow2", "vda").replace("type='qcow2'", "type='qcow2' cache='none'")
        + bridge,
    )
    define(lab, "off", devices=file_disk(f"{IMAGES}/off.qcow2", "qcow2", "vda") + iso)
    lab.sh("kvm1", "virsh -q start on")
    before = remains(lab)
    try:
        on, off = check(play, "on"), check(play, "off", overcommit=True)
        away = check(play, "on", host="localhost", uri=lab.hosts["kvm1"]["lab_uri"], dest=lab.hosts["kvm2"]["lab_uri"])
        assert remains(lab) == before
    finally:
        lab.sh("kvm1", f"virsh -q destroy on; rm -f {SHARED}/on.qcow2")
    assert (on["migratable"], on["method"], on["findings"], on["disks"]) == (True, "live", [], {"vda": "shared"})
    assert (on["room"], on["to_copy_bytes"]) == ({}, 0)
    assert (off["migratable"], off["method"], off["findings"]) == (True, "cold", [])
    assert off["disks"] == {"vda": "copied", "sda": "copied"}
    assert 0 < off["room"][IMAGES]["needed"] < GIB < off["room"][IMAGES]["free"]
    # From elsewhere the same is seen, but for what only the source knows.
    assert (away["migratable"], codes(away), codes(away, "warning")) == (True, set(), {"not_examined"})


@pytest.fixture
def broken(lab: Lab) -> t.Iterator[None]:
    """A VM that is off, and that nearly nothing is right for at kvm2."""
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {IMAGES}/ours.qcow2 2G; {MADE}")
    disk = file_disk(f"{IMAGES}/ours.qcow2", "qcow2", "vda")
    address = lab.hosts["kvm1"]["ansible_host"]
    define(lab, "ours", devices=BROKEN.format(disk=disk, mac=MAC, address=address), extra=EXTRA)
    lab.sh(
        "kvm1",
        "virsh dumpxml ours --inactive | sed -e 's/32768/999999999/' -e 's/<hvm/&/'"
        " -e 's|</type>|&<kernel>/opt/qemu/kernel</kernel>|' >/tmp/o.xml; virsh -q define /tmp/o.xml;"
        " virsh -q setvcpus ours 9 --config --maximum; virsh -q setvcpus ours 9 --config",
    )
    define(
        lab,
        "ours",
        host="kvm2",
        devices=f"<interface type='bridge'><mac address='{MAC}'/><source bridge='br0'/></interface>",
    )
    lab.fault("kvm2", "fill-disk", "--leave", "500M")
    lab.sh("kvm1", "mv /etc/pki/qemu/client-cert.pem /etc/pki/qemu/away; mv /etc/pki/libvirt/servercert.pem /tmp/away")
    try:
        yield
    finally:
        lab.sh(
            "kvm1", "mv /etc/pki/qemu/away /etc/pki/qemu/client-cert.pem; mv /tmp/away /etc/pki/libvirt/servercert.pem"
        )
        lab.fault("kvm2", "empty-disk")
        lab.sh("kvm1", f"virsh -q undefine ours; {UNMADE}")


def test_all_that_is_broken_is_found_at_once(lab: Lab, play: Playbook, broken: None) -> None:
    before = remains(lab)
    play(task("vm_lock", name="ours", state="locked", reason="it is broken")).ok()
    live = check(play, method="live", migration_network="nowhere.invalid")
    cold = check(play, override_lock=True)
    assert remains(lab) == before
    assert codes(live) == {
        "boot_file_missing",
        "bridge_missing",
        "certificate_missing",
        "cpu_incompatible",
        "cpu_not_migratable",
        "cpu_pinning",
        "destination_unresolved",
        "directory_missing",
        "emulator_missing",
        "filter_missing",
        "host_device",
        "listen_address",
        "locked",
        "mac_taken",
        "memory_short",
        "name_taken",
        "network_missing",
        "no_room",
        "pool_missing",
        "shared_directory",
        "shared_memory",
        "volume_missing",
        "wrong_status",
    }
    assert codes(live, "warning") == {"certificate_missing", "vcpus_exceed_host"}
    # While it is off, devices may be others, and QEMU sends nothing; with the lock overridden, that is no matter.
    assert codes(live) - codes(cold) == {
        "certificate_missing",
        "cpu_not_migratable",
        "destination_unresolved",
        "host_device",
        "locked",
        "shared_directory",
        "shared_memory",
        "wrong_status",
    }
    assert codes(cold) < codes(live)
    assert codes(cold, "warning") == {"certificate_missing", "host_device", "shared_directory", "vcpus_exceed_host"}
    messages = {finding["code"]: finding["message"] for finding in cold["findings"]}
    assert "required features" in messages["cpu_incompatible"]
    assert "0000:06:00.0" in messages["host_device"]
    # Moving it says the same, and touches nothing.
    error = play(task("vm_migrate", name="ours", dest="kvm2", override_lock=True)).error()["result"]
    (vm,) = error["vms"]
    assert {each["code"] for each in vm["details"]["findings"] if each["severity"] == "blocker"} == codes(cold)
    assert remains(lab) == before


def test_a_destination_that_cannot_be_one_is_a_finding(lab: Lab, play: Playbook) -> None:
    define(lab, "ours")
    assert codes(check(play, dest="kvm1")) == {"same_host"}
    lab.fault("kvm2", "kill-libvirtd")
    try:
        assert codes(check(play)) == {"destination_unreachable"}
    finally:
        lab.fault("kvm2", "start-libvirtd")
    lab.sh("kvm1", "mv /etc/pki/libvirt/clientcert.pem /tmp/away")
    try:
        assert codes(check(play)) == {"destination_unreachable", "certificate_missing"}
    finally:
        lab.sh("kvm1", "mv /tmp/away /etc/pki/libvirt/clientcert.pem")


def migrations(play: Playbook, host: str, **arguments: t.Any) -> Result:
    """What vm_migration_info tells; it never says that it changed anything."""
    told = play(task("vm_migration_info", **arguments), host=host).ok()["result"]
    assert not told["changed"]
    return t.cast("Result", told)


def test_a_migration_is_seen_from_both_ends(lab: Lab, play: Playbook, launch: t.Callable[..., Result]) -> None:
    launch("a", "b", storage=SHARED)
    lab.sh("kvm1", "virsh -q suspend b")

    def carried() -> list[Result]:
        told = migrations(play, "kvm1", name=["a", "b", "c"])
        assert (told["missing"], told["silent"]) == (["c"], [])
        return [each for each in told["migrations"] if each["phase"] == "memory" and each["remaining"]]

    # A guest that boots changes more than a MiB a second, so this does not end.
    slow = task("vm_migrate", name="a", dest="kvm2", progress=False, policy={"bandwidth": 1})
    with play.running([slow]) as process:
        wait_for(carried, 120)
        (leaving,) = carried()
        (coming,) = migrations(play, "kvm2")["migrations"]
        (remote,) = migrations(play, "localhost", uri=lab.hosts["kvm1"]["lab_uri"])["migrations"]
        lab.sh("kvm1", "virsh domjobabort a")
        process.played().error()
    known = {"name": "a", "uuid": lab.sh("kvm1", "virsh domuuid a"), "dest": "qemu+tls://kvm2/system"}
    for told, direction, host in ((leaving, "out", "kvm1"), (coming, "in", "kvm2"), (remote, "out", "kvm1")):
        assert {key: told[key] for key in known} == known
        assert (told["direction"], told["host"]) == (direction, host)
        assert (told["by"]["action"], told["by"]["node"]) == ("live_migrate", "kvm1")
        assert told["since"] == leaving["since"]
    for told in (leaving, remote):
        assert told["phase"] == "memory"
        assert told["iteration"] >= 1
        assert told["remaining"] > 0
        assert 0 <= told["percent"] < 100
        assert told["seconds"] > 0
    assert (coming["phase"], coming["percent"], coming["operation"]) == (None, None, None)
    assert leaving["operation"]["action"] == "live_migrate"
    assert remote["operation"] is None
    assert migrations(play, "kvm1")["migrations"] == migrations(play, "kvm2")["migrations"] == []
