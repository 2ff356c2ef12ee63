# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a lab up and down: keys and certificates, network, hub, hosts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Callable

from . import cache, util
from .lab import (
    BASE,
    CLOUD,
    CLOUD_NAME,
    HERE,
    MACHINE,
    MAX_HOSTS,
    READY,
    RUN_NETNS,
    SERVER,
    Lab,
    Settings,
    labs_under,
    names,
    number,
)
from .util import LabError, run, say, write

PRIVATE_SIZE = "6G"
SHARED_SIZE = "12G"

SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
PidFile /run/sshd.pid
"""

LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
listen_tls = 1
listen_tcp = 0
unix_sock_group = "root"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""

# No systemd, no cgroups, no mount namespaces, no other users in here. virtlockd holds the leases.
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
lock_manager = "lockd"
"""

# Without a file_lockspace_dir virtlockd locks the disk's own file, which is right for both storages: files on the
# shared one are the same for all hosts (one file system), files of the same name on the private ones are not.
LOCKD_CONF = """\
auto_disk_leases = 1
require_lease_for_disks = 0
"""

NETWORK = """\
<network>
  <name>default</name>
  <uuid>{uuid}</uuid>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='off' delay='0'/>
  <mac address='{mac}'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.122.2' end='192.168.122.254'/>
    </dhcp>
  </ip>
</network>
"""


# ---- keys and certificates


def _openssl_key(path: Path) -> None:
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
    path.chmod(0o600)


