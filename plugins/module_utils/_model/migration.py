# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Live migration as decisions over plain values: what is asked of libvirt at the start, what is done in the course, and
what has become of it.

A migration is copied in rounds: all of the memory, then what the guest has changed meanwhile, and so on, until the rest
can be carried over while the guest stands still no longer than the *downtime* that it is allowed.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from .._core.errors import Invalid, LifecycleError, Refused, Unsupported

ABORT, FORCE, POST_COPY = "abort", "force", "post_copy"
AUTO, ALWAYS, NEVER = "auto", "always", "never"

GIB = 1 << 30
MIB = 1 << 20

# What QEMU and libvirt allow a guest to stand still when nobody says anything, in milliseconds.
USUAL_DOWNTIME = 300
# Of the memory and of each copied disk, at least so much counts for the time that a migration may take (Nova).
_LEAST = 2 * GIB
# Seconds without progress after which the guest is allowed to stand still for longer, and between two such steps.
_STALLED = 3.0
# What must be missing of the least that was seen so far, to count as progress.
_NOTABLE = 0.98

# Compression of libvirt (VIR_MIGRATE_PARAM_COMPRESSION): over one connection, and over several.
_SINGLE = ("xbzrle", "mt")
_PARALLEL = ("zlib", "zstd")
COMPRESSIONS = (*_SINGLE, *_PARALLEL)

# virDomainState and reasons, as far as the two ends of a migration are told apart by them
_RUNNING, _PAUSED, _SHUTOFF = 1, 3, 5
_RUNNING_MIGRATION_CANCELED = 6
_PAUSED_MIGRATION, _PAUSED_POSTCOPY, _PAUSED_POSTCOPY_FAILED = 2, 12, 13


# ---- what was measured


