# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rescuing real VMs: guests that do not boot are repaired from inside, and every VM is what it was, afterwards."""

from __future__ import annotations

import re
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import Glance, Lab, Playbook, Played, Result, Task, task, wait_for
from tests.integration.test_vm_rebuild import definition, disks, image, own_files, small, stored
from tests.lab.kvmlab.guest import MEMORY_UEFI_MIB, NO_INIT

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
STORE = "/var/lib/kvmops/images"
NVRAM = "/var/lib/libvirt/qemu/nvram"
WAY_OUT = "Use vm_rescue with state: unrescued first."
SLOW = 240  # seconds that a guest has to boot by UEFI on a busy machine


@pytest.fixture(autouse=True)
def no_images(lab: Lab) -> None:
    """An empty store beside an empty base cache."""
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base {STORE}")


def rescue(**options: t.Any) -> Task:
    return task("vm_rescue", **{"name": "a", "state": "rescued", "force": True, **options})


def unrescue(**options: t.Any) -> Task:
    return rescue(**{"state": "unrescued", **options})


def told(lab: Lab, name: str = "a") -> list[str]:
    """The lines of the whole definition with its secrets, as libvirt tells it, but for what we remember."""
    text = lab.sh("kvm1", f"virsh dumpxml --inactive --security-info {name}")
    text = re.sub(r"\s*<kvmops:instance [^>]*/>", "", text)
    text = re.sub(r"\s*<kvmops:instance.*?</kvmops:instance>", "", text, flags=re.S)
    text = text.replace(' xmlns:kvmops="urn:kvmops:lifecycle:instance"', "")
    return re.sub(r"\s*<metadata>\s*</metadata>", "", text).splitlines()


def settled(lab: Lab) -> list[str]:
    """The same of a VM that never ran: libvirt sorts controllers, some of which it added itself, when the definition is
    written for the second time, whoever does that."""
    lab.sh("kvm1", "virsh dumpxml --inactive --security-info a > /tmp/a.xml; virsh -q define /tmp/a.xml")
    return told(lab)


def remembered(lab: Lab, name: str = "a") -> str:
    """What we remember of a VM."""
    return lab.sh("kvm1", f"virsh metadata {name} urn:kvmops:lifecycle:instance --config")


def layout(lab: Lab, name: str = "a") -> list[tuple[str, str, str, str]]:
    """Of each disk in the definition: what it is, its target, its bus, and its boot order."""
    found = []
    for node in definition(lab, name).iterfind("devices/disk"):
        target, boot = node.find("target"), node.find("boot")
        assert target is not None
        order = "" if boot is None else boot.get("order", "")
        found.append((node.get("device", ""), target.get("dev", ""), target.get("bus", ""), order))
    return found


def statuses(result: Result) -> dict[str, str]:
    return {vm["name"]: f"{vm['status']} {vm['power_state']}" for vm in result["vms"]}


# ---- what it is for


