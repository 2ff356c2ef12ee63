# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_info on VMs of any tool, in any state."""

from __future__ import annotations

import json
import time
import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk, task, wait_for
from tests.lab.kvmlab.guest import Guest

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
MIB = 1 << 20
# As virt-install makes it, without the devices.
VIRT_INSTALL = """
<domain type='qemu'>
  <name>shop</name>
  <title>The shop</title>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
      <libosinfo:os id='http://debian.org/debian/12'/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='MiB'>64</memory>
  <currentMemory unit='MiB'>48</currentMemory>
  <vcpu current='1'>2</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='q35'>hvm</type>
    <firmware><feature enabled='no' name='secure-boot'/></firmware>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <interface type='network'>
      <mac address='52:54:00:0A:0B:0C'/>
      <source network='default'/>
      <model type='virtio'/>
      <boot order='1'/>
    </interface>
    <console type='pty'><log file='/var/log/libvirt/qemu/shop-console.log'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' listen='127.0.0.1'/>
  </devices>
</domain>
"""


def ask(play: Playbook, *, host: str = "kvm1", **arguments: t.Any) -> Result:
    """The answer of vm_info; it never says that it changed anything."""
    result = play(task("vm_info", **arguments), host=host).ok()["result"]
    assert not result["changed"]
    return t.cast("Result", result)


def only(result: Result) -> Result:
    """The only VM that was told."""
    (vm,) = result["vms"]
    return t.cast("Result", vm)


def by_name(result: Result) -> dict[str, Result]:
    """The VMs by name."""
    return {vm["name"]: vm for vm in result["vms"]}


def qemu_chain(lab: Lab, path: str) -> list[tuple[str, str, int, int]]:
    """What qemu-img says: path, format, size of the disk, and what the file takes."""
    said = json.loads(lab.sh("kvm1", f"qemu-img info -U --backing-chain --output=json {path}"))
    return [(each["filename"], each["format"], each["virtual-size"], each["actual-size"]) for each in said]


def told_chain(disk: Result) -> list[tuple[str, str, int, int]]:
    """The same from vm_info."""
    return [(each["source"], each["format"], each["capacity"], each["allocation"]) for each in disk["chain"]]


def make_chain(lab: Lab, name: str) -> str:
    """A raw base, an image that names it relatively, and one on top of that; the path of the top."""
    lab.sh(
        "kvm1",
        f"""
        cd {IMAGES}
        head -c 24M /dev/urandom >{name}.raw
        qemu-img create -q -f qcow2 -F raw -b {name}.raw {name}.mid
        qemu-io -f qcow2 -c 'write 0 1M' {name}.mid
        qemu-img create -q -f qcow2 -F qcow2 -b {IMAGES}/{name}.mid {name}.top 32M
        """,
    )
    return f"{IMAGES}/{name}.top"


def boot_guests(lab: Lab, *names: str, mac: str = "52:54:00:00:00:64", devices: str = "") -> list[Guest]:
    """Guests on the host's NAT network, booted; their MAC addresses follow from the first's."""
    guests = [Guest(lab.kvm, "kvm1", name, IMAGES) for name in names]
    for number, guest in enumerate(guests):
        guest.make_disk()
        guest.define(network="default", mac=f"{mac[:-2]}{int(mac[-2:], 16) + number:02x}", devices=devices)
        guest.start()
    for guest in guests:
        guest.wait_up()
    return guests


