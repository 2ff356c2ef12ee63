# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from . import faults, glance, hosts
from .glance_template import ACCOUNTS, GLANCE_URL, KEYSTONE_URL
from .lab import BASE, IMAGES, PRIVATE, SHARED, VENV, Lab, labs_under
from .util import LabError, say


def _shell_quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def ssh_options(lab: Lab) -> list[str]:
    """Nothing of the user's own ssh settings plays in; a connection is shared by what comes within half a minute."""
    options = {
        "UserKnownHostsFile": lab.dir / "ssh" / "known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "ControlMaster": "auto",
        "ControlPersist": "30s",
        "ControlPath": f"{lab.control}/%C",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "ConnectTimeout": "10",
        "LogLevel": "ERROR",
    }
    words = ["-F", "/dev/null"]
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    return words


def uri_from_machine(lab: Lab, host: str) -> str:
    return f"qemu+tls://{lab.address(host)}/system?pkipath={lab.pki}"


def inventory(lab: Lab) -> dict[str, Any]:
    """The inventory, as data."""
    members = {}
    for host in lab.hosts():
        members[host] = {
            "ansible_host": lab.address(host),
            "lab_host_uuid": hosts.host_uuid(lab, host),
            "lab_uri": uri_from_machine(lab, host),
            "lab_uri_tls": f"qemu+tls://{host}/system",
            "lab_uri_ssh": f"qemu+ssh://root@{host}/system",
        }
    settings = lab.settings()
    variables = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(lab.key),
        "ansible_ssh_args": " ".join(ssh_options(lab)),
        "ansible_pipelining": True,
        "ansible_ssh_pipelining": True,
        "ansible_python_interpreter": VENV + "/bin/python",
        "lab_name": lab.name,
        "lab_dir": str(lab.dir),
        "lab_subnet": settings.subnet + ".0/24",
        "lab_controller": f"{settings.subnet}.254",
        "lab_pki": str(lab.pki),
        "lab_images": IMAGES,
        "lab_guest_image": IMAGES + "/guest.qcow2",
        "lab_guest_generic_image": IMAGES + "/guest-generic.qcow2",
        "lab_rescue_image": IMAGES + "/rescue.qcow2",
        "lab_shared": SHARED,
        "lab_private": PRIVATE,
        "lab_bridge": "br0",
        "lab_network": "default",
    }
    if glance.running(lab):
        variables["lab_clouds"] = glance.CLOUDS
        variables["lab_controller_clouds"] = str(glance.directory(lab) / "clouds.yaml")
        variables["lab_glance_url"] = GLANCE_URL
        variables["lab_keystone_url"] = KEYSTONE_URL
        variables["lab_ca_cert"] = glance.CA_CERT
    return {"all": {"children": {"kvm_hosts": {"hosts": members, "vars": variables}}}}


def _yaml(data: dict[str, Any], indent: int = 0) -> str:
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += ["{}{}:".format(" " * indent, key), _yaml(value, indent + 2)]
        else:
            lines.append("{}{}: {}".format(" " * indent, key, json.dumps(value)))
    return "\n".join(lines)


# ---- commands


def command_up(args: argparse.Namespace) -> int:
    lab = Lab(args.name, args.dir)
    booted = hosts.up(lab, args.hosts, args.install, args.private_size, args.shared_size)
    if args.glance and glance.up(lab):
        say(f"Glance of lab {lab.name} is up: cloud {', '.join(ACCOUNTS)} in {glance.CLOUDS}")
    elif glance.made(lab):
        glance.tell(lab)
    if booted:
        say("lab {} is up: {}".format(lab.name, " ".join(lab.hosts())))
    else:
        say(f"lab {lab.name} was up: nothing to do")
    return 0


def command_down(args: argparse.Namespace) -> int:
    if args.all and (args.dir or args.name):
        raise LabError("--all goes alone")
    if args.all:
        hosts.remove_gone(BASE)
    labs = labs_under(BASE) if args.all else [Lab(args.name, args.dir)]
    for lab in labs:
        if hosts.down(lab, args.keep):
            say(f"lab {lab.name} is down")
        else:
            say(f"lab {lab.name} was not there")
    return 0


def command_inventory(args: argparse.Namespace) -> int:
    data = inventory(Lab(args.name, args.dir))
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        print("---\n" + _yaml(data))
    return 0


