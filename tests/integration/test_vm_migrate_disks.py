# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMs whose disks are not on shared storage, moved with real hosts, real disks and real guests."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk, task
from tests.lab.kvmlab.guest import domain_xml
from tests.lab.kvmlab.lab import PRIVATE, SHARED

MIB = 1 << 20
SECRET = "11111111-2222-4333-8444-555555555555"
Launch = t.Callable[..., Result]


def moved(play: Playbook, host: str, dest: str, name: str = "a", **options: t.Any) -> Result:
    """What came of moving a VM."""
    done = play(task("vm_migrate", name=name, dest=dest, **options), host=host).ok()["result"]["vms"][0]
    assert done["host"] == dest
    return t.cast("Result", done["figures"])


def taken(lab: Lab, host: str, path: str) -> int:
    """Bytes that a file takes."""
    return int(lab.sh(host, f"stat -c %b {path}")) * 512


def bases(lab: Lab, host: str, directory: str = PRIVATE) -> list[str]:
    """The bases that a host has."""
    found = lab.sh(host, f"ls {directory}/_base 2>/dev/null", check=False).split()
    return [name for name in found if f"{name}.ok" in found]


def chain(lab: Lab, host: str, path: str) -> list[str]:
    """The files of a disk, from the top down."""
    told = json.loads(lab.sh(host, f"qemu-img info -U --backing-chain --output json {path}"))
    return [layer["filename"] for layer in told]


def findings(play: Playbook, name: str) -> dict[str, str]:
    """What stands against moving a VM to kvm2: sentences by their codes."""
    result = play(task("vm_migrate", name=name, dest="kvm2", state="checked")).ok()["result"]
    return {finding["code"]: finding["message"] for finding in result["vms"][0]["figures"]["findings"]}


def test_only_what_the_vm_wrote_goes_over_the_network(lab: Lab, play: Playbook, launch: Launch) -> None:
    for host in lab.hosts:
        lab.sh(host, f"rm -rf {PRIVATE}/_base")
    flavor = {"vcpus": 1, "memory": 96, "ephemeral": [1]}
    launch("a", flavor=flavor, cloud_init={})
    guest = lab.guest("kvm1", "a")
    guest.wait_up(seconds=300)
    own = lab.files("kvm1")
    assert len(own) == 5, own  # the directory, two disks, the config drive and the console's log
    seed = lab.sh("kvm1", f"sha256sum {own[0]}/config.iso").split()[0]
    guest.run("dd if=/dev/urandom of=/data/new bs=1M count=20; sync")
    content = guest.run("sha256sum /data/new").split()[0]
    counted = guest.wait_counter(seconds=180)

    # To a host that has not even the base.
    task_ = {"name": "a", "dest": "kvm2"}
    played = play(task("vm_migrate", **task_, state="checked")).ok()["result"]["vms"][0]["figures"]
    assert played["disks"] == {"vda": "copied", "vdb": "copied", "sda": "copied"}
    figures = play.quartet("vm_migrate", **task_)["vms"][0]["figures"]
    base = taken(lab, "kvm2", f"{PRIVATE}/_base/{bases(lab, 'kvm2')[0]}")
    assert base // 2 < figures["bases_sent_bytes"] <= base + MIB
    assert lab.files("kvm1") == []
    assert lab.files("kvm2") == own
    assert lab.sh("kvm2", f"sha256sum {own[0]}/config.iso").split()[0] == seed
    assert taken(lab, "kvm2", f"{own[0]}/root.qcow2") < 30 * MIB
    assert taken(lab, "kvm2", f"{own[0]}/ephemeral0.qcow2") < MIB
    guest.host = "kvm2"
    assert guest.wait_counter(seconds=180) > 0
    assert guest.run("sha256sum /data/new").split()[0] == content

    # And back: the base is there.
    figures = moved(play, "kvm2", "kvm1")
    assert figures["bases_sent_bytes"] == 0
    assert figures["sent_bytes"] < MIB
    assert lab.files("kvm2") == []
    assert len(bases(lab, "kvm1")) == 1
    guest.host = "kvm1"

    # To another directory, where everything follows.
    figures = moved(play, "kvm1", "kvm2", dest_storage=f"{PRIVATE}/other")
    (place,) = [path for path in lab.files("kvm2") if path.endswith("/root.qcow2")]
    assert place.startswith(f"{PRIVATE}/other/")
    assert chain(lab, "kvm2", place) == [place, f"{PRIVATE}/other/_base/{bases(lab, 'kvm2', f'{PRIVATE}/other')[0]}"]
    assert lab.files("kvm1") == []
    guest = lab.guest("kvm2", "a")  # with its log in the new place
    guest.wait_counter(seconds=180)
    assert guest.run("sha256sum /data/new").split()[0] == content
    numbers = guest.counter_on_disk()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > counted
    assert guest.crashes() == []
    # What is remembered goes with it: nothing is left when it goes.
    play(task("vm", name="a", state="absent", force=True), host="kvm2").ok()
    assert [path for path in lab.files("kvm2") if "_base" not in path] == [f"{PRIVATE}/other"]