def make_keys(lab: Lab) -> None:
    """One key for login, one host key for all hosts (so that known_hosts is the same for all), one CA."""
    ssh = lab.dir / "ssh"
    ssh.mkdir(parents=True, exist_ok=True)
    for name in ("id_ed25519", "ssh_host_ed25519_key"):
        if not (ssh / (name + ".pub")).exists():
            (ssh / name).unlink(missing_ok=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kvmops-lab", "-f", ssh / name)
    public = " ".join((ssh / "ssh_host_ed25519_key.pub").read_text("utf-8").split()[:2])
    write(ssh / "known_hosts", f"kvm*,{lab.settings().subnet}.* {public}\n")
    lab.pki.mkdir(exist_ok=True)
    if not (lab.pki / "cacert.pem").exists():
        _openssl_key(lab.pki / "cakey.pem")
        run(
            "openssl", "req", "-x509", "-new", "-key", lab.pki / "cakey.pem", "-days", "3650",
            "-subj", "/CN=kvmops lab " + lab.id, "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-out", lab.pki / "cacert.pem.new",
        )  # fmt: skip
        os.replace(lab.pki / "cacert.pem.new", lab.pki / "cacert.pem")
    # the machine as a libvirt client: ?pkipath= wants these names
    if not (lab.pki / "clientcert.pem").exists():
        make_certificate(lab, "controller", f"{lab.settings().subnet}.{MACHINE}", lab.pki / "client")


def make_certificate(lab: Lab, name: str, address: str, stem: Path) -> None:
    """STEMkey.pem and STEMcert.pem, for server and client."""
    key, certificate = Path(f"{stem}key.pem"), Path(f"{stem}cert.pem")
    _openssl_key(key)
    extensions = (
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\n"
        f"extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:{name},IP:{address}\n"
    )
    write(Path(f"{stem}.ext"), extensions)
    request = run("openssl", "req", "-new", "-key", key, "-subj", "/CN=" + name).stdout
    done = run(
        "openssl", "x509", "-req", "-CA", lab.pki / "cacert.pem", "-CAkey", lab.pki / "cakey.pem",
        "-set_serial", "0x" + uuid.uuid4().hex, "-days", "3650", "-extfile", f"{stem}.ext", stdin=request,
    )  # fmt: skip
    Path(f"{stem}.ext").unlink()
    write(certificate, done.stdout)


# ---- the hosts' files


def _opaque(path: Path, mode: int = 0o755) -> Path:
    """A directory in a host's upper layer that hides the machine's own one."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    return path


def _accounts(upper: Path) -> None:
    """The machine's accounts, without its passwords, and the users libvirt wants."""
    passwd = Path("/etc/passwd").read_text("utf-8")
    group = Path("/etc/group").read_text("utf-8")
    for number_, user in ((64055, "libvirt-qemu"), (64056, "libvirt-dnsmasq")):
        if not re.search(f"^{user}:", passwd, re.M):
            passwd += f"{user}:x:{number_}:{number_}::/var/lib/libvirt:/usr/sbin/nologin\n"
        if not re.search(f"^{user}:", group, re.M):
            group += f"{user}:x:{number_}:\n"
    if not re.search("^sshd:", passwd, re.M):
        passwd += "sshd:x:64057:65534::/run/sshd:/usr/sbin/nologin\n"
    write(upper / "etc/passwd", re.sub(r"^(root:.*):[^:\n]*$", r"\1:/bin/bash", passwd, flags=re.M))
    write(upper / "etc/group", group)
    users = [line.split(":")[0] for line in passwd.splitlines() if line]
    write(upper / "etc/shadow", "".join(f"{user}:*:19000:0:99999:7:::\n" for user in users), 0o600)


def make_host(lab: Lab, host: str) -> None:
    """A host's disk (the upper layer of its root) as it is before its first boot."""
    directory = lab.host_dir(host)
    if (directory / "made").exists():
        return
    if directory.exists():
        shutil.rmtree(directory)
    upper = directory / "upper"
    host_uuid = str(uuid.uuid4())
    address = lab.address(host)
    for name in ("etc", "var", "var/lib", "var/cache", "var/log", "var/lib/libvirt", "srv", "opt"):
        (upper / name).mkdir(parents=True, exist_ok=True)
    # What this machine has of its own there is none of the hosts' business: VMs, certificates, keys, root's home.
    libvirt = _opaque(upper / "etc/libvirt")
    _opaque(upper / "var/lib/libvirt")
    _opaque(upper / "var/cache/libvirt")
    _opaque(upper / "var/log/libvirt")
    _opaque(upper / "opt")
    _opaque(upper / "srv")
    pki = _opaque(upper / "etc/pki")
    ssh = _opaque(upper / "etc/ssh")
    home = _opaque(upper / "root", 0o700)
    shutil.copytree("/etc/libvirt/nwfilter", libvirt / "nwfilter")
    write(libvirt / "libvirtd.conf", LIBVIRTD_CONF.format(uuid=host_uuid))
    write(libvirt / "qemu.conf", QEMU_CONF)
    write(libvirt / "qemu-lockd.conf", LOCKD_CONF)
    write(libvirt / "virtlockd.conf", "")
    write(libvirt / "virtlogd.conf", "")
    write(libvirt / "libvirt.conf", 'uri_default = "qemu:///system"\n')
    mac = f"52:54:00:{lab.id[:2]}:{lab.id[2:4]}:01"
    network_uuid = str(uuid.uuid5(uuid.UUID(host_uuid), "default"))
    write(libvirt / "qemu/networks/default.xml", NETWORK.format(uuid=network_uuid, mac=mac))
    (libvirt / "qemu/networks/autostart").mkdir()
    (libvirt / "qemu/networks/autostart/default.xml").symlink_to("/etc/libvirt/qemu/networks/default.xml")

    make_certificate(lab, host, address, directory / "host-")
    certificate, key = directory / "host-cert.pem", directory / "host-key.pem"
    for target in ("CA/cacert.pem", "qemu/ca-cert.pem"):
        write(pki / target, (lab.pki / "cacert.pem").read_text("utf-8"))
    for role in ("server", "client"):
        for path in (f"libvirt/{role}cert.pem", f"qemu/{role}-cert.pem"):
            write(pki / path, certificate.read_text("utf-8"))
        for path in (f"libvirt/private/{role}key.pem", f"qemu/{role}-key.pem"):
            write(pki / path, key.read_text("utf-8"), 0o600)

    source = lab.dir / "ssh"
    write(ssh / "sshd_config", SSHD_CONFIG)
    write(ssh / "ssh_host_ed25519_key", (source / "ssh_host_ed25519_key").read_text("utf-8"), 0o600)
    write(ssh / "ssh_known_hosts", (source / "known_hosts").read_text("utf-8"))
    write(home / ".ssh/id_ed25519", (source / "id_ed25519").read_text("utf-8"), 0o600)
    write(home / ".ssh/authorized_keys", (source / "id_ed25519.pub").read_text("utf-8"), 0o600)
    (home / ".ssh").chmod(0o700)

    subnet = lab.settings().subnet
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{subnet}.{MACHINE} controller", f"{subnet}.{CLOUD} {CLOUD_NAME}"]
    lines += [f"{subnet}.{number(name)} {name}" for name in names(MAX_HOSTS)]
    write(upper / "etc/hosts", "\n".join(lines) + "\n")
    write(upper / "etc/hostname", host + "\n")
    write(upper / "etc/machine-id", uuid.UUID(host_uuid).hex + "\n")
    _accounts(upper)
    write(directory / "made", host_uuid + "\n")


def host_uuid(lab: Lab, host: str) -> str:
    return (lab.host_dir(host) / "made").read_text("utf-8").strip()


# ---- network


def make_uplink(lab: Lab, subnet: str) -> None:
    """The one interface that the machine itself has in the lab. Its address is the sign that the subnet is taken."""
    run("ip", "link", "add", lab.uplink, "address", _mac(lab, MACHINE), "type", "veth", "peer", "name", _peer(lab))
    run("ip", "link", "set", "dev", lab.uplink, "alias", str(lab.dir))
    run("ip", "addr", "add", f"{subnet}.{MACHINE}/24", "dev", lab.uplink)
    run("ip", "link", "set", lab.uplink, "up")


def _peer(lab: Lab) -> str:
    return lab.uplink + "p"


def make_network(lab: Lab) -> None:
    """The hub's network namespace with the switch.

    The switch is not in the machine's namespace: its firewall has no say about what the hosts tell each other.
    """
    hub = lab.netns("hub")
    subnet = lab.settings().subnet
    run("ip", "netns", "add", hub)
    lab.in_hub("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    batch = "link set lo up\nlink add sw0 address %s type bridge\nlink set sw0 up\naddr add %s.%s/24 dev sw0\n"
    run("ip", "-n", hub, "-batch", "-", stdin=batch % (_mac(lab, SERVER), subnet, SERVER))
    run("ip", "link", "set", _peer(lab), "netns", hub, "name", "machine")
    run("ip", "-n", hub, "link", "set", "machine", "master", "sw0", "up")


def _mac(lab: Lab, last: int) -> str:
    return f"02:{lab.id[:2]}:{lab.id[2:4]}:{lab.id[4:]}:00:{last:02x}"


def make_port(lab: Lab, host: str) -> None:
    """A host's network namespace: eth0, plugged into the switch, in a bridge br0."""
    hub, own = lab.netns("hub"), lab.netns(host)
    subnet = lab.settings().subnet
    # eth0 and br0 have the same, fixed MAC: else the bridge may take a tap's, which another host may have too, and
    # connections die.
    mac = _mac(lab, number(host))
    run("ip", "netns", "add", own)
    run("ip", "-n", hub, "link", "add", host, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", own)
    run("ip", "-n", hub, "link", "set", host, "master", "sw0", "up")
    batch = [
        "link set lo up",
        f"link add br0 address {mac} type bridge",
        "link set eth0 master br0 up",
        f"addr add {subnet}.{number(host)}/24 dev br0",
        "link set br0 up",
        f"route add default via {subnet}.{MACHINE}",
    ]
    run("ip", "-n", own, "-batch", "-", stdin="\n".join(batch) + "\n")


def remove_port(lab: Lab, host: str) -> None:
    """Pull the plug first: not a packet of what dies afterwards gets out."""
    if lab.netns_names("hub"):
        run("ip", "-n", lab.netns("hub"), "link", "del", host, check=False)


def remove_netns(lab: Lab, host: str) -> None:
    if lab.netns_names(host):
        run("ip", "netns", "del", lab.netns(host), check=False)
        with contextlib.suppress(OSError):
            (RUN_NETNS / lab.netns(host)).unlink()


# ---- hub and hosts


def hub_works(lab: Lab) -> bool:
    """The hub runs, and its file system answers."""
    if lab.init("hub") is None or not (lab.dir / "hub/ready").exists():
        return False
    if not lab.netns_names("hub") or not Path("/sys/class/net", lab.uplink).exists():
        return False
    try:
        os.statvfs(lab.shared_dir())
    except OSError:  # "transport endpoint is not connected": bindfs is dead
        return False
    return True


def start_hub(lab: Lab) -> None:
    make_network(lab)
    (lab.dir / "hub").mkdir(exist_ok=True)
    (lab.dir / "hub/ready").unlink(missing_ok=True)
    settings = lab.settings()
    log = lab.dir / "hub/console.log"
    argv: list[util.StrPath] = ["nsenter", f"--net={RUN_NETNS / lab.netns('hub')}", "--"]
    argv += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "slave", "--"]
    argv += [HERE / "host/hub", lab.dir, settings.subnet, settings.shared_size]
    started = util.spawn(argv, log, lab.environment("hub"))
    _await(started, (lab.dir / "hub/ready").exists, log, "the hub")


def _await(started: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path, what: str) -> None:
    done = util.wait_for(lambda: ready() or started.poll() is not None, 120)
    if not done or not ready():
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:]) if log.exists() else ""
        raise LabError(f"{what} did not start. Its console ({log}):\n{tail}")


