# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a machine takes VMs, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import cordon
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.scheduling import Scheduling


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file."""
    found = tmp_path / "kvmops/scheduling.json"
    monkeypatch.setattr(cordon, "PATH", str(found))
    return found


def test_it_is_kept_until_it_is_enabled_and_everybody_may_read_it(path: Path) -> None:
    assert cordon.read_scheduling() == Scheduling()
    cordon.write_scheduling(Scheduling())
    assert not path.parent.exists()
    kept = Scheduling(False, "memory", "then", "ada")
    for _again in range(2):
        cordon.write_scheduling(kept)
        assert cordon.read_scheduling() == kept
    assert path.stat().st_mode & 0o777 == 0o644
    cordon.write_scheduling(Scheduling())
    assert list(path.parent.iterdir()) == []
    assert cordon.read_scheduling() == Scheduling()


def test_what_cannot_be_read_counts_as_disabled(path: Path) -> None:
    path.mkdir(parents=True)
    found = cordon.read_scheduling()
    assert (found.enabled, found.known) == (False, False)
    assert found.reason.startswith(f"{path} cannot be read: ")
    with pytest.raises(LifecycleError, match=f"Failed to write {path}: "):
        cordon.write_scheduling(Scheduling(False))
    path.rmdir()
    path.write_bytes(b"\xff{")
    assert cordon.read_scheduling().reason == f"{path} is damaged."
