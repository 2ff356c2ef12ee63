# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""ansible-playbook without its start: every run is the fork of a process that has read Ansible's code already, which is
three quarters of what a short playbook costs the controller."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import typing as t
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "ansible.cli.playbook",
        "ansible.executor.process.worker",
        "ansible.plugins.callback.default",
        "ansible.plugins.connection.ssh",
        "ansible.plugins.inventory.yaml",
        "ansible.plugins.shell.sh",
        "ansible.plugins.strategy.linear",
        "ansible.plugins.vars.host_group_vars",
        __name__,
    ]
)


def playbook(command: t.Sequence[str], settings: t.Mapping[str, str], output: Path, timeout: float) -> int:
    """Run ``ansible-playbook``, and return its exit code.

    :param command: With its options.
    :param settings: For its environment; those of Ansible itself count from the first run on.
    :param output: What it prints, both ways.
    :param timeout: Seconds.
    :raises subprocess.TimeoutExpired: It has been killed.
    """
    os.environ.update({name: value for name, value in settings.items() if name.startswith("ANSIBLE_")})
    process = _FORKS.Process(target=_run, args=(list(command), dict(settings), str(output)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired(command, timeout, output.read_bytes())
    return process.exitcode


def _run(command: list[str], settings: dict[str, str], output: str) -> None:
    from ansible.cli.playbook import PlaybookCLI

    os.environ.update(settings)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    PlaybookCLI.cli_executor(command)