@pytest.fixture
def pools(lab: Lab) -> t.Iterator[None]:
    """A storage pool of one name on both hosts, in directories of different names. No secret of the test is left."""
    for host, directory in (("kvm1", "pool"), ("kvm2", "elsewhere")):
        where = f"{PRIVATE}/{directory}"
        lab.sh(host, f"mkdir {where}; virsh -q pool-define-as p dir --target {where}; virsh -q pool-start p")
    yield
    lab.clean()  # what a VM has open cannot be removed from shared storage
    for host in lab.hosts:
        lab.sh(host, f"virsh pool-destroy p; virsh pool-undefine p; virsh secret-undefine {SECRET}", check=False)
    lab.sh("kvm1", f"rm -rf {SHARED}/a")


@pytest.mark.usefixtures("pools")
def test_disks_of_every_kind_go_along(lab: Lab, play: Playbook) -> None:
    """UEFI variables, an external snapshot over a golden image, a flat disk, an encrypted one, a shared one, a
    volume of a pool, an empty drive and a medium that both hosts have: of a VM that another tool made."""
    lab.sh(
        "kvm1",
        f"""
        set -e
        cd {PRIVATE}
        cp /opt/kvmops/images/guest.qcow2 gold.qcow2
        qemu-img create -q -f qcow2 -b gold.qcow2 -F qcow2 a.qcow2
        truncate -s 300M flat.raw
        dd if=/dev/urandom of=flat.raw bs=1M count=5 seek=30 conv=notrunc 2>/dev/null
        mkdir -p {SHARED}/a
        head -c 700000 /dev/urandom > lib.iso
        qemu-img create -q -f qcow2 pool/v.qcow2 20M
        virsh -q pool-refresh p
        qemu-img create -q -f qcow2 {SHARED}/a/s.qcow2 50M
        qemu-img create -q -f luks --object secret,id=s,data=pass -o key-secret=s,iter-time=10 luks.raw 4M
        printf "<secret ephemeral='no' private='no'><uuid>{SECRET}</uuid></secret>" > /tmp/secret.xml
        virsh -q secret-define /tmp/secret.xml
        printf pass > /tmp/value
        virsh -q secret-set-value {SECRET} --file /tmp/value --plain
        """,
    )
    encrypted = (
        f"<disk type='file'><driver name='qemu' type='raw' cache='none'/><source file='{PRIVATE}/luks.raw'>"
        f"<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption></source>"
        "<target dev='vdd'/></disk>"
    )
    volume = (
        "<disk type='volume'><driver name='qemu' type='qcow2' cache='none'/><source pool='p' volume='v.qcow2'/>"
        "<target dev='vde'/></disk>"
    )
    drives = "".join(
        f"<disk type='file' device='cdrom'>{source}<target dev='{target}' bus='sata'/><readonly/></disk>"
        for target, source in (("sdx", ""), ("sdy", f"<source file='{PRIVATE}/lib.iso'/>"))
    )
    flat = file_disk(f"{PRIVATE}/flat.raw", "raw", "vdb").replace("type='raw'", "type='raw' cache='none'")
    shared = file_disk(f"{SHARED}/a/s.qcow2", "qcow2", "vdc").replace("type='qcow2'", "type='qcow2' cache='none'")
    devices = flat + shared + encrypted + volume + drives
    medium = Path(lab.outside(f"{PRIVATE}/lib.iso", "kvm1")).read_bytes()
    Path(lab.outside(f"{PRIVATE}/lib.iso", "kvm2")).write_bytes(medium)
    xml = domain_xml("a", f"{PRIVATE}/a.qcow2", f"{PRIVATE}/a.log", uefi=True, devices=devices)
    lab.sh("kvm1", f"cat > /tmp/a.xml <<'XML'\n{xml}\nXML\nvirsh -q define /tmp/a.xml; virsh -q start a")
    others = " ".join(f"--diskspec {target},snapshot=no" for target in ("vdb", "vdc", "vdd", "vde"))
    lab.sh(
        "kvm1", f"virsh snapshot-create-as a --no-metadata --disk-only --diskspec vda,file={PRIVATE}/a.snap {others}"
    )
    guest = lab.guest("kvm1", "a")
    guest.wait_up(seconds=300)  # the firmware takes its time on a busy machine
    guest.run("printf volume > /dev/vde; printf encrypted > /dev/vdd")
    guest.run("printf flat | dd of=/dev/vdb bs=1M seek=100 conv=notrunc; sync")
    variables = "/var/lib/libvirt/qemu/nvram/a_VARS.fd"
    before = lab.sh("kvm1", f"sha256sum < {variables}")

    figures = moved(play, "kvm1", "kvm2")
    copied = dict.fromkeys(["vda", "vdb", "vdd", "vde"], "copied")
    assert figures["disks"] == {**copied, "vdc": "shared", "sdx": "empty", "sdy": "shared"}
    guest.host = "kvm2"
    guest.wait_counter(seconds=180)
    assert guest.run("head -c 9 /dev/vdd; head -c 6 /dev/vde") == "encryptedvolume"
    assert guest.run("dd if=/dev/vdb bs=1M skip=100 count=1 2>/dev/null | head -c 4") == "flat"
    # The lower layers are bases there, and only the top one was mirrored.
    top, middle, bottom = chain(lab, "kvm2", f"{PRIVATE}/a.snap")
    assert top == f"{PRIVATE}/a.snap"
    assert {middle, bottom} <= {f"{PRIVATE}/_base/{name}" for name in bases(lab, "kvm2")}
    assert lab.sh("kvm2", f"sha256sum < {variables}") == before
    assert taken(lab, "kvm2", f"{PRIVATE}/flat.raw") < 10 * MIB
    assert SECRET in lab.sh("kvm2", "virsh secret-list")
    # Here only what may be of use to others is left.
    left = ("a.log", "a.qcow2", "gold.qcow2", "lib.iso", "pool")
    assert lab.files("kvm1") == [f"{PRIVATE}/{name}" for name in left]
    assert "<source pool='p' volume='v.qcow2'/>" in lab.sh("kvm2", "virsh dumpxml --inactive a")
    assert taken(lab, "kvm2", f"{PRIVATE}/elsewhere/v.qcow2") > 0
    assert set(figures["kept_disks"]) == {f"{PRIVATE}/a.qcow2", f"{PRIVATE}/gold.qcow2"}
    assert lab.sh("kvm1", f"ls {variables}", check=False) == ""
    assert lab.sh("kvm2", "virsh dumpxml --inactive a | grep -c discard", check=False) == "0"
    numbers = guest.counter_on_disk()
    assert numbers == list(range(1, len(numbers) + 1))
    assert guest.crashes() == []


