# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab itself, for real: see README.md. Needs root; about four minutes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.lab.kvmlab import glance, hosts, util
from tests.lab.kvmlab.glance_template import GLANCE_URL
from tests.lab.kvmlab.guest import NO_INIT, Guest
from tests.lab.kvmlab.lab import BASE, HERE, IMAGES, PRIVATE, SHARED, VENV, Lab, labs_under
from tests.lab.kvmlab.util import LabError, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PROGRAM = HERE / "lab"
NAME = f"self{os.getpid()}"
OTHER = NAME + "b"


def lab_command(name: str, *words: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """The program, as a user runs it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KVMOPS_")}
    environment["KVMOPS_LAB"] = name
    done = subprocess.run(
        [str(PROGRAM), *words], capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"lab {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def traces(lab: Lab) -> list[str]:
    """What is left of a lab, looked for in other ways than the lab itself does."""
    found = [f"netns {line}" for line in run("ip", "netns", "list").stdout.splitlines() if f"-{lab.id}-" in line]
    found += [line for line in run("ip", "-o", "link").stdout.splitlines() if lab.uplink in line]
    found += [line for line in run("losetup", "--all").stdout.splitlines() if f"{lab.dir}/" in line]
    found += [line for line in Path("/proc/mounts").read_text("utf-8").splitlines() if f"{lab.dir}/" in line]
    for line in run("ps", "-eo", "pid,stat,args").stdout.splitlines():
        if (
            (f"{lab.dir}/" in line or f"{lab.dir} " in line)
            and " ps -eo" not in line
            and not re.search(r"^ *\d+ Z", line)
        ):
            found.append(line)
    found += [str(path) for path in (lab.dir, lab.control) if path.exists()]
    found += [str(path) for path in lab.dir.parent.glob(f".gone-{lab.id}*")]
    return found


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    """Take away what earlier runs of this file left when they were killed; leave nothing ourselves."""
    for lab in labs_under(BASE):
        match = re.fullmatch(r"self(\d+)b?", lab.name)
        if match and not Path("/proc", match[1]).exists():
            hosts.down(lab)
    yield
    for name in (NAME, OTHER):
        lab_command(name, "down")
    for name in (NAME, OTHER):
        assert traces(Lab(name, str(BASE / name))) == []


@pytest.fixture(scope="module")
def lab() -> Lab:
    """Two hosts."""
    lab_command(NAME, "up", "--hosts", "2")
    return Lab(NAME, str(BASE / NAME))


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Guest:
    """A guest on the shared storage, running on kvm1 at first."""
    guest = Guest(lab, "kvm1", "one")
    guest.make_disk()
    guest.define()
    guest.start()
    guest.wait_up()
    return guest


def status(lab: Lab, host: str) -> dict[str, object]:
    data = json.loads(lab_command(lab.name, "status", "--json", check=False).stdout)
    return {item["name"]: item for item in data["hosts"]}[host]


def fault(lab: Lab, host: str, *words: str) -> None:
    lab_command(lab.name, "fault", host, *words)


def pings(lab: Lab, source: str, target: str) -> bool:
    return lab.run_in(source, "ping", "-q", "-c", "1", "-W", "1", target, check=False).returncode == 0


def migrate(guest: Guest, target: str) -> None:
    guest.virsh(
        "migrate", "--live", "--p2p", "--persistent", "--undefinesource", guest.name, f"qemu+tls://{target}/system"
    )
    guest.host = target


# ---- hosts


def test_up_again_does_nothing(lab: Lab) -> None:
    before = lab.need_init("kvm1").pid
    done = lab_command(NAME, "up", "--hosts", "2")
    assert "nothing to do" in done.stderr
    assert lab.need_init("kvm1").pid == before
    assert lab_command(NAME, "status").returncode == 0


def test_hosts_are_hosts_of_their_own(lab: Lab) -> None:
    uuids = set()
    for host in ("kvm1", "kvm2"):
        lab.run_in(host, VENV + "/bin/python", "-c", "import libvirt, nbd, openstack, oslo_utils")
        done = lab.run_in(host, "sh", "-c", "hostname; ls /dev/kvm; virsh capabilities; ps -e | wc -l")
        assert done.stdout.splitlines()[0] == host
        assert "/dev/kvm" in done.stderr  # no such file
        uuids.add(re.search("<uuid>(.*?)</uuid>", done.stdout)[1])  # type: ignore[index]
        assert int(done.stdout.split()[-1]) < 25
        assert re.search(r"default +active +yes", lab.run_in(host, "virsh", "net-list").stdout)
    assert len(uuids) == 2


def test_hosts_reach_each_other(lab: Lab) -> None:
    assert lab.run_in("kvm1", "ssh", "kvm2", "hostname").stdout.strip() == "kvm2"
    for uri in ("qemu+tls://kvm1/system", "qemu+ssh://kvm1/system"):
        assert lab.run_in("kvm2", "virsh", "-c", uri, "hostname").stdout.strip() == "kvm1"


def test_the_machine_reaches_the_hosts(lab: Lab) -> None:
    assert lab_command(NAME, "ssh", "kvm2", "hostname").stdout.strip() == "kvm2"
    assert lab_command(NAME, "exec", "kvm2", "hostname").stdout.strip() == "kvm2"
    assert lab_command(NAME, "exec", "kvm2", "false", check=False).returncode == 1
    settings = lab_command(NAME, "env").stdout
    done = run("sh", "-c", settings + "virsh hostname")
    assert done.stdout.strip() == "kvm1"


@pytest.mark.skipif(not shutil.which("ansible"), reason="no ansible here")
def test_inventory(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "inventory.yml"
    file.write_text(lab_command(NAME, "inventory").stdout, "utf-8")
    words = ["-m", "ansible.builtin.command", "-a", "virsh uri"]
    done = run("ansible", "-i", file, "kvm_hosts", *words)
    assert done.stdout.count("qemu:///system") == 2
    done = run("ansible", "-i", file, "kvm_hosts", "-m", "ansible.builtin.stat", "-a", "path={{ lab_guest_image }}")
    assert done.stdout.count('"exists": true') == 2


# ---- guests


def test_counter(guest: Guest) -> None:
    """What the console told is on the disk."""
    guest.wait_counter()
    told = guest.counter()
    log = guest.counter_on_disk()
    assert log == list(range(1, len(log) + 1))
    assert len(log) >= told > 1


def test_agent_freezes_and_thaws(guest: Guest) -> None:
    assert guest.agent("guest-fsfreeze-freeze") == 1
    time.sleep(0.5)
    before = guest.counter()
    time.sleep(2)
    assert guest.counter() == before
    assert guest.agent("guest-fsfreeze-thaw") == 1
    guest.wait_counter()


def test_password(guest: Guest) -> None:
    guest.virsh("set-user-password", guest.name, "root", "s3cret-word")
    line = guest.execute("grep ^root: /etc/shadow")[1]
    encrypted = line.split(":")[1]
    script = f"mkpasswd -m sha512 -S '{encrypted.split('$')[2]}' s3cret-word"
    assert guest.execute(script)[1].strip() == encrypted


def test_addresses(lab: Lab, guest: Guest) -> None:
    """The last byte of the MAC address is that of the address; machine and hosts reach it."""
    guest.wait_console("^ADDRESS eth0 ")
    address = lab.settings().subnet + ".100"
    assert address in guest.virsh("domifaddr", guest.name, "--source", "agent")
    run("ping", "-q", "-c", "1", "-W", "2", address)
    assert pings(lab, "kvm2", address)


def test_no_double_start(lab: Lab, guest: Guest) -> None:
    """QEMU's lock is the first to say no; the lease that virtlockd holds is there too."""
    xml = guest.virsh("dumpxml", "--inactive", guest.name)
    with pytest.raises(LabError, match="lock"):
        lab.run_in("kvm2", "virsh", "create", "/dev/stdin", stdin=xml)
    assert guest.state() == "running"
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)"
    done = lab.run_in("kvm2", "python3", "-c", script, guest.disk, check=False)
    assert "BlockingIOError" in done.stderr


