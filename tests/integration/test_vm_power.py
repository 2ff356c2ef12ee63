# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_power on real guests."""

from __future__ import annotations

import signal
import typing as t
from functools import partial

from tests.integration.harness import Lab, Playbook, Result, define, task, wait_for

Launch = t.Callable[..., Result]


def steps(result: Result) -> list[str]:
    """Of the only VM."""
    (vm,) = result["vms"]
    return t.cast("list[str]", vm["steps"])


def test_every_state_is_reached_from_every_other_predicted_by_check_mode_and_kept(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    launch("a")
    lab.booted("kvm1", "a")
    for state, status, domstate in (
        ("paused", "PAUSED", "paused (user)"),
        ("suspended", "SUSPENDED", "shut off (saved)"),
        ("running", "ACTIVE", "paused"),
        ("suspended", "SUSPENDED", "shut off (saved)"),
        ("paused", "PAUSED", "paused"),
        ("running", "ACTIVE", "running"),
        ("stopped", "SHUTOFF", "shut off (shutdown)"),
        ("paused", "PAUSED", "paused"),
        ("stopped", "SHUTOFF", "shut off"),
        ("running", "ACTIVE", "running (booted)"),
    ):
        if (state, domstate) == ("running", "paused"):
            domstate = "running"
        told = play.quartet("vm_power", name="a", state=state, shutdown_timeout=30)
        assert told["vms"][0]["status"] == status
        assert lab.state("kvm1", "a").startswith(domstate), state


def test_memory_survives_a_suspension(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    boot_id = guest.execute("cat /proc/sys/kernel/random/boot_id")[1]
    play(task("vm_power", name="a", state="suspended")).ok()
    assert play(task("vm_power", name="a", state="running")).ok()["result"]["vms"][0]["figures"]["restored_memory"]
    assert guest.execute("cat /proc/sys/kernel/random/boot_id")[1] == boot_id


def test_a_suspended_vm_is_stopped_by_its_guest_and_by_force_loses_its_memory(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    play(task("vm_power", name="a", state="suspended")).ok()
    told = play(task("vm_power", name="a", state="stopped")).ok()["result"]
    assert steps(told) == ["start", "shut_down"]
    assert told["vms"][0]["figures"]["shutdown"] == "guest"
    assert "GUEST-DOWN" in guest.console()
    play(task("vm_power", name="a", state="running")).ok()
    play(task("vm_power", name="a", state="suspended")).ok()
    told = play.quartet("vm_power", name="a", state="stopped", force=True)
    assert steps(told) == ["discard_save"]
    assert lab.sh("kvm1", "virsh -q list --all --with-managed-save") == ""


def test_a_guest_that_ignores_the_button_is_asked_again_and_then_forced(
    lab: Lab, play: Playbook, launch: Launch
) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    guest.execute("killall acpid")
    told = play.quartet(
        "vm_power",
        name="a",
        state="stopped",
        shutdown_mode="acpi",
        shutdown_timeout=4,
        shutdown_retry_interval=1,
    )
    figures = told["vms"][0]["figures"]
    assert figures["shutdown"] == "forced"
    assert 3 <= figures["shutdown_requests"] <= 5
    assert lab.state("kvm1", "a") == "shut off (destroyed)"


def test_a_soft_reboot_is_proven_by_the_guest(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    before = guest.execute("cat /proc/sys/kernel/random/boot_id")[1]
    told = play(task("vm_power", name="a", state="rebooted")).ok()["result"]
    assert told["changed"]
    assert told["vms"][0]["figures"]["shutdown"] == "guest"
    assert told["vms"][0]["figures"]["guest_answered"]
    # The answer came from the new boot: the agent is there at once.
    assert guest.execute("cat /proc/sys/kernel/random/boot_id")[1] != before


def test_a_soft_reboot_becomes_a_hard_one_and_says_so(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    guest.execute("killall acpid")
    told = play(task("vm_power", name="a", state="rebooted", shutdown_mode="acpi", shutdown_timeout=2)).ok()["result"]
    assert told["vms"][0]["figures"]["shutdown"] == "forced"
    assert told["vms"][0]["figures"]["guest_answered"]


def test_a_guest_that_does_not_come_back_is_a_failure(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    # Without its boot sector it never comes up again.
    guest.execute("dd if=/dev/zero of=/dev/vda bs=440 count=1 conv=notrunc; sync")
    error = play(task("vm_power", name="a", state="rebooted", reboot="hard", wait_timeout=3)).error()["result"]
    assert error["code"] == "timed_out"
    assert "guest agent of VM a after the reboot" in error["msg"]
    assert error["vms"][0]["status"] == "ACTIVE"
    assert error["vms"][0]["steps"] == ["power_off", "start"]


def test_a_hanging_agent_ends_with_the_plug(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    lab.booted("kvm1", "a").execute("killall acpid; killall -STOP qemu-ga", wait=False)
    told = play(task("vm_power", name="a", state="stopped", shutdown_timeout=20)).ok()["result"]
    assert told["vms"][0]["figures"]["shutdown"] == "forced"
    assert lab.state("kvm1", "a").startswith("shut off")


def test_a_guest_whose_agent_hangs_is_asked_by_acpi(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    lab.booted("kvm1", "a").execute("killall -STOP qemu-ga", wait=False)
    tasks = [
        task("vm_power", name="a", state="paused"),
        task("vm_power", name="a", state="running"),  # sets the guest's clock, if its agent answers
        task("vm_power", name="a", state="stopped", shutdown_timeout=40),
    ]
    told = play(tasks).ok()["result"]
    assert told["vms"][0]["figures"]["shutdown"] == "guest"
    assert lab.state("kvm1", "a").startswith("shut off")


def is_asleep(lab: Lab, name: str) -> bool:
    """Whether the guest suspended itself to memory."""
    return lab.state("kvm1", name).startswith("pmsuspended")


def test_a_guest_asleep_is_woken(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a", "b")
    for name in ("a", "b"):
        lab.booted("kvm1", name)
        lab.sh("kvm1", f"virsh dompmsuspend {name} mem")
        wait_for(partial(is_asleep, lab, name))
    told = play.quartet("vm_power", name="a", state="running")
    assert steps(told) == ["wake"]
    lab.guest("kvm1", "a").wait_agent()
    told = play.quartet("vm_power", name="b", state="stopped", shutdown_timeout=30)
    assert steps(told) == ["wake", "shut_down"]


def test_a_crashed_guest_is_brought_back(lab: Lab, play: Playbook) -> None:
    define(lab, "c", extra="<on_crash>preserve</on_crash>", devices="<panic model='isa'/>")
    lab.sh("kvm1", "virsh start c")
    # The write to the pvpanic port that a panicking kernel makes.
    lab.sh("kvm1", "virsh qemu-monitor-command c --hmp 'o /b 0x505 1'")
    wait_for(lambda: lab.state("kvm1", "c").startswith("crashed"))
    error = play(task("vm_power", name="c", state="suspended")).error()["result"]
    assert error["code"] == "refused"
    assert "VM c is ERROR" in error["msg"]
    assert steps(play.quartet("vm_power", name="c", state="running")) == ["power_off", "start"]


def test_many_vms_of_other_tools_in_one_task_each_with_its_own_outcome(lab: Lab, play: Playbook) -> None:
    for name in ("v1", "v2", "v3"):
        define(lab, name)
    define(lab, "broken", devices="<disk type='file'><source file='/nowhere'/><target dev='vda'/></disk>")
    error = play(task("vm_power", name=["v1", "broken", "nobody", "v2"], state="running")).error()["result"]
    assert error["changed"]
    assert "2 of 4 VMs failed" in error["msg"]
    told = {vm["name"]: vm for vm in error["vms"]}
    assert [vm["name"] for vm in error["vms"]] == ["v1", "broken", "nobody", "v2"]
    assert told["v1"]["status"] == told["v2"]["status"] == "ACTIVE"
    assert told["nobody"]["code"] == "not_found"
    assert "start VM broken" in told["broken"]["msg"]
    assert "/nowhere" in told["broken"]["msg"]
    assert told["broken"]["status"] == "SHUTOFF"
    assert sorted(lab.sh("kvm1", "virsh -q list --name").split()) == ["v1", "v2"]


def test_an_action_that_the_status_does_not_allow_is_refused_with_the_way_out(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    error = play(task("vm_power", name="v", state="suspended")).error()["result"]
    assert error["code"] == "refused"
    assert error["msg"] == "VM v is SHUTOFF: suspend is not allowed in that status. Use state: running first."
    error = play(task("vm_power", name="v", state="rebooted")).error()["result"]
    assert "reboot: hard" in error["msg"]


def test_a_hard_reboot_does_not_throw_memory_away_unless_told(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    play(task("vm_power", name="v", state="running")).ok()
    play(task("vm_power", name="v", state="suspended")).ok()
    error = play(task("vm_power", name="v", state="rebooted", reboot="hard")).error()["result"]
    assert "its saved memory would be lost" in error["msg"]
    assert lab.state("kvm1", "v") == "shut off (saved)"
    told = play(task("vm_power", name="v", state="rebooted", reboot="hard", force=True)).ok()["result"]
    assert steps(told) == ["discard_save", "start", "prove"]


def test_a_transient_vm_is_not_stopped_out_of_existence(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    lab.sh("kvm1", "virsh start v; virsh undefine v")
    error = play(task("vm_power", name="v", state="stopped")).error()["result"]
    assert "transient" in error["msg"]
    assert lab.domains("kvm1") == ["v"]
    play.quartet("vm_power", name="v", state="paused")


def test_names_and_uuids_mean_the_same_vm_and_a_double_meaning_is_refused(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    uuid = lab.sh("kvm1", "virsh domuuid v")
    told = play(task("vm_power", name=["v", uuid, uuid.upper()], state="running")).ok()["result"]
    assert [vm["name"] for vm in told["vms"]] == ["v"]
    define(lab, uuid)
    error = play(task("vm_power", name=uuid, state="stopped")).error()["result"]
    assert error["code"] == "ambiguous"
    assert lab.state("kvm1", "v").startswith("running")
    told = play(task("vm_power", name="v", state="stopped", force=True)).ok()["result"]
    assert told["changed"]


def test_odd_names_are_found_or_named_in_the_error(lab: Lab, play: Playbook) -> None:
    define(lab, "über-größe 日本 &quot;q&quot; &apos;s&apos; &lt;x&gt;")
    play.quartet("vm_power", name="über-größe 日本 \"q\" 's' <x>", state="running")
    names = ("../../etc/passwd", "a/b", "", "<name/>", "x\ty", "\u0007", "$(id)", "--help")
    errors = play.errors([task("vm_power", name=[name], state="running") for name in names])
    for name, error in zip(names, errors):
        assert error["code"] == "not_found", name
        assert repr(name) in error["msg"]


def test_a_second_operation_on_a_vm_is_refused_and_told_what_runs(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    guest.execute("killall acpid")
    slow = task("vm_power", name="a", state="stopped", shutdown_mode="acpi", shutdown_timeout=15)
    with play.running([slow]) as first:
        wait_for(lambda: lab.sh("kvm1", "cat /run/lock/kvmops/*.lock 2>/dev/null || true"))
        error = play(task("vm_power", name="a", state="paused")).error()["result"]
        assert error["code"] == "busy"
        assert "stop since 20" in error["msg"]
        assert error["vms"][0]["task_state"] == "powering-off"
        assert first.wait(60) == 0
    play(task("vm_power", name="a", state="running")).ok()


def test_a_module_killed_in_the_middle_leaves_nothing_in_the_way(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    guest = lab.booted("kvm1", "a")
    guest.execute("killall acpid")
    slow = task("vm_power", name="a", state="stopped", shutdown_mode="acpi", shutdown_timeout=60)
    with play.running([slow]) as first:
        wait_for(lambda: lab.sh("kvm1", "cat /run/lock/kvmops/*.lock 2>/dev/null || true"))
        lab.kill_module("kvm1", signal.SIGKILL)
        assert first.wait(60) != 0
    told = play.quartet("vm_power", name="a", state="stopped", force=True)
    assert told["vms"][0]["status"] == "SHUTOFF"


def test_from_the_controller_with_a_remote_uri(lab: Lab, play: Playbook) -> None:
    define(lab, "v", host="kvm2")
    uri = lab.hosts["kvm2"]["lab_uri"]
    told = play.quartet("vm_power", host="localhost", name="v", state="running", uri=uri)
    assert told["vms"][0]["host"] == "kvm2"
    assert lab.state("kvm2", "v").startswith("running")


def test_an_unreachable_and_a_silent_libvirtd_are_told_in_time(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    lab.fault("kvm1", "stop-libvirtd")
    try:
        error = play(task("vm_power", name="v", state="running")).error()["result"]
        assert error["code"] == "unreachable"
        assert "Failed to connect to qemu:///system" in error["msg"]
    finally:
        lab.fault("kvm1", "start-libvirtd")
    lab.sh("kvm1", "pkill -STOP libvirtd")
    try:
        error = play(task("vm_power", name="v", state="running", connect_timeout=2)).error()["result"]
        assert error["code"] == "unreachable"
        assert "no answer within 2 seconds" in error["msg"]
    finally:
        lab.sh("kvm1", "pkill -CONT libvirtd")


def test_a_libvirtd_that_falls_silent_in_the_middle_is_noticed(lab: Lab, play: Playbook, launch: Launch) -> None:
    launch("a")
    lab.booted("kvm1", "a").execute("killall acpid")
    lab.sh("kvm1", "(sleep 5; pkill -STOP libvirtd) >/dev/null 2>&1 &")
    try:
        slow = task("vm_power", name="a", state="stopped", shutdown_mode="acpi", shutdown_timeout=90)
        error = play(slow).error()["result"]
        assert error["code"] == "unreachable"
        assert "keepalive" in error["msg"]
    finally:
        lab.sh("kvm1", "pkill -CONT libvirtd")
    play.quartet("vm_power", name="a", state="stopped", force=True)


def test_a_vm_that_libvirt_lost_in_its_start_is_told_and_found_again(lab: Lab, play: Playbook, launch: Launch) -> None:
    """What a libvirtd leaves that is killed while it starts QEMU: the status file of a start without a process. Its
    successor waits for ever for who began it. The guide of states tells what to do."""
    launch("a", start=False)
    lab.sh("kvm1", "virsh start --paused a")
    status = "/run/libvirt/qemu/a.xml"
    begun = "<domstatus state='paused' reason='starting up' pid='0'>"
    lab.fault("kvm1", "kill-libvirtd")
    lab.sh("kvm1", f"""sed -i "s|<domstatus .*|{begun}|; s|</qemuCaps>|&<job type='none' async='start'/>|" {status}""")
    lab.sh("kvm1", "pkill -KILL -f 'guest=[a],'")
    lab.fault("kvm1", "start-libvirtd")
    assert lab.state("kvm1", "a") == "paused (starting up)"
    running = task("vm_power", name="a", state="running")
    error = play(running).error()["result"]
    assert error["code"] == "timed_out"
    assert "guide of states" in error["msg"]
    lab.fault("kvm1", "kill-libvirtd")
    assert "pid='0'" in lab.sh("kvm1", f"grep domstatus {status}")
    lab.sh("kvm1", f"rm {status}")
    lab.fault("kvm1", "start-libvirtd")
    play(running).ok()
    assert lab.state("kvm1", "a").startswith("running")


def test_a_user_without_rights_is_told_what_to_do(lab: Lab, play: Playbook) -> None:
    define(lab, "v")
    lab.sh("kvm1", "rm -rf /run/lock/kvmops")
    lab.sh("kvm1", "id visitor 2>/dev/null || useradd --create-home --shell /bin/sh visitor")
    as_visitor = {"become": True, "become_user": "visitor", "become_method": "ansible.builtin.su"}
    denied = {**task("vm_power", name="v", state="running"), **as_visitor}
    error = play(denied).error()["result"]
    assert error["code"] == "denied"
    assert "Failed to open the lock file" in error["msg"]
    assert "become" in error["msg"]
    lab.sh("kvm1", "chmod 0700 /run/libvirt/libvirt-sock")
    try:
        error = play(denied).error()["result"]
        assert error["code"] == "denied"
        assert "Failed to connect to qemu:///system" in error["msg"]
        assert "become" in error["msg"]
    finally:
        lab.sh("kvm1", "chmod 0777 /run/libvirt/libvirt-sock")
    assert lab.state("kvm1", "v") == "shut off (unknown)"
