# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What libvirt does not tell about the machine that it runs on, and a migration depends on: names, ports, certificates,
settings. Only of this machine."""

from __future__ import annotations

import os
import re
import socket
import typing as t

from .._core.errors import Invalid
from .._model.certificate import read_certificates
from .._model.facts import Mount, read_mounts
from .._model.preflight import Paper

# libvirt's page "TLS certificates", and qemu.conf
_PKI = "/etc/pki"
_QEMU_CONF = "/etc/libvirt/qemu.conf"
_SETTING = re.compile(r'^\s*(\w+)\s*=\s*(?:"([^"]*)"|(-?\d+))', re.MULTILINE)

# Ports of libvirtd: TLS, TCP; and ssh.
_PORTS = {16514: "tls", 16509: "tcp", 22: "ssh"}
_LISTEN = "0A"
# The kernel's tables of sockets, with the bytes of an address; and of mounts.
_TABLES = (("/proc/net/tcp", 4), ("/proc/net/tcp6", 16))
_MOUNTS = "/proc/self/mounts"
_MOUNT_TABLE = "/proc/self/mountinfo"

Settings = dict[str, t.Union[str, int]]


def read_settings(path: str) -> Settings | None:
    """A configuration file of libvirt, as far as it holds strings and numbers; ``None`` when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    return {name: int(number) if number else word for name, word, number in _SETTING.findall(text)}


def qemu_settings() -> Settings | None:
    """Those of libvirt's QEMU driver."""
    return read_settings(_QEMU_CONF)


def migration_ports(settings: Settings | None) -> tuple[int, int]:
    """The first and the last port on which QEMU takes a migration."""
    told = settings or {}
    return int(told.get("migration_port_min", 49152)), int(told.get("migration_port_max", 49215))


# ---- names and ports


def resolve(name: str) -> list[str]:
    """The addresses of a host name; none when it is not known."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]) for *_kind, address in found))


def gets_there(name: str, port: int, *, timeout: float) -> bool:
    """Whether packets to a port of another host are answered, be it that nobody listens there. A firewall mostly lets
    them vanish, or says that it does not want them.

    :param timeout: Seconds.
    """
    try:
        socket.create_connection((name, port), timeout=timeout).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def is_own(address: str) -> bool:
    """Whether an address is one of this machine."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError:  # it is not, or of the other family
                continue
            return True
    return False


def listening() -> list[dict[str, t.Any]]:
    """On what addresses libvirtd and sshd are reached, as far as they have their usual ports."""
    found = set()
    for table, size in _TABLES:
        try:
            with open(table, encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            address, port = row[1].rsplit(":", 1)
            if row[3] == _LISTEN and int(port, 16) in _PORTS:
                found.add((int(port, 16), _address(address, size)))
    return [{"service": _PORTS[port], "port": port, "address": address} for port, address in sorted(found)]


def _address(text: str, size: int) -> str:
    """The kernel writes each 32 bits as a number of the machine's byte order."""
    raw = bytes.fromhex(text)
    swapped = b"".join(raw[start : start + 4][::-1] for start in range(0, size, 4))
    return socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, swapped)


# ---- certificates


def papers(settings: Settings | None) -> list[Paper]:
    """All certificates that migrations from and to this machine may need.

    :param settings: Of the QEMU driver.
    """
    private = f"{_PKI}/libvirt/private"
    found = [
        _paper("libvirt", "authority", f"{_PKI}/CA/cacert.pem"),
        _paper("libvirt", "client", f"{_PKI}/libvirt/clientcert.pem", f"{private}/clientkey.pem"),
        _paper("libvirt", "server", f"{_PKI}/libvirt/servercert.pem", f"{private}/serverkey.pem"),
    ]
    told = settings or {}
    usual = f"{_PKI}/libvirt-migrate" if os.path.isdir(f"{_PKI}/libvirt-migrate") else f"{_PKI}/qemu"
    place = str(told.get("migrate_tls_x509_cert_dir") or told.get("default_tls_x509_cert_dir") or usual)
    found.append(_paper("qemu", "authority", f"{place}/ca-cert.pem"))
    found += [
        _paper("qemu", role, f"{place}/{role}-cert.pem", f"{place}/{role}-key.pem") for role in ("client", "server")
    ]
    return found


def checks_clients(settings: Settings | None) -> bool:
    """Whether the hosts' QEMUs want a certificate of each other's client; all hosts are taken to be alike."""
    told = settings or {}
    return bool(told.get("migrate_tls_x509_verify", told.get("default_tls_x509_verify", 1)))


def _paper(purpose: str, role: str, path: str, key: str = "") -> Paper:
    missing = tuple(each for each in (path, key) if each and not os.path.lexists(each))
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            certificate = read_certificates(file.read())[0]
    except FileNotFoundError:
        return Paper(purpose, role, path, key, missing)
    except OSError as exc:
        return Paper(purpose, role, path, key, missing, problem=f"{exc.strerror}.")
    except Invalid as exc:
        return Paper(purpose, role, path, key, missing, problem=exc.message)
    return Paper(purpose, role, path, key, missing, certificate)


# ---- network devices and storage


def links() -> list[str]:
    """Bridges and network devices."""
    return [name for _number, name in socket.if_nameindex()]


def mounts() -> list[Mount]:
    """What is mounted where; nothing where the kernel does not tell."""
    try:
        with open(_MOUNT_TABLE, encoding="utf-8", errors="surrogateescape") as file:
            return read_mounts(file.read())
    except OSError:
        return []


def file_system(path: str) -> str:
    """The type of the file system that a file is on, as the kernel names it; empty when that cannot be told."""
    real, best, found = os.path.realpath(path), "", ""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return ""
    for _device, place, kind, *_rest in mounts:
        point = place.replace("\\040", " ").rstrip("/")
        if f"{real}/".startswith(f"{point}/") and len(point) >= len(best):
            best, found = point, kind
    return found