def host_ready(lab: Lab, host: str) -> bool:
    init = lab.init(host)
    return init is not None and os.path.exists(f"/proc/{init.pid}/root/{READY}")


def start_host(lab: Lab, host: str) -> subprocess.Popen[bytes]:
    """Start a host's boot; await_host() waits for its end."""
    settings = lab.settings()
    hub = lab.need_init("hub")
    make_port(lab, host)
    (lab.host_dir(host) / "frozen").unlink(missing_ok=True)
    argv: list[util.StrPath] = ["nsenter", f"--mount=/proc/{hub.pid}/ns/mnt"]
    argv += [f"--net={RUN_NETNS / lab.netns(host)}", "--", "unshare", "--mount", "--uts", "--ipc", "--pid"]
    argv += ["--fork", "--kill-child", "--", HERE / "host/init", lab.dir, host, settings.images, settings.venv]
    argv += [settings.private_size]
    return util.spawn(argv, lab.host_dir(host) / "console.log", lab.environment(host))


def await_host(lab: Lab, host: str, started: subprocess.Popen[bytes]) -> None:
    _await(started, lambda: host_ready(lab, host), lab.host_dir(host) / "console.log", host)


def stop_host(lab: Lab, host: str) -> None:
    """What a power cut does: the link goes silent, then everything is gone at once."""
    remove_port(lab, host)
    lab.kill_belongings({host, "delay-" + host})
    remove_netns(lab, host)
    (lab.host_dir(host) / "frozen").unlink(missing_ok=True)


