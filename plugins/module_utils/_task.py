# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a task is about: the host it runs on and the VMs that it names."""

from __future__ import annotations

import contextlib
import threading
import typing as t
from dataclasses import dataclass, field
from functools import cached_property

from ._core.clock import Clock
from ._core.errors import LifecycleError, NotFound
from ._core.journal import Journal
from ._core.lock import Tell
from ._images.base import Image, Store
from ._images.stores import open_store
from ._libvirt.chains import Chains
from ._libvirt.guest import Guest
from ._libvirt.host import Host, open_host
from ._libvirt.pools import PoolStorage
from ._libvirt.storage import Storage, storage_of
from ._model import status
from ._model.instance import Instance
from ._model.status import Observation, State

T = t.TypeVar("T")


@dataclass
class Side:
    """One end of a move: a host and its files.

    :param uri: How its libvirtd is reached from here.
    """

    host: Host
    storage: Storage
    uri: str


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
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)
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

        def find() -> Store:
            store = open_store(self.params["image_store"])
            self._closing.callback(store.close)
            return store

        return self.once("store", find)

    @property
    def here(self) -> Side:
        """The host that the task runs for."""
        return Side(self.host, self.storage, self.host.uri)

    def side(self, uri: str) -> Side:
        """Another host, connected to once a task.

        :raises Unreachable: There is no libvirtd, or it does not answer.
        """

        def connect() -> Side:
            host = open_host(uri, timeout=self.params["connect_timeout"])
            self._closing.callback(host.close)
            return Side(host, self._kept(storage_of(host)), uri)

        return self.once(f"side {uri}", connect)

    def remote(self, side: Side) -> Side:
        """*side* with its files handled through libvirt, as whatever goes from host to host is."""
        if isinstance(side.storage, PoolStorage):
            return side
        return self.once(f"remote {side.uri}", lambda: Side(side.host, self._kept(PoolStorage(side.host)), side.uri))

    def at(self, side: Side) -> Context:
        """The same task, as if it ran for *side*. What that opens is closed with this one."""
        return Context(side.host, self.params, self.clock, side.storage, _closing=self._closing)

    def _kept(self, storage: Storage) -> Storage:
        """*storage*, which is let go of before its host."""
        self._closing.callback(_let_go, storage)
        return storage

    @cached_property
    def disk_owners(self) -> dict[str, list[str]]:
        """See :meth:`.Chains.owners`: asked once a task."""
        return Chains(self.host).owners()

    def close(self) -> None:
        """Let go of the hosts and of the image store."""
        self._closing.close()
        self.storage.close()
        self.host.close()


def _let_go(storage: Storage) -> None:
    with contextlib.suppress(LifecycleError):  # what lies there is told by the steps
        storage.close()


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
    :param said: Options that the task gives for it alone.
    """

    name: str
    guest: Guest | None = None
    seen: Observation | None = None
    journal: Journal | None = field(default=None, repr=False)
    tell: Tell = field(default=lambda progress: None, repr=False)
    absent: str = "ABSENT"
    kept: Instance = field(default_factory=Instance, repr=False)
    said: t.Mapping[str, t.Any] = field(default_factory=dict)

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