def test_a_guest_that_does_not_boot_is_rescued_repaired_from_inside_and_boots(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    (vm,) = launch("a", flavor={"vcpus": 1, "memory": 96, "ephemeral": [1]}, cloud_init={})["vms"]
    guest = lab.booted("kvm1", "a")
    guest.break_init()
    guest.virsh("reset", "a")
    guest.wait_console(NO_INIT, SLOW)
    before, files = told(lab), own_files(lab, vm)
    credentials = {"password": "open-sesame", "ssh_keys": ["ssh-ed25519 AAAA ada@example.org"]}
    ask = {"name": "a", "image": lab.vars["lab_rescue_image"], "credentials": credentials, "shutdown_timeout": 2}
    result = play.quartet("vm_rescue", state="rescued", wait_for="agent", wait_timeout=SLOW, **ask)
    (done,) = result["vms"]
    assert done["steps"] == ["stage", "stop", "swap", "start"]
    assert done["figures"]["shutdown"] == "forced"
    assert statuses(result) == {"a": "RESCUE RUNNING"}
    assert result.get("warnings", []) == []
    # The VM's own disks are what they were. Its data for cloud-init are left out, as there are others.
    assert [each[1:] for each in layout(lab)][:3] == [
        ("vda", "virtio", ""),
        ("vdb", "virtio", ""),
        ("vdc", "virtio", "1"),
    ]
    guest.wait_console("^GUEST-UP a ", SLOW, count=2)
    assert re.search("^DISK vda2 guest$", guest.console(), re.M)
    assert re.search("^DISK vdc2 rescue$", guest.console(), re.M)
    encrypted = guest.run("grep ^root: /etc/shadow").split(":")[1]
    assert guest.run(f"mkpasswd -m sha512 -S '{encrypted.split('$')[2]}' open-sesame") == encrypted
    assert guest.run("cat /root/.ssh/authorized_keys") == credentials["ssh_keys"][0]
    (info,) = play(task("vm_info", name="a")).ok()["result"]["vms"]
    assert (info["status"], info["problems"]) == ("RESCUE", [])
    assert (info["rescue"]["image"], info["rescue"]["power_before"]) == (lab.vars["lab_rescue_image"], "running")
    assert "open-sesame" not in remembered(lab)
    guest.repair_init("vda")
    result = play.quartet("vm_rescue", name="a", state="unrescued", wait_for="agent", wait_timeout=SLOW)
    assert result["vms"][0]["steps"] == ["stop", "swap_back", "start", "remove"]
    assert statuses(result) == {"a": "ACTIVE RUNNING"}
    guest.wait_up(boots=3, seconds=SLOW)
    assert "rescue" not in guest.run("cat /proc/cmdline")
    log = guest.counter_on_disk()
    assert log == list(range(1, len(log) + 1))
    assert told(lab) == before
    assert own_files(lab, vm) == files


def test_by_uefi_with_variables_of_its_own_meanwhile(lab: Lab, play: Playbook, launch: Launch) -> None:
    (vm,) = launch("a", start=False, firmware="uefi", flavor={"vcpus": 1, "memory": MEMORY_UEFI_MIB})["vms"]
    # Its variables are there from its first start on. Its boot loaders are lost.
    lab.sh("kvm1", f"virsh -q start --paused a; virsh -q destroy a; qemu-io -c 'write -z 1M 24M' {disks(lab)['vda']}")
    (variables,) = lab.sh("kvm1", f"ls {NVRAM}/*").split()
    own, before = lab.sh("kvm1", f"sha256sum {variables}"), told(lab)
    ask = {"name": "a", "image": lab.vars["lab_rescue_image"]}
    result = play.quartet("vm_rescue", state="rescued", wait_for="agent", wait_timeout=SLOW, **ask)
    assert result["vms"][0]["steps"] == ["stage", "swap", "start"]
    guest = lab.guest("kvm1", "a")
    guest.wait_up(seconds=SLOW)
    guest.run("test -d /sys/firmware/efi; dd if=/dev/vdb1 of=/dev/vda1 bs=1M 2>/dev/null; mount -t vfat /dev/vda1 /mnt")
    guest.run("sed -i s/LABEL=rescue/LABEL=guest/ /mnt/loader/entries/linux.conf; umount /mnt; sync")
    assert len(lab.sh("kvm1", f"ls {NVRAM}/*").split()) == 2
    result = play.quartet("vm_rescue", name="a", state="unrescued")
    assert result["vms"][0]["steps"] == ["stop", "swap_back", "remove"]
    assert result["vms"][0]["figures"]["shutdown"] == "guest"
    assert statuses(result) == {"a": "SHUTOFF SHUTDOWN"}
    assert lab.sh("kvm1", f"sha256sum {NVRAM}/*") == own
    assert told(lab) == before
    assert own_files(lab, vm) == ["root.qcow2"]
    play(task("vm_power", name="a", state="running")).ok()
    guest.wait_console("^GUEST-UP guest ", SLOW)


# ---- every state and every bus

BUSES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "ide": "hd"}
# The first runs, the second is off, then paused, suspended, marked as failed, and crashed.
ALL = [*BUSES, "failed", "crashed"]
# The name that the rescue disk gets behind all others.
NEW = {"scsi": "sdd", "sata": "sdd", "ide": "hdd"}