def test_live_migration_of_a_busy_guest(lab: Lab, guest: Guest) -> None:
    """Without the remedy for QEMU's bug (host/qemu-odd) one of these in three kills the guest."""
    guest.execute("dirty 10 30 >/dev/null 2>&1 </dev/null &", wait=False)
    guest.wait_console("^DIRTY-START")
    for turn in range(5):
        migrate(guest, "kvm1" if guest.host == "kvm2" else "kvm2")
        guest.wait_counter(1)
        assert guest.crashes() == [], f"after migration {turn + 1}"
    assert int(guest.execute("cat /run/dirty.passes")[1]) >= 10
    guest.execute("killall dirty")
    log = guest.counter_on_disk()
    assert log == list(range(1, len(log) + 1))
    assert guest.console().count("GUEST-UP") == 1
    if guest.host != "kvm1":
        migrate(guest, "kvm1")


def test_deaf_guest(guest: Guest) -> None:
    """A guest that ignores ACPI, and one that hears it."""
    guest.execute("touch /data/ignore-acpi")
    guest.virsh("shutdown", guest.name, "--mode", "acpi")
    guest.wait_console("^ACPI-POWER-BUTTON ignored", 15)
    guest.execute("rm /data/ignore-acpi")
    assert guest.state() == "running"
    guest.virsh("shutdown", guest.name, "--mode", "acpi")
    assert util.wait_for(lambda: guest.state() == "shut off", 30, 0.2)
    guest.wait_console("^GUEST-DOWN", 1)
    guest.start()
    guest.wait_up(boots=2)
    assert guest.counter_on_disk()[-1] >= guest.counter() - 1
    guest.execute("touch /data/ignore-shutdown")
    with pytest.raises(LabError, match="agent"):  # it says nothing when it obeys, so libvirt waits
        guest.agent("guest-shutdown", timeout=2)
    guest.wait_console("^AGENT-SHUTDOWN ignored", 15)
    guest.execute("rm /data/ignore-shutdown")


