# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab: its names, its directory, what of it runs, and the sweeping of what is left."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import util
from .util import LabError, Process, run

HERE = Path(__file__).resolve().parent.parent
REPO = HERE.parent.parent
BASE = REPO / ".lab"
CACHE = BASE / "cache"
RUN_NETNS = Path("/run/netns")

MAX_HOSTS = 32
CLOUD = 252  # Glance and Keystone, in the hub
CLOUD_NAME = "cloud"
SERVER = 253  # the hub: DHCP for the guests
MACHINE = 254  # the machine itself

SHARED = "/srv/kvmops/shared"  # paths inside the hosts
PRIVATE = "/var/lib/libvirt/images"
IMAGES = "/opt/kvmops/images"
VENV = "/opt/kvmops/venv"
READY = "run/kvmops/ready"


@dataclasses.dataclass
class Settings:
    """What a lab remembers in lab.json."""

    subnet: str  # 10.x.y: the first three bytes
    private_size: str
    shared_size: str
    images: str = ""  # directories in the cache
    venv: str = ""
    glance: str = ""


class Lab:
    """A lab, up or not. Everything it starts can be found again by what it is called: there are no pid files."""

    def __init__(self, name: str = "", directory: str | None = None) -> None:
        name = name or os.environ.get("KVMOPS_LAB") or "lab"
        directory = directory or os.environ.get("KVMOPS_LAB_DIR")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", name) or name == "cache":
            raise LabError(f"a lab's name is up to 20 of a-z, 0-9 and -, and not `cache`: {name!r}")
        self.name = name
        self.dir = Path(directory).absolute() if directory else BASE / name
        if re.search(r"[\s:,\\]", str(self.dir)):  # overlayfs options and our own parsing
            raise LabError(f"no blank, colon, comma or backslash in the lab's directory, please: {self.dir}")
        # The directory makes it one of its kind: two clones of the repository may both have a lab called "lab".
        self.id = hashlib.sha256(os.path.realpath(self.dir).encode()).hexdigest()[:6]
        self.uplink = "kvl" + self.id
        self.netns_prefix = f"kvmops-{self.name}-{self.id}-"
        self.control = Path("/run/kvmops-" + self.id)  # sockets of ssh: their paths have to be short

    # ---- paths and settings

    @property
    def settings_file(self) -> Path:
        return self.dir / "lab.json"

    @property
    def pki(self) -> Path:
        return self.dir / "pki"

    @property
    def key(self) -> Path:
        return self.dir / "ssh" / "id_ed25519"

    def host_dir(self, host: str) -> Path:
        return self.dir / "hosts" / host

    def settings(self) -> Settings:
        try:
            return Settings(**json.loads(self.settings_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise LabError(f"there is no lab {self.name} ({self.dir}): lab up makes it") from None
        except (TypeError, ValueError) as error:
            raise LabError(f"{self.settings_file} cannot be read ({error}): lab down, then lab up") from error

    def save(self, settings: Settings) -> None:
        util.write(self.settings_file, json.dumps(dataclasses.asdict(settings), indent=2) + "\n")

    def exists(self) -> bool:
        return self.settings_file.exists()

    def hosts(self) -> list[str]:
        """The hosts that were made, running or not."""
        found = [path.name for path in (self.dir / "hosts").glob("kvm*") if re.fullmatch(r"kvm\d+", path.name)]
        return sorted(found, key=number)

    def check_host(self, host: str) -> None:
        if host not in self.hosts():
            raise LabError("no host {} in lab {} (hosts: {})".format(host, self.name, " ".join(self.hosts()) or "none"))

    def address(self, host: str) -> str:
        return f"{self.settings().subnet}.{number(host)}"

    def netns(self, role: str) -> str:
        return self.netns_prefix + role

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One change of a lab at a time."""
        waiting = f"another command is at work on lab {self.name}: waiting for it"
        with util.lock(self.dir / "lock", waiting=waiting):
            yield

    # ---- processes

    def environment(self, role: str) -> dict[str, str]:
        """The environment of what we start: by it we find it again."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "KVMOPS_LAB_ID": self.id,
            "KVMOPS_LAB_ROLE": role,
            "KVMOPS_LAB_DIR": str(self.dir),
        }

    def outer(self, role: str) -> Process | None:
        """The `unshare` that holds a host (or the hub) in its namespaces; when it dies, all in them die."""
        own = os.stat("/proc/self/ns/pid").st_ino
        for item in util.processes():
            if item.command != "unshare" or not item.alive:
                continue
            env = item.environment()
            if env.get("KVMOPS_LAB_ID") != self.id or env.get("KVMOPS_LAB_ROLE") != role:
                continue
            if item.namespace("pid") == own:
                return item
        return None

    def init(self, role: str) -> Process | None:
        """PID 1 of a host or of the hub, as the machine sees it."""
        outer = self.outer(role)
        if outer is None:
            return None
        for item in util.processes():
            if item.ppid == outer.pid and item.alive:
                return item
        return None

    def need_init(self, host: str) -> Process:
        item = self.init(host)
        if item is None:
            raise LabError(f"{host} is off")
        return item

    def root(self, host: str) -> Path:
        """The host's root directory, from the machine. Absolute symbolic links in it lead astray."""
        return Path(f"/proc/{self.need_init(host).pid}/root")

    def enter(self, host: str) -> list[str]:
        """The words that run a command in a host."""
        pid = str(self.need_init(host).pid)
        return ["nsenter", "--target", pid, "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def run_in(
        self, host: str, *argv: str, check: bool = True, stdin: str = "", timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a host."""
        environment = self.environment("exec")
        return run(*self.enter(host), *argv, check=check, stdin=stdin, timeout=timeout, env=environment)

    def in_hub(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the hub's network namespace."""
        return run("ip", "netns", "exec", self.netns("hub"), *argv, check=check)

    def shared_dir(self) -> Path:
        """The shared storage, from the machine."""
        return self.root("hub") / str(self.dir / "mnt" / "shared").lstrip("/")

    # ---- network names

    def netns_names(self, role: str = "") -> list[str]:
        prefix = self.netns_prefix + role
        with contextlib.suppress(FileNotFoundError):
            names = sorted(name for name in os.listdir(RUN_NETNS) if name.startswith(self.netns_prefix))
            return [name for name in names if not role or name == prefix]
        return []

    def choose_subnet(self) -> str:
        """A 10.x.y.0/24 that follows from the lab's id, and that nobody here uses."""
        taken = networks_in_use(besides=self.uplink)
        seed = int(self.id, 16)
        for attempt in range(1000):
            value = (seed + attempt * 7919) % (150 * 256)
            network = ipaddress.ip_network(f"10.{100 + value // 256}.{value % 256}.0/24")
            if not any(network.overlaps(other) for other in taken):
                return str(network.network_address).rsplit(".", 1)[0]
        raise LabError("no free 10.x.y.0/24 found")

    # ---- sweeping

    def marks(self) -> list[str]:
        """What in a mount table says that it belongs to this lab."""
        return [f"upperdir={self.dir}/hosts/", f" {self.dir}/mnt/"]

    def belongings(self, roles: set[str] | None = None) -> list[Process]:
        """Every process of the lab (of these roles), wherever it went: by environment, namespaces, mounts."""
        me = os.getpid()
        own_pid_ns = os.stat("/proc/self/ns/pid").st_ino
        own_mount_ns = os.stat("/proc/self/ns/mnt").st_ino
        netns: set[int] = set()
        for name in self.netns_names():
            if roles is None or name[len(self.netns_prefix) :] in roles:
                with contextlib.suppress(OSError):
                    netns.add(os.stat(RUN_NETNS / name).st_ino)
        netns.discard(os.stat("/proc/self/ns/net").st_ino)
        marks = self.marks() if roles is None else [f"upperdir={self.dir}/hosts/{role}/" for role in roles]
        found: dict[int, Process] = {}
        pid_ns: set[int] = set()
        everything = [item for item in util.processes() if item.pid != me]
        for item in everything:
            env = item.environment()
            by_env = env.get("KVMOPS_LAB_ID") == self.id and (roles is None or env.get("KVMOPS_LAB_ROLE") in roles)
            by_net = item.namespace("net") in netns
            by_mount = False
            if not by_env and not by_net and item.namespace("mnt") not in (0, own_mount_ns):
                mounts = item.mounts()
                by_mount = any(mark in mounts for mark in marks)
            by_name = roles is None and str(self.control) + "/" in item.arguments() and item.command == "ssh"
            if by_env or by_net or by_mount or by_name:
                found[item.pid] = item
                pid_ns.add(item.namespace("pid"))
        pid_ns -= {own_pid_ns, 0}
        hub = self.init("hub") if roles is not None and "hub" not in roles else None
        if hub:  # relays and Glance live in the hub: it does not die with them
            pid_ns.discard(hub.namespace("pid"))
        for item in everything:
            if item.pid not in found and item.namespace("pid") in pid_ns:
                found[item.pid] = item
        return [item for item in found.values() if item.alive]

    def kill_belongings(self, roles: set[str] | None = None) -> None:
        def none_left() -> bool:
            left = self.belongings(roles)
            for item in left:
                util.kill(item.pid, signal.SIGKILL)
            return not left

        if not util.wait_for(none_left, 20):
            left = [f"{item.pid} ({item.command})" for item in self.belongings(roles)]
            raise LabError("these processes of lab {} do not die: {}".format(self.name, ", ".join(left)))

    def leftovers(self) -> list[str]:
        """What still is there of the lab outside of its directory. Empty when all is clean."""
        left = [f"process {item.pid} {item.arguments() or item.command}" for item in self.belongings()]
        left += ["network namespace " + name for name in self.netns_names()]
        if Path("/sys/class/net", self.uplink).exists():
            left.append("interface " + self.uplink)
        left += ["mount " + target for target in self.mounts_here()]
        left += ["loop device " + device for device in self.loops()]
        if self.control.exists():
            left.append(f"directory {self.control}")
        return left

    def mounts_here(self) -> list[str]:
        """Mounts of the lab in our own mount namespace, the last one first. There should be none."""
        targets = []
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            target = line.split()[4]
            if target.startswith((f"{self.dir}/mnt/", f"{self.dir}/hosts/")):
                targets.append(target)
        return targets[::-1]

    def loops(self) -> list[str]:
        """Loop devices on files of the lab."""
        found = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if path.read_text(encoding="utf-8").startswith(str(self.dir) + "/"):
                    found.append("/dev/" + path.parent.parent.name)
        return found

    def sweep(self) -> None:
        """Leave nothing running, whatever state it is in; files stay."""
        self.kill_belongings()
        for target in self.mounts_here():
            run("umount", "--lazy", target, check=False)
        if Path("/sys/class/net", self.uplink).exists():
            run("ip", "link", "del", self.uplink, check=False)
        for name in self.netns_names():
            run("ip", "netns", "del", name, check=False)
            with contextlib.suppress(OSError):  # a file that a killed `ip netns add` left
                (RUN_NETNS / name).unlink()
        shutil.rmtree(self.control, ignore_errors=True)
        # loop devices let go by themselves once the last mount is gone: give them the time, then see to it
        if not util.wait_for(lambda: not self.loops(), 3):
            for device in self.loops():
                run("losetup", "--detach", device, check=False)
            util.wait_for(lambda: not self.loops(), 5)
        left = self.leftovers()
        if left:
            raise LabError("could not remove:\n  " + "\n  ".join(left))


def number(host: str) -> int:
    """kvm7 -> 7"""
    return int(host[3:])


def names(count: int) -> list[str]:
    return [f"kvm{index}" for index in range(1, count + 1)]


def networks_in_use(besides: str = "") -> list[ipaddress.IPv4Network]:
    """Networks the machine has routes to, and the hosts that are its name servers."""
    found = []
    for route in json.loads(run("ip", "-4", "-json", "route", "show", "table", "all").stdout or "[]"):
        if route.get("dst") == "default" or route.get("dev") == besides:
            continue
        with contextlib.suppress(ValueError):
            found.append(ipaddress.IPv4Network(route["dst"], strict=False))
    with contextlib.suppress(OSError):
        for line in Path("/etc/resolv.conf").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.IPv4Network(words[1]))
    return found


def labs_under(base: Path) -> Sequence[Lab]:
    """Labs with a directory under base, and labs whose directory was there: their processes and uplinks tell."""
    directories = {path.parent for path in base.glob("*/lab.json")}
    directories |= {path.parent for path in base.glob("*/lock") if path.parent.name != "cache"}
    for item in util.processes():
        directory = item.environment().get("KVMOPS_LAB_DIR")
        if directory and Path(directory).parent == base and item.environment().get("KVMOPS_LAB_ID"):
            directories.add(Path(directory))
    for link in json.loads(run("ip", "-json", "link", "show").stdout or "[]"):
        alias = link.get("ifalias") or ""
        if link["ifname"].startswith("kvl") and Path(alias).parent == base:
            directories.add(Path(alias))
    labs = []
    for path in sorted(directories):
        with contextlib.suppress(LabError):  # not a lab's name: not a lab
            labs.append(Lab(path.name, str(path)))
    return labs
