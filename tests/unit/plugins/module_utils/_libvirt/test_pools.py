# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Storage pools of processes that did not live to take them away."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import pools
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.pools import PoolStorage
from tests.unit.hypervisor import Hypervisor

HERE = pools._here()


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(30)
    return process.pid


@pytest.fixture
def connection(kvm: Hypervisor) -> t.Iterator[t.Any]:
    """libvirt's test driver, without pools that others see afterwards."""
    connection = kvm.host.connection
    yield connection
    for pool in connection.listAllStoragePools():
        if pool.name().startswith("kvmops-"):
            pool.destroy()


def make(connection: t.Any, name: str) -> t.Any:
    """A transient pool."""
    return connection.storagePoolCreateXML(
        f"<pool type='dir'><name>{name}</name><target><path>/srv/{name}</path></target></pool>"
    )


def left(connection: t.Any) -> list[str]:
    """The pools of ours that there are."""
    return [pool.name() for pool in connection.listAllStoragePools() if pool.name().startswith("kvmops-")]


def test_what_the_dead_left_goes_with_the_next_that_ends(kvm: Hypervisor, connection: t.Any, dead: int) -> None:
    make(connection, f"kvmops-{HERE}-{dead}-0123abcd")
    PoolStorage(kvm.host).close()
    assert left(connection) == []


def test_nobody_takes_a_pool_that_may_be_in_use(kvm: Hypervisor, connection: t.Any, dead: int) -> None:
    """Of the living, of another machine or container, and those of the host itself."""
    kept = {
        f"kvmops-{HERE}-{os.getppid()}-0123abcd",
        f"kvmops-{'0' * 8}-{dead}-0123abcd",
        "kvmops-images",
        f"kvmops-{HERE}-{dead}-0123abcd-copy",
    }
    for name in kept:
        make(connection, name)
    PoolStorage(kvm.host).close()
    assert set(left(connection)) == kept


def test_the_name_of_a_pool_tells_who_made_it(connection: t.Any, dead: int) -> None:
    pool = connection.storagePoolCreateXML(pools._pool_xml("/srv/images"))
    assert not pools._take_away(pool)
    assert pool.name().startswith(f"kvmops-{HERE}-{os.getpid()}-")
    theirs = make(connection, pool.name().replace(f"-{os.getpid()}-", f"-{dead}-"))
    assert pools._take_away(theirs)
    assert left(connection) == [pool.name()]


def test_two_that_take_away_the_same_do_not_quarrel(connection: t.Any, dead: int) -> None:
    pool = make(connection, f"kvmops-{HERE}-{dead}-0123abcd")
    connection.storagePoolLookupByName(pool.name()).destroy()
    assert pools._take_away(pool)