def test_kinds_of_guests(lab: Lab) -> None:
    """UEFI, other disk buses, the rescue image, cloud-init data on vfat and on a CD, DHCP of the NAT network."""
    folder = lab.shared_dir()
    (folder / "meta-data").write_text("instance-id: i-1234\nlocal-hostname: cloudy\n", "utf-8")
    run("truncate", "-s", "1M", folder / "seed.img")
    run("mformat", "-i", folder / "seed.img", "-v", "CIDATA", "-t", "1", "-h", "16", "-s", "63", "::")
    run("mcopy", "-i", folder / "seed.img", folder / "meta-data", "::/")
    seed = (
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{SHARED}/seed.img'/>"
        "<target dev='vdz' bus='virtio'/></disk>"
    )
    # joliet and rock ridge, as the tools that make such CDs do
    script = (
        "import io, pycdlib, sys; iso = pycdlib.PyCdlib(); iso.new(vol_ident='cidata', joliet=3, rock_ridge='1.09');"
        'data = b\'{"instance-id": "i-5678", "local-hostname": "disc"}\';'
        "iso.add_fp(io.BytesIO(data), len(data), '/METADATA.;1', rr_name='meta-data', joliet_path='/meta-data');"
        "iso.write(sys.argv[1])"
    )
    lab.run_in("kvm1", VENV + "/bin/python", "-c", script, SHARED + "/seed.iso")
    disc = (
        f"<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{SHARED}/seed.iso'/>"
        "<target dev='sdz' bus='sata'/><readonly/></disk>"
    )
    makers: dict[str, tuple[str, dict[str, Any]]] = {
        "uefi": ("guest.qcow2", {"uefi": True, "network": "default"}),
        "scsi": ("guest.qcow2", {"bus": "scsi", "devices": seed}),
        "sata": ("guest-generic.qcow2", {"bus": "sata", "devices": disc}),
        "rescue": ("rescue.qcow2", {"bus": "ide"}),
    }
    guests = {}
    for index, (name, (image, options)) in enumerate(makers.items()):
        guests[name] = Guest(lab, f"kvm{1 + index % 2}", name, PRIVATE)
        guests[name].make_disk(image)
        guests[name].define(mac=f"52:54:00:00:01:{0x70 + index:02x}", **options)
        guests[name].start()
    for name, item in guests.items():
        item.wait_up()
        if name != "rescue":
            item.wait_counter(1)
    assert "CLOUD-INIT instance-id=i-1234 hostname=cloudy" in guests["scsi"].console()
    assert guests["scsi"].execute("hostname; cat /data/instance-id")[1].split() == ["cloudy", "i-1234"]
    assert "CLOUD-INIT instance-id=i-5678 hostname=disc" in guests["sata"].console()
    assert guests["uefi"].execute("test -d /sys/firmware/efi")[0] == 0
    assert guests["scsi"].execute("test -d /sys/firmware/efi")[0] == 1
    assert "GUEST-UP rescue" in guests["rescue"].console()
    assert guests["rescue"].counter() == 0
    guests["uefi"].wait_console("^ADDRESS eth0 192.168.122.")
    assert "192.168.122." in guests["uefi"].virsh("domifaddr", "uefi", "--source", "lease")
    for item in guests.values():
        item.virsh("destroy", item.name)


def test_broken_guests_are_repaired_from_a_rescue_system(lab: Lab) -> None:
    """One without /sbin/init, and one without boot loader; the rescue disk beside the broken one."""
    guests = {name: Guest(lab, host, name, PRIVATE) for host, name in (("kvm1", "noinit"), ("kvm2", "noloader"))}
    for guest in guests.values():
        guest.make_disk()
        guest.define()
        guest.start()
    for guest in guests.values():
        guest.wait_up()
    guests["noinit"].break_init()
    guests["noloader"].break_loader()
    for guest in guests.values():
        guest.virsh("reset", guest.name)
    guests["noinit"].wait_console(NO_INIT, seconds=180)
    assert guests["noloader"].console().count("GUEST-UP") == 1

    def redefine(guest: Guest, **options: Any) -> None:
        guest.virsh("destroy", guest.name)
        guest.virsh("undefine", guest.name)
        guest.define(**options)
        guest.start()

    for guest in guests.values():
        path = f"{PRIVATE}/{guest.name}.rescue.qcow2"
        lab.run_in(guest.host, "cp", f"{IMAGES}/rescue.qcow2", path)
        redefine(
            guest,
            os=" ",
            devices=f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
            "<target dev='vdb' bus='virtio'/><boot order='1'/></disk>",
        )
    for guest in guests.values():
        guest.wait_console("^GUEST-UP rescue", seconds=180)
        guest.wait_agent()
        assert re.search("^DISK vda2 guest$", guest.console(), re.M)
    guests["noinit"].repair_init("vda")
    guests["noloader"].repair_loader("vda", "vdb")
    for guest in guests.values():
        redefine(guest)
    for guest in guests.values():
        guest.wait_up(boots=3, seconds=180)
        assert guest.run("hostname") == "guest"
        guest.virsh("destroy", guest.name)


