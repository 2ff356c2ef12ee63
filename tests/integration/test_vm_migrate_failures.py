# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Migrations that fail, and putting right what is left: links, daemons, hosts and modules that die in the middle."""

from __future__ import annotations

import signal
import time
import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Result, Running, Task, define, task, wait_for
from tests.lab.kvmlab.guest import Guest
from tests.lab.kvmlab.lab import PRIVATE, SHARED

Launch = t.Callable[..., Result]

UUID = "6f000000-0000-4000-8000-00000000000a"
DEST = "qemu+tls://kvm2/system"
# What virsh is told so that a migration is like one of the module's.
LIKE_OURS = "--live --p2p --persistent --tls"

pytestmark = pytest.mark.usefixtures("healed")


def recovered(**options: t.Any) -> Task:
    return task("vm_migrate", **{"name": "a", "dest": "kvm2", "state": "recovered", **options})


def put_right(play: Playbook, host: str = "kvm1", **options: t.Any) -> Result:
    """What recovering says: check mode foresees it, and the second run finds nothing more."""
    told = recovered(**options)
    played = play([{**told, "check_mode": True}, told, told], host=host)
    assert played.returncode == 0, played.output
    check, done, again = (each["result"] for each in played.results)
    assert check["changed"], played.output
    assert done["changed"], played.output
    assert not again["changed"], played.output
    assert check["vms"][0]["steps"] == done["vms"][0]["steps"]
    return t.cast("Result", done["vms"][0])


def asked(play: Playbook, host: str = "kvm1") -> str:
    """What is said when nobody can tell which copy is the truth."""
    vm = play(recovered(), host=host).error()["result"]["vms"][0]
    assert vm["code"] == "refused"
    assert vm["steps"] == []
    return t.cast("str", vm["msg"])


def bare(lab: Lab, host: str, *, start: bool = False) -> None:
    """A VM without a system, the same on every host."""
    define(lab, "a", host=host, extra=f"<uuid>{UUID}</uuid>")
    if start:
        lab.sh(host, "virsh -q start a")


def both(lab: Lab) -> tuple[str, str]:
    """The VM on both hosts, as virsh tells it; ``-`` where it is not."""
    found = [lab.sh(host, "virsh domstate a --reason 2>/dev/null || echo -") for host in ("kvm1", "kvm2")]
    return found[0], found[1]


# ---- recovering, without a system in the VM


def test_what_hosts_tell_is_put_right(lab: Lab, play: Playbook) -> None:
    """Over a VM without disks, whose states are made by virsh."""
    assert play(recovered()).error()["result"]["vms"][0]["code"] == "not_found"
    bare(lab, "kvm1", start=True)
    assert not play(recovered()).ok()["result"]["changed"]
    # virsh without --undefinesource leaves a definition; at whichever end it is looked at.
    lab.sh("kvm1", f"virsh -q migrate a {DEST} {LIKE_OURS}")
    assert both(lab) == ("shut off (migrated)", "running (migrated)")
    vm = put_right(play)
    assert (vm["host"], vm["steps"], vm["figures"]["truth"]) == ("kvm2", ["remove_source"], "destination")
    assert both(lab) == ("-", "running (migrated)")
    bare(lab, "kvm1")
    vm = put_right(play, host="kvm2", dest="kvm1")
    assert (vm["host"], vm["steps"]) == ("kvm2", ["remove_destination"])
    assert both(lab) == ("-", "running (migrated)")
    # It runs on both: nobody can tell, and a human must.
    bare(lab, "kvm1", start=True)
    assert "runs on both hosts" in asked(play)
    assert both(lab) == ("running (booted)", "running (migrated)")
    assert put_right(play, truth="source")["steps"] == ["remove_destination"]
    assert both(lab) == ("running (booted)", "-")
    refused = play(recovered(truth="destination")).error()["result"]["vms"][0]
    assert "no copy at the destination" in refused["msg"]
    # Off on both, by somebody.
    lab.sh("kvm1", "virsh -q destroy a")
    bare(lab, "kvm2")
    asked(play)
    assert put_right(play, truth="destination")["steps"] == ["remove_source"]
    assert both(lab) == ("-", "shut off (unknown)")
    # To itself, and somebody else's VM of that name.
    assert play(recovered(dest="kvm1")).error()["result"]["vms"][0]["code"] == "invalid"
    define(lab, "a")
    assert not play(recovered()).ok()["result"]["changed"]
    assert both(lab) == ("shut off (unknown)", "shut off (unknown)")


# ---- with a guest that counts


