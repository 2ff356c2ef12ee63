# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab as the tests reach it, and playbooks run on it as a user would run them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.integration import forked
from tests.lab.kvmlab import glance
from tests.lab.kvmlab.guest import Guest
from tests.lab.kvmlab.lab import Lab as KvmLab

# Where a domain's XML says what its serial console is written to.
_LOGS = (("devices/serial/log", "file"), ("devices/serial[@type='file']/source", "path"))

# Tells what is left. Pools are those of tasks that were killed.
_CLEAN = """
vms=$(virsh -q list --all --uuid)
for vm in $vms; do
    virsh destroy $vm; virsh managedsave-remove $vm
    virsh undefine $vm --nvram --checkpoints-metadata --snapshots-metadata
done >/dev/null 2>&1
for pool in $(virsh -q pool-list --name | grep ^kvmops-); do virsh -q pool-destroy $pool; done
find /var/lib/libvirt/images -mindepth 1 -maxdepth 1 ! -name _base ! -name lost+found -exec rm -rf {} +
test -z "$vms" || virsh -q list --all 2>&1 || true
"""

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
LAB = REPO / "tests/lab/lab"

# How directories begin that daemons on this machine have in their command lines; tests/run.sh ends them by it.
SCRATCH = f"kvmops-test-{os.environ.get('KVMOPS_LAB', 'lab')}-"

Result = dict[str, t.Any]