def test_every_state_is_told_of_vms_that_plain_virsh_made(lab: Lab, play: Playbook) -> None:
    for name in ("off", "on", "paused", "saved"):
        define(lab, name)
    lab.sh("kvm1", "for vm in on paused saved; do virsh -q start $vm; done; virsh -q suspend paused")
    lab.sh("kvm1", "virsh -q managedsave saved; virsh -q autostart off")
    lab.sh(
        "kvm1",
        "virsh dumpxml off | sed 's/<name>off/<name>fleeting/; /<uuid>/d' >/tmp/t.xml; virsh -q create /tmp/t.xml",
    )
    told = by_name(ask(play, gather=["status"]))
    assert {name: (vm["status"], vm["power_state"], vm["reason"]) for name, vm in told.items()} == {
        "fleeting": ("ACTIVE", "RUNNING", "booted"),
        "off": ("SHUTOFF", "SHUTDOWN", ""),
        "on": ("ACTIVE", "RUNNING", "booted"),
        "paused": ("PAUSED", "PAUSED", "by a user"),
        "saved": ("SUSPENDED", "SHUTDOWN", "memory saved"),
    }
    assert [name for name, vm in told.items() if not vm["persistent"]] == ["fleeting"]
    assert [name for name, vm in told.items() if vm["autostart"]] == ["off"]
    assert [name for name, vm in told.items() if vm["managed_save"]] == ["saved"]
    assert [name for name, vm in told.items() if vm["uptime"] is None] == ["off", "saved"]
    assert all(vm["host"] == "kvm1" and vm["problems"] == [] and vm["task_state"] == "" for vm in told.values())
    assert all(not vm["locked"] and vm["flavor"] is None and vm["launched"] is None for vm in told.values())
    assert "config" not in told["on"]


