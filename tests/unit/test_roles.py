# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules for roles that no other tool checks: one place says what a variable is, and the others agree."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import jinja2
import pytest
import yaml
from jinja2 import nodes

ROLES = sorted((Path(__file__).resolve().parents[2] / "roles").iterdir())
# What is an expression without braces.
CONDITIONS = ("when", "failed_when", "changed_when", "until", "that")


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


def strings(value: t.Any, bare: bool = False) -> t.Iterator[tuple[str, bool]]:
    """Every text in a YAML file, and whether it is an expression without braces."""
    if isinstance(value, str):
        yield value, bare and "{" not in value
    elif isinstance(value, list):
        for each in value:
            yield from strings(each, bare)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from strings(each, key in CONDITIONS)


def unconverted(names: set[str], kind: str, text: str, bare: bool) -> list[str]:
    """Those of *names* that an expression takes as they are, and not through the filter *kind*."""
    if not any(name in text for name in names):
        return []
    tree = jinja2.Environment(autoescape=True).parse(f"{{{{ {text} }}}}" if bare else text)
    found: list[str] = []

    def visit(node: nodes.Node, filters: set[str]) -> None:
        if isinstance(node, nodes.Name) and node.name in names and kind not in filters:
            found.append(node.name)
        for child in node.iter_child_nodes():
            if isinstance(node, nodes.Filter) and child is node.node:
                visit(child, {*filters, node.name})
            # A number that is only handed on becomes one where it arrives.
            elif kind != "int" or not isinstance(node, nodes.Output) or not isinstance(child, nodes.Name):
                visit(child, set())

    visit(tree, set())
    return found


def test_what_is_found_of_texts_that_stand_for_yes_and_no() -> None:
    names = {"r_yes", "r_no"}
    assert unconverted(names, "bool", "r_yes and not r_no", bare=True) == ["r_yes", "r_no"]
    assert unconverted(names, "bool", "r_yes | bool and not r_no | default(false) | bool", bare=True) == []
    assert unconverted(names, "bool", "{{ [1] | select('eq', r_yes) | bool }}", bare=False) == ["r_yes"]
    assert unconverted(names, "bool", "{{ r_yes }}", bare=False) == ["r_yes"]
    assert unconverted(names, "int", "{{ r_yes }}", bare=False) == []
    assert unconverted(names, "int", "{{ r_yes + 1 }} {{ r_no | int }}", bare=False) == ["r_yes"]


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_what_comes_as_a_text_from_the_command_line_is_converted(role: Path) -> None:
    """With ``-e name=false`` every value is a text, and one that is not empty is true."""
    files = [path for part in ("defaults", "tasks", "vars") for path in sorted((role / part).glob("*.yml"))]
    found = []
    for kind in ("bool", "int"):
        names = {name for name, option in options(role).items() if option["type"] == kind}
        for path in files:
            for text, bare in strings(yaml.safe_load(path.read_text(encoding="utf-8"))):
                found += [f"{path.name}: {name} | {kind}" for name in unconverted(names, kind, text, bare)]
    assert found == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_lists_keep_their_order(role: Path) -> None:
    """Ansible's filters for sets of texts give another order in every process."""
    sets = re.compile(r"\|\s*(?:difference|intersect|symmetric_difference|union)\b(?!.*\|\s*sort\b)", re.DOTALL)
    found = [
        f"{path.name}: {text}"
        for part in ("tasks", "vars")
        for path in sorted((role / part).glob("*.yml"))
        for text, _bare in strings(yaml.safe_load(path.read_text(encoding="utf-8")))
        if sets.search(text)
    ]
    assert found == []
