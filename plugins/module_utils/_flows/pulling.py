# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Bringing the data of a running VM's disks from an image store to its host, and waiting for it.

QEMU does the work, in block jobs that go on when this process is dead. What is still to be done is read from the chains
of the running VM alone, so whoever comes next goes on where the last one was.
"""

from __future__ import annotations

import threading
import typing as t

from .._core.errors import Invalid, LifecycleError, NoSpace, NotFound, TimedOut, Unreachable
from .._libvirt.bases import Base
from .._libvirt.guest import Guest
from .._libvirt.pull import Job, Pull
from .._model.snapshot import Member
from .._model.unshelve import COPY, DONE, PULL, Began, Piece
from .._task import Context, Subject
from .shelves import image_of, read_back

# Seconds between two looks, at first and later.
_SOON, _LATER = 0.05, 0.5
# Seconds between two attempts at what has failed.
_AGAIN = 2.0
# Seconds for which QEMU may refuse what is asked of it: a job that ends while it is asked about is gone, or in the
# way for a moment.
_REFUSALS = 30.0
# Seconds that libvirtd has to answer when it was lost.
_CONNECT = 10.0

Figures = dict[str, t.Any]


class Damaged(Invalid):
    """What the store has is not what was stored."""


class _Errand:
    """Something that is done beside the pulling, and again when it fails and may work another time. What hangs in it
    ends with the process."""

    def __init__(self, do: t.Callable[[], object]) -> None:
        self._do = do
        self._stop = threading.Event()
        self.result: t.Any = None
        self.done = False
        self.failure: LifecycleError | None = None
        self.trouble: LifecycleError | None = None
        threading.Thread(target=self._run, name="kvmops-errand", daemon=True).start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.result = self._do()
                self.done = True
                return
            except Unreachable as exc:
                self.trouble = exc
                self._stop.wait(_AGAIN)
            except LifecycleError as exc:
                self.failure = exc
                return

    @property
    def stopped(self) -> bool:
        """Whether nobody waits any more."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Nobody waits any more."""
        self._stop.set()