@pytest.fixture
def impatient(lab: Lab) -> t.Iterator[None]:
    """libvirtd notices within some seconds, not after half a minute, that the other end of a migration is silent."""
    for host in lab.hosts:
        lab.sh(host, "cp /etc/libvirt/qemu.conf /tmp/qemu.conf")
        lab.sh(host, "printf 'keepalive_interval = 2\\nkeepalive_count = 5\\n' >>/etc/libvirt/qemu.conf")
        restart_libvirtd(lab, host)
    yield
    for host in lab.hosts:
        lab.fault(host, "heal")
        lab.sh(host, "cp /tmp/qemu.conf /etc/libvirt/qemu.conf")
        restart_libvirtd(lab, host)


def restart_libvirtd(lab: Lab, host: str) -> None:
    lab.fault(host, "kill-libvirtd")
    lab.fault(host, "start-libvirtd")


class Mover:
    """A guest on shared storage that counts, and changes its memory faster than a slow link carries it."""

    def __init__(self, lab: Lab, play: Playbook, guest: Guest) -> None:
        self.lab = lab
        self.play = play
        self.guest = guest
        self.told = 0
        guest.execute("dirty 4 12", wait=False)

    @property
    def here(self) -> str:
        return self.guest.host

    @property
    def there(self) -> str:
        return "kvm2" if self.here == "kvm1" else "kvm1"

    def task(self, **options: t.Any) -> Task:
        return task("vm_migrate", **{"name": self.guest.name, "dest": self.there, **options})

    def slow(self) -> None:
        self.lab.fault(self.there, "slow", "--rate", "40mbit")

    def percent(self) -> int:
        """How far libvirt says that it is; 0 while no migration runs."""
        told = self.lab.sh(self.here, f"virsh -q domjobinfo {self.guest.name} --rawstats", check=False)
        found = dict(line.split(": ") for line in told.splitlines() if line.count(": ") == 1)
        total, left = int(found.get("memory_total", 0)), int(found.get("memory_remaining", 0))
        return 100 * (total - left) // total if total else 0

    def wait_percent(self, playing: Running, wanted: int) -> None:
        """Wait until the migration of a playbook is so far. The last part of the way is slow, to be seen."""

        def there(percent: int) -> bool:
            assert playing.poll() is None, playing.text()
            return self.percent() >= percent

        def speed(mib: int) -> None:
            self.lab.sh(self.here, f"virsh -q migrate-setspeed {self.guest.name} {mib}")

        wait_for(lambda: there(min(wanted, 80)), 120)
        if wanted > 80:
            speed(1)
            wait_for(lambda: there(wanted), 120)
            speed(1000)

    def moving(self) -> bool:
        told = self.lab.sh(self.here, f"virsh -q domjobinfo {self.guest.name}", check=False)
        return "migration" in told

    def arrived(self) -> None:
        """The guest is at the other end, has lost nothing, and nothing is left at this one."""
        left = self.here
        self.guest.host = self.there
        assert self.lab.domains(left) == []
        self.sound()

    def sound(self) -> None:
        """It runs here and only here, goes on counting, and has all that it ever told."""
        assert self.lab.state(self.here, self.guest.name).startswith("running"), self.here
        assert self.lab.domains(self.there) == []
        self.told = max(self.told, self.guest.wait_counter(seconds=90))
        counted = self.guest.counter_on_disk()
        assert counted == list(range(1, len(counted) + 1))
        assert len(counted) >= self.told
        # One that waited for its memory says so.
        assert [line for line in self.guest.crashes() if "soft lockup" not in line] == []

    def again(self) -> None:
        """The same task, which now works, and then has nothing to do."""
        told = self.task()
        played = self.play([told, told], host=self.here)
        assert played.returncode == 0, played.output
        assert [each["result"]["changed"] for each in played.results] == [True, False], played.output
        self.arrived()


@pytest.fixture
def mover(lab: Lab, play: Playbook, launch: Launch) -> Mover:
    """It is booted on kvm1."""
    launch("a", storage=SHARED, autostart=True)
    return Mover(lab, play, lab.booted("kvm1", "a"))


@pytest.mark.usefixtures("impatient")
def test_a_link_may_be_cut_at_any_moment(lab: Lab, mover: Mover) -> None:
    for percent in (10, 50, 95):
        # For good, as far as libvirt can tell: it stays.
        mover.slow()
        with mover.play.running([mover.task()], host=mover.here) as playing:
            mover.wait_percent(playing, percent)
            lab.fault(mover.there, "cut")
            wait_for(lambda: not mover.moving(), 120)
            lab.fault(mover.there, "heal")
            vm = playing.played().error()["result"]["vms"][0]
        assert vm["host"] == mover.here
        mover.sound()
        # For five seconds: it goes on. That is the rerun, too.
        mover.slow()
        with mover.play.running([mover.task()], host=mover.here) as playing:
            mover.wait_percent(playing, percent)
            lab.fault(mover.there, "cut")
            time.sleep(5)
            lab.fault(mover.there, "heal")
            assert playing.played().ok()["result"]["changed"]
        mover.arrived()
    mover.again()


