# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What AWX is told: the variables below playbooks/awx/vars."""

from __future__ import annotations

import typing as t
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[1]
AWX = REPO / "playbooks/awx"

Data = dict[str, t.Any]


class Loader(yaml.SafeLoader):
    """YAML with texts that are no templates for who reads them."""


Loader.add_constructor("!unsafe", lambda _loader, node: node.value)


def load(name: str) -> list[Data]:
    """The list in one of the files: ``job_templates``, ``workflows`` or ``schedules``."""
    found = yaml.load((AWX / f"vars/{name}.yml").read_text(encoding="utf-8"), Loader)
    return t.cast("list[Data]", found[f"awx_{name}"])


def job_template(name: str) -> Data:
    """The job template of that name, without what all names begin with."""
    (found,) = (each for each in load("job_templates") if each["name"] == f"kvmops: {name}")
    return found
