# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A plan: what is there, what shall be there, the steps between. Check mode, diff and ``changed`` come from it."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

Values = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Step:
    """One small, named, repeatable piece of an operation: doing it twice does no harm.

    :param name: A few words in the imperative, shown in the result: "resume guest".
    :param do: Does it; returns figures for the result (plain values), or nothing.
    :param undo: Takes it back when a later step of the same run fails. Not called when the process dies: the journal
        leads the next run there.
    :param lasting: What this step and those before it did stays, whatever fails afterwards.
    """

    name: str
    do: t.Callable[[], Values | None]
    undo: t.Callable[[], None] | None = None
    lasting: bool = False


@dataclass(frozen=True)
class Plan:
    """What a module found for one VM and will do about it.

    :param before: What is there, as shown in the diff.
    :param after: What will be there.
    :param steps: How to get there. No steps: nothing to do.
    :param action: The name in the action table (:mod:`.._model.actions`) that the lock of the VM is checked for.
    :param journaled: Write the journal into the VM's metadata before each step, because dying between two of them would
        leave something half done.
    :param unfinished: The steps are not all of the operation: another run ends it, so the journal stays.
    :param figures: Plain values known without doing anything, for the result.
    :param warnings: Sentences for the user that do not stop the work.
    :param tells: What the holder of the VM's operation lock says beside the action, to others that want the VM.
    :param waits: Wait for a holder of that lock that says the same of itself, rather than to be busy.
    :param beside: The steps act upon the operation of the holder of that lock, and go without it.
    """

    before: Values
    after: Values
    steps: t.Sequence[Step] = ()
    action: str = ""
    journaled: bool = False
    unfinished: bool = False
    figures: Values = field(default_factory=dict)
    warnings: t.Sequence[str] = ()
    tells: Values = field(default_factory=dict)
    waits: bool = False
    beside: bool = False

    def same(self, running: Values) -> bool:
        """Whether the holder of the VM's operation lock does what this plan is for.

        :param running: What it says of itself.
        """
        mine = {"action": self.action, **self.tells}
        return {key: running.get(key) for key in mine} == mine

    def __post_init__(self) -> None:
        if dict(self.before) != dict(self.after) and not self.steps:
            raise ValueError("a plan that changes something needs steps")

    @property
    def changed(self) -> bool:
        """Whether carrying the plan out changes anything. A reboot does, though it ends where it began."""
        return bool(self.steps)

    def diff(self, header: str) -> dict[str, t.Any]:
        """The diff in Ansible's form."""
        return {
            "before": dict(self.before),
            "after": dict(self.after),
            "before_header": header,
            "after_header": header,
        }