def test_daemons_may_die_in_the_middle(lab: Lab, mover: Mover) -> None:
    def fails(deed: t.Callable[[], object]) -> None:
        """The migration is begun, *deed* is done, and the guest stays."""
        mover.slow()
        with mover.play.running([mover.task()], host=mover.here) as playing:
            mover.wait_percent(playing, 30)
            deed()
            vm = playing.played().error()["result"]["vms"][0]
        assert vm["host"] == mover.here
        lab.fault(mover.there, "heal")
        mover.sound()

    def restart(host: str) -> t.Callable[[], None]:
        return lambda: restart_libvirtd(lab, host)

    def kill_qemu() -> None:
        lab.sh(mover.there, "kill -9 $(cat /run/libvirt/qemu/a.pid)")

    fails(restart(mover.there))
    fails(kill_qemu)
    fails(restart(mover.here))
    mover.again()


def test_modules_may_die_at_any_moment(lab: Lab, mover: Mover) -> None:
    """Before the call, in it, and after it: the rerun begins, joins and finishes."""
    guest = mover.guest
    mover.play.killed_at("migrate", mover.task(progress=False), host=mover.here)
    mover.sound()
    mover.again()
    mover.slow()
    with mover.play.running([mover.task(progress=False)], host=mover.here) as playing:
        mover.wait_percent(playing, 30)
        lab.kill_module(mover.here, signal.SIGKILL)
        assert playing.played().returncode != 0
    assert mover.moving()
    began = int(lab.sh(mover.here, "virsh domjobinfo a --rawstats | sed -n 's/^time_elapsed: //p'"))
    with mover.play.running([mover.task()], host=mover.here) as playing:
        wait_for(lambda: "live_migrate" in lab.sh(mover.here, "cat /run/lock/kvmops/* 2>/dev/null", check=False))
        assert int(lab.sh(mover.here, "virsh domjobinfo a --rawstats | sed -n 's/^time_elapsed: //p'")) > began
        lab.fault(mover.there, "heal")
        assert playing.played().ok()["result"]["changed"]
    mover.arrived()
    mover.play.killed_at("finish", mover.task(progress=False), host=mover.here)
    guest.host = mover.there
    (vm,) = mover.play(task("vm_migrate", name="a", dest=mover.here), host=mover.there).ok()["result"]["vms"]
    assert vm["steps"] == ["finish"]
    mover.sound()
    assert "enable" in lab.sh(mover.here, "virsh dominfo a | grep Autostart")
    # The same by recovering, at the other end.
    mover.play.killed_at("finish", mover.task(progress=False), host=mover.here)
    guest.host = mover.there
    assert put_right(mover.play, host=mover.here, dest=mover.there)["steps"] == ["finish"]
    mover.sound()
    assert "enable" in lab.sh(mover.here, "virsh dominfo a | grep Autostart")


@pytest.mark.usefixtures("third")
def test_two_plays_want_the_same_vm_elsewhere(lab: Lab, mover: Mover) -> None:
    mover.slow()
    with mover.play.running([mover.task()], host="kvm1") as playing:
        mover.wait_percent(playing, 10)
        vm = mover.play(mover.task(dest="kvm3")).error()["result"]["vms"][0]
        assert vm["code"] == "busy"
        # The same once more waits for the first, and finds its work done.
        with mover.play.running([mover.task()], host="kvm1") as twin:
            wait_for(mover.moving)
            lab.fault("kvm2", "heal")
            assert playing.played().ok()["result"]["changed"]
            assert not twin.played().ok()["result"]["changed"]
    mover.arrived()
    assert lab.domains("kvm3") == []
    # To itself there is nothing to do.
    assert not mover.play(mover.task(dest="kvm2"), host="kvm2").ok()["result"]["changed"]


