# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What operations have in common that give a VM without power another definition, and can give the old one back."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

from .._core.errors import Refused, Unsupported
from .._libvirt.swap import Swap
from .._model import rescue
from .._model.domain import Domain
from .._model.instance import Instance
from .._model.rebuild import disowning
from .._model.status import State
from .._task import Context, Subject
from .noting import Noting
from .stopping import switch_off


class Redefining(Noting):
    """One operation on one VM.

    :cvar ours: The actions whose journal, left by a process that died, is this operation's own.
    """

    ours: t.ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: Context, vm: Subject) -> None:
        """Look at the VM.

        :raises Refused: It is transient.
        """
        self.context = context
        self.vm = vm
        self.ask = context.params
        self.guest, self.seen, state = vm.there()
        if not self.seen.persistent:
            raise Refused(
                f"VM {self.guest.name} is transient: without power it would be gone from libvirt.",
                hint="Define it first.",
                status=state.status,
            )
        journal = self.seen.instance.journal
        mine = journal is not None and journal.ours and journal.action in self.ours
        self.journal = journal if mine and self.seen.running is None else None
        self.state: State = replace(state, running="", task_state="") if self.journal else state
        self.swap_tool = Swap(self.guest, context.clock)

    @property
    def runs(self) -> bool:
        """Whether it runs, or would if its guest had not put itself to sleep or crashed."""
        return rescue.power_of(self.state.condition) == "running"

    def secure(self) -> ET.Element:
        """The definition of the VM as it is, with secrets and without metadata."""
        return ET.fromstring(rescue.split(self.guest.text(inactive=True, secure=True))[0])

    def demand_agent(self, domain: Domain) -> None:
        """See that the VM has an agent, if the task waits for it.

        :raises Unsupported: It has none.
        """
        if self.ask.get("wait_for") == "agent" and domain.agent is None:
            raise Unsupported(
                f"VM {self.guest.name} has no channel for a guest agent that could be waited for.",
                hint="Say wait_for: running.",
            )

    # ---- what steps do

    def define(self, definition: str, instance: Instance) -> None:
        """Define the VM so, and write at the same moment what we remember of it. Other metadata stay as they are."""
        _now, metadata = rescue.split(self.guest.text(inactive=True))
        self.context.host.define(rescue.join(definition, metadata, instance))

    def stop(self) -> dict[str, t.Any]:
        """Take the VM's power, and what was saved of its memory, which is of no use."""
        return switch_off(self.context, self.vm)

    def run(self, what: str) -> dict[str, t.Any]:
        """Start it, and see that it runs.

        :param what: How, for errors.
        """
        began = self.context.clock.monotonic()
        self.swap_tool.run(
            agent=self.ask.get("wait_for") == "agent", timeout=self.ask.get("wait_timeout") or 0, what=what
        )
        return {"start_seconds": round(self.context.clock.monotonic() - began, 3)}

    def clear(self, paths: t.Sequence[str]) -> list[str]:
        """Remove files of the operation's own, and remember that they are gone."""
        removed = [path for path in paths if self.context.storage.remove(path)]
        self.guest.remember(disowning(self.guest.recall(), paths))
        return removed
