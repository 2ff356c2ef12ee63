# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules of the house that no other tool checks: who may import whom, licence headers, names that must not appear."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import typing as t
from pathlib import Path, PurePosixPath

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
COLLECTION = "ansible_collections.kvmops.lifecycle"


class Ring(t.NamedTuple):
    """What the files of one ring may import, besides the standard library and each other."""

    inside: frozenset[str]
    outside: frozenset[str]


def _ring(inside: str = "", outside: str = "") -> Ring:
    return Ring(frozenset(inside.split()), frozenset(outside.split()))


# Who may import whom: from the collection, and from the world outside.
RINGS = {
    "action": _ring(inside="_core", outside="ansible"),
    "modules": _ring(inside="_module _flows _task _model _core _libvirt _images", outside="ansible.module_utils"),
    "_module": _ring(inside="_task _model _core _libvirt _images", outside="ansible.module_utils"),
    "_flows": _ring(inside="_task _model _core _libvirt _images _console"),
    "_task": _ring(inside="_model _core _libvirt _images"),
    "_libvirt": _ring(inside="_model _core", outside="libvirt libvirt_qemu"),
    "_images": _ring(inside="_core", outside="keystoneauth1 nbd nbdkit openstack oslo_utils pycdlib requests"),
    "_console": _ring(inside="_core", outside="PIL cryptography jwcrypto"),
    "_model": _ring(inside="_core"),
    "_core": _ring(),
    "doc_fragments": _ring(),
}

# How a task ends and what check mode means is decided in one place; the half of a task that is the controller's has to
# know check mode by itself.
ONLY_IN_MODULE = {"check_mode", "supports_check_mode", "exit_json", "fail_json"}

LICENCE_HEADER = (
    "Copyright (c) 2026 kvmops contributors",
    "GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "SPDX-License-Identifier: GPL-3.0-or-later",
)
# Formats without comments, the licence itself, and what antsibull-changelog writes.
NO_HEADER = re.compile(r"LICENSE|.*\.json|CHANGELOG\.(md|rst)|changelogs/changelog\.yaml")

# A path of somebody's machine. (Written so that this file does not contain it.)
FORBIDDEN = re.compile(r"(?<![\w.-])/" + "work" + r"/")


def ring_of(path: PurePosixPath) -> str:
    """The ring of a file, given relative to plugins/: the kind of plugin, or the first name below module_utils."""
    return path.parts[1].removesuffix(".py") if path.parts[0] == "module_utils" else path.parts[0]


def imported(path: PurePosixPath, tree: ast.AST) -> t.Iterator[str]:
    """The full name of everything that the file imports, wherever in it."""
    package = f"{COLLECTION}.plugins.{'.'.join(path.parent.parts)}".split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and identifier(node.func) in ("import_module", "__import__"):
            yield from filter(None, map(identifier, node.args[:1]))


def identifier(node: ast.AST) -> str | None:
    """The name that a piece of code uses: of a variable, an attribute, a keyword, or the string for getattr()."""
    for kind, field in ((ast.Name, "id"), (ast.Attribute, "attr"), (ast.keyword, "arg"), (ast.Constant, "value")):
        if isinstance(node, kind) and isinstance(name := getattr(node, field), str):
            return name
    return None


def import_violations(path: PurePosixPath, source: str) -> list[str]:
    """What a file below plugins/ imports though its ring may not."""
    if (ring := ring_of(path)) not in RINGS:
        return [f"{path}: there is no rule for {ring}"]
    rule = RINGS[ring]
    found = []
    for name in imported(path, ast.parse(source)):
        if name.startswith(f"{COLLECTION}.plugins.module_utils."):
            allowed = name.split(".")[5] in rule.inside | {ring}
        else:
            prefixes = {name.split(".")[0], ".".join(name.split(".")[:2])}
            allowed = bool(prefixes & (rule.outside | sys.stdlib_module_names))
        if not allowed:
            found.append(f"{path}: {ring} may not import {name}")
    return found


def word_violations(path: PurePosixPath, source: str) -> list[str]:
    """Where a file below plugins/ does what is _module.py's to do."""
    if ring_of(path) in ("_module", "action"):
        return []
    names = {identifier(node) for node in ast.walk(ast.parse(source))}
    return [f"{path}: only _module.py says {name}" for name in sorted(ONLY_IN_MODULE) if name in names]


def code_violations(path: PurePosixPath, source: str) -> list[str]:
    """Shells, and handlers that catch everything."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{path}:{node.lineno}: bare except")
        elif isinstance(node, ast.keyword) and node.arg == "shell" and getattr(node.value, "value", True) is not False:
            found.append(f"{path}:{node.value.lineno}: runs a shell")
    return found


def own_files() -> list[PurePosixPath]:
    """Every file that git has, or would have after `git add`."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [PurePosixPath(name) for name in listing.stdout.split("\0") if name]
    return [name for name in names if (REPO / name).is_file()]