# ---- faults


def test_cut_and_mend(lab: Lab) -> None:
    assert pings(lab, "kvm2", "kvm1")
    fault(lab, "kvm1", "cut")
    assert status(lab, "kvm1")["link"] == "cut"
    assert lab_command(NAME, "status", check=False).returncode == 0
    assert not pings(lab, "kvm2", "kvm1")
    fault(lab, "kvm1", "mend")
    assert pings(lab, "kvm2", "kvm1")


def test_slow(lab: Lab) -> None:
    def transfer(mib: int) -> float:
        start = time.monotonic()
        lab.run_in("kvm1", "sh", "-c", f"head -c {mib}M /dev/zero | ssh kvm2 'cat >/dev/null'")
        return time.monotonic() - start

    def round_trip() -> float:
        text = lab.run_in("kvm1", "ping", "-q", "-c", "3", "-i", "0.2", "kvm2").stdout
        return float(re.search(r"= ([\d.]+)/", text)[1])  # type: ignore[index]

    assert round_trip() < 20
    quick = transfer(10)
    fault(lab, "kvm1", "slow", "--rate", "40mbit", "--delay", "50ms")
    state = status(lab, "kvm1")
    assert (state["rate"], state["delay"]) == ("40Mbit", "0.05s")
    assert 99 < round_trip() < 200
    assert transfer(10) > max(2.0, quick)  # 80 Mbit
    fault(lab, "kvm1", "unslow")
    assert round_trip() < 20
    state = status(lab, "kvm1")
    assert (state["rate"], state["delay"]) == ("", "")


def test_libvirtd_killed(lab: Lab, guest: Guest) -> None:
    fault(lab, "kvm1", "kill-libvirtd")
    assert status(lab, "kvm1")["libvirtd"] is False
    assert lab.run_in("kvm1", "virsh", "list", check=False).returncode == 1
    guest.wait_counter()  # it runs on
    fault(lab, "kvm1", "start-libvirtd")
    assert guest.state() == "running"
    fault(lab, "kvm1", "stop-libvirtd")
    assert lab.run_in("kvm1", "virsh", "list", check=False).returncode == 1
    fault(lab, "kvm1", "start-libvirtd")
    assert guest.state() == "running"


def test_freeze_and_thaw(lab: Lab, guest: Guest) -> None:
    fault(lab, "kvm1", "freeze")
    assert status(lab, "kvm1")["state"] == "frozen"
    assert not pings(lab, "kvm2", "kvm1")
    log = lab.shared_dir() / "one.console.log"
    before = log.stat().st_size
    time.sleep(1.5)
    assert log.stat().st_size == before
    fault(lab, "kvm1", "thaw")
    assert pings(lab, "kvm2", "kvm1")
    guest.wait_counter()
    assert status(lab, "kvm1")["state"] == "on"


@pytest.mark.parametrize("storage", ["private", "shared"])
def test_full_disk(lab: Lab, storage: str) -> None:
    path = f"{PRIVATE if storage == 'private' else SHARED}/some-data"
    words = ("dd", "if=/dev/zero", f"of={path}", "bs=1M", "oflag=direct", "conv=fsync")
    used = shutil.disk_usage(BASE).used
    fault(lab, "kvm1", "fill-disk", "--storage", storage, "--leave", "8M")
    lab.run_in("kvm1", *words, "count=2")
    done = lab.run_in("kvm1", *words, "count=20", check=False)
    assert "No space left on device" in done.stderr
    fault(lab, "kvm1", "fill-disk", "--storage", storage)
    done = lab.run_in("kvm1", "dd", "if=/dev/zero", f"of={path}.2", "count=1", check=False)
    assert "No space left on device" in done.stderr
    assert shutil.disk_usage(BASE).used - used < 1 << 30, "the machine's own disk must not be filled"
    fault(lab, "kvm1", "empty-disk", "--storage", storage)
    lab.run_in("kvm1", *words, "count=20")
    lab.run_in("kvm1", "sh", "-c", f"rm -f {path} {path}.2")