@dataclass(frozen=True)
class Statistics:
    """One look at a migration that runs (virDomainGetJobStats). Sizes are bytes, rates bytes a second.

    :param at: Seconds since it began.
    :param memory_total: 0 while the disks are copied first.
    :param dirty_rate: How much memory the guest changes a second; 0 while it is not known.
    :param iteration: Number of the round, from 1.
    :param expected_downtime: Milliseconds that the guest would have to stand still now; 0 while it is not known.
    :param throttle: Percent of its time that auto-converge takes from the guest.
    """

    at: float
    memory_total: int = 0
    memory_processed: int = 0
    memory_remaining: int = 0
    memory_rate: int = 0
    dirty_rate: int = 0
    iteration: int = 0
    disk_total: int = 0
    disk_processed: int = 0
    disk_remaining: int = 0
    disk_rate: int = 0
    expected_downtime: int = 0
    throttle: int = 0
    post_copy_requests: int = 0

    @property
    def remaining(self) -> int:
        """Bytes that are still to be carried."""
        return self.memory_remaining + self.disk_remaining

    @property
    def phase(self) -> str:
        """``prepare`` while the destination gets ready, ``disks`` while they are copied, which comes before any memory,
        then ``memory``."""
        if self.memory_total:
            return "memory"
        return "disks" if self.disk_total else "prepare"

    @property
    def course(self) -> tuple[int, int]:
        """What has to become less, by stages: preparing, the disks, the first round, and all others. In a round the
        rest always falls to nothing; what counts of the later ones is with how much each begins, and that is what QEMU
        makes the expected downtime of. With auto-converge, a guest that is slowed down more is progress too."""
        if not self.memory_total:
            return (1, self.disk_remaining) if self.disk_total else (0, 0)
        if self.iteration < 2:
            return 2, self.memory_remaining
        return 3 + self.throttle, self.expected_downtime

    @property
    def percent(self) -> int:
        """How much of all is there, not counting what is to be carried again."""
        total = self.memory_total + self.disk_total
        return min(99, 100 * (total - self.remaining) // total) if total else 0

    def tell(self) -> dict[str, t.Any]:
        """For those who watch."""
        return {
            "phase": self.phase,
            "percent": self.percent,
            "seconds": round(self.at, 1),
            "remaining": self.remaining,
            "rate": self.memory_rate if self.memory_total else self.disk_rate,
            "dirty_rate": self.dirty_rate,
            "iteration": self.iteration,
            "expected_downtime_ms": self.expected_downtime,
        }


def read_statistics(raw: t.Mapping[str, t.Any], at: float) -> Statistics:
    """What virDomainGetJobStats says.

    :param at: Seconds since the migration began.
    """

    def number(key: str) -> int:
        return int(raw.get(key, 0))

    return Statistics(
        at=at,
        memory_total=number("memory_total"),
        memory_processed=number("memory_processed"),
        memory_remaining=number("memory_remaining"),
        memory_rate=number("memory_bps"),
        # QEMU counts pages of the guest.
        dirty_rate=number("memory_dirty_rate") * (number("memory_page_size") or 4096),
        iteration=number("memory_iteration"),
        disk_total=number("disk_total"),
        disk_processed=number("disk_processed"),
        disk_remaining=number("disk_remaining"),
        disk_rate=number("disk_bps"),
        expected_downtime=number("downtime"),
        throttle=number("auto_converge_throttle"),
        post_copy_requests=number("memory_postcopy_requests"),
    )


def completed(raw: t.Mapping[str, t.Any], watched: Statistics | None) -> dict[str, t.Any]:
    """The figures of a migration that has ended.

    :param raw: What the destination tells of it: nothing after a post-copy, and never how much of the disks.
    :param watched: The last that was seen while it ran, if it was watched.
    """
    figures: dict[str, t.Any] = {}
    if watched:
        figures.update(
            total_seconds=round(watched.at, 3),
            memory_bytes=watched.memory_processed,
            disk_bytes=watched.disk_processed,
            rounds=watched.iteration,
        )
    if "time_elapsed" in raw:
        figures.update(
            # Without what the two clocks differ in, where libvirt knows that.
            total_seconds=raw.get("time_elapsed_net", raw["time_elapsed"]) / 1000,
            downtime_ms=raw.get("downtime_net", raw.get("downtime", 0)),
            memory_bytes=raw.get("memory_processed", 0),
            rounds=raw.get("memory_iteration", 0),
        )
    return figures


# ---- what is asked


@dataclass(frozen=True)
class Order:
    """What is asked of libvirt (virDomainMigrateToURI3); peer to peer always.

    :param uri: Of the destination's libvirtd, as the source's libvirtd reaches it.
    :param tls: Encrypt what QEMU sends.
    :param tls_name: The name in the destination's certificate, where the address is another one.
    :param live: The guest runs meanwhile.
    :param offline: The definition only, of a VM that is off.
    :param persist: The destination keeps the VM's definition.
    :param undefine: The source forgets the VM.
    :param address: ``tcp://`` address on which the destination takes the data; empty for libvirt's choice.
    :param disks: Targets of the disks to copy: what is changed over their backing files. Empty for none.
    :param definition: The running domain's XML as the destination needs it; empty when nothing differs.
    :param persistent: The same of the definition.
    :param bandwidth: MiB a second, 0 for no limit.
    :param connections: Through how many the memory is carried.
    :param resume: Go on with a post-copy migration that broke.
    :param throttle: How much time auto-converge takes from the guest at first, and then each time, in percent.
    """

    uri: str
    tls: bool = True
    tls_name: str = ""
    live: bool = True
    offline: bool = False
    persist: bool = True
    undefine: bool = True
    address: str = ""
    disks: tuple[str, ...] = ()
    definition: str = ""
    persistent: str = ""
    bandwidth: int = 0
    connections: int = 1
    compression: tuple[str, ...] = ()
    auto_converge: bool = False
    throttle: tuple[int, int] | None = None
    post_copy: bool = False
    resume: bool = False


# ---- what is wished for


@dataclass(frozen=True)
class Policy:
    """How a migration shall come to an end.

    :param downtime: Milliseconds that the guest may stand still at the end, at most.
    :param downtime_steps: In how many steps it is raised to that, from what QEMU allows by itself.
    :param bandwidth: MiB a second, 0 for no limit.
    :param timeout_per_gib: Seconds for each GiB of memory and of each copied disk, at least two of each; 0 for no
        limit.
    :param progress_timeout: Seconds that it may go on without progress; 0 for no limit.
    :param on_timeout: ``abort``; ``force``: hold the guest until the rest is there; ``post_copy``: let it run at the
        destination, which fetches the rest.
    :param auto_converge: ``auto``: unless it may come to a post-copy; ``always``; ``never``.
    :param throttle: What auto-converge takes from the guest at first, and each time, in percent; 0 for QEMU's choice.
    :param connections: Through how many the memory is carried.
    :param compression: Methods, of :data:`COMPRESSIONS`.
    """

    downtime: int = 500
    downtime_steps: int = 5
    bandwidth: int = 0
    timeout_per_gib: int = 800
    progress_timeout: int = 150
    on_timeout: str = ABORT
    auto_converge: str = AUTO
    throttle: tuple[int, int] = (0, 0)
    connections: int = 1
    compression: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """The downtimes that are allowed one after the other, in milliseconds."""
        least = min(USUAL_DOWNTIME, self.downtime)
        count = self.downtime_steps
        return tuple(sorted({least + (self.downtime - least) * step // count for step in range(count + 1)}))

    def seconds(self, memory: int, disks: t.Iterable[int]) -> float | None:
        """How long it may take; ``None`` for as long as it likes.

        :param memory: Bytes.
        :param disks: Bytes of each disk that is copied.
        """
        if not self.timeout_per_gib:
            return None
        return self.timeout_per_gib * sum(max(_LEAST, size) for size in (memory, *disks)) / GIB


def read_policy(asked: t.Mapping[str, t.Any]) -> Policy:
    """The policy of a task's option.

    :raises Invalid: A value is out of range, or two do not go together.
    """
    policy = Policy(
        downtime=asked["downtime"],
        downtime_steps=asked["downtime_steps"],
        bandwidth=asked["bandwidth"],
        timeout_per_gib=asked["timeout_per_gib"],
        progress_timeout=asked["progress_timeout"],
        on_timeout=asked["on_timeout"],
        auto_converge=asked["auto_converge"],
        throttle=(asked["auto_converge_initial"], asked["auto_converge_increment"]),
        connections=asked["connections"],
        compression=tuple(asked["compression"]),
    )
    limits = {
        "downtime": (policy.downtime, 1, 2_000_000),  # QEMU's limit
        "downtime_steps": (policy.downtime_steps, 1, 100),
        "bandwidth": (policy.bandwidth, 0, 1 << 30),
        "timeout_per_gib": (policy.timeout_per_gib, 0, 1 << 30),
        "progress_timeout": (policy.progress_timeout, 0, 1 << 30),
        "auto_converge_initial": (policy.throttle[0], 0, 99),
        "auto_converge_increment": (policy.throttle[1], 0, 99),
        "connections": (policy.connections, 1, 255),
    }
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise Invalid(f"policy: {name} is {value}, and must be from {least} to {most}.")
    _demand_harmony(policy)
    return policy


def _demand_harmony(policy: Policy) -> None:
    alone = [method for method in policy.compression if method in _SINGLE]
    parallel = [method for method in policy.compression if method in _PARALLEL]
    late = policy.on_timeout == POST_COPY
    for bad, why, way_out in (
        (
            late and policy.auto_converge == ALWAYS,
            "auto_converge: always slows the guest down lest it come to a post-copy, which on_timeout: post_copy wants",
            "Leave one of them out.",
        ),
        (
            late and "mt" in policy.compression,
            "QEMU cannot switch to post-copy with compression: mt",
            "Leave one of them out.",
        ),
        (
            policy.connections > 1 and bool(alone),
            f"compression: {', '.join(alone)} goes through one connection only",
            "Say connections: 1, or compression: zstd.",
        ),
        (
            policy.connections == 1 and bool(parallel),
            f"compression: {', '.join(parallel)} goes through several connections only",
            "Say connections: 2 or more.",
        ),
        (len(parallel) > 1, "of zlib and zstd QEMU takes one", "Leave one of them out."),
    ):
        if bad:
            raise Invalid(f"policy: {why}.", hint=way_out)


Version = tuple[int, ...]


def numbers(version: str) -> Version:
    """A version such as 9.0.0, to be compared."""
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class Ends:
    """What the two hosts and the VM are, as far as a policy is about it.

    :param libvirt: The older of the two libvirtds, as major and minor.
    :param qemu: The older of the two QEMUs that new VMs run on.
    :param newest_qemu: The newer of them.
    :param runs: The guest's CPUs run.
    :param host_devices: It has devices of the host, such as PCI devices that were passed through.
    """

    libvirt: Version
    qemu: Version
    newest_qemu: Version
    runs: bool
    host_devices: bool = False


def demand_possible(policy: Policy, ends: Ends, *, name: str) -> None:
    """See that both ends can do what the policy wants, before anything is begun.

    :raises Refused: The VM cannot.
    :raises Unsupported: A host cannot.
    """
    late = policy.on_timeout == POST_COPY and ends.runs
    kinds: tuple[tuple[bool, type[LifecycleError], str, str], ...] = (
        (
            late and ends.host_devices,
            Refused,
            "it has devices of the host, whose memory cannot be fetched later: no post-copy",
            "Say policy: on_timeout: abort, or force.",
        ),
        (
            late and policy.connections > 1 and ends.qemu < (10, 1),
            Unsupported,
            "post-copy goes with several connections from QEMU 10.1 on",
            "Say policy: connections: 1, or another on_timeout.",
        ),
        (
            "mt" in policy.compression and ends.newest_qemu >= (9, 1),
            Unsupported,
            "compression: mt is gone from QEMU 9.1 on",
            "Say policy: connections: 2 and compression: zstd.",
        ),
        (
            bool(set(policy.compression) & set(_PARALLEL)) and ends.libvirt < (9, 4),
            Unsupported,
            "compression: zlib and zstd go from libvirt 9.4 on",
            "Leave out policy: compression.",
        ),
    )
    for bad, kind, why, way_out in kinds:
        if bad:
            raise kind(f"VM {name} cannot be migrated by that policy: {why}.", hint=way_out)


# ---- what is done, and why


@dataclass(frozen=True)
class Decision:
    """Something that is done in the course of a migration.

    :param at: Seconds since it began.
    :param what: ``downtime``, ``abort``, ``force`` or ``post_copy``; of the beginning ``auto_converge`` too.
    :param value: Of a downtime: milliseconds.
    """

    at: float
    what: str
    why: str
    value: int | None = None

    def tell(self) -> dict[str, t.Any]:
        """For results."""
        told: dict[str, t.Any] = {"at": round(self.at, 1), "what": self.what, "why": self.why}
        return told if self.value is None else {**told, "value": self.value}


@dataclass(frozen=True)
class Course:
    """What has to be known of a migration's past.

    :param began: When the first was carried; ``None`` while the destination gets ready, which is libvirt's to limit.
    :param downtime: Milliseconds that the guest may stand still at present.
    :param best: See :attr:`Statistics.course`: the best that was seen.
    :param best_at: When that was.
    :param stepped_at: When the downtime was raised last.
    :param over: What brings it to its end, once that is decided.
    """

    began: float | None = None
    downtime: int = USUAL_DOWNTIME
    best: tuple[int, int] = (-1, 0)
    best_at: float = 0.0
    stepped_at: float = 0.0
    over: str = ""

    def seen(self, now: Statistics) -> Course:
        """With one more look."""
        if self.began is None and now.phase != "prepare":
            return replace(self, began=now.at, best=now.course, best_at=now.at)
        stage, rest = now.course
        further = stage > self.best[0] or (stage == self.best[0] and rest < self.best[1] * _NOTABLE)
        return replace(self, best=(stage, rest), best_at=now.at) if further else self

    def done(self, decision: Decision) -> Course:
        """With that done."""
        if decision.what == "downtime" and decision.value is not None:
            return replace(self, downtime=decision.value, stepped_at=decision.at)
        return replace(self, over=decision.what) if decision.what in (ABORT, FORCE, POST_COPY) else self


def begin(policy: Policy, *, runs: bool) -> tuple[bool, bool, list[Decision]]:
    """What has to be asked for at the start: whether auto-converge, whether a switch to post-copy is possible, and what
    is to be said of it.

    :param runs: The guest's CPUs run. One whose do not changes nothing, and needs neither.
    """
    late = policy.on_timeout == POST_COPY
    if not runs:
        said = "the guest's CPUs stand still: it changes nothing that would have to be carried again"
        return False, False, [Decision(0.0, "plain", said)]
    if policy.auto_converge == NEVER or late:
        why = "post-copy is the last resort" if late else "the policy says so"
        return False, late, [Decision(0.0, "no_auto_converge", why)]
    return (
        True,
        False,
        [Decision(0.0, "auto_converge", "QEMU slows the guest down if it changes too much, and only then")],
    )


def decide(policy: Policy, course: Course, now: Statistics, limit: float | None) -> Decision | None:
    """What is to be done now, if anything.

    :param course: With *now* seen.
    :param limit: Seconds that it may take, of :meth:`Policy.seconds`.
    """
    if course.over or course.began is None:
        return None
    stuck = now.at - course.best_at
    rates = (
        f"the guest changes {now.dirty_rate / MIB:.1f} MiB a second, of {now.memory_rate / MIB:.1f} that are carried"
    )
    if limit is not None and now.at - course.began >= limit:
        return _last(policy, now, f"it has not ended within {limit:g} seconds; {rates}")
    if policy.progress_timeout and stuck >= policy.progress_timeout:
        return _last(policy, now, f"no progress for {stuck:.0f} seconds; {rates}")
    if now.phase != "memory":
        return None
    if course.downtime > policy.downtime:
        return Decision(now.at, "downtime", "the policy allows less than QEMU would", policy.downtime)
    further = [step for step in policy.steps if step > course.downtime]
    if now.iteration < 2 or now.expected_downtime <= course.downtime or not further:
        return None
    enough = [step for step in further if step >= now.expected_downtime]
    if enough:
        why = f"with {now.expected_downtime} ms the rest could be carried now"
        return Decision(now.at, "downtime", why, enough[0])
    if now.at - max(course.best_at, course.stepped_at) >= _STALLED:
        return Decision(now.at, "downtime", f"it does not get on: {rates}", further[0])
    return None


def _last(policy: Policy, now: Statistics, why: str) -> Decision:
    """What is done with a migration that does not end."""
    if now.phase == "memory" or policy.on_timeout == ABORT:
        return Decision(now.at, policy.on_timeout, why)
    return Decision(now.at, ABORT, f"{why}; the memory's turn has not come, so {policy.on_timeout} is of no use")


# ---- what has become of it


# The outcomes of a migration, by what both ends say.
ARRIVED, STAYED, UNDER_WAY, BROKEN = "arrived", "stayed", "under_way", "broken"
Seen = t.Optional[tuple[int, int]]


def outcome(here: Seen, there: Seen) -> str:
    """What has become of a migration that has ended or was lost sight of.

    :param here: virDomainState and its reason at the source; ``None`` when it does not know the VM.
    :param there: The same at the destination.
    """
    if there is not None and there[0] == _PAUSED and there[1] in (_PAUSED_POSTCOPY, _PAUSED_POSTCOPY_FAILED):
        return BROKEN
    if here is not None and here[0] == _PAUSED and here[1] in (_PAUSED_POSTCOPY, _PAUSED_POSTCOPY_FAILED):
        return UNDER_WAY if here[1] == _PAUSED_POSTCOPY and _on(there) else BROKEN
    if _on(here):
        return UNDER_WAY if _on(there) else STAYED
    if _on(there):
        return ARRIVED
    return BROKEN


def never_stopped(here: Seen) -> bool:
    """Whether the source alone says that a migration that has ended left the VM there.

    libvirt tells the destination to start a VM after it has stopped it at the source. When that fails it lets it go on
    there, and notes it as the reason why it runs. So a VM that runs for another reason runs nowhere else.

    :param here: virDomainState and its reason at the source; ``None`` when it does not know the VM.
    """
    return here is not None and here[0] == _RUNNING and here[1] != _RUNNING_MIGRATION_CANCELED


def _on(seen: Seen) -> bool:
    return seen is not None and seen[0] != _SHUTOFF
