# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a task is about: the host it runs on and the VMs that it names."""

from __future__ import annotations

import threading
import typing as t
from dataclasses import dataclass, field
from functools import cached_property

from ._core.clock import Clock
from ._core.errors import NotFound
from ._core.journal import Journal
from ._core.lock import Tell
from ._images import Image, Store, open_store
from ._libvirt import Chains, Guest, Host, Storage
from ._model import status
from ._model.instance import Instance
from ._model.status import Observation, State

T = t.TypeVar("T")


@dataclass
class Context:
    """What a module's function is handed beside the VM.

    :param params: The task's options.
    :param storage: The host's files.
    """

    host: Host
    params: t.Mapping[str, t.Any]
    clock: Clock
    storage: Storage
    _known: dict[str, t.Any] = field(default_factory=dict, repr=False)
    _guard: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def once(self, what: str, find: t.Callable[[], T]) -> T:
        """What *find* returns, asked for once a task however many VMs it is about. Threads wait for the first."""
        with self._guard:
            if what not in self._known:
                self._known[what] = find()
            return t.cast("T", self._known[what])

    @property
    def store(self) -> Store:
        """The image store that the task names."""
        return self.once("store", lambda: open_store(self.params["image_store"]))

    @cached_property
    def disk_owners(self) -> dict[str, list[str]]:
        """See :meth:`.Chains.owners`: asked once a task."""
        return Chains(self.host).owners()

    def close(self) -> None:
        """Let go of the host and of the image store."""
        if "store" in self._known:
            self.store.close()
        self.storage.close()
        self.host.close()


@dataclass
class StoreContext:
    """What the function of a module is handed that is about images, and not about VMs.

    :param params: The task's options.
    :param images: For the result: as they were found or, by a plan, will be. A step puts in what came of it.
    """

    store: Store
    params: t.Mapping[str, t.Any]
    images: list[Image] = field(default_factory=list)


@dataclass
class Subject:
    """One VM that a task is about.

    :param name: As the task named it, or the VM's own name.
    :param guest: ``None`` while there is no such VM.
    :param seen: The look that ``state`` is read from; ``None`` with ``guest``.
    :param tell: Lets others see how far a long step is, while it runs.
    :param absent: Its status while there is no such VM: ``ABSENT``, or what an image store tells.
    :param kept: What is remembered of it there meanwhile.
    """

    name: str
    guest: Guest | None = None
    seen: Observation | None = None
    journal: Journal | None = field(default=None, repr=False)
    tell: Tell = field(default=lambda progress: None, repr=False)
    absent: str = "ABSENT"
    kept: Instance = field(default_factory=Instance, repr=False)

    @property
    def state(self) -> State | None:
        """What was seen, in Nova's words."""
        return status.read(self.seen) if self.seen else None

    @property
    def instance(self) -> Instance:
        """What we remember of it."""
        return self.seen.instance if self.seen else self.kept

    def made(self) -> Guest:
        """The VM, for steps that come after the one that defines it.

        :raises NotFound: It is gone.
        """
        if self.guest is None:
            raise NotFound(f"VM {self.name} is gone.")
        return self.guest

    def there(self) -> tuple[Guest, Observation, State]:
        """For functions that are called for VMs that exist only.

        :raises NotFound: It is gone.
        """
        if self.seen is None:
            raise NotFound(f"VM {self.name} is gone.")
        return self.made(), self.seen, status.read(self.seen)
