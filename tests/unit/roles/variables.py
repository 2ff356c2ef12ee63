# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Variables of roles, evaluated as Ansible does, and what hosts tell of themselves."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLES = Path(__file__).resolve().parents[3] / "roles"
Facts = dict[str, t.Any]


def variable(role: str, name: str, told: Facts) -> t.Any:
    """A variable of a role, without the role's name before its own, where *told* is known and takes the place of
    others."""
    loader = DataLoader()
    known = {**loader.load_from_file(str(ROLES / role / "vars/main.yml"), trusted_as_template=True), **told}
    return Templar(loader, variables=known).template(known[f"{role}__{name}"])


def vm(uuid: str, **told: t.Any) -> Facts:
    """What a host tells of one of its VMs."""
    return {"uuid": uuid, "status": "ACTIVE", "task_state": "", "condition": "running", "origin": None, **told}


def host(name: str, *vms: Facts, enabled: bool = True, reason: str = "") -> Facts:
    """What a host tells of itself."""
    return {"name": name, "vms": list(vms), "scheduling": {"enabled": enabled, "reason": reason}}
