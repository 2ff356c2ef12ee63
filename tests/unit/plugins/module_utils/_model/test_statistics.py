# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Statistics as libvirt 9 gives them."""

from __future__ import annotations

import typing as t

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.statistics import (
    Size,
    answered,
    figures,
    sizes,
)

RUNNING: dict[str, t.Any] = {
    "state.state": 1,
    "state.reason": 1,
    "cpu.time": 6660000000,
    "cpu.user": 5670000000,
    "cpu.system": 990000000,
    "balloon.current": 131072,
    "balloon.maximum": 262144,
    "balloon.unused": 61836,
    "balloon.rss": 255000,
    "vcpu.current": 2,
    "vcpu.maximum": 4,
    "net.count": 2,
    "net.0.name": "vnet0",
    "net.0.rx.bytes": 2666,
    "net.0.rx.pkts": 19,
    "net.0.tx.drop": 3,
    "block.count": 3,
    "block.0.name": "vda",
    "block.0.path": "/top.qcow2",
    "block.0.backingIndex": 2,
    "block.0.rd.reqs": 765,
    "block.0.rd.bytes": 25387008,
    "block.0.allocation": 0,
    "block.0.capacity": 134217728,
    "block.0.physical": 200704,
    "block.1.name": "vda",
    "block.1.path": "/base.raw",
    "block.1.backingIndex": 3,
    "block.1.allocation": 0,
    "block.1.capacity": 67108864,
    "block.1.physical": 4096,
    "block.2.name": "sda",
    "block.2.rd.reqs": 3,
}
OFF: dict[str, t.Any] = {
    "state.state": 5,
    "cpu.time": 5890000000,
    "vcpu.current": 1,
    "block.count": 1,
    "block.0.name": "vda",
    "block.0.path": "/top.qcow2",
    "block.0.allocation": 200704,
    "block.0.capacity": 134217728,
    "block.0.physical": 196616,
}


def test_cpu_time_is_in_seconds_and_memory_in_mebibytes() -> None:
    told = figures(RUNNING)
    assert told["cpu"] == {"time": 6.66, "user": 5.67, "system": 0.99, "vcpus": 2}
    assert told["memory"] == {
        "current": 128,
        "maximum": 256,
        "available": None,
        "unused": 60,
        "usable": None,
        "rss": 249,
    }


def test_a_disk_comes_once_however_long_its_chain() -> None:
    assert figures(RUNNING)["block"] == [
        {
            "target": "vda",
            "read_requests": 765,
            "read_bytes": 25387008,
            "write_requests": None,
            "write_bytes": None,
            "flush_requests": None,
        },
        {
            "target": "sda",
            "read_requests": 3,
            "read_bytes": None,
            "write_requests": None,
            "write_bytes": None,
            "flush_requests": None,
        },
    ]


def test_a_card_without_a_device_on_the_host_has_no_figures() -> None:
    (net,) = figures(RUNNING)["net"]
    assert (net["tap"], net["rx_bytes"], net["rx_packets"], net["tx_drops"]) == ("vnet0", 2666, 19, 3)
    assert net["tx_bytes"] is None


def test_a_running_vm_has_the_sizes_of_every_layer() -> None:
    assert sizes(RUNNING, running=True) == {
        ("vda", 2): Size("/top.qcow2", 134217728, 200704),
        ("vda", None): Size("/top.qcow2", 134217728, 200704),
        ("vda", 3): Size("/base.raw", 67108864, 4096),
        ("sda", None): Size("", None, None),
    }


def test_a_vm_that_is_off_has_the_size_of_the_top_layer() -> None:
    assert sizes(OFF, running=False) == {("vda", None): Size("/top.qcow2", 134217728, 200704)}


def test_a_qemu_that_was_not_asked_is_told_by_what_only_it_knows() -> None:
    assert answered(RUNNING)
    assert not answered(OFF)
    assert not answered({})


def test_nothing_known_is_no_error() -> None:
    told = figures({})
    assert told["block"] == told["net"] == []
    assert set(told["cpu"].values()) == set(told["memory"].values()) == {None}


def test_groups_beyond_their_count_are_ignored() -> None:
    assert figures({"net.count": 1, "net.0.name": "a", "net.5.name": "b", "net.x.name": "c"})["net"][0]["tap"] == "a"
