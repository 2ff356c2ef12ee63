# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Where a VM moves: how the destination's libvirtd is reached, and on which address it takes the VM's memory and disks.

The rules are those of libvirt's pages "Connection URIs" and "Guest migration".
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from .._core.errors import Invalid

TLS, SSH, TCP = "tls", "ssh", "tcp"
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def connection_uri(destination: str, transport: str, *, insecure_tcp: bool) -> str:
    """The URI of the destination's libvirtd, as the source's libvirtd and the module use it.

    :param destination: A host name or an address, or a whole URI.
    :param transport: ``tls`` or ``ssh``, for one that is no URI.
    :param insecure_tcp: Whether a URI may say ``qemu+tcp``: neither encrypted nor, mostly, authenticated.
    :raises Invalid: It is neither, or not allowed, or means this machine.
    """
    if "://" not in destination:
        if not _HOST.fullmatch(destination):
            raise Invalid(f"dest {destination!r} is neither a host name nor an address nor a libvirt URI.")
        return f"qemu+{transport}://{_bracketed(destination)}/system"
    parts = urlsplit(destination)
    if not parts.hostname:
        raise Invalid(
            f"dest {destination!r} names no host: it would mean another one on each machine.",
            hint="Say the destination's host name, or a URI such as qemu+tls://kvm2.example.com/system.",
        )
    if parts.scheme.endswith("+tcp") and not insecure_tcp:
        raise Invalid(
            f"dest {destination!r} is not encrypted.",
            hint="Use qemu+tls or qemu+ssh, or say insecure_tcp: true in a network that you trust.",
        )
    return destination


def host_of(uri: str) -> str:
    """The host name or address in a connection URI; empty for this machine."""
    return urlsplit(uri).hostname or ""


def transport_of(uri: str) -> str:
    """``tls``, ``ssh``, ``tcp`` … of a connection URI. libvirt takes TLS where a remote URI says nothing."""
    parts = urlsplit(uri)
    driver_transport = parts.scheme.partition("+")[2]
    return driver_transport or (TLS if parts.hostname else "unix")


def same_way(uri: str, host: str) -> str:
    """The URI of another host that is reached as the one of *uri* is."""
    parts = urlsplit(uri)
    user, at, _host = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{user}{at}{_bracketed(host)}{port}").geturl()


def migration_address(uri: str, network: str) -> str:
    """The address on which the destination's QEMU listens, or empty: libvirt's choice, the destination's host name.

    :param uri: The connection URI of the destination.
    :param network: An address or a host name, or a suffix of the destination's host name that begins with a hyphen or a
        dot: with ``-mig``, kvm2.example.com is kvm2-mig.example.com; with ``.mig.example.com`` it is
        kvm2.mig.example.com.
    :raises Invalid: It is none of these.
    """
    if not network:
        return ""
    host = host_of(uri)
    name, dot, domain = host.partition(".")
    if network.startswith("-"):
        address = f"{name}{network}{dot}{domain}"
    elif network.startswith("."):
        address = f"{name}{network}"
    else:
        address = network
    if not _HOST.fullmatch(address) or (network[0] in "-." and ":" in host):
        raise Invalid(f"migration_network {network!r} is neither an address nor a host name nor a suffix of {host!r}.")
    return address


def migrate_uri(address: str) -> str:
    """The URI for ``VIR_MIGRATE_PARAM_URI``; libvirt chooses the port (``migration_port_min`` in qemu.conf)."""
    return f"tcp://{_bracketed(address)}"
