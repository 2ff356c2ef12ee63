# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module vm on real guests: launch, change, remove, restore, purge, and what can go wrong with each."""

from __future__ import annotations

import signal
import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, define, file_disk, order, task, wait_for
from tests.lab.kvmlab.guest import MEMORY_UEFI_MIB

Launch = t.Callable[..., Result]

IMAGES = "/var/lib/libvirt/images"


def domain_xml(lab: Lab, name: str, host: str = "kvm1") -> str:
    """The definition."""
    return lab.sh(host, f"virsh dumpxml --inactive {name}")


def test_a_launch_boots_a_guest_with_its_disks_network_and_cloud_init_data(lab: Lab, play: Playbook) -> None:
    told = play.quartet(
        "vm",
        **order(
            lab,
            "web1",
            flavor={"name": "m1", "vcpus": 2, "memory": 112, "root": 1, "ephemeral": [1], "swap": 64},
            networks=[{"bridge": "br0"}, {"network": "default", "mac": "52:54:00:aa:bb:01"}],
            cloud_init={"user_data": "#cloud-config\nfqdn: web1.example.com\n", "meta_data": {"role": "web"}},
            graphics="vnc",
            title="A web server",
            description='Of the <lab> & its "friends"',
            autostart=True,
        ),
    )
    (vm,) = told["vms"]
    assert vm["steps"] == ["define", "make_disks", "set_autostart", "start"]
    guest = lab.booted("kvm1", "web1")
    guest.wait_console(f"CLOUD-INIT instance-id={vm['uuid']} hostname=web1")
    sizes = guest.execute("cat /sys/block/vd[abc]/size")[1].split()
    assert [int(size) * 512 for size in sizes] == [1 << 30, 1 << 30, 64 << 20]
    assert guest.execute("nproc")[1].strip() == "2"
    xml = domain_xml(lab, "web1")
    assert "52:54:00:aa:bb:01" in xml
    assert "<title>A web server</title>" in xml
    assert lab.sh("kvm1", "virsh -q list --all --autostart --name") == "web1"
    info = lab.sh("kvm1", f"qemu-img info -U -f qcow2 {IMAGES}/{vm['uuid']}/root.qcow2")
    assert f"backing file: {vm['figures']['base']}" in info
    assert "backing file format: qcow2" in info
    modes = lab.sh("kvm1", f"stat -c %a {IMAGES}/{vm['uuid']}/root.qcow2 {IMAGES}/{vm['uuid']}/config.iso")
    assert modes.split() == ["600", "600"]


def test_the_same_vm_has_the_same_address_wherever_it_is_made(lab: Lab, play: Playbook, launch: Launch) -> None:
    uuid = "0a0b0c0d-0000-4000-8000-00000000000a"
    launch("a", uuid=uuid, start=False)
    launch("a", uuid=uuid, start=False, host="kvm2")
    macs = [
        line.strip() for host in lab.hosts for line in domain_xml(lab, "a", host).splitlines() if "<mac address" in line
    ]
    assert len(macs) == 2
    assert macs[0] == macs[1]