def test_power_cut_and_boot(lab: Lab, guest: Guest) -> None:
    """The dead host's lock is free: its guest starts on the other, with all it had said on its disk."""
    lab.run_in("kvm1", "sh", "-c", f"echo kept | tee /root/mark {PRIVATE}/mark /tmp/mark /run/mark")
    xml = guest.virsh("dumpxml", "--inactive", guest.name)
    told = guest.wait_counter()
    fault(lab, "kvm1", "power-off")
    assert status(lab, "kvm1")["state"] == "off"
    assert lab_command(NAME, "status", check=False).returncode == 3
    assert not pings(lab, "kvm2", "kvm1")
    told = max(told, len(re.findall(r"^c \d+ ", (lab.shared_dir() / "one.console.log").read_text(), re.M)))
    guest.host = "kvm2"
    lab.run_in("kvm2", "virsh", "create", "/dev/stdin", stdin=xml)
    fault(lab, "kvm1", "boot")
    script = f"cat /root/mark {PRIVATE}/mark; ls /tmp/mark /run/mark; virsh domstate one; ls /run/libvirt/qemu"
    done = lab.run_in("kvm1", "sh", "-c", script, check=False)
    assert done.stdout.split()[:4] == ["kept", "kept", "shut", "off"]
    assert "/tmp/mark" in done.stderr
    assert "/run/mark" in done.stderr
    assert pings(lab, "kvm2", "kvm1")
    guest.wait_up(boots=3)
    log = guest.counter_on_disk()
    assert log == list(range(1, len(log) + 1))
    assert len(log) >= told
    guest.virsh("destroy", guest.name)
    guest.host = "kvm1"


def test_heal(lab: Lab) -> None:
    fault(lab, "kvm2", "kill-libvirtd")
    for words in (["freeze"], ["slow", "--rate", "1mbit"], ["cut"], ["power-off"]):
        fault(lab, "kvm2", *words)
        fault(lab, "kvm2", "heal")
        state = status(lab, "kvm2")
        assert (state["state"], state["link"], state["rate"], state["libvirtd"]) == ("on", "up", "", True)


def test_the_hub_outlives_a_host_with_a_slow_link(lab: Lab) -> None:
    """A relay of the link lives in the hub, and goes with the host."""
    hub = lab.need_init("hub").pid
    for _turn in range(4):
        fault(lab, "kvm2", "slow", "--delay", "20ms")
        fault(lab, "kvm2", "power-off")
        assert lab.need_init("hub").pid == hub
        fault(lab, "kvm2", "boot")


# ---- Glance

MIB = 1 << 20
CONNECT = "import hashlib, io, json, openstack, os, requests, sys, time\ncloud = openstack.connect(cloud=sys.argv[1])\n"

# Sends 8 MiB, and prints the answer's status (or the error), how much was asked for, and what the image became.
UPLOAD = """
image = cloud.image.create_image("up", disk_format="raw", container_format="bare")
sent = 0
def content():
    global sent
    while sent < 8 << 20:
        sent += 1 << 16
        yield bytes(1 << 16)
try:
    told = str(image.upload(cloud.image, data=content()).status_code)
except Exception as error:
    told = type(error).__module__ + "." + type(error).__name__
image = cloud.image.get_image(image.id)
print(json.dumps([told, sent, image.status, image.size]))
"""


@pytest.fixture(scope="module")
def cloud(lab: Lab) -> glance.Client:
    """Glance, as the admin sees it."""
    lab_command(NAME, "up", "--glance", timeout=600)
    return glance.Client(lab)


@pytest.fixture
def mended(lab: Lab, cloud: glance.Client) -> Iterator[glance.Client]:
    """The same, without images, and without faults afterwards."""
    yield cloud
    fault(lab, "glance", "heal")
    for image in cloud.images():
        cloud.remove(image["id"])


def sdk(lab: Lab, user: str, script: str) -> str:
    """Run a script with OpenStack's library in a host, as the modules do; what it prints."""
    words = ["env", f"OS_CLIENT_CONFIG_FILE={glance.CLOUDS}", VENV + "/bin/python", "-c", CONNECT + script, user]
    return lab.run_in("kvm1", *words, timeout=120).stdout.strip()


