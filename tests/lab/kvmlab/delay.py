# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries frames between a host's port and a TAP device in the switch, late: python3 -m kvmlab.delay PORT TAP SECONDS

For kernels without netem. Each direction is delayed by SECONDS and keeps its order. Frames go with their virtio-net
header from a packet socket to the TAP device and back, so that checksums and segmentation left to the hardware come
through as they are.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import socket
import struct
import sys
import time

from .util import LabError, run

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_ALL = 0x01 | 0x02 | 0x04 | 0x08  # checksum, TSO4, TSO6, ECN
_SOL_PACKET = 263
_PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 15, 23
_ETH_P_ALL = 0x0003
_FRAME = 65536 + 64
_BACKLOG = 10000  # frames a direction may hold; more are lost, as in any queue


def _tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _TUN_F_ALL)
    return descriptor


def _port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
    port.bind((name, _ETH_P_ALL))
    port.setblocking(False)
    return port


def main(port_name: str, tap_name: str, seconds: float) -> None:
    """Until the port is gone."""
    tap = _tap(tap_name)
    port = _port(port_name)
    run("ip", "link", "set", port_name, "nomaster", "promisc", "on")
    run("ip", "link", "set", tap_name, "master", "sw0", "up")
    queues: dict[int, collections.deque[tuple[float, bytes]]] = {
        tap: collections.deque(maxlen=_BACKLOG),  # towards the TAP device
        port.fileno(): collections.deque(maxlen=_BACKLOG),
    }
    other = {tap: port.fileno(), port.fileno(): tap}
    while _there(port_name):
        due = [queue[0][0] for queue in queues.values() if queue]
        wait = max(0.0, min(due) - time.monotonic()) if due else 1.0
        ready = select.select(list(queues), [], [], wait)[0]
        now = time.monotonic()
        for descriptor in ready:
            for _count in range(64):
                try:
                    frame = os.read(descriptor, _FRAME)
                except OSError:  # nothing more, or the link is down
                    break
                queues[other[descriptor]].append((now + seconds, frame))
        now = time.monotonic()
        for descriptor, queue in queues.items():
            while queue and queue[0][0] <= now:
                _due, frame = queue.popleft()
                try:
                    os.write(descriptor, frame)
                except OSError:  # the link is down, or the queue is full: frames get lost
                    continue


def _there(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    except LabError as error:
        sys.exit(str(error))