def test_many_vms_share_one_base_that_is_copied_once(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base; cp {lab.vars['lab_guest_image']} {IMAGES}/source.qcow2")
    names = [f"n{number}" for number in range(8)]
    told = play.quartet("vm", **order(lab, *names, image=f"{IMAGES}/source.qcow2", start=False))
    bases = {vm["figures"]["base"] for vm in told["vms"]}
    assert len(bases) == 1
    listing = sorted(lab.sh("kvm1", f"ls {IMAGES}/_base").split())
    (base,) = [name for name in listing if name.endswith(".qcow2")]
    assert listing == [base, f"{base}.ok", "hashes.json"]
    assert lab.sh("kvm1", f"sha256sum < {IMAGES}/_base/{base}").split()[0] == base.partition(".")[0]
    assert sorted(lab.domains("kvm1")) == names


def test_a_guest_boots_from_a_raw_image_by_uefi_and_its_nvram_goes_with_it(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"qemu-img convert -O raw {lab.vars['lab_guest_image']} {IMAGES}/source.raw")
    wanted = order(
        lab,
        "a",
        image=f"{IMAGES}/source.raw",
        image_format="raw",
        firmware="uefi",
        flavor={"vcpus": 1, "memory": MEMORY_UEFI_MIB},
    )
    told = play.quartet("vm", **wanted)
    assert told["vms"][0]["figures"]["base"].endswith(".raw")
    assert "firmware='efi'" in domain_xml(lab, "a")
    lab.guest("kvm1", "a").wait_console("GUEST-UP", seconds=180)
    assert lab.sh("kvm1", "ls /var/lib/libvirt/qemu/nvram") != ""
    play.quartet("vm", name="a", state="absent", force=True)
    assert lab.sh("kvm1", "ls /var/lib/libvirt/qemu/nvram") == ""


@pytest.mark.parametrize("bus", ["scsi", "sata"])
def test_other_buses_boot_with_their_config_drive(lab: Lab, play: Playbook, launch: Launch, bus: str) -> None:
    launch("a", image=lab.vars["lab_guest_generic_image"], disk_bus=bus, cloud_init={})
    lab.guest("kvm1", "a").wait_console("CLOUD-INIT instance-id=")


def test_what_differs_is_changed_where_it_can_be(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    told = play.quartet(
        "vm",
        **order(
            lab,
            "a",
            title="new",
            autostart=True,
            flavor={"vcpus": 1, "memory": 96, "root": 1},
            networks=[{"bridge": "br0"}, {"network": "default", "mac": "52:54:00:aa:bb:02"}],
        ),
    )
    assert {each["option"] for each in told["vms"][0]["figures"]["differences"]} == {
        "title",
        "autostart",
        "flavor",
        "networks",
    }
    wait_for(lambda: guest.execute("cat /sys/block/vda/size")[1].strip() == str((1 << 30) // 512))
    wait_for(lambda: "52:54:00:aa:bb:02" in guest.execute("cat /sys/class/net/*/address")[1])
    # Away again, and the other one plugged in elsewhere.
    play.quartet("vm", name="a", networks=[{"network": "default"}])
    wait_for(lambda: "52:54:00:aa:bb:02" not in guest.execute("cat /sys/class/net/*/address")[1])
    assert "<source network='default'" in domain_xml(lab, "a")
    assert "br0" not in domain_xml(lab, "a")
    # CPUs and memory want it off.
    bigger = {"vcpus": 2, "memory": 128, "root": 2}
    error = play(task("vm", name="a", flavor=bigger)).error()["result"]
    assert error["code"] == "refused"
    assert "vm_power with state: stopped first" in error["msg"]
    play(task("vm_power", name="a", state="stopped", force=True)).ok()
    play.quartet("vm", name="a", flavor=bigger)
    play(task("vm_power", name="a", state="running")).ok()
    guest.wait_up(2)
    assert guest.execute("nproc; cat /sys/block/vda/size")[1].split() == ["2", str((2 << 30) // 512)]


def test_what_cannot_be_changed_is_refused_whole_with_reasons(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", start=False, flavor={"vcpus": 1, "memory": 96, "root": 1})
    before = domain_xml(lab, "a")
    error = play(
        task(
            "vm",
            **order(
                lab,
                "a",
                image=lab.vars["lab_rescue_image"],
                title="not this either",
                firmware="uefi",
                cloud_init={},
                flavor={"vcpus": 1, "memory": 96, "root": 1, "swap": 10},
            ),
        )
    ).error()["result"]
    assert error["code"] == "refused"
    for word in ("image", "firmware", "cloud_init", "swap", "vm_rebuild"):
        assert word in error["msg"]
    assert {each["option"] for each in error["details"]["differences"]} >= {"image", "title", "firmware"}
    assert domain_xml(lab, "a") == before
    error = play(task("vm", name="a", uuid="0a0b0c0d-0000-4000-8000-00000000000b")).error()["result"]
    assert "has the UUID" in error["msg"]


def test_a_vm_of_another_tool_is_compared_in_what_it_tells_and_removed_but_for_its_disks(
    lab: Lab, play: Playbook
) -> None:
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {IMAGES}/other.qcow2 10M; truncate -s 10M {IMAGES}/second.raw")
    disks = file_disk(f"{IMAGES}/other.qcow2", "qcow2", "vda") + file_disk(f"{IMAGES}/second.raw", "raw", "vdb")
    define(lab, "foreign", devices=disks)
    play.quartet("vm", name="foreign", title="adopted", autostart=True)
    lab.sh("kvm1", "virsh start foreign; virsh snapshot-create-as foreign s1 --disk-only --diskspec vdb,snapshot=no")
    error = play(task("vm", name="foreign", state="absent", remove_disks=["vdz"])).error()["result"]
    assert error["code"] == "invalid"
    assert "no disk vdz" in error["msg"]
    told = play.quartet("vm", name="foreign", state="absent", force=True, remove_disks=["vdb"])
    figures = told["vms"][0]["figures"]
    assert figures["removed_files"] == [f"{IMAGES}/second.raw"]
    assert list(figures["kept_disks"]) == [f"{IMAGES}/other.s1"]
    assert lab.files("kvm1") == [f"{IMAGES}/other.qcow2", f"{IMAGES}/other.s1"]
    assert lab.domains("kvm1") == []


def test_a_disk_that_another_vm_uses_stays(lab: Lab, play: Playbook, launch: Launch) -> None:
    uuid = launch("a", start=False)["vms"][0]["uuid"]
    root = f"{IMAGES}/{uuid}/root.qcow2"
    define(
        lab,
        "borrower",
        devices=file_disk(root, "qcow2", "vda"),
    )
    told = play(task("vm", name="a", state="absent")).ok()["result"]
    assert root in told["vms"][0]["figures"]["kept_disks"]
    assert lab.files("kvm1") == [f"{IMAGES}/{uuid}", root]


def test_absent_removes_everything_in_every_condition(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("off", start=False)
    launch("run", "pause", "save")
    play(task("vm_power", name="pause", state="paused")).ok()
    play(task("vm_power", name="save", state="suspended")).ok()
    lab.booted("kvm1", "run")
    told = play.quartet("vm", name=["off", "run", "pause", "save", "never"], state="absent")
    assert [vm["status"] for vm in told["vms"]] == ["ABSENT"] * 5
    assert [vm["changed"] for vm in told["vms"]] == [True, True, True, True, False]
    assert told["vms"][1]["figures"]["shutdown"] == "guest"
    assert lab.domains("kvm1") == []
    assert lab.files("kvm1") == []
    assert lab.sh("kvm1", "ls /var/lib/libvirt/qemu/save") == ""


def test_soft_delete_keeps_everything_and_restore_brings_it_back_as_it_was(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    launch("run", autostart=True)
    launch("off", start=False)
    lab.booted("kvm1", "run")
    files = lab.files("kvm1")
    told = play.quartet("vm", name=["run", "off"], state="absent", reclaim_after=3600)
    assert [vm["status"] for vm in told["vms"]] == ["SOFT_DELETED"] * 2
    assert lab.files("kvm1") == files
    assert lab.sh("kvm1", "virsh -q list --all --autostart --name") == ""
    error = play(task("vm_power", name="run", state="running")).error()["result"]
    assert "SOFT_DELETED" in error["msg"]
    assert "state: restored" in error["msg"]
    error = play(task("vm", name="run", title="x")).error()["result"]
    assert "SOFT_DELETED" in error["msg"]
    assert not play(task("vm", state="purged")).ok()["result"]["changed"]
    told = play.quartet("vm", name=["run", "off"], state="restored")
    assert [vm["status"] for vm in told["vms"]] == ["ACTIVE", "SHUTOFF"]
    assert lab.sh("kvm1", "virsh -q list --all --autostart --name") == "run"
    assert lab.state("kvm1", "off").startswith("shut off")
    lab.guest("kvm1", "run").wait_up(2)


def test_purge_removes_what_is_due_and_nothing_else(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("due", "later", "alive", start=False)
    play(task("vm", name="due", state="absent", reclaim_after=1)).ok()
    play(task("vm", name="later", state="absent", reclaim_after=3600)).ok()
    wait_for(lambda: play(task("vm", state="purged"), "--check").ok()["result"]["changed"], 20)
    told = play.quartet("vm", state="purged")
    assert {vm["name"]: vm["changed"] for vm in told["vms"]} == {"due": True, "later": False}
    assert sorted(lab.domains("kvm1")) == ["alive", "later"]
    # Absent without a time to reclaim removes what was soft-deleted, too.
    play.quartet("vm", name="later", state="absent")
    assert lab.domains("kvm1") == ["alive"]


def test_a_locked_vm_is_not_removed(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", start=False)
    play.quartet("vm_lock", name="a", reason="keep it")
    for arguments in ({"state": "absent"}, {"state": "absent", "reclaim_after": 60}, {"title": "x"}):
        error = play(task("vm", name="a", **arguments)).error()["result"]
        assert error["code"] == "locked"
        assert "keep it" in error["msg"]
    play.quartet("vm", name="a", state="absent", override_lock=True)


def test_a_launch_that_fails_leaves_nothing(lab: Lab, play: Playbook) -> None:
    for options, word in (
        ({"networks": [{"bridge": "no-such-bridge"}]}, "no-such-bridge"),
        ({"networks": [{"network": "nowhere"}]}, "nowhere"),
        ({"graphics": "vnc", "graphics_listen": "203.0.113.1"}, "start VM a"),
        ({"machine": "no-such-machine"}, "no-such-machine"),
        ({"cpu_model": "NoSuchCPU"}, "NoSuchCPU"),
    ):
        error = play(task("vm", **order(lab, "a", **options))).error()["result"]
        assert word in error["msg"], error["msg"]
        assert error["vms"][0]["status"] == "ABSENT"
        assert lab.domains("kvm1") == []
        assert lab.files("kvm1") == []


def test_bad_input_is_refused_before_anything_is_touched(lab: Lab, play: Playbook, launch: Launch) -> None:
    guest_image = lab.vars["lab_guest_image"]
    make = {
        "liar.qcow2": "truncate -s 1M",
        "backed.qcow2": f"qemu-img create -q -f qcow2 -F qcow2 -b {guest_image}",
        "datafile.qcow2": f"qemu-img create -q -f qcow2 -o data_file={IMAGES}/secret,data_file_raw=on",
    }
    for name, command in make.items():
        lab.sh("kvm1", f"{command} {IMAGES}/{name} {'10M' if 'datafile' in name else ''}")
    lab.sh("kvm1", f"cp {guest_image} {IMAGES}/liar.raw; mkdir {IMAGES}/directory; : > {IMAGES}/empty.qcow2")
    launch("other", start=False, networks=[{"bridge": "br0", "mac": "52:54:00:00:00:99"}])
    other = lab.sh("kvm1", "virsh domuuid other")
    files = lab.files("kvm1")
    flavor = {"vcpus": 1, "memory": 96}
    cases: tuple[tuple[dict[str, t.Any], str, str], ...] = (
        ({"image": f"{IMAGES}/liar.qcow2"}, "invalid", "declared as qcow2, but it is"),
        ({"image": f"{IMAGES}/liar.raw", "image_format": "raw"}, "invalid", "declared as raw, but it is qcow2"),
        ({"image": f"{IMAGES}/backed.qcow2"}, "invalid", "backing file"),
        ({"image": f"{IMAGES}/datafile.qcow2"}, "invalid", "data file"),
        ({"image": f"{IMAGES}/empty.qcow2"}, "invalid", "empty.qcow2"),
        ({"image": f"{IMAGES}/directory"}, "invalid", "no regular file"),
        ({"image": "/nowhere/image.qcow2"}, "not_found", "/nowhere/image.qcow2"),
        ({"image": "json:{}"}, "not_found", "no image 'json:{}'"),
        ({"flavor": {**flavor, "vcpus": 0}}, "invalid", "vcpus is 0"),
        ({"flavor": {**flavor, "memory": -1}}, "invalid", "memory is -1"),
        ({"flavor": {**flavor, "ephemeral": [0]}}, "invalid", "ephemeral is 0"),
        ({"name": ["a/b"]}, "invalid", "a/b"),
        ({"name": [".."]}, "invalid", ".."),
        ({"name": ["a..b"]}, "invalid", "a..b"),
        ({"name": ['"q"']}, "invalid", "name"),
        ({"name": ["<x/>"]}, "invalid", "<x/>"),
        ({"name": ["a\nb"]}, "invalid", "name"),
        ({"name": ["größe"]}, "invalid", "größe"),
        ({"name": ["a" * 64]}, "invalid", "63"),
        ({"name": ["0a0b0c0d-0000-4000-8000-00000000000a"]}, "invalid", "UUID"),
        ({"uuid": "not-a-uuid"}, "invalid", "not-a-uuid"),
        ({"uuid": other}, "refused", "VM other"),
        ({"networks": [{"bridge": "br0", "mac": "nonsense"}]}, "invalid", "nonsense"),
        ({"networks": [{"bridge": "br0", "mac": "01:00:5e:00:00:01"}]}, "invalid", "01:00:5e"),
        ({"networks": [{"bridge": "br0", "mac": "52:54:00:00:00:99"}]}, "refused", other),
        ({"image": None}, "invalid", "image and flavor are needed"),
    )
    tasks = [task("vm", **{**order(lab, "a"), **options}) for options, _code, _word in cases]
    # Half of them in check mode: what refuses is the same.
    errors = play.errors([{**each, "check_mode": number % 2 == 0} for number, each in enumerate(tasks)])
    for (options, code, word), error in zip(cases, errors):
        assert error["code"] == code, (options, error["msg"])
        assert word in error["msg"], (options, error["msg"])
    assert lab.domains("kvm1") == ["other"]
    assert lab.files("kvm1") == files


def test_a_full_disk_is_told_and_leaves_nothing(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base")
    lab.fault("kvm1", "fill-disk", "--leave", str(10 << 20))
    try:
        error = play(task("vm", **order(lab, "a"))).error()["result"]
        assert error["code"] == "no_space", error["msg"]
        assert "No space left on device" in error["msg"]
        assert lab.domains("kvm1") == []
        assert not lab.sh("kvm1", f"ls {IMAGES}/_base | grep -v '^.lock$' || true")
    finally:
        lab.fault("kvm1", "empty-disk")
    play(task("vm", **order(lab, "a"))).ok()


@pytest.mark.parametrize("step", ["define", "make_disks", "start", "end"])
def test_a_launch_killed_at_any_step_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, launch: Launch, step: str
) -> None:
    play.killed_at(step, task("vm", **order(lab, "a", cloud_init={})))
    if step == "define":
        assert lab.domains("kvm1") == []
    else:
        error = play(task("vm_power", name="a", state="stopped")).error()["result"]
        assert error["code"] == "busy"
        assert "launch since" in error["msg"]
        assert error["vms"][0]["status"] == "BUILD"
    uuid = lab.sh("kvm1", "virsh domuuid a", check=False)
    play.quartet("vm", **order(lab, "a", cloud_init={}))
    assert uuid in ("", lab.sh("kvm1", "virsh domuuid a"))
    lab.guest("kvm1", "a").wait_console("GUEST-UP")
    assert "<kvmops:journal" not in domain_xml(lab, "a")
    assert len({path.split("/")[5] for path in lab.files("kvm1")}) == 1


@pytest.mark.parametrize("step", ["power_off", "remove_disks", "undefine"])
def test_a_removal_killed_at_any_step_is_finished_by_the_same_task(
    lab: Lab, play: Playbook, launch: Launch, step: str
) -> None:
    launch("a")
    play.killed_at(step, task("vm", name="a", state="absent", force=True))
    assert lab.domains("kvm1") == ["a"]
    error = play(task("vm_power", name="a", state="running")).error()["result"]
    assert error["code"] == "busy"
    assert "delete since" in error["msg"]
    error = play(task("vm", name="a")).error()["result"]
    assert error["code"] == "busy"
    play.quartet("vm", name="a", state="absent", force=True)
    assert lab.domains("kvm1") == []
    assert lab.files("kvm1") == []


def test_a_soft_delete_killed_after_the_stop_still_knows_that_the_vm_ran(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    launch("a")
    play.killed_at("mark", task("vm", name="a", state="absent", reclaim_after=60, force=True))
    assert lab.state("kvm1", "a").startswith("shut off")
    play.quartet("vm", name="a", state="absent", reclaim_after=60)
    told = play.quartet("vm", name="a", state="restored")
    assert told["vms"][0]["status"] == "ACTIVE"


@pytest.mark.parametrize("step", ["make_disks", "start"])
def test_libvirtd_killed_in_a_launch_is_no_loss(lab: Lab, play: Playbook, step: str) -> None:
    """Not in the moment in which it starts QEMU: libvirt 9.0 loses the VM then."""
    launching = task("vm", **order(lab, "a"))
    error = play.disturbed_at(step, "pkill -KILL -x libvirtd", launching).error()["result"]
    assert error["code"] == "unreachable"
    lab.fault("kvm1", "start-libvirtd")
    play(launching).ok()
    lab.guest("kvm1", "a").wait_console("GUEST-UP")
    assert len({path.split("/")[5] for path in lab.files("kvm1")}) == 1


def test_from_the_controller_everything_goes_through_libvirt(lab: Lab, play: Playbook) -> None:
    uri = lab.hosts["kvm2"]["lab_uri"]
    lab.sh("kvm2", f"rm -rf {IMAGES}/_base")
    image = lab.outside(lab.vars["lab_guest_generic_image"])
    what = {**order(lab, "r1", "r2", image=image, cloud_init={"user_data": "#cloud-config\n"}), "uri": uri}
    told = play.quartet("vm", host="localhost", **what)
    assert {vm["host"] for vm in told["vms"]} == {"kvm2"}
    lab.guest("kvm2", "r1").wait_console(f"CLOUD-INIT instance-id={told['vms'][0]['uuid']} hostname=r1")
    assert lab.sh("kvm2", "virsh -q pool-list --all --name") == ""
    # A task on the host itself uses the base that came over the network, and the other way round.
    local = play(
        task("vm", **order(lab, "l1", image=lab.vars["lab_guest_generic_image"], start=False)), host="kvm2"
    ).ok()["result"]
    assert local["vms"][0]["figures"]["base"] == told["vms"][0]["figures"]["base"]
    play(task("vm", name="l1", title="x", uri=uri), host="localhost").ok()
    play.quartet("vm", host="localhost", name=["r1", "r2", "l1"], state="absent", force=True, uri=uri)
    assert lab.domains("kvm2") == []
    assert lab.files("kvm2") == []
    assert lab.sh("kvm2", "virsh -q pool-list --all --name") == ""


def test_a_launch_stopped_by_a_signal_is_finished_by_the_same_task(lab: Lab, play: Playbook) -> None:
    lab.sh("kvm1", f"rm -rf {IMAGES}/_base")
    names = [f"n{number}" for number in range(6)]
    with play.running([task("vm", **order(lab, *names))]) as process:
        wait_for(lambda: lab.domains("kvm1"))
        lab.kill_module("kvm1", signal.SIGTERM)
        process.wait(60)
    play(task("vm", **order(lab, *names))).ok()
    assert sorted(lab.sh("kvm1", "virsh -q list --name").split()) == names
    assert not lab.sh("kvm1", f"ls {IMAGES}/_base | grep part || true")