def test_nothing_of_others_is_touched(lab: Lab, play: Playbook) -> None:
    """VMs that are off, and what stands in their way."""
    for host in lab.hosts:
        lab.sh(host, f"cd {PRIVATE} && for n in one two three; do qemu-img create -q -f qcow2 $n.qcow2 10M; done")
    lab.sh("kvm1", f"cd {PRIVATE}; qemu-img create -q -f qcow2 -b /nowhere/base -F qcow2 -u lost.qcow2 10M")
    disk = {name: file_disk(f"{PRIVATE}/{name}.qcow2", "qcow2", "vda") for name in ("one", "two", "lost")}
    define(lab, "theirs", host="kvm2", devices=disk["one"])
    define(lab, "a", devices=disk["one"])
    define(lab, "b", devices=disk["two"])
    define(lab, "c", devices=disk["lost"])
    device = "<disk type='block'><driver name='qemu' type='raw'/><source dev='/dev/loop7'/><target dev='vda'/></disk>"
    define(lab, "d", devices=device)
    kept = [lab.sh("kvm2", f"stat -c '%i %Y' {PRIVATE}/{name}.qcow2") for name in ("one", "two")]
    assert "which VM" in findings(play, "a")["path_taken"]
    assert "nobody knows whose it is" in findings(play, "b")["path_taken"]
    assert "chain_unknown" in findings(play, "c")
    assert "block_device" in findings(play, "d")
    figures = play(task("vm_migrate", name="d", dest="kvm2", state="checked", shared_storage=["vda"])).ok()
    assert figures["result"]["vms"][0]["figures"]["disks"] == {"vda": "shared"}
    failed = play(task("vm_migrate", name=["a", "b", "c"], dest="kvm2")).error()["result"]["vms"]
    assert [each["code"] for each in failed] == ["refused"] * 3
    assert kept == [lab.sh("kvm2", f"stat -c '%i %Y' {PRIVATE}/{name}.qcow2") for name in ("one", "two")]
    assert lab.domains("kvm2") == ["theirs"]
    assert lab.files("kvm2") == [f"{PRIVATE}/{name}.qcow2" for name in ("one", "three", "two")]
    # Nothing of the probes is left, here or there.
    assert not [path for host in lab.hosts for path in lab.files(host) if "probe" in path or path.endswith(".moving")]