class Lab:
    """The lab's hosts, reached directly and not through what is tested."""

    def __init__(self, inventory: Path) -> None:
        self.inventory = inventory
        self.kvm = KvmLab()
        self.glance = Glance(self)
        self.read()

    def read(self) -> None:
        """Ask the lab for its inventory. Hosts that are off are not in it."""
        inventory = yaml.safe_load(run([str(LAB), "inventory"], check=True, timeout=60).stdout)
        told = inventory["all"]["children"]["kvm_hosts"]
        for host in self.kvm.hosts():
            if self.kvm.init(host) is None:
                del told["hosts"][host]
        self.inventory.write_text(yaml.safe_dump(inventory), encoding="utf-8")
        self.hosts: dict[str, dict[str, t.Any]] = told["hosts"]
        self.vars: dict[str, t.Any] = told["vars"]

    def up(self, *options: str, hosts: int) -> None:
        """``lab up``, with so many hosts."""
        run([str(LAB), "up", "--hosts", str(hosts), *options], check=True, timeout=900)
        self.keep(hosts)

    def keep(self, hosts: int) -> None:
        """Switch off what there is beyond so many hosts; ``lab up`` boots every one that there ever was."""
        for host in self.kvm.hosts()[hosts:]:
            if self.kvm.init(host) is not None:
                self.fault(host, "power-off")
        self.read()

    def outside(self, path: str, host: str = "kvm1") -> str:
        """The path by which this machine sees a file of a host."""
        return str(self.kvm.root(host) / path.lstrip("/"))

    def sh(self, host: str, script: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a shell script in a host and return what it prints."""
        return self.kvm.run_in(host, "sh", "-c", script, check=check, timeout=timeout).stdout.strip()

    def fault(self, host: str, *what: str) -> None:
        """See ``lab fault --help``."""
        run([str(LAB), "fault", host, *what], check=True, timeout=120)

    def guest(self, host: str, name: str) -> Guest:
        """The guest of a VM that was launched, or that has its console log in the same place."""
        guest = Guest(self.kvm, host, name)
        domain = ET.fromstring(self.sh(host, f"virsh dumpxml {name}"))
        logs = [node.get(key, "") for path, key in _LOGS for node in domain.iterfind(path)]
        guest.console_file = logs[0]
        return guest

    def booted(self, host: str, name: str) -> Guest:
        """The same, when it has booted and its agent answers."""
        guest = self.guest(host, name)
        guest.wait_up()
        return guest

    def kill_module(self, host: str, signal: int) -> None:
        """Kill the Python of the module that runs in a host."""
        self.sh(host, f"pkill -{int(signal)} -f '^/opt/kvmops/venv/bin/python'")

    def domains(self, host: str) -> list[str]:
        """The names of all VMs of a host, as virsh tells them."""
        return self.sh(host, "virsh -q list --all --name").split()

    def state(self, host: str, name: str) -> str:
        """What ``virsh domstate --reason`` says."""
        return self.sh(host, f"virsh domstate {name} --reason")

    def files(self, host: str, directory: str = "/var/lib/libvirt/images") -> list[str]:
        """Files below a directory, without the base cache."""
        found = self.sh(host, f"find {directory} -path '*/_base*' -prune -o -path '*/lost+found' -prune -o -print")
        return sorted(line for line in found.splitlines() if line != directory)

    def clean(self) -> None:
        """Remove every VM and its files from every host, whatever state a test left them in."""
        for host in self.hosts:
            if self.kvm.init(host) is None:  # a test that failed has left it off
                self.fault(host, "heal")
            if self.sh(host, _CLEAN):
                # A libvirtd that was killed while it started a VM holds that for ever.
                self.sh(host, "pkill -KILL -x libvirtd; rm -f /run/libvirt/qemu/*.xml", check=False)
                self.fault(host, "heal")
                assert self.sh(host, _CLEAN) == ""


class Glance:
    """The lab's Glance, reached directly and not through what is tested. The fixture ``glance`` starts it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def client(self, cloud: str = "admin") -> glance.Client:
        """Bare HTTP as one of the users: ``admin``, ``member``, ``reader``, ``other``."""
        return glance.Client(self.lab.kvm, cloud)

    def fault(self, *what: str) -> None:
        """See ``lab fault --help``: ``fault("reset", "--on", "upload", "--after", "1M")``."""
        self.lab.fault(glance.NAME, *what)

    def heal(self) -> None:
        """Mend whatever is the matter."""
        self.fault("heal")

    def images(self) -> list[Result]:
        """All images of all projects in whatever state, as the admin sees them, the oldest first."""
        return self.client().images()

    def files(self) -> list[str]:
        """What is in the store's directory: a file for each image that has data, by its identifier."""
        return sorted(path.name for path in glance.store_outside(self.lab.kvm).iterdir())

    def clean(self) -> None:
        """Mend it, and remove every image."""
        self.heal()
        client = self.client()
        for image in client.images():
            client.remove(image["id"])
        assert client.images() == []
        assert self.files() == []


def run(command: list[str], *, check: bool, timeout: float) -> t.Any:
    """A command, with nothing of ours left open in what it starts."""
    return subprocess.run(
        command, check=check, timeout=timeout, text=True, stdin=subprocess.DEVNULL, capture_output=True
    )


@dataclass
class Played:
    """What came of a playbook.

    :param results: Of each task, in order; ``outcome`` is ``ok``, ``failed``, ``skipped`` or ``unreachable``.
    """

    returncode: int
    output: str
    results: list[Result]

    @property
    def last(self) -> Result:
        """The result of the last task."""
        assert self.results, self.output
        return self.results[-1]

    def ok(self) -> Result:
        """The same, of a playbook that must have worked."""
        assert self.returncode == 0, self.output
        return self.last

    def error(self) -> Result:
        """The same, of a playbook whose last task must have failed, and not by a traceback."""
        assert self.returncode != 0, self.output
        assert self.last["outcome"] == "failed", self.output
        assert "Traceback" not in self.output, self.output
        return self.last


class Running(subprocess.Popen[str]):
    """A playbook that runs."""

    def __init__(self, command: list[str], env: dict[str, str], results: Path, output: t.TextIO) -> None:
        super().__init__(command, env=env, text=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        self._results = results
        self._output = Path(output.name)

    def text(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(encoding="utf-8")

    def played(self, seconds: float = 300) -> Played:
        """What came of it, when it has ended."""
        code = self.wait(seconds)
        return Played(code, self.text(), read_results(self._results))


Task = dict[str, t.Any]


class Playbook:
    """Runs tasks on a host of the lab."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory

    def prepare(self, tasks: t.Sequence[Task], host: str, *options: str) -> tuple[list[str], dict[str, str], Path]:
        """The command, what its environment has besides, and the file that the results come into."""
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        play: dict[str, t.Any] = {"hosts": host, "gather_facts": False, "tasks": list(tasks)}
        if host == "localhost":
            play.update(connection="local", vars={"ansible_python_interpreter": sys.executable})
        (directory / "play.yml").write_text(yaml.safe_dump([play], sort_keys=False), encoding="utf-8")
        return self._command(directory, str(directory / "play.yml"), *options)

    def _command(self, directory: Path, *words: str) -> tuple[list[str], dict[str, str], Path]:
        results = directory / "results"
        results.touch()
        settings = {
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "results",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",  # a third faster; demo and molecule do without
            "KVMOPS_RESULTS": str(results),
        }
        playbook = Path(sys.executable).parent / "ansible-playbook"
        return [str(playbook), "-i", str(self.lab.inventory), *words], settings, results

    def __call__(
        self, tasks: t.Sequence[Task] | Task, *options: str, host: str = "kvm1", timeout: float = 300
    ) -> Played:
        """Run *tasks*. *options* are those of ansible-playbook."""
        return self._play(*self.prepare([tasks] if isinstance(tasks, dict) else tasks, host, *options), timeout)

    def ours(self, name: str, *options: str, **variables: t.Any) -> Played:
        """Run a playbook of the collection."""
        return self._play(*self._ours(name, *options, **variables), 300)

    def _ours(self, name: str, *options: str, **variables: t.Any) -> tuple[list[str], dict[str, str], Path]:
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        return self._command(directory, f"kvmops.lifecycle.{name}", "-e", json.dumps(variables), *options)

    @staticmethod
    def _play(command: list[str], settings: dict[str, str], results: Path, timeout: float) -> Played:
        output = results.with_name("output")
        code = forked.playbook(command, settings, output, timeout)
        return Played(code, output.read_text(encoding="utf-8"), read_results(results))

    def errors(self, tasks: t.Sequence[Task], host: str = "kvm1") -> list[Result]:
        """The errors of *tasks*, all of which must fail, each by itself and not by a traceback."""
        played = self([{**each, "ignore_errors": True} for each in tasks], host=host)
        assert [each["outcome"] for each in played.results] == ["failed"] * len(tasks), played.output
        assert "Traceback" not in played.output, played.output
        return [each["result"] for each in played.results]

    def killed_at(self, step: str, task: Task, host: str = "kvm1") -> None:
        """Run *task*, whose module is killed right before *step*."""
        played = self(self._sabotaged(task, host, KVMOPS_KILL_AT=step), host=host)
        assert played.returncode != 0, played.output
        assert "MODULE FAILURE" in played.output or "Killed" in played.output, played.output

    def disturbed_at(self, step: str, script: str, task: Task, host: str = "kvm1") -> Played:
        """Run *task*, with a shell script run on the host right before *step*."""
        return self(self.disturbed(step, script, task, host), host=host)

    def disturbed(self, step: str, script: str, task: Task, host: str = "kvm1") -> Task:
        """*task* as it is then, to be run in another way."""
        return self._sabotaged(task, host, KVMOPS_KILL_AT=step, KVMOPS_RUN=script)

    def _sabotaged(self, task: Task, host: str, **environment: str) -> Task:
        saboteur = (HERE / "saboteur/sitecustomize.py").read_text(encoding="utf-8")
        self.lab.kvm.run_in(
            host, "sh", "-c", "mkdir -p /tmp/saboteur; cat > /tmp/saboteur/sitecustomize.py", stdin=saboteur
        )
        return {**task, "environment": {"PYTHONPATH": "/tmp/saboteur", **environment}}

    @contextlib.contextmanager
    def running(self, tasks: t.Sequence[Task], *options: str, host: str = "kvm1") -> t.Iterator[Running]:
        """The playbook, running; ended at the latest with the body."""
        with self._running(*self.prepare(tasks, host, *options)) as process:
            yield process

    @contextlib.contextmanager
    def ours_running(self, name: str, **variables: t.Any) -> t.Iterator[Running]:
        """The same, of a playbook of the collection."""
        with self._running(*self._ours(name, **variables)) as process:
            yield process

    @staticmethod
    @contextlib.contextmanager
    def _running(command: list[str], settings: dict[str, str], results: Path) -> t.Iterator[Running]:
        output = results.with_name("output")
        env = {**os.environ, **settings}
        with output.open("w", encoding="utf-8") as file, Running(command, env, results, file) as process:
            try:
                yield process
            finally:
                process.kill()

    def quartet(self, module: str, host: str = "kvm1", **arguments: t.Any) -> Result:
        """Check mode, run, again, again in check mode: the first predicts the second, the third changes nothing and the
        fourth says so. Returns the second."""
        task = {f"kvmops.lifecycle.{module}": arguments, "diff": True}
        quartet = [{**task, "check_mode": True}, task, task, {**task, "check_mode": True}]
        played = self(quartet, host=host)
        assert played.returncode == 0, played.output
        check, done, again, again_check = (each["result"] for each in played.results)
        assert check["changed"], played.output
        assert done["changed"], played.output
        assert check["diff"] == done["diff"], played.output
        for foreseen, reached in zip(check["vms"], done["vms"]):
            for key in ("status", "power_state", "changed"):
                assert foreseen[key] == reached[key], (key, played.output)
            # A step that proved needless when it was reached is no lie.
            assert set(reached["steps"]) <= set(foreseen["steps"]), played.output
        for later in (again, again_check):
            assert not later["changed"], played.output
            assert not any(vm["steps"] for vm in later["vms"]), played.output
            assert later["diff"] == [], played.output
        return t.cast("Result", done)


def file_disk(path: str, disk_format: str, target: str) -> str:
    """A disk's XML."""
    driver = f"<driver name='qemu' type='{disk_format}'/>"
    return f"<disk type='file'>{driver}<source file='{path}'/><target dev='{target}'/></disk>"


def read_results(path: Path) -> list[Result]:
    """What the callback wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def task(module: str, **arguments: t.Any) -> Task:
    """A task of this collection."""
    return {f"kvmops.lifecycle.{module}": arguments}


def order(lab: Lab, *names: str, **options: t.Any) -> dict[str, t.Any]:
    """What the module vm needs for a small VM."""
    return {
        "name": list(names),
        "image": lab.vars["lab_guest_image"],
        "domain_type": "qemu",
        "flavor": {"vcpus": 1, "memory": 96},
        "networks": [{"bridge": lab.vars["lab_bridge"]}],
        "graphics": "none",
        **options,
    }


def define(lab: Lab, name: str, *, host: str = "kvm1", devices: str = "", extra: str = "") -> None:
    """A VM as other tools make it: no metadata of ours, no disk unless *devices* has one."""
    xml = f"""<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
    <os><type arch='x86_64'>hvm</type></os><features><acpi/></features>{extra}
    <devices>{devices}</devices></domain>"""
    lab.sh(host, f"cat > /tmp/define.xml <<'XML'\n{xml}\nXML\nvirsh -q define /tmp/define.xml")


def wait_for(predicate: t.Callable[[], object], seconds: float = 60) -> None:
    """Ask until the answer is true."""
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, f"not so within {seconds} seconds"
        time.sleep(0.1)
