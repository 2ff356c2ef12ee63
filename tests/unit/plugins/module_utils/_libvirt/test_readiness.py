# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a destination answers about a VM, however little of it its libvirt knows."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.host import Host
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.inventory import Inventory
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.readiness import Readiness
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.needs import Needs, read_needs
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.preflight import Fit
from tests.unit.hypervisor import Hypervisor, hypervisor

CAPABILITIES = """
<capabilities><host><uuid>u</uuid><cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
  <topology sockets='1' cores='4' threads='2'/><feature name='{feature}'/>
  <pages unit='KiB' size='4'/><pages unit='KiB' size='2048'/><pages unit='KiB' size='1048576'/></cpu>
  <topology><cells num='2'><cell id='0'/><cell id='1'/></cells></topology></host>
</capabilities>"""
DOMAIN = """
<domain type='kvm'><name>a</name><memory>1</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>{cpu}
  <devices><emulator>{emulator}</emulator></devices>
</domain>"""
CUSTOM = """<cpu mode='custom' match='exact' check='full'><model>EPYC</model><topology sockets='9'/>
<feature policy='require' name='x2apic'/><numa/></cpu>"""


def error(code: int, text: str = "no") -> libvirt.libvirtError:
    """What libvirt raises."""
    exc = libvirt.libvirtError(text)
    exc.err = (code, 0, f"said: {text}", libvirt.VIR_ERR_ERROR, "said: %s", text, None, 0, 0)
    return exc


