# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Jobs as AWX runs them: ansible-runner with the template's playbook, in what an execution environment has in it. Only
the container around it is missing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.awx import AWX, REPO, Data
from tests.integration.harness import Result

BIN = Path(sys.executable).parent
# Versions: those that the tests use, and what these pull in.
VERSIONS = (REPO / "tests/requirements.txt", REPO / "tests/constraints.txt")
# Seconds that a command may take on a busy machine.
PATIENCE = 900


class Unsafe(str):
    """A text that is no template, whatever is in it. AWX marks all that a user has typed like that."""

    __slots__ = ()


class Dumper(yaml.SafeDumper):
    """YAML with such texts."""


Dumper.add_representer(Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))


def unsafe(value: t.Any) -> t.Any:
    """The same, with all texts marked."""
    if isinstance(value, dict):
        return {key: unsafe(each) for key, each in value.items()}
    if isinstance(value, list):
        return [unsafe(each) for each in value]
    return Unsafe(value) if isinstance(value, str) else value


def command(*words: str | Path, cwd: Path | None = None, settings: t.Mapping[str, str] | None = None) -> str:
    """What a command prints, which must work, in an environment of its own."""
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        **(settings or {}),
    }
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**env, **(settings or {})},
        timeout=PATIENCE,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Job:
    """What AWX keeps of a job.

    :param status: ``successful`` or ``failed``.
    :param events: In their order.
    :param artefacts: What the playbook has set with ``set_stats``.
    :param output: What a user reads.
    """

    status: str
    events: list[Result]
    artefacts: Data
    output: str

    def ok(self) -> Job:
        """The same, of a job that must have worked."""
        assert self.status == "successful", self.output
        return self

    def results(self, action: str) -> list[Result]:
        """What the tasks with this action came to, in their order."""
        return [
            each["event_data"]["res"]
            for each in self.events
            if each["event"] in ("runner_on_ok", "runner_on_failed") and each["event_data"]["task_action"] == action
        ]


class Environment:
    """An execution environment: built by what ``ansible-builder create`` puts together, without a container.

    :param place: A directory for what is the test's own.
    :ivar context: What ``ansible-builder create`` has made.
    :ivar packages: The distribution's packages that the collection needs, for bindep.
    :ivar needs: What pip is told to install, in the form of its requirement files.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.home = place / "home"
        self.home.mkdir()
        source = place / "source"
        source.mkdir()
        tools = {"HOME": str(self.home), "ANSIBLE_HOME": str(self.home / "ansible"), "NO_COLOR": "1"}
        command(BIN / "ansible-galaxy", "collection", "build", "--output-path", place / "built", REPO, settings=tools)
        (artefact,) = (place / "built").iterdir()
        artefact.rename(source / "kvmops-lifecycle.tar.gz")
        shutil.copy(AWX / "execution-environment.yml", source)
        self.context = place / "context"
        builder = BIN / "ansible-builder"
        told = ("-f", source / "execution-environment.yml", "-c", self.context, "--output-filename", "Containerfile")
        command(builder, "create", *told, cwd=source, settings=tools)
        self.collections = place / "collections"
        install = ("collection", "install", "--offline", "-r", "requirements.yml", "-p", self.collections)
        command(BIN / "ansible-galaxy", *install, cwd=self.context / "_build", settings=tools)
        self.packages = place / "bindep.txt"
        python = place / "requirements.txt"
        written = (f"--write-pip={python}", f"--write-bindep={self.packages}")
        command(builder, "introspect", *written, self.collections, settings=tools)
        definition = yaml.safe_load((source / "execution-environment.yml").read_text(encoding="utf-8"))["dependencies"]
        engine = [definition[name]["package_pip"] for name in ("ansible_core", "ansible_runner")]
        self.needs = "\n".join([*engine, python.read_text(encoding="utf-8")])
        self.bin = self._virtualenv() / "bin"

    def _virtualenv(self) -> Path:
        """A virtualenv with that and nothing else; it is kept, and made anew when anything about it is another."""
        text = "\n".join([sys.version, self.needs, *(path.read_text(encoding="utf-8") for path in VERSIONS)])
        kept = REPO / ".build/ee"
        kept.mkdir(parents=True, exist_ok=True)
        venv = kept / hashlib.sha256(text.encode()).hexdigest()[:16]
        with (kept / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (venv / "complete").exists():
                for old in kept.glob("*/"):
                    shutil.rmtree(old)
                command("/usr/bin/python3", "-m", "venv", venv)
                (venv / "needs.txt").write_text(self.needs, encoding="utf-8")
                pip = (venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
                command(*pip, "-c", VERSIONS[0], "-r", venv / "needs.txt", settings=os.environ)
                (venv / "complete").touch()
        return venv

    def settings(self, **more: str) -> dict[str, str]:
        """What the processes in it have in their environment."""
        return {
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            **more,
        }

    def run(
        self, template: Data, inventory: Path, answers: Data, artefacts: Data | None = None, *, check: bool = False
    ) -> Job:
        """A job.

        :param template: One of ``playbooks/awx/vars/job_templates.yml``.
        :param answers: Of a user to the survey; the rest is answered with its defaults.
        :param artefacts: Of the jobs before it in a workflow.
        """
        place = Path(tempfile.mkdtemp(dir=self.place))
        shutil.copytree(REPO / "playbooks", place / "project/playbooks")
        (place / "inventory").mkdir()
        shutil.copy(inventory, place / "inventory/hosts.yml")
        (place / "env").mkdir()
        questions = template.get("survey_spec", {}).get("spec", [])
        defaults = {each["variable"]: each["default"] for each in questions if "default" in each}
        typed = {**defaults, **answers, **(artefacts or {}), "awx_job_id": 1, "awx_job_template_name": template["name"]}
        told = {**template.get("extra_vars", {}), **unsafe(typed)}
        (place / "env/extravars").write_text(yaml.dump(told, Dumper=Dumper), encoding="utf-8")
        # A job that asks for something would wait for ever.
        (place / "env/settings").write_text(yaml.safe_dump({"job_timeout": PATIENCE // 2}), encoding="utf-8")
        if check:
            (place / "env/cmdline").write_text("--check --diff", encoding="utf-8")
        before = set(place.rglob("*"))
        words = ["run", str(place), "--ident", "1", "--playbook", template["playbook"], "--quiet"]
        done = subprocess.run(
            [str(self.bin / "ansible-runner"), *words],
            cwd=place,
            env=self.settings(LC_ALL="C.UTF-8", ANSIBLE_HOST_KEY_CHECKING="False"),
            timeout=PATIENCE,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        kept = place / "artifacts/1"
        assert (kept / "status").exists(), done.stdout + done.stderr
        # The controller keeps nothing but what AWX takes.
        left = {path for path in place.rglob("*") if place / "artifacts" not in (path, *path.parents)}
        assert left == before, sorted(left ^ before)
        return read_job(kept)


def read_job(kept: Path) -> Job:
    """What a job has left, which must be whole: every event is there, and the last one is the recap."""
    files = {int(path.name.partition("-")[0]): path for path in (kept / "job_events").glob("*-*.json")}
    events = [json.loads(files[number].read_text(encoding="utf-8")) for number in sorted(files)]
    assert [each["counter"] for each in events] == list(range(1, len(events) + 1))
    output = (kept / "stdout").read_text(encoding="utf-8")
    recap = [each for each in events if each["event"] == "playbook_on_stats"]
    assert len(recap) == 1, output
    status = (kept / "status").read_text(encoding="utf-8")
    return Job(status, events, recap[0]["event_data"].get("artifact_data", {}), output)
