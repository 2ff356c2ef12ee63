# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""host_info on a host with VMs of any tool."""

from __future__ import annotations

import re
import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk, task

IMAGES = "/var/lib/libvirt/images"
MIB = 1 << 20


def ask(play: Playbook, *options: str, host: str = "kvm1", **arguments: t.Any) -> Result:
    """The host that host_info tells; it never says that it changed anything."""
    result = play(task("host_info", **arguments), *options, host=host).ok()["result"]
    assert not result["changed"]
    return t.cast("Result", result["host"])


def virsh(lab: Lab, command: str) -> dict[str, str]:
    """The table of names and values that a command of virsh prints."""
    rows = (re.split(r":\s+", line, maxsplit=1) for line in lab.sh("kvm1", f"virsh {command}").splitlines() if line)
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}


@pytest.fixture
def vms(lab: Lab) -> None:
    """Two VMs that are on, one of them paused, and one that is off, with disks."""
    lab.sh("kvm1", f"cd {IMAGES}; for n in a b c; do qemu-img create -q -f qcow2 $n.qcow2 8M; done; mkdir deep")
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 -F qcow2 -b {IMAGES}/c.qcow2 {IMAGES}/deep/d.qcow2 16M")
    define(lab, "on", devices=file_disk(f"{IMAGES}/a.qcow2", "qcow2", "vda"))
    define(lab, "paused", devices=file_disk(f"{IMAGES}/deep/d.qcow2", "qcow2", "vda"))
    define(lab, "off", devices=file_disk(f"{IMAGES}/b.qcow2", "qcow2", "vda"))
    lab.sh("kvm1", "virsh -q start on; virsh -q start paused; virsh -q suspend paused")


def test_the_host_is_as_virsh_tells_it(lab: Lab, play: Playbook) -> None:
    host = ask(play)
    node = virsh(lab, "nodeinfo")
    assert (host["name"], host["uuid"]) == ("kvm1", lab.hosts["kvm1"]["lab_host_uuid"])
    cpu = host["cpu"]
    assert (cpu["count"], cpu["mhz"] > 0, cpu["arch"]) == (int(node["CPU(s)"]), True, node["CPU model"])
    assert cpu["sockets"] * cpu["cores"] * cpu["threads"] == cpu["count"]
    capabilities = lab.sh("kvm1", "virsh capabilities")
    assert f"<model>{cpu['model']}</model>" in capabilities
    assert cpu["features"]
    assert all(f"<feature name='{feature}'/>" in capabilities for feature in cpu["features"])
    total = int(virsh(lab, "nodememstats")["total"].split()[0]) // 1024
    assert host["memory"]["total"] == total
    assert 0 < host["memory"]["free"] <= host["memory"]["available"] <= total
    versions = lab.sh("kvm1", "virsh version --daemon")
    assert f"Running against daemon: {host['versions']['libvirt']}" in versions
    assert f"Running hypervisor: QEMU {host['versions']['hypervisor']}" in versions
    assert host["hypervisor"] == "QEMU"
    assert lab.sh("kvm1", f"{host['emulator']} --version").startswith("QEMU emulator")
    assert "qemu" in host["types"]["x86_64"]
    assert "q35" in host["machines"]


def test_what_vms_take_is_added_up(lab: Lab, play: Playbook, vms: None) -> None:
    host = ask(play, storage=[IMAGES, f"{IMAGES}/deep", "/srv/kvmops/shared", "/nowhere"])
    assert (host["memory"]["defined"], host["memory"]["running"]) == (96, 64)
    assert (host["cpu"]["defined"], host["cpu"]["running"]) == (3, 2)
    assert host["vms"] == {"ACTIVE": ["on"], "PAUSED": ["paused"], "SHUTOFF": ["off"]}
    assert host["problems"] == []
    images, deep, shared, nowhere = host["storage"]
    assert (images["disks"], images["promised"]) == (3, 32 * MIB)
    assert (deep["disks"], deep["promised"]) == (1, 16 * MIB)
    assert (shared["disks"], shared["promised"]) == (0, 0)
    size = int(lab.sh("kvm1", f"stat -f -c '%b*%S' {IMAGES} | sed 's/^/echo $((/; s/$/))/' | sh"))
    assert images["capacity"] == deep["capacity"] == size
    assert 0 < images["allocation"] < size
    assert images["available"] <= size - images["allocation"]
    assert (nowhere["capacity"], nowhere["available"], nowhere["pool"]) == (None, None, "")