def boot(lab: Lab, wanted: list[str]) -> None:
    """Boot hosts that are off, all at once."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    for host in wanted:
        stop_host(lab, host)  # what an earlier life may have left
        started[host] = start_host(lab, host)
    for host, child in started.items():
        await_host(lab, host, child)


# ---- up and down


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab needs root: namespaces, mounts, bridges")
    for module, sign in (("fuse", "/dev/fuse"), ("tun", "/dev/net/tun"), ("loop", "/dev/loop-control")):
        if not os.path.exists(sign) and shutil.which("modprobe"):
            run("modprobe", module, check=False)
    for sign, what in (("/dev/fuse", "FUSE"), ("/dev/net/tun", "TUN/TAP")):
        if not os.path.exists(sign):
            raise LabError(f"this machine has no {what} ({sign})")


def _loops_work(lab: Lab) -> bool:
    probe = lab.dir / "loop-probe"
    try:
        run("truncate", "-s", "1M", probe)
        done = run("losetup", "--find", "--show", probe, check=False)
        if done.returncode:
            return False
        run("losetup", "--detach", done.stdout.strip())
        return True
    finally:
        probe.unlink(missing_ok=True)


def up(
    lab: Lab,
    count: int | None = None,
    install: bool = False,
    private_size: str = PRIVATE_SIZE,
    shared_size: str = SHARED_SIZE,
) -> list[str]:
    """Bring up a lab, or what of it is not up. Returns the hosts that were booted."""
    _check_machine()
    if count is not None and not 1 <= count <= MAX_HOSTS:
        raise LabError(f"1 to {MAX_HOSTS} hosts")
    missing = cache.packages_missing()
    if missing and install:
        say("installing " + " ".join(missing))
        cache.install_packages(missing)
        missing = cache.packages_missing()
    if missing:
        raise LabError("these Debian packages are missing (lab up --install installs them): " + " ".join(missing))
    lab.dir.mkdir(parents=True, exist_ok=True)
    lab.dir.chmod(0o700)
    with lab.locked():
        return _up(lab, count, private_size, shared_size)


def _up(lab: Lab, count: int | None, private_size: str, shared_size: str) -> list[str]:
    if lab.exists():
        settings = lab.settings()
        running = hub_works(lab)
    else:
        running = False
        if not _loops_work(lab):
            say("no loop devices here: the storages are plain directories, and cannot be filled on demand")
            private_size = shared_size = "none"
        settings = Settings("", private_size, shared_size)
    if not running:
        if lab.leftovers():
            say("an earlier run left something: cleaning up")
            lab.sweep()
        in_use = cached()
        settings.images, settings.venv = str(cache.images(in_use)), str(cache.venv(in_use))
        with util.machine_lock("kvmops-lab"):  # two labs must not choose the same subnet at the same time
            settings.subnet = settings.subnet or lab.choose_subnet()
            make_uplink(lab, settings.subnet)
        lab.save(settings)
        make_keys(lab)
        _control_dir(lab)
        start_hub(lab)
    wanted = sorted(set(lab.hosts()) | set(names(count or (0 if lab.hosts() else 2))), key=number)
    for host in wanted:
        make_host(lab, host)
    off = [host for host in wanted if not host_ready(lab, host)]
    boot(lab, off)
    return off


def cached() -> list[str]:
    """What the labs of this repository use of the cache."""
    used = []
    for lab in labs_under(BASE):
        with contextlib.suppress(LabError):
            settings = lab.settings()
            used += [settings.images, settings.venv, settings.glance]
    return used


def _control_dir(lab: Lab) -> None:
    shutil.rmtree(lab.control, ignore_errors=True)
    lab.control.mkdir(mode=0o700, parents=True)


def down(lab: Lab, keep: bool = False) -> bool:
    """Take everything away. True if there was something."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root")
    if not lab.dir.exists():
        something = bool(lab.leftovers())
        lab.sweep()
        remove_gone(lab.dir.parent, lab.id)
        return something
    with lab.locked():
        lab.sweep()
        if not keep:  # moved first: a directory that is half removed would be mistaken for a lab
            os.rename(lab.dir, _gone(lab))
    remove_gone(lab.dir.parent, lab.id)
    return True


def _gone(lab: Lab) -> Path:
    return lab.dir.with_name(f".gone-{lab.id}-{uuid.uuid4().hex[:8]}")


def remove_gone(base: Path, identity: str = "*") -> None:
    """What a killed down has left of a lab's directory, or of all."""
    for path in base.glob(f".gone-{identity}-*"):
        shutil.rmtree(path, ignore_errors=True)