def test_hosts_may_lose_power(lab: Lab, mover: Mover) -> None:
    mover.slow()
    with mover.play.running([mover.task()], host="kvm1") as playing:
        mover.wait_percent(playing, 30)
        lab.fault("kvm2", "power-off")
        lab.fault("kvm2", "boot")
        vm = playing.played().error()["result"]["vms"][0]
    assert (vm["host"], vm["power_state"]) == ("kvm1", "RUNNING")
    mover.sound()
    # The source: what its guest told is on its disk, and nothing is at the destination.
    mover.slow()
    with mover.play.running([mover.task()], host="kvm1") as playing:
        mover.wait_percent(playing, 30)
        mover.told = mover.guest.counter()
        lab.fault("kvm1", "power-off")
    lab.fault("kvm2", "heal")
    lab.fault("kvm1", "boot")
    wait_for(lambda: lab.domains("kvm2") == [], 120)
    assert put_right(mover.play)["steps"] == ["end_migration"]
    mover.guest.wait_up(2)  # libvirtd starts it
    mover.sound()


@pytest.mark.usefixtures("impatient")
def test_a_post_copy_that_breaks_goes_on(lab: Lab, mover: Mover) -> None:
    """By itself, when the link is back soon; else its memory is lost, and its disks are not."""

    def begin() -> None:
        """virsh, since the module would see it through."""
        post = f"--postcopy --postcopy-bandwidth 4 --bandwidth 4 --undefinesource {LIKE_OURS}"
        uri = f"qemu+tls://{mover.there}/system"
        lab.sh(mover.here, f"virsh migrate a {uri} {post} >/tmp/migrate.log 2>&1 &")
        wait_for(lambda: mover.percent() >= 20, 120)
        lab.sh(mover.here, "virsh migrate-postcopy a")
        wait_for(lambda: "post-copy" in lab.state(mover.there, "a"))

    def state(host: str) -> str:
        return lab.sh(host, "virsh domstate a --reason", check=False)

    begin()
    lab.fault(mover.there, "cut")
    wait_for(lambda: "post-copy failed" in state(mover.here), 120)
    lab.fault(mover.there, "heal")
    played = mover.play([recovered(dest=mover.there)] * 2, host=mover.here)
    assert played.returncode == 0, played.output
    assert not played.last["result"]["changed"]
    mover.arrived()
    # The connection is lost. A QEMU that waits for a page may answer no more, so that it can be resumed is not sure;
    # that the disks, which both have, are taken when a human says so, is.
    begin()
    lab.sh(mover.here, 'virsh qemu-monitor-command a \'{"execute": "migrate-pause"}\'')
    wait_for(lambda: "post-copy failed" in state(mover.here), 120)
    played = mover.play({**recovered(dest=mover.there), "check_mode": True}, host=mover.here).ok()["result"]
    assert played["vms"][0]["steps"][0] == "resume_postcopy"
    mover.told = max(mover.told, mover.guest.counter())
    vm = put_right(mover.play, host=mover.here, dest=mover.there, truth="destination")
    assert vm["steps"][:2] == ["power_off_destination", "remove_source"]
    assert lab.domains(mover.here) == []
    mover.guest.host = mover.there
    boots = mover.guest.console().count("GUEST-UP ")
    mover.guest.start()
    mover.guest.wait_up(boots + 1)
    mover.sound()


def test_a_destination_may_fill_up(lab: Lab, play: Playbook, launch: Launch) -> None:
    """The disks are copied, too: what was made for them is taken away again."""
    launch("a")
    mover = Mover(lab, play, lab.booted("kvm1", "a"))
    mover.guest.run("dd if=/dev/urandom of=/data/big bs=1M count=20 conv=fsync 2>/dev/null")
    # There was room when it was looked for, and then somebody else has taken it.
    room = f'$(($(stat -f -c "%a*%S" {PRIVATE}) - 1048576))'
    taken = f"ssh kvm2 'fallocate -l {room} {PRIVATE}/filler'"
    vm = play.disturbed_at("migrate", taken, mover.task(progress=False)).error()["result"]["vms"][0]
    assert vm["host"] == "kvm1"
    assert lab.files("kvm2") == [f"{PRIVATE}/filler"]
    lab.sh("kvm2", f"rm {PRIVATE}/filler")
    mover.sound()
    # The same with the module killed while the disks are copied, and the destination's power gone at that moment.
    mover.slow()
    with play.running([mover.task(progress=False)]) as playing:
        wait_for(mover.moving, 120)
        lab.kill_module("kvm1", signal.SIGKILL)
        lab.fault("kvm2", "power-off")
        assert playing.played().returncode != 0
    lab.fault("kvm2", "heal")
    wait_for(lambda: not mover.moving(), 120)
    assert lab.files("kvm2") != []
    assert put_right(play)["steps"] == ["end_migration"]
    assert lab.files("kvm2") == []
    mover.sound()
    mover.again()
    assert lab.files("kvm1") == []