class Connection:
    """A destination, as libvirt's binding shows it.

    :param cpu: libvirt's answer about CPUs, or the error that it raises.
    """

    def __init__(self, *, cpu: int | libvirt.libvirtError = 2, types: t.Sequence[str] = ("kvm",)) -> None:
        self.cpu = cpu
        self.types = types
        self.feature = "svm"
        self.compared: list[str] = []

    def setKeepAlive(self, _interval: int, _count: int) -> None:  # noqa: N802
        """Can be done."""

    def getHostname(self) -> str:  # noqa: N802
        """Its name."""
        return "kvm2"

    def getCapabilities(self) -> str:  # noqa: N802
        """Its CPU, pages and nodes."""
        return CAPABILITIES.format(feature=self.feature)

    def getFreePages(self, sizes: list[int], first: int, count: int) -> dict[int, dict[int, int]]:  # noqa: N802
        """A few in each node."""
        assert (sizes, first, count) == ([2048, 1048576], 0, 2)
        return {0: {2048: 3, 1048576: 1}, 1: {2048: 4, 1048576: 0}}

    def getDomainCapabilities(  # noqa: N802
        self, emulator: str | None, arch: str | None, machine: str | None, domain_type: str | None
    ) -> str:
        """One machine, one program."""
        if arch != "x86_64":
            raise error(libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
        if domain_type not in self.types or machine == "q36":
            raise error(libvirt.VIR_ERR_INVALID_ARG)
        if emulator not in (None, "/usr/bin/qemu"):
            raise error(libvirt.VIR_ERR_SYSTEM_ERROR)
        if machine == "broken":
            raise error(libvirt.VIR_ERR_RPC, "the line is dead")
        return """<domainCapabilities><vcpu max='240'/><devices><tpm supported='yes'><enum name='backendModel'>
            <value>passthrough</value></enum></tpm></devices></domainCapabilities>"""

    def compareHypervisorCPU(  # noqa: N802
        self, emulator: str | None, arch: str, machine: str | None, domain_type: str, xml: str, flags: int
    ) -> int:
        """What it was told to say."""
        assert (arch, machine, domain_type) == ("x86_64", None, "kvm")
        assert flags == libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
        self.compared.append(xml)
        if isinstance(self.cpu, libvirt.libvirtError):
            raise self.cpu
        return self.cpu


def needs(*, machine: str = "q35", cpu: str = CUSTOM, emulator: str = "/usr/bin/qemu") -> Needs:
    """Of a VM."""
    return read_needs(ET.fromstring(DOMAIN.format(machine=machine, cpu=cpu, emulator=emulator)))


def fit(connection: Connection, wanted: Needs) -> Fit:
    """What the destination answers about a VM that is on a host like it."""
    here = Readiness(Host(Connection(), "qemu+tls://kvm1/system")).cpu
    return Readiness(Host(connection, "qemu+tls://kvm2/system")).fit(wanted, here)


FITS = Fit(machine_known=True, max_vcpus=240, cpu_compatible=True, same_cpu=True, tpms=frozenset(("passthrough",)))


def test_a_vm_that_fits_is_said_to() -> None:
    assert fit(Connection(), needs()) == FITS


def test_a_machine_a_program_and_a_type_that_are_not_there_are_told_apart() -> None:
    unknown = replace(FITS, machine_known=False, max_vcpus=0, tpms=None)
    assert fit(Connection(), needs(machine="q36")) == unknown
    assert fit(Connection(), needs(emulator="/opt/qemu")) == replace(FITS, emulator_there=False)
    assert fit(Connection(), needs(machine="q36", emulator="/opt/qemu")) == replace(unknown, emulator_there=False)
    assert fit(Connection(types=("qemu",)), needs()) == Fit()


def test_an_error_that_is_no_answer_is_raised() -> None:
    with pytest.raises(LifecycleError, match=r"find out what VMs kvm2 can run: said: the line is dead"):
        fit(Connection(), needs(machine="broken"))


@pytest.mark.parametrize(
    ("answer", "compatible", "reason"),
    [
        (libvirt.VIR_CPU_COMPARE_IDENTICAL, True, ""),
        (libvirt.VIR_CPU_COMPARE_SUPERSET, True, ""),
        (libvirt.VIR_CPU_COMPARE_INCOMPATIBLE, False, ""),
        (error(libvirt.VIR_ERR_CPU_INCOMPATIBLE, "features: avx512f"), False, "features: avx512f"),
        (error(libvirt.VIR_ERR_INTERNAL_ERROR, "Unknown CPU model EPYC"), False, "Unknown CPU model EPYC"),
        (error(libvirt.VIR_ERR_NO_SUPPORT), None, ""),
    ],
)
def test_the_guests_cpu_is_compared_by_model_and_features(answer: t.Any, compatible: bool | None, reason: str) -> None:
    connection = Connection(cpu=answer)
    assert fit(connection, needs()) == replace(FITS, cpu_compatible=compatible, cpu_reason=reason)
    (compared,) = map(ET.fromstring, connection.compared)
    assert compared.attrib == {"mode": "custom", "match": "exact", "check": "full"}
    assert [node.tag for node in compared] == ["model", "feature"]


def test_where_the_guest_sees_the_hosts_cpu_that_one_is_compared() -> None:
    connection = Connection()
    connection.feature = "avic"
    assert fit(connection, needs(cpu="<cpu mode='host-passthrough'/>")) == replace(FITS, same_cpu=False)
    (compared,) = map(ET.fromstring, connection.compared)
    assert (compared.attrib, compared.findtext("model")) == ({}, "EPYC")
    assert [node.get("name") for node in compared.iterfind("feature")] == ["svm"]


@pytest.mark.parametrize("cpu", ["", "<cpu mode='host-model'/>", "<cpu mode='maximum'/>"])
def test_a_cpu_that_is_chosen_at_the_start_is_no_question(cpu: str) -> None:
    connection = Connection()
    assert fit(connection, needs(cpu=cpu)) == replace(FITS, cpu_compatible=None)
    assert connection.compared == []


def test_huge_pages_are_those_of_all_nodes() -> None:
    assert Readiness(Host(Connection(), "qemu+tls://kvm2/system")).huge_pages() == {2048: 7, 1048576: 1}


@pytest.fixture
def kvm() -> t.Iterator[Hypervisor]:
    """A host."""
    with hypervisor() as made:
        yield made


def test_a_host_that_does_without_parts_of_libvirt_is_known_in_part(
    kvm: Hypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test driver does without this one as well, which every host has.
    monkeypatch.setattr(Inventory, "memory", lambda _self: {"total": 4096, "free": 1024, "available": 2048})
    kvm.define("web1")
    kvm.define("web2", running=False)
    found = Readiness(kvm.host).facts()
    assert [(vm.name, vm.active) for vm in found.vms] == [("web1", True), ("web2", False)]
    assert found.promised == 512
    assert (found.networks, found.pools) == ({"default": True}, {"default-pool": True})
    assert found.filters is None  # the test driver has none
    assert found.libvirt > (8, 0)