class Pulling:
    """The disks of one VM that is started on its shelf.

    :param expose: Sees that QEMU can read the images in the store.
    :param members: The images of the disks, to be read once and compared; none for a quick look.
    :param fetch: For the disks whose base is not here yet: fetches it, by target.
    """

    def __init__(
        self,
        context: Context,
        vm: Subject,
        began: Began,
        *,
        expose: t.Callable[[], object],
        members: t.Sequence[Member],
        fetch: t.Mapping[str, t.Callable[[], Base]],
    ) -> None:
        self.context = context
        self.vm = vm
        self.began = began
        self.clock = context.clock
        self._expose = expose
        self._members = members
        self._fetch = fetch
        self._bases: dict[str, _Errand] = {}
        self._reading: _Errand | None = None
        self._read = 0
        self._tried: set[str] = set()
        self._again_at = 0.0
        self._trouble: LifecycleError | None = None
        self._refused_since: float | None = None
        # For each disk; they share what they may use.
        self._bandwidth = (context.params["bandwidth"] << 20) // max(1, len(began.disks))
        self._last: Figures = {}

    def begin(self) -> None:
        """Begin, and leave it to QEMU."""
        pull = Pull(self.vm.made())
        disks = pull.disks()
        for piece in self.began.disks:
            disk = disks.get(piece.target)
            if disk is not None and piece.ahead(disk) == PULL and pull.job(piece.target) is None:
                pull.begin(disk, len(piece.parents), self._bandwidth)

    def finish(self) -> Figures:
        """Wait until all is here, and compare what the store has meanwhile.

        :raises Damaged: The store has something else.
        :raises TimedOut: It is not here in time; it goes on.
        """
        began = self.clock.monotonic()
        deadline = began + self.context.params["wait_timeout"]
        if self._members:
            self._reading = _Errand(self._compare)
        self._bases = {target: _Errand(fetch) for target, fetch in self._fetch.items()}
        errands = [*self._bases.values(), *([self._reading] if self._reading else [])]
        pause = _SOON
        try:
            while not (self._turn() and all(errand.done for errand in errands)):
                for errand in errands:
                    if errand.failure:
                        raise errand.failure
                if self.clock.monotonic() >= deadline:
                    raise self._late(errands)
                self.clock.sleep(pause)
                pause = min(pause * 1.5, _LATER)
        finally:
            for errand in errands:
                errand.stop()
        return {
            "pulled_bytes": sum(piece.stored for piece in self.began.disks),
            "pull_seconds": round(self.clock.monotonic() - began, 3),
            **({"read_bytes": self._read} if self._members else {}),
            **({"fetched": {target: each.result.path for target, each in self._bases.items()}} if self._bases else {}),
        }

    # ---- one look

    def _turn(self) -> bool:
        """Look at all disks, and do what can be done now; whether all data are here."""
        try:
            guest = self.vm.made()
            if not guest.active():
                raise LifecycleError(
                    f"VM {guest.name} went off before all its data were here.",
                    hint="Run the task again: it starts the VM, and goes on. Nothing that the guest wrote is lost.",
                )
            return self._look_patiently(guest)
        except Unreachable as exc:
            self._trouble = exc
            self._reconnect()
            return False

    def _look_patiently(self, guest: Guest) -> bool:
        try:
            done = self._look(guest)
        except (Unreachable, NotFound, NoSpace):
            raise
        except LifecycleError as exc:
            now = self.clock.monotonic()
            self._refused_since = now if self._refused_since is None else self._refused_since
            if now - self._refused_since >= _REFUSALS:
                raise
            self._trouble = exc
            return False
        self._refused_since = None
        return done

    def _reconnect(self) -> None:
        """libvirtd was restarted, or will be: QEMU goes on meanwhile."""
        self.clock.sleep(_LATER)
        try:
            self.context.host.reconnect(timeout=_CONNECT)
            uuid = self.vm.made().uuid
            found = self.context.host.guest_of(uuid)
        except Unreachable as exc:
            self._trouble = exc
            return
        if found is None:
            raise NotFound(f"VM {self.vm.name} is gone.")
        self.vm.guest = found

    def _look(self, guest: Guest) -> bool:
        pull = Pull(guest)
        # In this order: a job that ends between the two looks has not failed.
        jobs = {piece.target: pull.job(piece.target) for piece in self.began.disks}
        disks = pull.disks()
        told: Figures = {}
        done = True
        failed = False
        for piece in self.began.disks:
            disk = disks.get(piece.target)
            if disk is None:
                raise NotFound(f"VM {guest.name} has no disk {piece.target} any more.")
            ahead = piece.ahead(disk)
            if ahead == DONE:
                continue
            done = False
            job = jobs[piece.target]
            if job is not None:
                told[piece.target] = _percent(job)
                self._tend(pull, piece, job, ahead)
            elif ahead == PULL and piece.target not in self._tried:
                self._tried.add(piece.target)
                pull.begin(disk, len(piece.parents), self._bandwidth)
            elif ahead == PULL:
                failed = True
            else:
                self._copy(pull, piece)
        if failed or pull.stopped_by_error():
            self._revive(pull)
        self._tell(told)
        return done

    def _tend(self, pull: Pull, piece: Piece, job: Job, ahead: str) -> None:
        """Look after a job that runs."""
        if ahead == COPY and job.ready:
            pull.pivot(piece.target, piece.path)
        elif job.bandwidth != self._bandwidth:
            pull.set_speed(piece.target, self._bandwidth)

    def _copy(self, pull: Pull, piece: Piece) -> None:
        """Copy what is here of a disk to a file upon the base, as soon as that is here."""
        errand = self._bases.get(piece.target)
        if errand is None or not errand.done:
            return
        storage = self.context.storage
        storage.remove(piece.path)  # half of an attempt that died
        storage.make_overlay(piece.path, errand.result, piece.size)
        pull.copy(piece.target, piece.path, self._bandwidth)

    def _revive(self, pull: Pull) -> None:
        """A job has ended before its end, or QEMU has stopped the guest as it could not read: when the store answers,
        both go on."""
        if self.clock.monotonic() < self._again_at:
            return
        self._again_at = self.clock.monotonic() + _AGAIN
        self._trouble = self._trouble or LifecycleError("The data could not be read from the store, or not written.")
        try:
            self._expose()
        except LifecycleError as exc:
            self._trouble = exc
            return
        self._tried.clear()
        if pull.stopped_by_error():
            pull.guest.resume()

    def _tell(self, told: Figures) -> None:
        progress = {"disks": told, **({"compared": self._read} if self._members else {})}
        if progress != self._last:
            self._last = progress
            self.vm.tell(progress)

    def _late(self, errands: t.Sequence[_Errand]) -> TimedOut:
        seconds = self.context.params["wait_timeout"]
        troubles = [self._trouble, *(errand.trouble for errand in errands)]
        said = next((str(each) for each in troubles if each is not None), "")
        hint = "The VM keeps all that its guest wrote. Run the task again to go on."
        if self._trouble:  # files that were open when a network file system died stay dead
            hint += (
                " If it does not, though the store answers, end the VM's QEMU (virsh destroy) and run the task again:"
                " it starts the VM, which opens the store's files anew."
            )
        return TimedOut(
            f"Gave up waiting for the data of VM {self.vm.name} after {seconds} seconds. {said}".rstrip(),
            hint=hint,
            seconds=seconds,
        )

    # ---- beside it

    def _compare(self) -> None:
        """Read the images in the store once, and see that they are what was stored."""
        self._read = 0
        for member in self._members:
            try:
                image = image_of(self.context, member)
                read_back(self.context, image, member.sha256, self._has_read)
            except Invalid as exc:
                raise Damaged(exc.message, hint=exc.hint, **exc.details) from exc

    def _has_read(self, count: int) -> bool:
        self._read += count
        return self._reading is None or not self._reading.stopped


def _percent(job: Job) -> int:
    return job.done * 100 // job.total if job.total else 0