def test_glance_in_a_host(lab: Lab, mended: glance.Client) -> None:
    """By name, over TLS that is verified, for four users with the rights that their roles give them."""
    script = """
data = os.urandom(3 << 20)
image = cloud.create_image("one", data=data, disk_format="raw", container_format="bare", wait=True)
assert cloud.image.download_image(image).content == data
print(image.id, cloud.image.get_endpoint(), cloud.session.auth.auth_url)
"""
    image, endpoint, auth_url = sdk(lab, "member", script).split()
    assert (endpoint.rstrip("/"), auth_url) == ("https://cloud:9292/v2", "https://cloud:5000/v3")
    names = "print(*[image.name for image in cloud.image.images()])"
    assert {user: sdk(lab, user, names) for user in ("reader", "other")} == {"reader": "one", "other": ""}
    script = """
try:
    cloud.image.create_image("two", disk_format="raw", container_format="bare")
except openstack.exceptions.HttpException as error:
    print(error.status_code)
"""
    assert sdk(lab, "reader", script) == "403"
    script = f"""
try:
    requests.get("{GLANCE_URL}/healthcheck", timeout=9)
except requests.exceptions.SSLError as error:
    print("not trusted")
print(requests.get("{GLANCE_URL}/healthcheck", timeout=9, verify="{glance.CA_CERT}").status_code)
"""
    assert sdk(lab, "member", script).split() == ["not", "trusted", "200"]
    assert lab.run_in("kvm2", "stat", "-c", "%a %U", glance.CLOUDS).stdout.split() == ["600", "root"]
    assert [found["id"] for found in mended.images()] == [image]


@pytest.mark.usefixtures("mended")
def test_glance_from_the_machine(lab: Lab) -> None:
    listed = {image["name"] for image in glance.Client(lab, "member").images()}
    assert listed == set()
    told = json.loads((glance.directory(lab) / "clouds.yaml").read_text("utf-8"))["clouds"]
    assert set(told) == {"admin", "member", "reader", "other"}
    assert f"{lab.settings().subnet}." in told["member"]["image_endpoint_override"]
    variables = json.loads(lab_command(NAME, "inventory", "--json").stdout)["all"]["children"]["kvm_hosts"]["vars"]
    assert variables["lab_clouds"] == glance.CLOUDS
    assert variables["lab_glance_url"] == "https://cloud:9292"
    lab.run_in("kvm1", "test", "-e", variables["lab_ca_cert"])


def test_up_leaves_glance_alone(lab: Lab, cloud: glance.Client) -> None:
    before = {item.pid for item in lab.belongings({"glance", "keystone"})}
    for words in (["up"], ["up", "--glance"]):
        assert "nothing to do" in lab_command(NAME, *words).stderr
        assert {item.pid for item in lab.belongings({"glance", "keystone"})} == before
    assert cloud.images() == []
    assert lab_command(NAME, "status").returncode == 0


@pytest.mark.parametrize("status", [500, 503])
def test_glance_fails(lab: Lab, mended: glance.Client, status: int) -> None:
    """As often as told, and on what was told."""
    image = mended.upload(b"content")
    fault(lab, "glance", "fail", "--status", str(status), "--times", "2")
    for _turn in range(2):
        with pytest.raises(HTTPError) as caught:
            mended.images()
        assert caught.value.code == status
    assert len(mended.images()) == 1
    fault(lab, "glance", "fail", "--on", "download", "--status", str(status))
    assert "fail on download" in lab_command(NAME, "status").stdout
    for _turn in range(3):
        with pytest.raises(HTTPError) as caught:
            mended.download(image)
        assert caught.value.code == status
    assert len(mended.images()) == 1
    fault(lab, "glance", "heal")
    assert mended.download(image) == b"content"


@pytest.mark.parametrize("after", [0, 2 * MIB])
def test_upload_fails(lab: Lab, mended: glance.Client, after: int) -> None:
    """When so much has passed; and the client gets to read the answer when it has sent all."""
    fault(lab, "glance", "fail", "--on", "upload", "--status", "500", "--after", str(after))
    told, sent, status, _size = json.loads(sdk(lab, "member", UPLOAD))
    assert (told, sent, status) == ("500", 8 * MIB, "queued")
    assert list(glance.store_outside(lab).iterdir()) == []
    if after:
        mended.upload(bytes(after - 1))
    assert len(mended.images()) == (2 if after else 1)


@pytest.mark.usefixtures("mended")
def test_token_expires_in_an_upload(lab: Lab) -> None:
    """keystoneauth authenticates again and sends what is left, which is nothing: a whole image for Glance."""
    fault(lab, "glance", "expire", "--after", "2M")
    told, sent, status, size = json.loads(sdk(lab, "member", UPLOAD))
    assert (told, sent, status, size) == ("204", 8 * MIB, "active", 0)
    assert json.loads(sdk(lab, "member", UPLOAD)) == ["204", 8 * MIB, "active", 8 * MIB]  # once


def test_token_expires_before_a_download(lab: Lab, mended: glance.Client) -> None:
    image = mended.upload(b"x")
    fault(lab, "glance", "expire", "--on", "download")
    with pytest.raises(HTTPError, match="401"):
        mended.download(image)
    assert mended.download(image) == b"x"  # once