def test_the_uptime_is_that_of_the_qemu_process(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    lab.sh("kvm1", "virsh -q start v")
    began = time.monotonic()
    first = only(ask(play, gather=["status"]))["uptime"]
    time.sleep(2)
    second = only(ask(play, gather=["status"]))["uptime"]
    assert first + 2 <= second <= time.monotonic() - began + 5


def test_a_vm_as_virt_install_makes_it_is_told_in_full(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"cat >/tmp/shop.xml <<'XML'{VIRT_INSTALL}XML\nvirsh -q define /tmp/shop.xml")
    off = only(ask(play))
    config = off["config"]
    assert config["machine"].startswith("pc-q35")
    assert (config["title"], config["os"]) == ("The shop", "http://debian.org/debian/12")
    assert (config["vcpus"], config["max_vcpus"], config["memory"], config["current_memory"]) == (1, 2, 64, 48)
    assert (config["type"], config["arch"], config["cpu_model"]) == ("qemu", "x86_64", "qemu64")
    assert config["firmware"]["kind"] == "uefi"
    assert config["console_log"] == "/var/log/libvirt/qemu/shop-console.log"
    assert config["agent_channel"]
    (drive,) = off["disks"]
    assert (drive["device"], drive["source"], drive["capacity"], drive["chain"]) == ("cdrom", "", None, [])
    (card,) = off["interfaces"]
    assert (card["mac"], card["source"], card["boot"], card["tap"]) == ("52:54:00:0a:0b:0c", "default", 1, "")
    assert off["graphics"][0]["port"] is None
    assert off["statistics"] is None

    lab.sh("kvm1", "virsh -q start shop")
    on = only(ask(play))
    assert on["config"]["firmware"]["nvram"].endswith("shop_VARS.fd")
    assert lab.sh("kvm1", f"ls {on['config']['firmware']['nvram']} {on['config']['firmware']['loader']}")
    (card,) = on["interfaces"]
    assert card["bridge"] == "virbr0"
    assert card["tap"] in lab.sh("kvm1", "virsh domiflist shop")
    port = int(lab.sh("kvm1", "virsh vncdisplay shop").rpartition(":")[2]) + 5900
    assert on["graphics"] == [{"type": "vnc", "listen": "127.0.0.1", "port": port, "tls_port": None, "websocket": None}]
    assert [net["tap"] for net in on["statistics"]["net"]] == [card["tap"]]
    assert on["statistics"]["memory"]["maximum"] == 64
    assert on["statistics"]["memory"]["rss"] > 0
    assert on["statistics"]["cpu"]["time"] > 0


def test_chains_are_those_that_qemu_sees_on_and_off(lab: Lab, play: Playbook) -> None:
    top = make_chain(lab, "a")
    define(lab, "v", devices=file_disk(top, "qcow2", "vda"))
    for command in ("true", "virsh -q start v"):
        lab.sh("kvm1", command)
        (disk,) = only(ask(play, gather=["disks"]))["disks"]
        wanted = qemu_chain(lab, top)
        assert len(wanted) == 3
        assert told_chain(disk) == wanted
        assert disk["chain_known"]
        assert (disk["capacity"], disk["source"], disk["target"]) == (32 * MIB, top, "vda")
        assert disk["allocation"] == wanted[0][3]


def test_an_image_is_what_it_is_declared_to_be(lab: Lab, play: Playbook) -> None:
    """A guest that owns a raw disk can write a header into it that names any file of the host."""
    lab.sh(
        "kvm1",
        f"""
        cd {IMAGES}
        qemu-img create -q -f qcow2 -u -F raw -b /etc/passwd evil.raw 8M
        qemu-img create -q -f qcow2 -u -F raw -b evil.raw undeclared.qcow2 8M
        printf '\\0\\0\\0\\1' | dd status=none of=undeclared.qcow2 bs=1 seek=112 conv=notrunc  # no more a format
        qemu-img create -q -f qcow2 -u -F raw -b 'json:{{"driver":"file","filename":"/etc/passwd"}}' json.qcow2 8M
        """,
    )
    disks = [("evil.raw", "raw"), ("undeclared.qcow2", "qcow2"), ("json.qcow2", "qcow2"), ("gone.qcow2", "qcow2")]
    define(
        lab,
        "v",
        devices="".join(file_disk(f"{IMAGES}/{name}", form, f"vd{'abcd'[n]}") for n, (name, form) in enumerate(disks)),
    )
    raw, undeclared, json_disk, gone = only(ask(play, gather=["disks"]))["disks"]
    assert ([each["source"] for each in raw["chain"]], raw["chain_known"]) == ([f"{IMAGES}/evil.raw"], True)
    assert [(each["source"], each["format"]) for each in undeclared["chain"]] == [
        (f"{IMAGES}/undeclared.qcow2", "qcow2"),
        (f"{IMAGES}/evil.raw", ""),
    ]
    assert not undeclared["chain_known"]
    assert [each["kind"] for each in json_disk["chain"]] == ["file", "network"]
    assert not json_disk["chain_known"]
    assert ([each["capacity"] for each in gone["chain"]], gone["chain_known"]) == ([None], False)


def test_a_pool_tells_a_remote_caller_the_chains_of_vms_that_are_off(lab: Lab, play: Playbook) -> None:
    top = make_chain(lab, "a")
    define(lab, "v", devices=file_disk(top, "qcow2", "vda"))
    uri = lab.hosts["kvm1"]["lab_uri"]
    (disk,) = only(ask(play, host="localhost", uri=uri, gather=["disks"]))["disks"]
    assert [each["source"] for each in disk["chain"]] == [top]
    assert disk["capacity"] == 32 * MIB
    assert not disk["chain_known"]
    lab.sh("kvm1", f"virsh -q pool-create-as vms dir --target {IMAGES}")
    try:
        (disk,) = only(ask(play, host="localhost", uri=uri, gather=["disks"]))["disks"]
        assert told_chain(disk) == qemu_chain(lab, top)
        assert disk["chain_known"]
    finally:
        lab.sh("kvm1", "virsh -q pool-destroy vms")


def test_a_remote_uri_tells_the_same(lab: Lab, play: Playbook) -> None:
    define(lab, "off")
    define(lab, "on", devices=file_disk(make_chain(lab, "a"), "qcow2", "vda"))
    lab.sh("kvm1", "virsh -q start on")
    here = by_name(ask(play, gather=["all"]))
    there = by_name(ask(play, host="localhost", uri=lab.hosts["kvm1"]["lab_uri"], gather=["all"]))
    assert here["on"]["uptime"] > 0
    assert there["on"]["uptime"] is None
    for told in (here, there):
        for vm in told.values():
            del vm["uptime"], vm["statistics"]
    assert here == there


def test_addresses_come_from_lease_neighbour_table_and_agent(lab: Lab, play: Playbook) -> None:
    mac = "52:54:00:00:00:65"
    second = "<interface type='bridge'><mac address='52:54:00:00:00:66'/><source bridge='br0'/></interface>"
    (guest,) = boot_guests(lab, "g", mac=mac, devices=second)
    lab.sh("kvm1", "ip neigh replace 10.99.0.7 lladdr 52:54:00:00:00:66 dev br0 nud permanent")

    def addresses(**arguments: t.Any) -> list[list[Result]]:
        vm = only(ask(play, gather=["interfaces"], **arguments))
        assert vm["problems"] == []
        return [interface["addresses"] for interface in vm["interfaces"]]

    wait_for(lambda: mac in lab.sh("kvm1", "virsh net-dhcp-leases default"))
    address = lab.sh("kvm1", f"virsh net-dhcp-leases default | grep {mac}").split()[4].partition("/")[0]
    try:
        nat, bridged = addresses()
        assert [(each["address"], each["source"], each["prefix"]) for each in nat] == [(address, "lease", 24)]
        assert [(each["address"], each["source"]) for each in bridged] == [("10.99.0.7", "arp")]
    finally:
        lab.sh("kvm1", "ip neigh del 10.99.0.7 dev br0")
    nat, bridged = addresses(uri=lab.hosts["kvm1"]["lab_uri_tls"])  # from itself, which it does not know
    assert [(each["address"], each["source"]) for each in nat] == [(address, "lease")]

    vm = only(ask(play, gather=["interfaces", "guest"]))
    told = vm["interfaces"][0]["addresses"]
    assert (address, "agent", "eth0", 24) in [
        (each["address"], each["source"], each["device"], each["prefix"]) for each in told
    ]
    assert vm["guest"]["agent"] == "connected"
    assert vm["guest"]["hostname"] == guest.execute("hostname")[1].strip()
    assert vm["guest"]["os"]["kernel_release"] == guest.execute("uname -r")[1].strip()
    lab.sh("kvm1", "virsh -q suspend g")
    assert only(ask(play, gather=["guest"]))["guest"]["agent"] == "silent"
    lab.sh("kvm1", "virsh -q destroy g")
    vm = only(ask(play, gather=["all"]))
    assert vm["guest"]["agent"] == "disconnected"
    assert [interface["addresses"] for interface in vm["interfaces"]] == [[], []]


def test_an_agent_that_hangs_holds_up_nothing(lab: Lab, play: Playbook) -> None:
    hangs, answers = boot_guests(lab, "g", "h")
    define(lab, "v")
    lab.sh("kvm1", "virsh -q start v")
    root = by_name(ask(play, gather=["guest"]))["g"]["guest"]["filesystems"][0]
    assert (root["mountpoint"], root["type"], root["name"], root["disks"]) == ("/", "ext4", "vda2", ["vda"])
    assert 0 < root["used"] < root["total"] < 1 << 30

    hangs.hang_agent()
    # An agent that may not tell all tells the rest.
    restart = "/usr/sbin/qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run"
    answers.execute(f"sed -i 's#^.*exec /usr/sbin/qemu-ga.*#exec {restart} -b guest-get-fsinfo#' /usr/sbin/agent")
    answers.execute("sleep 1; killall qemu-ga; echo AGENT-RESTARTS >/dev/console", wait=False)
    answers.wait_console("^AGENT-RESTARTS")
    answers.wait_agent()
    began = time.monotonic()
    told = by_name(ask(play, gather=["all"], guest_timeout=2))
    assert time.monotonic() - began < 60  # and not for ever
    assert told["g"]["guest"]["agent"] == "silent"
    assert told["g"]["guest"]["filesystems"] == []
    assert "guest agent" in told["g"]["problems"][0]
    assert told["g"]["statistics"]["cpu"]["time"] > 0
    assert told["h"]["guest"]["agent"] == "connected"
    assert told["h"]["guest"]["hostname"]
    assert told["h"]["interfaces"][0]["addresses"]
    assert told["h"]["guest"]["filesystems"] == []
    assert "guest-get-fsinfo" in told["h"]["problems"][0]
    assert told["v"]["guest"]["agent"] == "absent"
    assert told["v"]["problems"] == []
    # Nobody waits for the agent any more: what asks it next is not kept waiting for its turn.
    assert "not responding" in lab.sh("kvm1", "virsh guestinfo g --os 2>&1", check=False)


def test_a_qemu_that_hangs_spoils_only_its_own_vm(lab: Lab, play: Playbook) -> None:
    for name in ("good", "stuck"):
        define(lab, name, devices=file_disk(make_chain(lab, name), "qcow2", "vda"))
        lab.sh("kvm1", f"virsh -q start {name}")
    lab.sh("kvm1", "kill -STOP $(cat /run/libvirt/qemu/stuck.pid)")
    try:
        told = by_name(ask(play))
    finally:
        lab.sh("kvm1", "kill -CONT $(cat /run/libvirt/qemu/stuck.pid)")
    assert told["good"]["problems"] == []
    assert told["good"]["statistics"]["block"][0]["read_requests"] is not None
    assert [layer["capacity"] for layer in told["good"]["disks"][0]["chain"]] == [32 * MIB, 24 * MIB, 24 * MIB]
    assert "QEMU did not answer" in told["stuck"]["problems"][0]
    assert told["stuck"]["status"] == "ACTIVE"
    wait_for(lambda: "error" not in lab.sh("kvm1", "virsh domblkinfo stuck vda 2>&1"))
    assert only(ask(play, name="stuck"))["problems"] == []


def test_jobs_are_told(lab: Lab, play: Playbook) -> None:
    define(lab, "v", devices=file_disk(make_chain(lab, "a"), "qcow2", "vda"))
    lab.sh("kvm1", "virsh -q start v")
    assert only(ask(play))["disks"][0]["job"] is None
    copy = f"{IMAGES}/copy.qcow2"
    lab.sh("kvm1", f"virsh blockcopy v vda {copy} --transient-job --bandwidth 1 --bytes")
    (disk,) = only(ask(play))["disks"]
    assert disk["job"]["operation"] == "copy"
    assert disk["mirror"]["source"] == copy
    lab.sh("kvm1", "virsh blockjob v vda --abort")
    wait_for(lambda: only(ask(play))["disks"][0]["job"] is None)


def test_what_the_collection_remembers_is_told(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", "b", start=False)
    define(lab, "c")
    play(task("vm_lock", name="a", reason="audit")).ok()
    play(task("vm", name="b", state="absent", reclaim_after=3600)).ok()
    told = by_name(ask(play))
    assert (told["a"]["locked"], told["a"]["lock"]["reason"], told["a"]["status"]) == (True, "audit", "SHUTOFF")
    assert told["a"]["flavor"]["memory"] == 96
    launched = told["a"]["launched"]
    assert launched["image"] == lab.vars["lab_guest_image"]
    (disk,) = [disk for disk in told["a"]["disks"] if disk["device"] == "disk"]
    assert [layer["source"] for layer in disk["chain"]][1] == launched["base"]
    assert [mark["state"] for mark in told["b"]["marks"]] == ["soft-delete"]
    assert told["b"]["status"] == "SOFT_DELETED"
    assert (told["c"]["locked"], told["c"]["flavor"], told["c"]["launched"]) == (False, None, None)
    assert [vm["name"] for vm in ask(play, status=["SOFT_DELETED", "PAUSED"])["vms"]] == ["b"]
    assert ask(play, status=["ACTIVE"])["vms"] == []


def test_an_operation_that_died_is_told(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    journal = (
        "<journal action='delete' since='2026-01-01T00:00:00Z' node='elsewhere' pid='7' step='undefine'>{}</journal>"
    )
    lab.sh(
        "kvm1",
        "virsh -q metadata v urn:kvmops:lifecycle:instance --key kvmops"
        f""" --set "<instance schema='1'>{journal}</instance>" """,
    )
    vm = only(ask(play, gather=["status"]))
    assert vm["journal"] == {
        "action": "delete",
        "since": "2026-01-01T00:00:00Z",
        "node": "elsewhere",
        "pid": 7,
        "step": "undefine",
    }
    assert (vm["task_state"], vm["operation"]) == ("deleting", None)


@pytest.mark.parametrize("gather", [["status"], ["config"]])
@pytest.mark.parametrize("start", [False, True])
def test_metadata_that_cannot_be_read_is_a_problem_of_that_vm(
    lab: Lab, play: Playbook, gather: list[str], start: bool
) -> None:
    for name, instance in (
        ("newer", "<instance schema='99'/>"),
        ("garbage", "<instance schema='1'><journal/></instance>"),
        ("good", "<instance schema='1'><lock since='2026-01-01T00:00:00Z'>audit</lock></instance>"),
    ):
        define(lab, name)
        lab.sh("kvm1", f'virsh -q metadata {name} urn:kvmops:lifecycle:instance --key kvmops --set "{instance}"')
        if start:
            lab.sh("kvm1", f"virsh -q start {name}")
    told = by_name(ask(play, gather=gather))
    assert {vm["status"] for vm in told.values()} == {"ACTIVE" if start else "SHUTOFF"}
    assert (told["good"]["locked"], told["good"]["problems"]) == (True, [])
    assert "schema 99" in told["newer"]["problems"][0]
    assert "cannot be read" in told["garbage"]["problems"][0]


def test_names_and_uuids_are_found_and_the_others_are_listed(lab: Lab, play: Playbook) -> None:
    for name in ("b", "a"):
        define(lab, name)
    uuid = lab.sh("kvm1", "virsh domuuid a")
    nobody = "00000000-0000-4000-8000-000000000000"
    told = ask(play, name=["b", uuid.upper(), "nobody", "a", nobody])
    assert [vm["name"] for vm in told["vms"]] == ["b", "a"]
    assert told["missing"] == ["nobody", nobody]
    assert [vm["name"] for vm in ask(play)["vms"]] == ["a", "b"]
    assert ask(play, name=[])["vms"] == []


def test_check_mode_tells_the_same_and_nothing_is_changed(lab: Lab, play: Playbook) -> None:
    define(lab, "v", devices=file_disk(make_chain(lab, "a"), "qcow2", "vda"))
    before = lab.sh("kvm1", f"virsh dumpxml v; ls -l --full-time {IMAGES}")
    normal, check = (
        play(task("vm_info", gather=["all"]), *options).ok()["result"] for options in ((), ("--check", "--diff"))
    )
    assert check["vms"] == normal["vms"]
    assert lab.sh("kvm1", f"virsh dumpxml v; ls -l --full-time {IMAGES}") == before


def test_snapshots_and_checkpoints_are_counted(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {IMAGES}/a.qcow2 8M")
    define(lab, "v", devices=file_disk(f"{IMAGES}/a.qcow2", "qcow2", "vda"))
    define(lab, "w")
    lab.sh("kvm1", "virsh -q snapshot-create-as v one; virsh -q snapshot-create-as v two")
    told = by_name(ask(play, gather=["status"]))
    assert (told["v"]["snapshots"], told["w"]["snapshots"], told["v"]["checkpoints"]) == (2, 0, 0)
    lab.sh("kvm1", "virsh -q snapshot-delete v two; virsh -q snapshot-delete v one; virsh -q start v")
    lab.sh("kvm1", "virsh -q checkpoint-create-as v first")
    assert only(ask(play, gather=["status"], name="v"))["checkpoints"] == 1


def test_a_thousand_vms_are_told_in_one_task(lab: Lab, play: Playbook) -> None:
    lab.sh(
        "kvm1",
        """
        rm -rf /tmp/vms; mkdir /tmp/vms; cd /tmp/vms
        os='<os><type>hvm</type></os>'
        for n in $(seq 1000); do
            echo "<domain type='qemu'><name>vm$n</name><memory unit='MiB'>32</memory>$os</domain>" >vm$n.xml
            echo "define vm$n.xml"
        done | virsh -q
        """,
    )
    try:
        told = ask(play, gather=["all"])["vms"]
        some = ask(play, gather=["config"], name=["vm993", "vm7"])["vms"]
    finally:
        lab.sh("kvm1", "virsh -q list --all --name | sed '/./s/^/undefine /' | virsh -q")
    assert len({vm["uuid"] for vm in told}) == 1000
    assert {vm["status"] for vm in told} == {"SHUTOFF"}
    assert [vm["problems"] for vm in told] == [[]] * 1000
    assert [vm["name"] for vm in some] == ["vm993", "vm7"]
    assert all(vm.items() <= by_name({"vms": told})[vm["name"]].items() for vm in some)
