# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shelving real VMs and letting go of them: in every power state, killed at every step, and with stores that fail."""

from __future__ import annotations

import typing as t
from dataclasses import asdict

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import TextContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import shelf, snapshot
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.shelf import Claim, Shelf
from tests.integration.harness import Glance, Lab, Playbook, Result, Task, define, file_disk, task
from tests.integration.test_vm_rebuild import disks, image, own_files, small, stored
from tests.lab.kvmlab.guest import MEMORY_UEFI_MIB

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"
STORE = "/var/lib/kvmops/images"
NVRAM = "/var/lib/libvirt/qemu/nvram"
SAVE = "/var/lib/libvirt/qemu/save"
MIB = 1 << 20
MAC = "52:54:00:5e:1f:01"


@pytest.fixture(autouse=True)
def no_images(lab: Lab) -> None:
    """An empty store beside an empty base cache."""
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base {STORE}; rm -f {SAVE}/* {NVRAM}/*")


def shelve(state: str, **options: t.Any) -> Task:
    return task("vm_shelve", **{"name": "a", "state": state, "force": True, **options})


def store(lab: Lab, path: str = STORE) -> DirectoryStore:
    return DirectoryStore(lab.outside(path))


def shelves(lab: Lab) -> list[Shelf]:
    return shelf.shelves(store(lab).find())


def base_only(lab: Lab) -> list[str]:
    """The names of the images in the store: bases stay."""
    return [each.name for each in store(lab).find()]


def made_of(found: Shelf) -> list[tuple[str, str, str]]:
    """The images of a shelf: role, disk and form."""
    return [(each.role, each.target, each.form if each.role == "disk" else "") for each in found.manifest.members]


def nothing_left(lab: Lab, vm: Result) -> None:
    """See that nothing of an offloaded VM is left on its host."""
    assert lab.domains("kvm1") == []
    assert lab.sh("kvm1", f"find /var/lib/libvirt /etc/libvirt /run/libvirt -name '*{vm['uuid']}*'") == ""
    own = f"find {NVRAM} {SAVE} /etc/libvirt/qemu /run/libvirt/qemu -name 'a.*' -o -name 'a_*'"
    assert lab.sh("kvm1", own) == ""


def power(lab: Lab) -> str:
    return lab.sh("kvm1", "virsh domstate a")


# ---- what it is for


def test_a_guest_is_shelved_and_comes_back_at_once(lab: Lab, play: Playbook, launch: Launch) -> None:
    (vm,) = launch("a", autostart=True)["vms"]
    lab.booted("kvm1", "a").execute("sync")
    told = play.quartet("vm_shelve", name="a", state="shelved")
    (done,) = told["vms"]
    assert done["steps"] == ["stop", "put_bases", "copy_disks", "copy_rest", "complete", "mark"]
    figures = done["figures"]
    assert figures["shutdown"] == "guest"
    (found,) = shelves(lab)
    assert made_of(found) == [("disk", "vda", "delta"), ("domain", "", "")]
    assert (found.state, found.contents.host, found.contents.power, found.contents.autostart) == (
        "shelved",
        "kvm1",
        "running",
        True,
    )
    # Only what the guest wrote is stored, over a base that all such VMs share.
    (base,) = figures["put_bases"].values()
    assert figures["bytes"] < base / 2
    assert all(each.protected for each in store(lab).find() if each.properties.get("image_type") == "shelf")
    results = play(
        [
            task("vm_info", name="a", gather=["status"]),
            task("vm_info", name="a", gather=["status"], image_store={"path": STORE}),
            {**task("vm_power", name="a", state="running"), "ignore_errors": True},
            {**task("image", name="a-shelved", state="absent"), "ignore_errors": True},
            {**task("vm_snapshot", name="a", image="a-shelved", state="absent")},
        ]
    ).results
    plain, full = (each["result"]["vms"][0] for each in results[:2])
    assert (plain["status"], plain["power_state"], plain["autostart"]) == ("SHELVED", "SHUTDOWN", False)
    assert (plain["shelf"]["set"], plain["shelf"]["bytes"], plain["shelf"]["host"]) == (found.key, None, "kvm1")
    assert (full["shelf"]["bytes"], full["shelf"]["memory"]) == (figures["bytes"], 96)
    assert "vm_shelve" in results[2]["result"]["msg"]
    assert f"shelf of the VM {vm['uuid']}" in results[3]["result"]["msg"]
    assert not results[4]["result"]["changed"]
    (done,) = play.quartet("vm_shelve", name="a", state="unshelved")["vms"]
    assert done["steps"] == ["start", "unmark", "drop_shelf"]
    lab.guest("kvm1", "a").wait_up(boots=2)
    assert lab.guest("kvm1", "a").counter_on_disk()
    told = play(task("vm_info", name="a", gather=["status"])).ok()["result"]["vms"][0]
    assert (told["status"], told["autostart"], told["shelf"], told["marks"]) == ("ACTIVE", True, None, [])
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


@pytest.mark.parametrize(
    ("before", "memory", "steps", "after"),
    [
        ("paused", None, ["stop", "copy_disks", "copy_rest", "complete", "mark"], "running"),
        ("stopped", None, ["copy_disks", "copy_rest", "complete", "mark"], "shut off"),
        ("suspended", True, ["copy_disks", "copy_rest", "complete", "mark"], "shut off"),
        ("suspended", False, ["copy_disks", "copy_rest", "complete", "mark"], "shut off"),
    ],
)
def test_every_power_state_can_be_shelved(
    lab: Lab, play: Playbook, launch: Launch, before: str, memory: bool | None, steps: list[str], after: str
) -> None:
    path = image(lab, "one", "write -P 1 0 1M")
    small(lab, launch, path, start=True)
    stored(lab, "one", path)
    play(task("vm_power", name="a", state=before, force=True)).ok()
    if before == "suspended":
        (error,) = play.errors([shelve("shelved")])
        assert (error["code"], "memory: true" in error["msg"]) == ("refused", True)
    (done,) = play.quartet("vm_shelve", name="a", state="shelved", force=True, memory=memory)["vms"]
    assert done["steps"] == steps
    assert done["status"] == "SHELVED"
    (found,) = shelves(lab)
    assert ("memory", "", "") in made_of(found) or not memory
    assert found.contents.power == before
    assert (lab.sh("kvm1", f"ls {SAVE}") == "a.save") is bool(memory)
    play.quartet("vm_shelve", name="a", state="unshelved")
    assert power(lab) == after
    status = play(task("vm_info", name="a", gather=["status"])).ok()["result"]["vms"][0]["status"]
    assert status == {"paused": "ACTIVE", "stopped": "SHUTOFF"}.get(before, "SUSPENDED" if memory else "SHUTOFF")
    assert base_only(lab) == ["one"]


def test_everything_of_a_vm_goes_into_the_store_and_nothing_is_left_on_the_host(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    path = image(lab, "one", "write -P 1 0 1M")
    lab.sh("kvm1", "virsh -q net-start default || true")
    host = f"<host mac='{MAC}' ip='192.168.122.77'/>"
    lab.sh("kvm1", f'virsh -q net-update default add ip-dhcp-host "{host}" --live --config')
    flavor = {"vcpus": 1, "memory": MEMORY_UEFI_MIB, "ephemeral": [1]}
    networks = [{"network": "default", "mac": MAC}]
    options: dict[str, t.Any] = {"flavor": flavor, "cloud_init": {}, "firmware": "uefi", "networks": networks}
    vm = small(lab, launch, path, start=True, **options)
    assert own_files(lab, vm) == ["config.iso", "ephemeral0.qcow2", "root.qcow2"]
    (done,) = play.quartet("vm_shelve", name="a", state="offloaded", force=True)["vms"]
    assert done["status"] == "SHELVED_OFFLOADED"
    assert done["steps"][-5:] == ["verify", "remove_leases", "remove_disks", "undefine", "finish"]
    assert done["figures"]["removed_leases"] == [{"network": "default", "mac": MAC}]
    nothing_left(lab, vm)
    assert MAC not in lab.sh("kvm1", "virsh net-dumpxml default; virsh net-dumpxml --inactive default")
    (found,) = shelves(lab)
    assert made_of(found) == [
        ("disk", "vda", "delta"),
        ("disk", "vdb", "full"),
        ("drive", "sda", ""),
        ("nvram", "", ""),
        ("domain", "", ""),
    ]
    assert (found.state, found.contents.firmware, len(found.contents.leases)) == ("offloaded", "uefi", 1)
    assert all(each.protected for each in store(lab).find(properties={"image_type": "shelf"}))
    # It is known from the store alone.
    (told, named, none, shelved) = (
        each["result"]
        for each in play(
            [
                task("vm_info", image_store={"path": STORE}),
                task("vm_info", name=["b", vm["uuid"]], image_store={"path": STORE}),
                task("vm_info", name="a"),
                shelve("shelved"),
            ]
        ).results
    )
    (there,) = told["vms"]
    assert (there["name"], there["uuid"], there["status"], there["power_state"]) == (
        "a",
        vm["uuid"],
        "SHELVED_OFFLOADED",
        "NOSTATE",
    )
    assert there["flavor"]["ephemeral"] == [1]
    assert there["shelf"]["host"] == "kvm1"
    assert there["shelf"]["networks"] == [{"kind": "network", "source": "default", "mac": MAC}]
    assert there["shelf"]["claimed_by"] is None
    assert (named["vms"], named["missing"]) == ([there], ["b"])
    assert (none["vms"], none["missing"]) == ([], ["a"])
    assert (shelved["changed"], shelved["vms"][0]["status"]) == (False, "SHELVED_OFFLOADED")
    # And it goes from there.
    play.quartet("vm", name="a", state="absent")
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


def test_vms_of_other_tools_are_shelved_and_their_bases_are_kept(lab: Lab, play: Playbook) -> None:
    base = image(lab, "base", "write -P 1 0 1M")
    lab.sh("kvm1", f"truncate -s 8M {IMAGES}/flat.raw; printf X | dd of={IMAGES}/flat.raw conv=notrunc 2>/dev/null")
    for name in ("a", "b"):
        lab.sh("kvm1", f"qemu-img create -q -f qcow2 -b {base} -F qcow2 {IMAGES}/{name}.qcow2")
        lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P 7 1M 64k' {IMAGES}/{name}.qcow2")
        define(lab, name, devices=file_disk(f"{IMAGES}/{name}.qcow2", "qcow2", "vda"))
    define(lab, "c", devices=file_disk(f"{IMAGES}/flat.raw", "raw", "vda"))
    told = play(shelve("offloaded", name=["a", "b", "c"])).ok()["result"]["vms"]
    assert [vm["status"] for vm in told] == ["SHELVED_OFFLOADED"] * 3
    assert lab.files("kvm1") == [base]
    assert lab.domains("kvm1") == []
    found = {each.manifest.vm: each for each in shelves(lab)}
    assert {name: made_of(each)[0] for name, each in found.items()} == {
        "a": ("disk", "vda", "delta"),
        "b": ("disk", "vda", "delta"),
        "c": ("disk", "vda", "full"),
    }
    bases = [each for each in store(lab).find() if each.properties.get("image_type") != "shelf"]
    assert len(bases) == 1  # for both, though they were shelved at the same time
    assert {found[name].manifest.members[0].parent for name in "ab"} == {bases[0].id}
    assert bases[0].disk_format == "qcow2"


def test_glance_keeps_shelves_too(lab: Lab, glance: Glance, play: Playbook, launch: Launch) -> None:
    path = image(lab, "one", "write -P 1 0 1M")
    small(lab, launch, path, start=True)
    place = {"type": "glance", "cloud": "member", "clouds_file": lab.vars["lab_clouds"]}
    into: dict[str, t.Any] = {"image_store": place}
    # An upload that fails leaves the VM as it was, and nothing else.
    glance.fault("fail", "--on", "upload", "--status", "500")
    play(shelve("shelved", **into)).error()
    assert power(lab) == "running"
    glance.heal()
    assert [each["name"] for each in glance.images() if not each["name"].startswith("base-")] == []
    told = play.quartet("vm_shelve", name="a", state="offloaded", force=True, **into)
    assert told["vms"][0]["figures"]["read_bytes"] > 0
    assert lab.domains("kvm1") == []
    images = {each["name"]: each for each in glance.images()}
    assert sorted(name.split("-")[0] for name in images) == ["a", "a", "base"]
    assert images["a-shelved"]["kvmops_shelf"] == "offloaded"
    assert images["a-shelved"]["protected"]
    (there,) = play(task("vm_info", **into)).ok()["result"]["vms"]
    assert there["status"] == "SHELVED_OFFLOADED"
    play.quartet("vm", name="a", state="absent", **into)
    assert [each["name"].split("-")[0] for each in glance.images()] == ["base"]


# ---- killed


@pytest.mark.parametrize("step", ["stop", "put_bases", "copy_disks", "copy_rest", "complete", "mark", "end"])
def test_shelving_that_was_killed_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, launch: Launch, step: str
) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True, autostart=True)
    play.killed_at(step, shelve("shelved"))
    look = task("vm_info", name="a", gather=["status"], image_store={"path": STORE})
    played = play([look, shelve("shelved"), shelve("shelved"), look, shelve("unshelved"), look])
    assert played.returncode == 0, played.output
    dead, done, again, shelved, back, after = (each["result"] for each in played.results)
    assert dead["vms"][0]["task_state"] == "shelving"
    assert (done["changed"], again["changed"]) == (True, False)
    assert done["vms"][0]["status"] == "SHELVED"
    assert (shelved["vms"][0]["shelf"]["power_before"], shelved["vms"][0]["shelf"]["images"]) == ("running", 2)
    assert (back["vms"][0]["status"], power(lab)) == ("ACTIVE", "running")
    assert after["vms"][0]["autostart"]
    # Nothing of the dead run is left.
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


@pytest.mark.parametrize("step", ["copy_disks", "complete", "mark"])
def test_shelving_that_was_killed_is_taken_back_by_unshelving(
    lab: Lab, play: Playbook, launch: Launch, step: str
) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True, autostart=True)
    play.killed_at(step, shelve("shelved"))
    play.quartet("vm_shelve", name="a", state="unshelved")
    assert power(lab) == "running"
    (told,) = play(task("vm_info", name="a")).ok()["result"]["vms"]
    assert (told["status"], told["task_state"], told["autostart"], told["marks"]) == ("ACTIVE", "", True, [])
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


@pytest.mark.parametrize("step", ["verify", "remove_leases", "remove_disks", "undefine", "finish", "end"])
def test_an_offload_that_was_killed_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, launch: Launch, step: str
) -> None:
    vm = small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True)
    play(shelve("shelved")).ok()
    play.killed_at(step, shelve("offloaded"))
    assert [each.state for each in shelves(lab)] == ["offloaded" if step == "end" else "shelved"]
    # A timer that names none finishes it as well, though libvirt may not have the VM any more.
    tasks = [shelve("offloaded"), shelve("offloaded", name=None)]
    first, second = (each["result"] for each in play(tasks if step != "finish" else tasks[::-1]).results)
    assert (first["changed"], second["changed"]) == (step != "end", False)
    assert first["vms"][0]["status"] == "SHELVED_OFFLOADED"
    assert [each.state for each in shelves(lab)] == ["offloaded"]
    nothing_left(lab, vm)


def test_what_was_begun_to_be_removed_is_not_started_any_more(lab: Lab, play: Playbook, launch: Launch) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True)
    play(shelve("shelved")).ok()
    play.killed_at("undefine", shelve("offloaded"))
    (error,) = play.errors([shelve("unshelved")])
    assert (error["code"], "state: offloaded" in error["msg"]) == ("busy", True)
    assert power(lab) == "shut off"
    # Before that, it can still come back.
    play(shelve("offloaded")).ok()
    play(task("vm", name="a", state="absent")).ok()
    small(lab, launch, f"{IMAGES}/one.qcow2", start=True)
    play(shelve("shelved")).ok()
    play.killed_at("remove_leases", shelve("offloaded"))
    play.quartet("vm_shelve", name="a", state="unshelved")
    assert power(lab) == "running"


def test_coming_back_can_be_killed_as_well(lab: Lab, play: Playbook, launch: Launch) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True, autostart=True)
    for step in ("start", "unmark", "drop_shelf", "end"):
        play(shelve("shelved")).ok()
        play.killed_at(step, shelve("unshelved"))
        play.quartet("vm_shelve", name="a", state="unshelved")
        assert power(lab) == "running"
        (told,) = play(task("vm_info", name="a")).ok()["result"]["vms"]
        assert (told["status"], told["autostart"], told["journal"]) == ("ACTIVE", True, None)
        assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


# ---- what goes wrong


def test_a_host_does_not_let_go_of_what_the_store_has_not(lab: Lab, play: Playbook, launch: Launch) -> None:
    vm = small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True)
    play(shelve("shelved")).ok()
    (found,) = shelves(lab)
    before = own_files(lab, vm)
    first = found.manifest.members[0]
    for image_id in (first.id, first.parent):
        path = f"{STORE}/{image_id}.img"
        flip = f"printf X | dd of={path} bs=1 seek=70000 conv=notrunc 2>/dev/null"
        lab.sh("kvm1", f"cp -a {path} /tmp/whole; {flip}")
        error = play(shelve("offloaded")).error()["result"]
        assert (error["code"], path in error["msg"]) == ("invalid", True), error["msg"]
        assert "still has everything" in error["msg"]
        assert (error["vms"][0]["status"], error["vms"][0]["task_state"]) == ("SHELVED", "")
        assert own_files(lab, vm) == before
        lab.sh("kvm1", f"mv /tmp/whole {path}")
    lab.sh("kvm1", f"truncate -s -1 {STORE}/{first.id}.img")
    (error,) = play.errors([shelve("offloaded", verify="quick")])
    assert "not whole" in error["msg"]
    # A shelf that is damaged does not matter to a VM that is here.
    (done,) = play(shelve("unshelved")).ok()["result"]["vms"]
    assert done["status"] == "ACTIVE"
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


def test_what_was_written_since_is_not_lost(lab: Lab, play: Playbook, launch: Launch) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True)
    play(shelve("shelved")).ok()
    lab.sh("kvm1", "virsh -q start a")
    (error,) = play.errors([shelve("offloaded")])
    assert (error["code"], "somebody started it" in error["msg"]) == ("refused", True)
    lab.sh("kvm1", "virsh -q destroy a")
    lab.sh("kvm1", f"qemu-io -f qcow2 -c 'write -P 9 0 64k' {disks(lab)['vda']}")
    (error,) = play.errors([shelve("offloaded")])
    assert (error["code"], "was written to" in error["msg"]) == ("refused", True)
    play([shelve("unshelved"), shelve("offloaded")]).ok()


def test_a_store_without_room_leaves_the_vm_as_it_was(lab: Lab, play: Playbook, launch: Launch) -> None:
    near = f"{IMAGES}/store"
    into: dict[str, t.Any] = {"image_store": {"path": near}}
    vm = small(lab, launch, image(lab, "one", "write -P 1 0 32M", size="64M"), start=True, autostart=True)
    running = lab.sh("kvm1", "virsh domid a")
    lab.fault("kvm1", "fill-disk", "--leave", str(20 * MIB))
    try:
        error = play(shelve("shelved", **into)).error()["result"]
        assert error["code"] == "no_space", error["msg"]
        assert lab.sh("kvm1", "virsh domid a") == running
    finally:
        lab.fault("kvm1", "empty-disk")
    # Somebody else fills it meanwhile.
    most = f"fallocate -l $(($(stat -f -c '%f*%S' {IMAGES})-{4 * MIB})) {IMAGES}/other"
    fill = f"{most}; dd if=/dev/zero of={IMAGES}/rest bs=4k 2>/dev/null; true"
    error = play.disturbed_at("copy_disks", fill, shelve("shelved", **into)).error()["result"]
    assert (error["code"], "is not shelved, and runs" in error["msg"]) == ("no_space", True), error["msg"]
    lab.sh("kvm1", f"rm -f {IMAGES}/other {IMAGES}/rest")
    (told,) = play(task("vm_info", name="a")).ok()["result"]["vms"]
    assert (told["status"], told["task_state"], told["autostart"]) == ("ACTIVE", "", True)
    assert [each.properties.get("image_type") for each in store(lab, near).find()] == [None]
    assert own_files(lab, vm) == ["root.qcow2"]
    play(shelve("shelved", **into)).ok()
    # Where the store is not what it was, a VM that is here says which one it was.
    (error, other) = play.errors([shelve("unshelved"), task("vm", name="a", state="absent")])
    assert near in error["msg"]
    assert near in other["msg"]
    play(shelve("unshelved", **into)).ok()


def test_what_cannot_be_shelved_is_refused_before_anything_is_touched(lab: Lab, play: Playbook, launch: Launch) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=True)
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {IMAGES}/data.qcow2 8M")
    shared = file_disk(f"{IMAGES}/data.qcow2", "raw", "vdb").replace("<target", "<shareable/><target")
    define(lab, "b", devices=shared)
    lab.sh("kvm1", "virsh -q destroy a && virsh -q snapshot-create-as a one && virsh -q start a")
    first, second, third = play.errors([shelve("shelved"), shelve("shelved", name="b"), shelve("shelved", name="z")])
    assert (first["code"], "snapshots of libvirt" in first["msg"]) == ("refused", True)
    assert (second["code"], "vdb" in second["msg"], "shareable" in second["msg"]) == ("unsupported", True, True)
    assert third["code"] == "not_found"
    lab.sh("kvm1", "virsh -q snapshot-delete a one")
    play(task("vm_lock", name="a", reason="audit")).ok()
    (error,) = play.errors([shelve("shelved")])
    assert error["code"] == "locked"
    assert power(lab) == "running"
    assert base_only(lab) == []


# ---- time, and removing


def test_what_was_shelved_long_enough_ago_is_offloaded(lab: Lab, play: Playbook, launch: Launch) -> None:
    path = image(lab, "one", "write -P 1 0 1M")
    launch("a", "b", "c", image=path, start=False)
    play([shelve("shelved"), shelve("shelved", name="b", offload="never")]).ok()
    due = {"name": None, "older_than": 3600}
    (early,) = play(shelve("offloaded", **due)).ok()["result"]["vms"]
    assert (early["name"], early["changed"], early["status"]) == ("a", False, "SHELVED")
    assert early["figures"]["offload_at"]
    (done,) = play.quartet("vm_shelve", state="offloaded", older_than=0)["vms"]
    assert (done["name"], done["status"]) == ("a", "SHELVED_OFFLOADED")
    assert lab.domains("kvm1") == ["b", "c"]
    told = play(shelve("offloaded", name=["b", "c"], older_than=3600)).ok()["result"]
    assert not told["changed"]
    (now,) = play.quartet("vm_shelve", name="c", state="shelved", offload="now")["vms"]
    assert now["status"] == "SHELVED_OFFLOADED"
    assert lab.domains("kvm1") == ["b"]


def test_a_shelf_goes_with_its_vm(lab: Lab, play: Playbook, launch: Launch) -> None:
    path = image(lab, "one", "write -P 1 0 1M")
    launch("a", "b", image=path, start=False)
    play(shelve("shelved")).ok()
    play.quartet("vm", name="a", state="absent")
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]
    # Soft deletion keeps it, and so it can be restored.
    play([shelve("shelved", name="b"), task("vm", name="b", state="absent", reclaim_after=3600)]).ok()
    assert len(shelves(lab)) == 1
    play([task("vm", name="b", state="restored"), shelve("offloaded", name="b")]).ok()
    gone = task("vm", name="b", state="absent")
    (error,) = play.errors([task("vm", name="b", state="absent", reclaim_after=60)])
    assert (error["code"], "reclaim_after: 0" in error["msg"]) == ("refused", True)
    # Another host brings it back.
    (found,) = shelves(lab)
    claim = Claim("kvm9", "2026-01-01T00:00:00Z")
    told = {"image_type": shelf.KIND, snapshot.SET: found.key, shelf.CLAIMED: claim.dump()}
    new = NewImage(shelf.claim_id(found.key), "claim", "raw", told)
    store(lab).put(new, TextContent(claim.dump().encode()))
    (error,) = play.errors([gone])
    assert (error["code"], "kvm9" in error["msg"]) == ("busy", True)
    (told,) = play(task("vm_info", image_store={"path": STORE})).ok()["result"]["vms"]
    assert told["shelf"]["claimed_by"] == asdict(claim)
    store(lab).delete(new.id)
    play.quartet("vm", name="b", state="absent")
    assert [name.split("-")[0] for name in base_only(lab)] == ["base"]


def test_the_lock_of_a_vm_that_no_host_has_is_honoured(lab: Lab, play: Playbook, launch: Launch) -> None:
    small(lab, launch, image(lab, "one", "write -P 1 0 1M"), start=False)
    play([task("vm_lock", name="a", reason="audit"), shelve("offloaded", override_lock=True)]).ok()
    (error,) = play.errors([task("vm", name="a", state="absent")])
    assert (error["code"], "audit" in error["msg"]) == ("locked", True)
    (told,) = play(task("vm_info", image_store={"path": STORE})).ok()["result"]["vms"]
    assert told["lock"]["reason"] == "audit"
    play(task("vm", name="a", state="absent", override_lock=True)).ok()