def test_connections_are_reset(lab: Lab, mended: glance.Client) -> None:
    image = mended.upload(bytes(8 * MIB))
    fault(lab, "glance", "reset", "--on", "upload", "--after", "2M")
    told, _sent, status, _size = json.loads(sdk(lab, "member", UPLOAD))
    assert (told.rpartition(".")[0], status) == ("keystoneauth1.exceptions.connection", "queued")
    fault(lab, "glance", "reset", "--on", "download", "--after", "2M")
    with pytest.raises(IncompleteRead) as caught:  # over TLS, Python's takes a reset for an end
        mended.download(image)
    assert 0 < len(caught.value.partial) <= 2 * MIB
    fault(lab, "glance", "reset", "--times", "1")
    with pytest.raises(OSError, match=r"reset|closed connection|EOF"):
        mended.images()
    assert len(mended.images()) == 2


def test_glance_stalls(lab: Lab, mended: glance.Client) -> None:
    image = mended.upload(bytes(MIB))
    fault(lab, "glance", "stall", "--on", "download", "--after", "64K", "--seconds", "1.5", "--times", "1")
    start = time.monotonic()
    assert mended.download(image) == bytes(MIB)
    assert time.monotonic() - start >= 1.5
    fault(lab, "glance", "stall", "--on", "upload", "--after", "64K")
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(mended.upload, bytes(8 * MIB))
        time.sleep(1.5)
        assert not upload.done()
        assert mended.images()[-1]["status"] == "saving"
        fault(lab, "glance", "heal")
        upload.result(20)
    assert mended.images()[-1]["status"] == "active"


def test_downloads_are_spoilt(lab: Lab, mended: glance.Client) -> None:
    content = os.urandom(MIB)
    image = mended.upload(content)
    fault(lab, "glance", "truncate", "--after", "100001")
    assert mended.download(image) == content[:100001]
    fault(lab, "glance", "corrupt", "--after", "100001", "--times", "1")
    spoilt = mended.download(image)
    assert [n for n in range(MIB) if spoilt[n] != content[n]] == [100001]
    assert len(spoilt) == MIB
    assert mended.download(image) == content


def test_store_is_full(lab: Lab, mended: glance.Client) -> None:
    used = shutil.disk_usage(BASE).used
    fault(lab, "glance", "fill", "--leave", "1M")
    told, _sent, status, _size = json.loads(sdk(lab, "member", UPLOAD.replace("bytes(", "os.urandom(")))
    assert (told, status) == ("413", "queued")
    assert shutil.disk_usage(BASE).used - used < 1 << 30, "the machine's own disk must not be filled"
    fault(lab, "glance", "heal")
    mended.upload(os.urandom(8 * MIB))