def define_all(lab: Lab) -> None:
    """VMs as other tools make them, without a system: on each bus one with two disks, a drive, boot orders, a VNC
    password."""
    for name in ALL:
        bus = name if name in BUSES else "virtio"
        machine = "pc" if bus == "ide" else "q35"
        devices = "<controller type='scsi' model='virtio-scsi'/>" if bus == "scsi" else ""
        for letter, order in (("a", 2), ("b", 1)):
            path, target = f"{IMAGES}/{name}-{letter}.qcow2", BUSES[bus] + letter
            lab.sh("kvm1", f"qemu-img create -q -f qcow2 {path} 8M")
            devices += (
                f"<disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='{path}'/>"
                f"<target dev='{target}' bus='{bus}'/><boot order='{order}'/></disk>"
            )
        drive = "dev='hdc' bus='ide'" if machine == "pc" else "dev='sdc' bus='sata'"
        devices += f"<disk type='file' device='cdrom'><target {drive}/><readonly/></disk>"
        devices += "<graphics type='vnc' passwd='s3cret' autoport='yes'/><video><model type='cirrus'/></video>"
        devices += "<panic model='isa'/>" if name == "crashed" else ""
        xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
            <metadata><x:it xmlns:x='urn:x' at='1'>theirs</x:it></metadata>
            <os><type arch='x86_64' machine='{machine}'>hvm</type></os><features><acpi/></features>
            <on_crash>preserve</on_crash><devices>{devices}</devices></domain>"""
        lab.sh("kvm1", f"cat > /tmp/define.xml <<'XML'\n{xml}\nXML\nvirsh -q define /tmp/define.xml")


@pytest.mark.parametrize("where", ["stable", "classic"])
def test_from_every_state_and_on_every_bus_and_back_to_the_byte(lab: Lab, play: Playbook, where: str) -> None:
    define_all(lab)
    one = image(lab, "one", "write -P 1 0 1M")
    before = {name: told(lab, name) for name in ALL}
    files = lab.files("kvm1")
    others = [name for name in ALL if name != "scsi"]
    lab.sh(
        "kvm1",
        f"for vm in {' '.join(others)}; do virsh -q start $vm; done; virsh -q suspend sata; virsh -q managedsave ide;"
        # The write to the pvpanic port that a panicking kernel makes.
        " virsh qemu-monitor-command crashed --hmp 'o /b 0x505 1'",
    )
    wait_for(lambda: lab.state("kvm1", "crashed").startswith("crashed"))
    play(task("vm_status", name="failed", state="error")).ok()
    ask: dict[str, t.Any] = {"name": ALL, "image": one, "layout": where, "force": True}
    for error, status in zip(
        play.errors([rescue(name=name, image=one) for name in ("sata", "ide")]), ("PAUSED", "SUSPENDED")
    ):
        assert (error["code"], status in error["msg"]) == ("refused", True), error["msg"]
        assert "discard_memory: true" in error["msg"]
    result = play.quartet("vm_rescue", state="rescued", discard_memory=True, **ask)
    assert statuses(result) == dict.fromkeys(ALL, "RESCUE RUNNING")
    for name in ALL:
        found = layout(lab, name)
        prefix = BUSES.get(name, "vd")
        if where == "stable":
            # libvirt keeps the disks of a bus together. On its bus the new one is the last.
            own = [prefix + "a", prefix + "b", "hdc" if name == "ide" else "sdc"]
            assert [target for _device, target, _bus, order in found if not order] == own
            bus = name if name in BUSES else "virtio"
            new = NEW.get(name, "vdc")
            assert [each for each in found if each[2] == bus][-1] == ("disk", new, bus, "1")
        else:
            assert [(target, order) for _device, target, _bus, order in found] == [
                (prefix + "a", "1"),
                (prefix + "b", ""),
            ]
            assert f"{name}-a.qcow2" in disks(lab, name)[prefix + "b"]
        assert "s3cret" not in remembered(lab, name)
        assert "theirs</x:it>" in lab.sh("kvm1", f"virsh dumpxml {name}")
    # A lock that came meanwhile stays. It is refused, and so is the way back of all others of a locked VM.
    play(task("vm_lock", name="virtio", reason="later")).ok()
    (error,) = play.errors([unrescue(name="virtio")])
    assert (error["code"], "later" in error["msg"]) == ("locked", True)
    back: dict[str, t.Any] = {"name": ALL, "state": "unrescued", "force": True, "override_lock": True}
    result = play.quartet("vm_rescue", **back)
    on = ["virtio", "failed", "crashed"]
    assert statuses(result) == {name: "ACTIVE RUNNING" if name in on else "SHUTOFF SHUTDOWN" for name in ALL}
    assert {name: told(lab, name) for name in ALL} == before
    assert lab.files("kvm1") == files
    assert "later" in remembered(lab, "virtio")
    (error,) = play.errors([rescue(name="virtio", image=one)])
    assert error["code"] == "locked"
    assert lab.state("kvm1", "virtio").startswith("running")


# ---- while it is rescued


def test_a_rescued_vm_stays_rescued_until_it_is_unrescued(lab: Lab, play: Playbook, launch: Launch) -> None:
    one, two = image(lab, "one", "write -P 1 0 1M"), image(lab, "two", "write -P 2 0 1M")
    vm = small(lab, launch, one, start=True, flavor={"vcpus": 1, "memory": 96, "ephemeral": [1]})
    before, files = told(lab), own_files(lab, vm)
    assert not play(unrescue()).ok()["result"]["changed"]
    # The image that it was launched from, which is not without danger.
    played = play(rescue())
    assert played.ok()["result"]["changed"]
    assert "labels and UUIDs" in played.output
    power = [
        task("vm_power", name="a", state="rebooted", reboot="hard"),
        task("vm_power", name="a", state="stopped", force=True),
        rescue(),
        task("vm_power", name="a", state="running"),
        rescue(),
    ]
    found = [each["result"] for each in play(power).results]
    assert [each["changed"] for each in found] == [True, True, False, True, False]
    assert [statuses(each)["a"].split()[0] for each in found] == ["RESCUE"] * 5
    assert lab.state("kvm1", "a").startswith("running")
    refused = [
        task("vm_power", name="a", state="paused"),
        task("vm_power", name="a", state="suspended"),
        task("vm_snapshot", name="a", image="x"),
        task("vm_shelve", name="a", state="shelved"),
        task("vm_rebuild", name="a", image=two),
    ]
    for error in play.errors(refused):
        assert (error["code"], WAY_OUT in error["msg"]) == ("refused", True), error["msg"]
    # Otherwise rescued is a change, and what was before the first rescue counts.
    (done,) = play.quartet("vm_rescue", name="a", state="rescued", image=two, force=True)["vms"]
    assert done["steps"] == ["stage", "stop", "swap", "start", "remove"]
    assert len(own_files(lab, vm)) == len(files) + 1
    (done,) = play.quartet("vm_rescue", name="a", state="rescued", image=two, layout="classic", force=True)["vms"]
    assert len(layout(lab)) == 2
    assert len(own_files(lab, vm)) == len(files) + 1
    # As long as a disk of its own is missing, it stays rescued.
    data = f"{IMAGES}/{vm['uuid']}/ephemeral0.qcow2"
    lab.sh("kvm1", f"mv {data} {data}.away")
    (error,) = play.errors([unrescue()])
    assert (error["code"], error["details"]["missing"]) == ("not_found", {"vdb": data}), error["msg"]
    assert error["vms"][0]["status"] == "RESCUE"
    assert lab.state("kvm1", "a").startswith("running")
    lab.sh("kvm1", f"mv {data}.away {data}")
    # So it does as long as its own system does not come up.
    error = play(unrescue(wait_for="agent", wait_timeout=2)).error()["result"]
    assert (error["code"], "rescued again" in error["msg"]) == ("timed_out", True), error["msg"]
    assert (statuses(error), len(own_files(lab, vm))) == ({"a": "RESCUE RUNNING"}, len(files) + 1)
    # vm_status loses nothing of the way back.
    play([task("vm_status", name="a", state="error"), task("vm_status", name="a", state="active")]).ok()
    result = play.quartet("vm_rescue", name="a", state="unrescued", force=True)
    assert statuses(result) == {"a": "ACTIVE RUNNING"}
    assert told(lab) == before
    assert own_files(lab, vm) == files


def test_a_host_that_lost_its_power_still_knows_and_what_is_removed_leaves_nothing(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    one = image(lab, "one", "write -P 1 0 1M")
    flavor = {"vcpus": 1, "memory": 96, "ephemeral": [1]}
    credentials = {"password": "x1y2z3"}
    launch("a", "b", "c", image=one, flavor=flavor, cloud_init={}, firmware="uefi")
    before = told(lab)
    play([rescue(name=["a", "b"], credentials=credentials), rescue(name="c", layout="classic")]).ok()
    lab.sh("kvm1", "sync")
    lab.fault("kvm1", "power-off")
    lab.fault("kvm1", "boot")
    lab.read()
    infos = play(task("vm_info")).ok()["result"]["vms"]
    assert [(vm["status"], vm["power_state"]) for vm in infos] == [("RESCUE", "SHUTDOWN")] * 3
    assert all(vm["problems"] == [] for vm in infos)
    assert statuses(play(unrescue()).ok()["result"]) == {"a": "ACTIVE RUNNING"}
    assert told(lab) == before
    play(task("vm", name="a", state="absent", force=True)).ok()
    play.quartet("vm", name=["b", "c"], state="absent", force=True)
    assert lab.domains("kvm1") == []
    assert lab.files("kvm1") == [one]
    assert lab.sh("kvm1", f"ls {NVRAM}") == ""


# ---- killed


@pytest.mark.parametrize(
    ("way", "steps", "taken_back"),
    [
        ("rescued", ["stage", "stop", "swap", "start", "end"], ["start"]),
        ("unrescued", ["stop", "swap_back", "start", "remove", "end"], ["start"]),
    ],
)
def test_what_was_killed_at_any_step_is_finished_by_the_same_task_and_undone_by_the_other(
    lab: Lab, play: Playbook, launch: Launch, way: str, steps: list[str], taken_back: list[str]
) -> None:
    vm = small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True)
    before = told(lab)
    there, away = rescue(image=image(lab, "two", "write -P 2 0 1M")), unrescue()
    do, undo = (there, away) if way == "rescued" else (away, there)
    words = {"rescued": "RESCUE RUNNING", "unrescued": "ACTIVE RUNNING"}
    other = {**task("vm", name="a", title="x"), "ignore_errors": True}

    def see(played: Played, step: str) -> None:
        """It is as it was, or rescued with one disk more."""
        rescued = "<state" in remembered(lab)
        assert len(own_files(lab, vm)) == (2 if rescued else 1), (step, played.output)
        assert rescued or told(lab) == before, step
        assert "<journal" not in remembered(lab), step
        assert lab.state("kvm1", "a").startswith("running"), step

    if way == "unrescued":
        play(there).ok()
    for step in steps:
        play.killed_at(step, do)
        played = play([other, do, do, undo])
        busy, done, again, undone = (each["result"] for each in played.results)
        assert (busy["code"], done["changed"], again["changed"]) == ("busy", True, False), (step, played.output)
        assert statuses(done)["a"] == statuses(again)["a"] == words[way], (step, played.output)
        assert undone["changed"], (step, played.output)
        see(played, step)
    for step in taken_back:
        play.killed_at(step, do)
        played = play([undo, undo])
        done, again = (each["result"] for each in played.results)
        assert (done["changed"], again["changed"]) == (True, False), (step, played.output)
        assert statuses(again)["a"] == words["unrescued" if way == "rescued" else "rescued"], (step, played.output)
        see(played, step)
    # What a killed task leaves goes with the VM.
    play.killed_at("start", do)
    play(task("vm", name="a", state="absent", force=True)).ok()
    assert [path for path in lab.files("kvm1") if str(vm["uuid"]) in path] == []


# ---- what goes wrong


def test_what_cannot_be_is_refused_before_anything_is_touched(lab: Lab, play: Playbook, launch: Launch) -> None:
    one = image(lab, "one", "write -P 1 0 1M")
    vm = small(lab, launch, one, start=True, flavor={"vcpus": 1, "memory": 96, "ephemeral": [1]})
    lab.sh("kvm1", f"echo nothing > {IMAGES}/text.qcow2")
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 -b {one} -F qcow2 {IMAGES}/over.qcow2")
    stored(lab, "hungry", one, min_ram=4096)
    stored(lab, "efi", one, properties={"hw_firmware_type": "uefi"})
    stored(lab, "odd", one, properties={"hw_rescue_bus": "fdc"})
    damaged = stored(lab, "damaged", image(lab, "two", "write -P 2 0 1M"))
    lab.sh("kvm1", f"printf X | dd of={STORE}/{damaged}.img bs=1 seek=300000 conv=notrunc 2>/dev/null")
    cases = {
        f"{IMAGES}/gone.qcow2": ("not_found", "there is no such file"),
        f"{IMAGES}/text.qcow2": ("invalid", "is declared as qcow2"),
        f"{IMAGES}/over.qcow2": ("invalid", "backing file"),
        "hungry": ("invalid", "4096 MiB"),
        "efi": ("refused", "needs uefi"),
        "odd": ("invalid", "hw_rescue_bus"),
        "damaged": ("invalid", "damaged"),
        "nothing": ("not_found", "no image 'nothing'"),
    }
    before, files, running = told(lab), own_files(lab, vm), lab.sh("kvm1", "virsh domid a")
    for (code, word), error in zip(cases.values(), play.errors([rescue(image=name) for name in cases])):
        assert (error["code"], word in error["msg"]) == (code, True), error["msg"]
        assert error["vms"][0]["status"] == "ACTIVE"
    large = image(lab, "large", "write -P 1 0 64M", size="64M")
    lab.fault("kvm1", "fill-disk", "--leave", str(20 << 20))
    try:
        error = play(rescue(image=large)).error()["result"]
        assert error["code"] == "no_space", error["msg"]
    finally:
        lab.fault("kvm1", "empty-disk")
    # Without one of its disks only the layout that leaves it out is possible; QEMU still has it open.
    data = f"{IMAGES}/{vm['uuid']}/ephemeral0.qcow2"
    lab.sh("kvm1", f"mv {data} {data}.away")
    (error,) = play.errors([rescue(image=one)])
    assert (error["code"], error["details"]["missing"]) == ("not_found", {"vdb": data})
    assert "layout: classic" in error["msg"]
    lab.sh("kvm1", f"mv {data}.away {data}")
    assert told(lab) == before
    assert (own_files(lab, vm), lab.sh("kvm1", "virsh domid a")) == (files, running)
    assert "<state" not in remembered(lab)


def test_what_fails_in_the_middle_is_taken_back(lab: Lab, play: Playbook, launch: Launch) -> None:
    one = image(lab, "one", "write -P 1 0 1M")
    vm = small(lab, launch, one, start=True, flavor={"vcpus": 1, "memory": 96, "ephemeral": [1]})
    before, files, data = told(lab), own_files(lab, vm), disks(lab)["vdb"]
    # What was staged is spoilt before it starts.
    spoil = f"for f in {IMAGES}/{vm['uuid']}/rescue-*.qcow2; do echo none > $f; done"
    error = play.disturbed_at("start", spoil, rescue(image=one)).error()["result"]
    assert "is not rescued" in error["msg"]
    assert "was started" in error["msg"]
    assert error["vms"][0]["status"] == "ACTIVE"
    assert told(lab) == before
    assert own_files(lab, vm) == files
    # What does not come up is no better.
    error = play(rescue(image=one, wait_for="agent", wait_timeout=2)).error()["result"]
    assert (error["code"], "was started" in error["msg"]) == ("timed_out", True), error["msg"]
    assert told(lab) == before
    assert own_files(lab, vm) == files
    # libvirtd is restarted, whose clients lose their connection: the next run finishes.
    restart = "pkill -9 libvirtd; /usr/sbin/libvirtd --daemon --listen"
    do = rescue(image=one, layout="classic")
    assert play.disturbed_at("swap", restart, do).error()["result"]["code"] == "unreachable"
    assert statuses(play(do).ok()["result"]) == {"a": "RESCUE RUNNING"}
    # A disk of its own goes while it is rescued, and in the middle of the way back: it is rescued again.
    away = f"mv {data} {data}.away"
    error = play.disturbed_at("start", away, unrescue()).error()["result"]
    assert "rescued again" in error["msg"], error["msg"]
    assert error["vms"][0]["status"] == "RESCUE"
    (error,) = play.errors([unrescue()])
    assert (error["code"], error["details"]["missing"]) == ("not_found", {"vdb": data})
    lab.sh("kvm1", f"mv {data}.away {data}")
    assert play.disturbed_at("swap_back", restart, unrescue()).error()["result"]["code"] == "unreachable"
    assert statuses(play(unrescue()).ok()["result"]) == {"a": "ACTIVE RUNNING"}
    assert told(lab) == before
    assert own_files(lab, vm) == files


# ---- images


def test_from_glance_as_the_image_says(lab: Lab, play: Playbook, launch: Launch, glance: Glance) -> None:
    one = image(lab, "one", "write -P 1 0 1M")
    vm = small(lab, launch, one, start=False)
    before = settled(lab)
    content = Path(lab.outside(image(lab, "two", "write -P 2 0 1M"))).read_bytes()
    glance.client("member").upload(
        content, name="two", disk_format="qcow2", hw_rescue_device="cdrom", hw_rescue_bus="scsi"
    )
    store = {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
    (done,) = play.quartet("vm_rescue", name="a", state="rescued", image="two", image_store=store)["vms"]
    assert done["figures"]["rescue"]["device"] == "cdrom"
    assert layout(lab)[-1] == ("cdrom", "sda", "scsi", "1")
    result = play.quartet("vm_rescue", name="a", state="unrescued", force=True)
    assert statuses(result) == {"a": "SHUTOFF SHUTDOWN"}
    assert told(lab) == before
    assert own_files(lab, vm) == ["root.qcow2"]
    (error,) = play.errors([rescue(image="two", image_store={**store, "cloud": "other"})])
    assert error["code"] == "not_found"


def test_from_the_controller(lab: Lab, play: Playbook, launch: Launch, tmp_path: Path) -> None:
    vm = small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=False)
    before, files = settled(lab), own_files(lab, vm)
    two = tmp_path / "two.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(two), "8M"], check=True)
    what = {"name": "a", "uri": lab.hosts["kvm1"]["lab_uri"], "force": True}
    credentials = {"password": "x1y2z3"}
    result = play.quartet(
        "vm_rescue", host="localhost", state="rescued", image=str(two), credentials=credentials, **what
    )
    assert statuses(result) == {"a": "RESCUE RUNNING"}
    assert len(own_files(lab, vm)) == len(files) + 2
    data = disks(lab)["vda"]
    lab.sh("kvm1", f"mv {data} {data}.away")
    error = play(task("vm_rescue", state="unrescued", **what), host="localhost").error()["result"]
    assert (error["code"], error["details"]["missing"]) == ("not_found", {"vda": data}), error["msg"]
    lab.sh("kvm1", f"mv {data}.away {data}")
    play.quartet("vm_rescue", host="localhost", state="unrescued", **what)
    assert told(lab) == before
    assert own_files(lab, vm) == files