def command_env(args: argparse.Namespace) -> int:
    lab = Lab(args.name, args.dir)
    lab.settings()
    values = {"KVMOPS_LAB": lab.name, "KVMOPS_LAB_DIR": str(lab.dir)}
    if lab.hosts():
        values["LIBVIRT_DEFAULT_URI"] = uri_from_machine(lab, lab.hosts()[0])
    for key, value in values.items():
        print(f"export {key}={_shell_quote(value)}")
    return 0


def command_exec(args: argparse.Namespace) -> int:
    lab = Lab(args.name, args.dir)
    lab.check_host(args.host)
    argv = lab.enter(args.host) + (args.command or ["bash", "-l"])
    environment = lab.environment("exec")
    environment["TERM"] = os.environ.get("TERM", "dumb")
    os.execvpe(argv[0], argv, environment)


def command_ssh(args: argparse.Namespace) -> int:
    lab = Lab(args.name, args.dir)
    lab.check_host(args.host)
    argv = ["ssh", *ssh_options(lab), "-i", str(lab.key), "root@" + lab.address(args.host), *args.command]
    os.execvp(argv[0], argv)


def command_status(args: argparse.Namespace) -> int:
    lab = Lab(args.name, args.dir)
    if not lab.exists():
        print("{}" if args.json else f"lab {lab.name} is not there ({lab.dir})")
        return 3
    data = {**faults.report(lab), "glance": glance.report(lab)}
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        print(f"lab {lab.name}  {data['subnet']}  hub {data['hub']}  {lab.dir}")
        for host in data["hosts"]:
            words = [host["name"], host["address"], host["state"]]
            if host["state"] != "off":
                words.append("link " + host["link"])
                words += [f"{key} {host[key]}" for key in ("rate", "delay") if host[key]]
                words.append("libvirtd " + ("runs" if host["libvirtd"] else "is down"))
                words.append(f"{host['guests']} guests")
            print("  " + "  ".join(words))
        if data["glance"]:
            print("  " + "  ".join(["cloud", *(f"{key} {value}" for key, value in data["glance"].items() if value)]))
    states = [data["hub"], *(host["state"] for host in data["hosts"])]
    states += [data["glance"][server] for server in glance.SERVERS if data["glance"]]
    good = set(states) == {"on"}
    return 0 if good else 3


def seconds(text: str) -> float:
    """50ms, 0.05s -> 0.05"""
    found = re.fullmatch(r"([0-9.]+)(ms|s)", text)
    try:
        return float(found[1]) / (1000 if found[2] == "ms" else 1) if found else float("")
    except ValueError:
        raise argparse.ArgumentTypeError(f"a time is like 50ms or 1.5s: {text!r}") from None


def size(text: str) -> int:
    """4096, 10M, 1G -> bytes"""
    found = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"a size is like 4096, 10M, 1G: {text!r}")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def rate(text: str) -> str:
    if not re.fullmatch(r"[0-9.]+(k|m|g)?bit", text):
        raise argparse.ArgumentTypeError(f"a rate is like 10mbit: {text!r}")
    return text


