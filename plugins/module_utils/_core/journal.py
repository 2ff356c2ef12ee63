# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The journal of an operation in progress: which one, whose, since when, how far.

It is kept in the VM's metadata (:mod:`.._model.instance`), so that whoever comes next knows what a process that died
was doing. A process that holds the VM's lock (:mod:`.lock`) and finds a journal of the same machine in it knows that
its writer is dead, and takes it over.
"""

from __future__ import annotations

import json
import os
import platform
import typing as t
from dataclasses import dataclass, field, replace
from datetime import datetime

from .clock import stamp
from .errors import Invalid


@dataclass(frozen=True)
class Journal:
    """What an operation in progress tells about itself.

    :param action: The name in the action table: ``delete``.
    :param since: When it began, as :func:`.clock.stamp` writes it.
    :param node: The machine on which the process runs.
    :param pid: Its process number there.
    :param step: The step that was about to begin when this was written; empty before the first.
    :param data: Plain values that a later run needs to go on or to undo.
    """

    action: str
    since: str
    node: str
    pid: int
    step: str = ""
    data: t.Mapping[str, t.Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, action: str, now: datetime, **data: t.Any) -> Journal:
        """A journal of this process."""
        return cls(action=action, since=stamp(now), node=platform.node(), pid=os.getpid(), data=data)

    def at(self, step: str, **data: t.Any) -> Journal:
        """The same, about to begin *step*, with *data* added."""
        return replace(self, step=step, data={**self.data, **data})

    @property
    def ours(self) -> bool:
        """Whether a process of this machine wrote it."""
        return self.node == platform.node()

    def tell(self) -> dict[str, t.Any]:
        """For results; with ``dest`` when the VM is on its way to another host."""
        told = {"action": self.action, "since": self.since, "node": self.node, "pid": self.pid, "step": self.step}
        return {**told, "dest": self.data["dest"]} if "dest" in self.data else told

    def dump_data(self) -> str:
        """``data`` as ASCII JSON."""
        return json.dumps(self.data, sort_keys=True)

    @staticmethod
    def load_data(text: str) -> dict[str, t.Any]:
        """What :meth:`dump_data` wrote.

        :raises Invalid: It is no JSON object.
        """
        try:
            data = json.loads(text) if text else {}
        except (ValueError, RecursionError) as exc:
            raise Invalid(f"The journal in the VM's metadata cannot be read: {exc}.") from exc
        if not isinstance(data, dict):
            raise Invalid("The journal in the VM's metadata cannot be read: it holds no JSON object.")
        return data