def texts(suffix: str = "", below: str = "") -> t.Iterator[tuple[PurePosixPath, str]]:
    """The files of ours that are text, with what stands in them; names are relative to `below`."""
    for name in own_files():
        if name.name.endswith(suffix) and name.is_relative_to(below):
            try:
                yield name.relative_to(below), (REPO / name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_every_file_imports_only_what_its_ring_may() -> None:
    assert [line for file in texts(".py", "plugins") for line in import_violations(*file)] == []


def test_only_the_glue_ends_a_task_or_knows_check_mode() -> None:
    assert [line for file in texts(".py", "plugins") for line in word_violations(*file)] == []


def test_nothing_runs_a_shell_or_catches_everything() -> None:
    assert [line for file in texts(".py") for line in code_violations(*file)] == []


@pytest.mark.parametrize(("group", "options"), [("all", "connection"), ("images", "image_store")])
def test_an_action_group_names_every_module_with_its_options(group: str, options: str) -> None:
    runtime = yaml.safe_load((REPO / "meta/runtime.yml").read_text(encoding="utf-8"))
    files = (REPO / "plugins/modules").glob("[!_]*.py")
    assert runtime["action_groups"][group] == sorted(
        file.stem for file in files if f"**{options}()" in file.read_text(encoding="utf-8")
    )


def test_every_module_is_in_an_action_group() -> None:
    runtime = yaml.safe_load((REPO / "meta/runtime.yml").read_text(encoding="utf-8"))
    modules = {file.stem for file in (REPO / "plugins/modules").glob("[!_]*.py")}
    assert {module for group in runtime["action_groups"].values() for module in group} == modules


def test_every_file_says_its_licence() -> None:
    assert [
        str(name)
        for name, text in texts()
        if not NO_HEADER.fullmatch(str(name)) and not all(line in text[:1000] for line in LICENCE_HEADER)
    ] == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    assert [str(name) for name, text in texts() if FORBIDDEN.search(text)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("module_utils/_core/plan.py", "import yaml"),
        ("module_utils/_core/plan.py", "from ansible.module_utils.basic import AnsibleModule"),
        ("module_utils/_core/plan.py", f"from {COLLECTION}.plugins.module_utils._model.status import Status"),
        ("module_utils/_core/plan.py", f"from {COLLECTION}.plugins.module_utils import _libvirt"),
        ("module_utils/_core/plan.py", "from .._model import status"),
        ("module_utils/_model/power.py", "import libvirt"),
        ("module_utils/_model/power.py", "def late():\n    import libvirt_qemu"),
        ("module_utils/_model/power.py", "import importlib\nimportlib.import_module('libvirt')"),
        ("module_utils/_libvirt/host.py", "from ..._images import base"),
        ("module_utils/_libvirt/host.py", "from .._images.base import Store"),
        ("module_utils/_libvirt/host.py", "from .. import _module"),
        ("module_utils/_images/glance.py", "from .._model import disks"),
        ("module_utils/_images/glance.py", "import libvirt"),
        ("module_utils/_module.py", "import openstack.connection"),
        ("module_utils/_flows/launch.py", "from .._module import run_module"),
        ("modules/vm.py", "import libvirt"),
        ("modules/vm.py", "from oslo_utils.imageutils import format_inspector"),
        ("modules/vm.py", "from ansible.plugins.action import ActionBase"),
        ("modules/vm.py", f"from {COLLECTION}.plugins.module_utils import _console"),
        ("action/vm.py", f"from {COLLECTION}.plugins.module_utils import _libvirt"),
        ("module_utils/_console/token.py", "import libvirt"),
        ("module_utils/_other/x.py", ""),
        ("lookup/vm.py", ""),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str) -> None:
    assert len(import_violations(PurePosixPath(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("module_utils/_core/plan.py", "from __future__ import annotations\nimport os.path\nfrom . import errors"),
        ("module_utils/_core/plan.py", f"from {COLLECTION}.plugins.module_utils._core.errors import Refused"),
        ("module_utils/_model/power.py", "from .._core.errors import Refused"),
        ("module_utils/_libvirt/host.py", "import libvirt\nimport libvirt_qemu\nfrom .._model import status"),
        ("module_utils/_images/glance.py", "import openstack\nfrom oslo_utils.imageutils import format_inspector"),
        ("module_utils/_module.py", "from ansible.module_utils.basic import AnsibleModule\nfrom ._libvirt import host"),
        ("modules/vm.py", f"from {COLLECTION}.plugins.module_utils._module import run_module"),
    ],
)
def test_a_right_import_is_let_pass(path: str, source: str) -> None:
    assert import_violations(PurePosixPath(path), source) == []


@pytest.mark.parametrize(
    "source",
    ["module.exit_json()", "if module.check_mode: pass", "getattr(module, 'fail_json')", "f(supports_check_mode=True)"],
)
def test_only_the_glue_may_use_the_words_of_a_task(source: str) -> None:
    assert len(word_violations(PurePosixPath("modules/vm.py"), source)) == 1
    assert word_violations(PurePosixPath("module_utils/_module.py"), source) == []


@pytest.mark.parametrize(
    "source",
    ["run('ls', shell=True)", "run('ls', shell=wanted)", "try:\n    f()\nexcept:\n    pass"],
)
def test_a_shell_and_a_bare_except_are_found(source: str) -> None:
    assert len(code_violations(PurePosixPath("x.py"), source)) == 1
