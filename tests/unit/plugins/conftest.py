# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all of these tests stand on: locks of their own, a KVM host, properties that are tried alike in every run."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import lock
from tests.unit.hypervisor import Hypervisor, Task, hypervisor

settings.register_profile(
    "unit",
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# To look for more: HYPOTHESIS_PROFILE=search tests/parts/unit.sh
settings.register_profile("search", settings.get_profile("unit"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))


@pytest.fixture(autouse=True)
def lock_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's locks lie: nobody else's are touched, and no test leaves any. It is made with the first."""
    directory = tmp_path_factory.getbasetemp() / "locks" / uuid.uuid4().hex
    monkeypatch.setattr(lock, "DIRECTORY", str(directory))
    return directory


@pytest.fixture
def kvm() -> Iterator[Hypervisor]:
    """libvirt's in-memory driver, without VMs."""
    with hypervisor() as made:
        yield made


@pytest.fixture
def task(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Task:
    """Runs modules."""
    return Task(capsys, tmp_path)