def command_fault(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise LabError("the lab needs root")
    lab = Lab(args.name, args.dir)
    if (args.host == glance.NAME) not in args.targets:
        raise LabError(f"{args.fault} is no fault of {args.host}")
    if args.host == glance.NAME:
        return _fault_of_glance(lab, args)
    lab.check_host(args.host)
    with lab.locked():
        if args.fault == "slow":
            faults.slow(lab, args.host, args.rate or "", args.delay)
        elif args.fault == "fill-disk":
            faults.fill_disk(lab, args.host, args.storage, args.leave)
        elif args.fault == "empty-disk":
            faults.empty_disk(lab, args.host, args.storage)
        else:
            getattr(faults, args.fault.replace("-", "_"))(lab, args.host)
    return 0


def _fault_of_glance(lab: Lab, args: argparse.Namespace) -> int:
    with lab.locked():
        if args.fault in glance.KINDS:
            glance.spoil(lab, args.fault, args.on, args.status, args.after, args.times, args.seconds)
        elif args.fault in ("kill", "stop-keystone"):
            glance.stop(lab, "glance" if args.fault == "kill" else "keystone")
        elif args.fault == "fill":
            glance.fill(lab, args.leave)
        elif args.fault == "start":
            glance.start_again(lab)
        else:
            glance.heal(lab)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="lab", description="Several real KVM hosts on one machine. See README.md.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="", help="the lab's name (default: $KVMOPS_LAB, or lab)")
    common.add_argument("--dir", help="its directory (default: $KVMOPS_LAB_DIR, or .lab/NAME in the repository)")
    commands = top.add_subparsers(dest="what", required=True, metavar="COMMAND")

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(function=function)
        return sub

    sub = add("up", command_up, "make a lab and boot its hosts; what runs already is left alone")
    sub.add_argument("--hosts", type=int, metavar="N", help="at least so many hosts (default: those it has, or 2)")
    sub.add_argument("--install", action="store_true", help="install missing Debian packages with apt-get")
    sub.add_argument("--glance", action="store_true", help="with Glance and Keystone (without it: as they are)")
    sub.add_argument("--private-size", default=hosts.PRIVATE_SIZE, help="of each host's own storage (%(default)s)")
    sub.add_argument("--shared-size", default=hosts.SHARED_SIZE, help="of the shared storage (%(default)s)")

    sub = add("down", command_down, "stop everything and remove it, whatever state it is in")
    sub.add_argument("--all", action="store_true", help="all labs of this repository")
    sub.add_argument("--keep", action="store_true", help="stop everything, keep the disks for the next up")

    sub = add("inventory", command_inventory, "print an Ansible inventory (group kvm_hosts)")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("status", command_status, "tell what runs (exit code 3: not everything does)")
    sub.add_argument("--json", action="store_true", help="as JSON")

    sub = add("fault", command_fault, "do something to a host or to Glance, or mend it")
    sub.add_argument("host", help=f"or {glance.NAME}")
    kinds = sub.add_subparsers(dest="fault", required=True, metavar="FAULT")

    def fault(name: str, text: str, targets: Sequence[bool] = (False,)) -> argparse.ArgumentParser:
        kind = kinds.add_parser(name, help=text, description=text)
        kind.set_defaults(targets=targets)  # is it for Glance?
        return kind

    fault("cut", "pull the network cable")
    fault("mend", "plug it in again")
    kind = fault("slow", "slow the link down, both ways")
    kind.add_argument("--rate", type=rate, help="like 10mbit")
    kind.add_argument("--delay", type=seconds, default=0.0, help="each way, like 50ms")
    fault("unslow", "the link at full speed again")
    fault("kill-libvirtd", "SIGKILL; guests run on")
    fault("stop-libvirtd", "SIGTERM; guests run on")
    fault("start-libvirtd", "start it where it does not run")
    fault("freeze", "stop every process, and the link")
    fault("thaw", "let the host go on")
    fault("power-off", "as a power cut")
    fault("boot", "power on: disks and definitions are kept, /run, /tmp and processes are not")
    for name, text in (("fill-disk", "take all room of a storage"), ("empty-disk", "give it back")):
        kind = fault(name, text)
        kind.add_argument("--storage", choices=["private", "shared"], default="private", help="(%(default)s)")
        if name == "fill-disk":
            kind.add_argument("--leave", type=size, default=0, metavar="BYTES", help="but so much, like 10M")
    for name, (text, on) in glance.KINDS.items():
        kind = fault(name, "Glance: " + text, [True])
        kind.set_defaults(status=401, seconds=0.0, on=on[0])
        if len(on) > 1:
            kind.add_argument("--on", choices=on, help="requests (%(default)s)")
        kind.add_argument("--after", type=size, default=0, metavar="BYTES", help="when so much of the body has passed")
        times = 1 if name == "expire" else 0
        kind.add_argument(
            "--times", type=int, default=times, metavar="N", help="then no more; 0: until healed (%(default)s)"
        )
        if name == "fail":
            kind.add_argument("--status", type=int, choices=[500, 503], default=503, help="(%(default)s)")
        if name == "stall":
            kind.add_argument("--seconds", type=float, default=60, help="how long (%(default)s)")
    fault("kill", "Glance: SIGKILL", [True])
    fault("stop-keystone", "Glance: SIGKILL to Keystone", [True])
    fault("start", "Glance: start it and Keystone where they do not run", [True])
    kind = fault("fill", "Glance: no room for images is left", [True])
    kind.add_argument("--leave", type=size, default=0, metavar="BYTES", help="but so much, like 10M")
    fault("heal", "mend whatever is the matter", [False, True])

    add("env", command_env, 'print shell settings: eval "$(lab env)"')

    sub = add("exec", command_exec, "run a command in a host, directly (no command: a shell)")
    sub.add_argument("host")
    sub.add_argument("command", nargs=argparse.REMAINDER)

    sub = add("ssh", command_ssh, "log in to a host by ssh, or run a command there")
    sub.add_argument("host")
    sub.add_argument("command", nargs=argparse.REMAINDER)
    return top


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    try:
        status = args.function(args)
        sys.stdout.flush()
        return int(status)
    except LabError as error:
        say(f"error: {error}")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
