# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules for roles that no other tool checks: one place says what a variable is, and the others agree."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

ROLES = sorted((Path(__file__).resolve().parents[2] / "roles").iterdir())


def read(role: Path, name: str) -> dict[str, t.Any]:
    """A YAML file of a role."""
    return t.cast("dict[str, t.Any]", yaml.safe_load((role / name).read_text(encoding="utf-8")))


def options(role: Path) -> dict[str, dict[str, t.Any]]:
    """What a role can be told."""
    return t.cast(
        "dict[str, dict[str, t.Any]]", read(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    )


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_defaults_are_those_that_are_documented(role: Path) -> None:
    assert read(role, "defaults/main.yml") == {name: option["default"] for name, option in options(role).items()}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_variable_has_a_type_and_its_own_name(role: Path) -> None:
    assert [name for name, option in options(role).items() if not option.get("type")] == []
    assert [name for name in options(role) if not re.match(rf"{role.name}_[a-z]", name)] == []
    assert [name for name in read(role, "vars/main.yml") if not name.startswith(f"{role.name}__")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_tells_of_every_variable_and_of_what_happens_when_it_fails(role: Path) -> None:
    text = (role / "README.md").read_text(encoding="utf-8")
    assert [name for name in options(role) if f"`{name.removeprefix(role.name + '_')}`" not in text] == []
    for word in ("Idempotent", "Check mode", "Atomic", "Roll-back"):
        assert f"**{word}**" in text
