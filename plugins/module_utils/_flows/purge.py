# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Removing base images that nobody builds upon any more (Nova: the image cache manager)."""

from __future__ import annotations

import os
import typing as t
from functools import partial

from .._core.errors import LifecycleError, NotFound
from .._core.files import working
from .._core.plan import Plan, Step
from .._libvirt.bulk import Bulk
from .._libvirt.cache import BaseCache
from .._model import names
from .._model.instance import Instance
from .._model.purge import Cached, about_to_use, choose
from .._task import Context

_LAUNCHING = "a launch that is under way may need it"


def purge(context: Context) -> Plan:
    """Remove the bases that no VM uses."""
    ask = context.params
    storage = names.check_directory(ask["storage"])
    cache = context.storage.cache(storage)
    if not os.path.isdir(cache.place):
        return Plan({"bases": []}, {"bases": []}, figures={"removed": [], "kept": {}, "freed": 0})
    with working(f"look at {cache.place}"):
        free = cache.reserve()
        now = context.clock.now().timestamp()
        cached = cache.cached(now)
        left = cache.leftovers(now) if free else []
        users = _users(context, cache, cached, storage) if free else {base.name: "" for base in cached}
    found = choose(cached, users, older_than=ask["older_than"], host=cache.host, gone=ask["gone_hosts"])
    sizes = {base.name: base.size for base in cached}
    keep = dict(found.keep) if free else dict.fromkeys(found.keep, _LAUNCHING)
    hosts = {base.name: list(base.hosts) for base in cached}
    after = {
        name: [host for host in hosts[name] if host != cache.host] if name in found.let_go else hosts[name]
        for name in hosts
        if name not in found.remove
    }
    steps = [Step(f"remove {name}", partial(_remove, cache, name)) for name in (*found.remove, *left)]
    steps += [Step(f"let go of {name}", partial(_let_go, cache, name)) for name in found.let_go]
    return Plan(
        before={"bases": hosts, "leftovers": left},
        after={"bases": after, "leftovers": []},
        steps=steps,
        figures={
            "removed": [os.path.join(cache.place, name) for name in found.remove],
            "kept": {os.path.join(cache.place, name): reason for name, reason in sorted(keep.items())},
            "freed": sum(sizes[name] for name in found.remove),
        },
    )


def _users(context: Context, cache: BaseCache, cached: t.Sequence[Cached], storage: str) -> dict[str, str]:
    """Who uses which base, or may be about to use any."""
    bases = [base.name for base in cached]
    users = {name: f"file {path}" for name, path in cache.built_upon(bases).items()}
    by_path = {os.path.realpath(os.path.join(cache.place, name)): name for name in bases}
    guests = context.host.guests()
    called = {guest.uuid: guest.name for guest in guests}
    for path, uuids in context.disk_owners.items():
        name = by_path.get(os.path.realpath(path))
        if name:
            users[name] = f"VM {called.get(uuids[0], uuids[0])}"
    seen = Bulk(context.host).look(guests)
    for guest in guests:
        look = seen[guest.uuid]
        if isinstance(look, NotFound):  # it vanished meanwhile
            continue
        if isinstance(look, LifecycleError):
            users.update(dict.fromkeys(bases, f"VM {guest.name}, whose metadata cannot be read, possibly"))
        else:
            users.update((name, f"VM {guest.name}") for name in _by_metadata(look.instance, bases, storage))
    return users


def _by_metadata(instance: Instance, bases: t.Sequence[str], storage: str) -> list[str]:
    launch, journal = instance.launch, instance.journal
    base = launch.base if launch else ""
    if journal and about_to_use(journal.action, launch.storage if launch else None, base, storage):
        return list(bases)
    return [name for name in bases if name == os.path.basename(base)]


def _remove(cache: BaseCache, name: str) -> None:
    with working(f"remove {name} from {cache.place}"):
        cache.remove(name)


def _let_go(cache: BaseCache, name: str) -> None:
    with working(f"note that {cache.host} does not use {name}"):
        cache.let_go(name)