def test_servers_die(lab: Lab, mended: glance.Client) -> None:
    image = mended.upload(b"content")
    fault(lab, "glance", "kill")
    with pytest.raises(OSError, match="refused"):
        mended.images()
    done = lab_command(NAME, "status", check=False)
    assert done.returncode == 3
    assert "keystone on  glance off" in done.stdout
    assert "lab_clouds" not in lab_command(NAME, "inventory").stdout
    fault(lab, "glance", "start")
    assert mended.download(image) == b"content"
    fault(lab, "glance", "stop-keystone")
    with pytest.raises(OSError, match="refused"):
        glance.Client(lab)
    fault(lab, "glance", "heal")
    assert glance.Client(lab).download(image) == b"content"
    assert lab_command(NAME, "status").returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fault", "kvm7", "cut"], "no host kvm7"),
        (["fault", "kvm1", "boot"], "kvm1 is on"),
        (["fault", "kvm1", "slow"], "needs --rate or --delay"),
        (["fault", "kvm1", "expire"], "expire is no fault of kvm1"),
        (["fault", "glance", "freeze"], "freeze is no fault of glance"),
        (["fault", "glance", "fail", "--after", "1M"], "--on upload"),
        (["up", "--hosts", "99"], "1 to 32 hosts"),
        (["up", "--name", "No Good"], "a lab's name"),
    ],
)
def test_errors(lab: Lab, words: list[str], message: str) -> None:
    done = lab_command(NAME, *words, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# ---- several labs, and their end


def test_two_labs(lab: Lab) -> None:
    lab_command(OTHER, "up", "--hosts", "1")
    other = Lab(OTHER, str(BASE / OTHER))
    assert other.settings().subnet != lab.settings().subnet
    assert other.run_in("kvm1", "hostname").stdout.strip() == "kvm1"
    lab_command(OTHER, "up", "--hosts", "2")
    assert other.hosts() == ["kvm1", "kvm2"]
    assert pings(other, "kvm1", "kvm2")
    other.run_in("kvm2", "sh", "-c", f"echo kept | tee /root/mark {PRIVATE}/mark")
    lab_command(OTHER, "down", "--keep")
    assert other.leftovers() == []
    lab_command(OTHER, "up")
    assert other.run_in("kvm2", "cat", "/root/mark", PRIVATE + "/mark").stdout.split() == ["kept", "kept"]
    before = lab.need_init("kvm1").pid
    lab_command(OTHER, "down")
    assert traces(other) == []
    assert lab.need_init("kvm1").pid == before
    assert lab_command(NAME, "status").returncode == 0


@pytest.mark.parametrize("victim", ["hub", "kvm1", "init", "bindfs"])
def test_down_and_up_after_sigkill(lab: Lab, victim: str) -> None:
    """Whatever dies: up repairs it, down removes it."""
    other = Lab(OTHER, str(BASE / OTHER))
    lab_command(OTHER, "up", "--hosts", "1")

    def kill() -> None:
        if victim == "bindfs":
            found = [item.pid for item in other.belongings() if item.command == "bindfs"]
        elif victim == "init":
            found = [other.need_init("kvm1").pid]
        else:
            outer = other.outer(victim)
            found = [outer.pid] if outer else []
        assert found
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    kill()
    lab_command(OTHER, "up")
    assert lab_command(OTHER, "status").returncode == 0
    other.run_in("kvm1", "touch", SHARED + "/works")
    kill()
    lab_command(OTHER, "down")
    assert traces(other) == []


@pytest.mark.parametrize("victim", ["hub", "keystone", "glance"])
def test_glance_after_sigkill(victim: str) -> None:
    """Whatever dies: up mends it, and the images are there; down removes it."""
    other = Lab(OTHER, str(BASE / OTHER))
    lab_command(OTHER, "up", "--hosts", "1", "--glance")
    image = glance.Client(other).upload(b"content")

    def kill() -> None:
        outer = other.outer("hub")
        found = [item.pid for item in other.belongings({victim})] if victim != "hub" else [outer.pid] if outer else []
        assert found
        for pid in found[-1:]:  # one of them, as the kernel would
            os.kill(pid, signal.SIGKILL)

    kill()
    lab_command(OTHER, "up", "--glance")
    assert lab_command(OTHER, "status").returncode == 0
    assert glance.Client(other).download(image) == b"content"
    other.run_in("kvm1", "test", "-s", glance.CLOUDS)
    kill()
    lab_command(OTHER, "down")
    assert traces(other) == []


def killed_up(moment: float, *options: str) -> None:
    environment = {**os.environ, "KVMOPS_LAB": OTHER}
    environment.pop("KVMOPS_LAB_DIR", None)
    words = [str(PROGRAM), "up", "--hosts", "2", *options]
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as child:
        time.sleep(moment)
        child.kill()


def test_down_after_sigkill_of_up() -> None:
    """Killed at any moment of its work, up leaves nothing that down does not find."""
    other = Lab(OTHER, str(BASE / OTHER))
    for moment in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        killed_up(moment)
        lab_command(OTHER, "down")
        assert traces(other) == [], f"killed after {moment} s"


def test_up_after_sigkill_of_up() -> None:
    other = Lab(OTHER, str(BASE / OTHER))
    for moment in (0.2, 0.4, 0.6):
        killed_up(moment)
    lab_command(OTHER, "up", "--hosts", "2")
    assert lab_command(OTHER, "status").returncode == 0
    assert pings(other, "kvm1", "kvm2")
    lab_command(OTHER, "down")
    assert traces(other) == []


def test_glance_after_sigkill_of_up() -> None:
    other = Lab(OTHER, str(BASE / OTHER))
    for moment in (0.8, 1.2, 1.6, 2.4):
        killed_up(moment, "--glance")
    lab_command(OTHER, "up", "--glance")
    assert lab_command(OTHER, "status").returncode == 0
    assert glance.Client(other).images() == []
    killed_up(0.5, "--glance")
    lab_command(OTHER, "down")
    for moment in (1.2, 2.4):
        killed_up(moment, "--glance")
        lab_command(OTHER, "down")
        assert traces(other) == [], f"killed after {moment} s"


def test_down_of_a_running_lab(lab: Lab, guest: Guest) -> None:
    """With a guest that runs, a host that is frozen, a slowed link, and a state directory that somebody removed."""
    guest.start()
    fault(lab, "kvm1", "slow", "--delay", "20ms")
    fault(lab, "kvm2", "freeze")
    lab_command(NAME, "ssh", "kvm1", "true")  # leaves a master connection
    shutil.rmtree(lab.dir)
    assert lab.leftovers()
    lab_command(NAME, "down")
    assert traces(lab) == []
    assert "was not there" in lab_command(NAME, "down").stderr
    assert list((BASE / "cache").glob("images-*"))  # the cache stays
