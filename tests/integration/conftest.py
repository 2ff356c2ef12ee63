# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab for the tests."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from tests.integration.harness import LAB, Glance, Lab, Playbook, Result, order, run, task

HOSTS = 2

# Tests that run at the same time have labs of their own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["KVMOPS_LAB"] = f"{os.environ.get('KVMOPS_LAB', 'lab')}-{os.environ['PYTEST_XDIST_WORKER']}"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Lab]:
    """Two KVM hosts."""
    run([str(LAB), "up", "--hosts", str(HOSTS)], check=True, timeout=900)
    try:
        lab = Lab(tmp_path_factory.mktemp("lab") / "inventory.yml")
        lab.clean()
        yield lab
    finally:
        run([str(LAB), "down"], check=True, timeout=120)


@pytest.fixture(scope="module")
def third(lab: Lab) -> t.Iterator[None]:
    """A third host, kvm3, for the tests of a file."""
    lab.up(hosts=3)
    try:
        yield
    finally:
        lab.clean()
        lab.keep(HOSTS)


@pytest.fixture
def fourth(lab: Lab, third: None) -> t.Iterator[None]:
    """A fourth one, kvm4, for a test. It is gone with what it has."""
    lab.up(hosts=4)
    try:
        yield
    finally:
        lab.keep(3)


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> t.Iterator[None]:
    """Every test ends with empty hosts, and so begins with them."""
    yield
    lab.clean()


@pytest.fixture
def healed(lab: Lab) -> t.Iterator[None]:
    """Whatever a test broke, and hosts in scheduling."""
    yield
    for host in lab.hosts:
        lab.fault(host, "heal")
        lab.sh(host, "rm -f /var/lib/kvmops/scheduling.json")


@pytest.fixture(scope="session")
def started_glance(lab: Lab) -> Glance:
    """Glance and Keystone, from the first test on that wants them. The inventory then has their variables."""
    lab.up("--glance", hosts=len(lab.hosts))
    lab.glance.clean()
    return lab.glance


@pytest.fixture
def glance(started_glance: Glance) -> t.Iterator[Glance]:
    """A Glance without images and faults; the same afterwards."""
    yield started_glance
    started_glance.clean()


@pytest.fixture
def play(lab: Lab, tmp_path: Path) -> Playbook:
    """Runs tasks on the lab."""
    return Playbook(lab, tmp_path)


@pytest.fixture
def image(lab: Lab) -> str:
    """A small image with a pattern, and nothing to boot."""
    path = "/var/lib/libvirt/images/one.qcow2"
    lab.sh("kvm1", f"qemu-img create -q -f qcow2 {path} 8M && qemu-io -f qcow2 -c 'write -P 1 0 1M' {path}")
    return path


@pytest.fixture
def launch(lab: Lab, play: Playbook) -> t.Callable[..., Result]:
    """Launches small VMs: ``launch("a", "b", host="kvm2", start=False)``."""

    def do(*names: str, host: str = "kvm1", **options: t.Any) -> Result:
        return t.cast("Result", play(task("vm", **order(lab, *names, **options)), host=host).ok()["result"])

    return do