def test_a_remote_caller_knows_the_room_of_pools(lab: Lab, play: Playbook, vms: None) -> None:
    here = ask(play, storage=[f"{IMAGES}/deep"])
    uri = lab.hosts["kvm1"]["lab_uri"]
    lab.sh("kvm1", f"virsh -q pool-define-as off dir --target {IMAGES}/deep")
    try:
        there = ask(play, host="localhost", uri=uri, storage=[f"{IMAGES}/deep"])
        assert there["storage"][0]["available"] is None
        (pool,) = there["pools"]
        assert (pool["name"], pool["active"], pool["capacity"], pool["persistent"]) == ("off", False, None, True)
        lab.sh("kvm1", f"virsh -q pool-create-as vms dir --target {IMAGES}")
        there = ask(play, host="localhost", uri=uri, storage=[f"{IMAGES}/deep"])
        assert there["storage"][0]["pool"] == "vms"
        assert there["storage"][0]["capacity"] == here["storage"][0]["capacity"]
        assert there["storage"][0]["promised"] == 16 * MIB
        pools = {pool["name"]: pool for pool in there["pools"]}
        assert pools["vms"]["available"] == there["storage"][0]["available"]
        assert (pools["vms"]["path"], pools["vms"]["type"], pools["vms"]["persistent"]) == (IMAGES, "dir", False)
    finally:
        lab.sh("kvm1", "virsh -q pool-destroy vms; virsh -q pool-undefine off")
    for key in ("uuid", "name", "types", "machines", "vms", "networks", "emulator", "hypervisor"):
        assert there[key] == here[key], key
    assert there["versions"]["libvirt"] == here["versions"]["libvirt"]


def test_networks_are_told(lab: Lab, play: Playbook) -> None:
    isolated = "<network><name>isolated</name><bridge name='virbr77'/></network>"
    lab.sh("kvm1", f'echo "{isolated}" >/tmp/n.xml; virsh -q net-define /tmp/n.xml')
    try:
        default, other = ask(play)["networks"]
    finally:
        lab.sh("kvm1", "virsh -q net-undefine isolated")
    assert default["uuid"] == lab.sh("kvm1", "virsh net-uuid default")
    assert (default["bridge"], default["forward"], default["active"], default["autostart"]) == (
        "virbr0",
        "nat",
        True,
        True,
    )
    assert (other["name"], other["bridge"], other["forward"], other["active"], other["autostart"]) == (
        "isolated",
        "virbr77",
        "",
        False,
        False,
    )


def test_check_mode_tells_the_same(lab: Lab, play: Playbook, vms: None) -> None:
    normal, check = ask(play), ask(play, "--check", "--diff")
    for told in (normal, check):  # what others do on the machine meanwhile
        del told["memory"], told["storage"]
    assert normal == check


def test_a_relative_path_is_refused(play: Playbook) -> None:
    error = play(task("host_info", storage=["images"])).error()["result"]
    assert error["code"] == "invalid"
    assert "images" in error["msg"]


def test_a_qemu_that_hangs_is_a_problem_and_nothing_more(lab: Lab, play: Playbook, vms: None) -> None:
    lab.sh("kvm1", "kill -STOP $(cat /run/libvirt/qemu/on.pid)")
    try:
        host = ask(play)
    finally:
        lab.sh("kvm1", "kill -CONT $(cat /run/libvirt/qemu/on.pid)")
    assert host["memory"]["running"] == 64
    assert host["vms"]["ACTIVE"] == ["on"]
    assert any("on" in problem for problem in host["problems"])


def test_what_migrations_need_is_told_when_asked_for(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", "mv /etc/pki/qemu/client-key.pem /tmp/away; echo none >/etc/pki/qemu/server-cert.new")
    lab.sh("kvm1", "cd /etc/pki/qemu; mv server-cert.pem server-cert.old; mv server-cert.new server-cert.pem")
    try:
        told = ask(play, gather=["migration"])
    finally:
        lab.sh("kvm1", "cd /etc/pki/qemu; mv server-cert.old server-cert.pem; mv /tmp/away client-key.pem")
    here = told["migration"]
    address = lab.hosts["kvm1"]["ansible_host"]
    assert told["problems"] == []
    assert (here["addresses"], here["resolvable"]) == ([address], True)
    assert {"br0", "eth0"} <= set(here["links"])
    assert {"clean-traffic", "allow-arp"} <= set(here["filters"])
    assert "qemu64" in here["cpu_models"]
    assert "Skylake-Server" not in here["cpu_models"]
    assert {each["service"] for each in here["listening"]} == {"ssh", "tls"}
    assert (here["ports"], here["address"], here["checks_clients"]) == ({"first": 49152, "last": 49215}, "", True)
    assert here["keepalive"].keys() == {"interval", "count"}
    papers = {(each["purpose"], each["role"]): each for each in here["certificates"]}
    assert len(papers) == 6
    server = papers["libvirt", "server"]
    assert (server["subject"], server["missing"], server["problem"]) == ("kvm1", [], "")
    assert set(server["names"]) == {"kvm1", address}
    assert server["issuer"] == papers["qemu", "authority"]["subject"]
    assert server["not_before"] <= here["time"] < server["not_after"]
    assert papers["qemu", "client"]["missing"] == ["/etc/pki/qemu/client-key.pem"]
    assert papers["qemu", "server"]["problem"] == "There is no certificate in it."
    assert papers["qemu", "server"]["not_after"] is None
    assert "migration" not in ask(play)
    # From elsewhere only what libvirt tells is known.
    there = ask(play, host="localhost", uri=lab.hosts["kvm1"]["lab_uri"], gather=["migration"])["migration"]
    shared = ("cpu_models", "huge_pages", "links", "filters")
    assert {key: there[key] for key in shared} == {key: here[key] for key in shared}
    assert {value for key, value in there.items() if key not in shared} == {None}
