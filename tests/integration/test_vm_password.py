# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_password: a guest's /etc/shadow is what counts."""

from __future__ import annotations

import subprocess

import pytest

from tests.integration.harness import Lab, Playbook, Result, Task, define, task, wait_for
from tests.lab.kvmlab.guest import Guest

IMAGES = "/var/lib/libvirt/images"
PLAIN = 'pa$$: "word" größe'
OTHER = "another one"


def crypted(password: str, like: str = "$6$NaCl") -> str:
    """The hash of a password, with the salt of another."""
    salt = like.split("$")[2]
    made = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, password], check=True, text=True, capture_output=True
    )
    return made.stdout.strip()


def shadow(guest: Guest) -> dict[str, str]:
    """The hashes by user, as the guest has them."""
    return {line.split(":")[0]: line.split(":")[1] for line in guest.execute("cat /etc/shadow")[1].splitlines()}


@pytest.fixture
def guest(lab: Lab) -> Guest:
    """A guest with an agent, booted."""
    guest = Guest(lab.kvm, "kvm1", "g", IMAGES)
    guest.make_disk()
    guest.define()
    guest.start()
    guest.wait_up()
    return guest


def ask(**arguments: object) -> Task:
    """A task that sets the plain password."""
    return task("vm_password", **{"name": "g", "password": PLAIN, **arguments})


def errors(play: Playbook, *tasks: Task) -> list[Result]:
    """What is told of the VM in tasks that all fail, and none of which tells the password."""
    told = play.errors(tasks)
    assert PLAIN not in str(told)
    return [result["vms"][0] for result in told]


def test_a_password_is_set_and_told_nowhere_or_it_is_told_why_not(lab: Lab, play: Playbook, guest: Guest) -> None:
    assert shadow(guest) == {"root": "!", "user": "!"}
    checked = play({**ask(), "check_mode": True, "diff": True}, "-vvv").ok()["result"]
    assert checked["changed"]
    assert checked["vms"][0]["steps"] == ["set_password"]
    assert shadow(guest) == {"root": "!", "user": "!"}

    hashed = crypted(OTHER)
    played = play([ask(), ask(user="user", password=hashed, encrypted=True), ask()], "-vvv", "--diff")
    played.ok()
    assert [result["result"]["changed"] for result in played.results] == [True] * 3
    assert [result["result"]["vms"][0]["figures"] for result in played.results] == [
        {"user": "root"},
        {"user": "user"},
        {"user": "root"},
    ]
    for secret in (PLAIN, PLAIN.replace('"', '\\"'), hashed):
        assert secret not in played.output + str(played.results)
    told = shadow(guest)
    assert told == {"root": crypted(PLAIN, told["root"]), "user": hashed}
    assert "kvmops" not in lab.sh("kvm1", "virsh dumpxml g")

    # Nothing of what is refused changes anything.
    define(lab, "bare")
    lab.sh("kvm1", "virsh -q start bare")
    play(task("vm_lock", name="g", reason="audit")).ok()
    locked, hash_wanted, line, user = errors(
        play, ask(), ask(password=OTHER, encrypted=True), ask(password=f"{OTHER}\nuser:x"), ask(user="a:b")
    )
    assert locked["code"] == "locked"
    assert "(audit)" in locked["msg"]
    assert [each["code"] for each in (hash_wanted, line, user)] == ["invalid"] * 3
    assert shadow(guest) == told
    nobody, bare = errors(play, ask(user="nobody", override_lock=True), ask(name=["bare", "g"], override_lock=True))
    assert nobody["code"] == "failed"
    assert "has that user" in nobody["msg"]
    assert bare["code"] == "unsupported"
    assert "org.qemu.guest_agent.0" in bare["msg"]
    told = shadow(guest)  # beside one that failed, the other was done
    assert told == {"root": crypted(PLAIN, told["root"]), "user": hashed}

    # Nor is anything of what an agent does not answer to.
    guest.hang_agent()
    asked = ask(guest_timeout=2, override_lock=True)
    for hangs in errors(play, {**asked, "check_mode": True}, asked):
        assert hangs["code"] == "unreachable"
        assert "QEMU guest agent" in hangs["msg"]
        assert not hangs["changed"]
    guest.wake_agent()
    assert shadow(guest) == told

    guest.execute("mv /usr/sbin/agent /usr/sbin/agent.off; sleep 1; killall qemu-ga", wait=False)
    wait_for(lambda: "state='disconnected'" in lab.sh("kvm1", "virsh dumpxml g"))
    (dead,) = errors(play, ask(override_lock=True))
    assert dead["code"] == "unreachable"
    assert "does not run" in dead["msg"]
    lab.sh("kvm1", "virsh -q suspend g")
    (paused,) = errors(play, ask(override_lock=True))
    assert (paused["code"], paused["status"]) == ("refused", "PAUSED")
