# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Look, plan, act, report: the only place that knows check mode, diff, ``exit_json`` and ``fail_json``.

A module that acts gives :func:`run_module` one function that looks at one VM and returns a :class:`.Plan`. A module
that only looks gives :func:`run_query` one function that returns the result, or :func:`run_queries` one that looks at
one VM. Those that are about images and not about VMs give theirs to :func:`run_images` and :func:`run_images_query`.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t
from dataclasses import asdict, dataclass, replace

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ._core import lock
from ._core.clock import Clock, stamp
from ._core.errors import Busy, LifecycleError, Locked, NotFound, Unreachable
from ._core.journal import Journal
from ._core.plan import Plan
from ._core.spec import Spec
from ._core.workers import spread
from ._images import Image, open_store
from ._libvirt import MISSING, Bulk, Guest, open_host, pick, storage_of
from ._model.actions import ACTIONS
from ._task import Context, StoreContext, Subject

Result = dict[str, t.Any]


Decide = t.Callable[[Context, Subject], Plan]
Ask = t.Callable[[Context], Result]
AskOne = t.Callable[[Context, Subject, Result], None]
DecideImages = t.Callable[[StoreContext], Plan]
DecideHost = t.Callable[[Context], Plan]
AskImages = t.Callable[[StoreContext], t.Sequence[Image]]


def run_module(
    spec: Spec,
    decide: Decide,
    *,
    may_be_missing: bool = False,
    everything: t.Callable[[Subject], bool] | None = None,
    elsewhere: t.Callable[[Context], t.Iterable[str]] | None = None,
    **options: t.Any,
) -> None:
    """Run a module that acts on VMs.

    :param spec: Argument spec; it has the parts ``connection``, ``selection`` and, unless nothing in it asks for the
        lock, ``override_lock`` of :mod:`._core.spec`.
    :param decide: Looks at one VM and returns the plan. It changes nothing. It is called once without and, when there
        is something to do, once with the VM's operation lock held.
    :param may_be_missing: Call *decide* for names that no VM has, too.
    :param everything: Which of all the VMs the task is about when it names none.
    :param elsewhere: The UUIDs of VMs that it is then about as well, though libvirt does not have them any more.
    :param options: For ``AnsibleModule``: ``required_if`` and the like.
    """
    module = _module(spec, **options)
    context = _connect(module)
    runner = _Runner(module, context, decide)
    try:
        outcomes = runner.run(_select(context, may_be_missing, everything, elsewhere))
    except LifecycleError as exc:
        _fail(module, exc)
    finally:
        context.close()
    _report(module, outcomes)


def run_query(spec: Spec, ask: Ask, **options: t.Any) -> None:
    """Run a module that only looks: *ask* returns what it found."""
    module = _module(spec, **options)
    context = _connect(module)
    try:
        found = ask(context)
    except LifecycleError as exc:
        _fail(module, exc)
    finally:
        context.close()
    module.exit_json(changed=False, **found)


def run_queries(spec: Spec, ask: AskOne, **options: t.Any) -> None:
    """Run a module that only looks at VMs, each by itself.

    :param spec: Argument spec; it has the parts ``connection`` and ``selection`` of :mod:`._core.spec`.
    :param ask: Looks at one VM, and puts what it found into the result. What it has put there stays when it fails.
    """
    module = _module(spec, **options)
    context = _connect(module)

    def one(subject: Subject | LifecycleError) -> _Outcome:
        if isinstance(subject, LifecycleError):
            return _failed({"name": str(subject.details.get("name", ""))}, subject)
        guest, _seen, state = subject.there()
        result: Result = {"name": subject.name, "uuid": guest.uuid, "host": context.host.name, "changed": False}
        result.update(status=state.status, power_state=state.power_state)
        try:
            ask(context, subject, result)
        except LifecycleError as exc:
            return _failed(result, exc)
        return _Outcome(result)

    try:
        outcomes = spread(one, _select(context, False, None, None), workers=context.params["concurrency"])
    except LifecycleError as exc:
        _fail(module, exc)
    finally:
        context.close()
    _report(module, outcomes)


def run_images(
    spec: Spec, decide: DecideImages, *, on_host: t.Mapping[str, DecideHost] | None = None, **options: t.Any
) -> None:
    """Run a module that acts on the images of a store; it needs no libvirt.

    :param spec: Argument spec; it has the part ``image_store`` of :mod:`._core.spec`.
    :param decide: Looks, and returns the plan, for which ``images`` of its context tells what will be there.
    :param on_host: For values of the option ``state`` that are about a KVM host and not about a store: looks at the
        host, and returns the plan, whose figures are the result. They need the parts ``connection`` of the spec, and
        libvirt.
    """
    module = _module(spec, libvirt=False, **options)
    if on_host and module.params["state"] in on_host:
        _run_on_host(module, on_host[module.params["state"]])
        return
    context = _open(module)
    told: Result = {"changed": False, "steps": []}
    try:
        plan = decide(context)
        _do(module, plan, told)
    except LifecycleError as exc:
        _fail(module, exc, **told)
    finally:
        context.store.close()
    if module._diff:
        told["diff"] = [plan.diff(module.params["name"])] if plan.changed else []
    for warning in plan.warnings:
        module.warn(warning)
    module.exit_json(
        **{**told, "changed": plan.changed}, images=[_tell_image(context, each) for each in context.images]
    )


def _run_on_host(module: AnsibleModule, decide: DecideHost) -> None:
    _demand_libvirt(module)
    context = _connect(module)
    told: Result = {"changed": False, "steps": []}
    try:
        plan = decide(context)
        _do(module, plan, told)
    except LifecycleError as exc:
        _fail(module, exc, **told)
    finally:
        context.close()
    if module._diff:
        told["diff"] = [plan.diff(context.host.name)] if plan.changed else []
    module.exit_json(**{**told, "changed": plan.changed}, **plan.figures)


def _do(module: AnsibleModule, plan: Plan, told: Result) -> None:
    """Carry out a plan that nobody else can be in the way of, and note in *told* what was done."""
    for step in plan.steps:
        if not module.check_mode:
            step.do()
            told["changed"] = True
        told["steps"].append(step.name)


def run_images_query(spec: Spec, ask: AskImages, **options: t.Any) -> None:
    """Run a module that only looks at the images of a store."""
    module = _module(spec, libvirt=False, **options)
    context = _open(module)
    try:
        found = ask(context)
    except LifecycleError as exc:
        _fail(module, exc)
    finally:
        context.store.close()
    module.exit_json(changed=False, images=[_tell_image(context, each) for each in found])


# ---- around the work


def _module(spec: Spec, *, libvirt: bool = True, **options: t.Any) -> AnsibleModule:
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True, **options)
    if libvirt:
        _demand_libvirt(module)
    return module


def _demand_libvirt(module: AnsibleModule) -> None:
    if MISSING is not None:
        module.fail_json(
            msg=missing_required_lib("libvirt-python", url="https://libvirt.org/python.html"), exception=MISSING
        )


def _connect(module: AnsibleModule) -> Context:
    try:
        host = open_host(module.params["uri"], timeout=module.params["connect_timeout"])
    except LifecycleError as exc:
        _fail(module, exc)
    return Context(host=host, params=module.params, clock=Clock(), storage=storage_of(host))


def _open(module: AnsibleModule) -> StoreContext:
    try:
        return StoreContext(open_store(module.params["image_store"]), module.params)
    except LifecycleError as exc:
        _fail(module, exc)


def _tell_image(context: StoreContext, image: Image) -> Result:
    return {**asdict(image), "store": context.store.place}


def _fail(module: AnsibleModule, exc: LifecycleError, **told: t.Any) -> t.NoReturn:
    module.fail_json(msg=str(exc), code=exc.code, details=exc.details, **told)
    raise AssertionError("fail_json returned")


def _select(
    context: Context,
    may_be_missing: bool,
    everything: t.Callable[[Subject], bool] | None,
    elsewhere: t.Callable[[Context], t.Iterable[str]] | None,
) -> list[Subject | LifecycleError]:
    names = context.params["name"]
    guests = context.host.guests()
    wanted = pick(guests, names) if names is not None else list(guests)
    seen = Bulk(context.host).look([guest for guest in wanted if isinstance(guest, Guest)])
    subjects: list[Subject | LifecycleError] = []
    for found in wanted:
        if isinstance(found, Guest):
            look = seen[found.uuid]
            subjects.append(look if isinstance(look, LifecycleError) else Subject(found.name, found, look))
        elif may_be_missing and found.code == "not_found":
            subjects.append(Subject(found.details["name"]))
        else:
            subjects.append(found)
    if names is None and everything:
        here = {guest.uuid for guest in guests}
        gone = [Subject(uuid) for uuid in (elsewhere(context) if elsewhere else ()) if uuid not in here]
        return [*(each for each in subjects if isinstance(each, Subject) and everything(each)), *gone]
    return subjects


@dataclass
class _Outcome:
    """What came of one VM."""

    result: Result
    diff: Result | None = None
    warnings: t.Sequence[str] = ()
    error: LifecycleError | None = None


class _Runner:
    """Carries out one task on many VMs."""

    def __init__(self, module: AnsibleModule, context: Context, decide: Decide) -> None:
        self.module = module
        self.context = context
        self.decide = decide

    def run(self, subjects: t.Sequence[Subject | LifecycleError]) -> list[_Outcome]:
        """All of them, at most ``concurrency`` at once; one that fails does not stop the others."""
        return spread(self._one, subjects, workers=self.context.params["concurrency"])

    def _one(self, subject: Subject | LifecycleError) -> _Outcome:
        if isinstance(subject, LifecycleError):
            return _failed({"name": str(subject.details.get("name", ""))}, subject)
        began = time.monotonic()
        result: Result = {"name": subject.name, "host": self.context.host.name}
        if subject.guest:
            result["uuid"] = subject.guest.uuid
        try:
            plan = self._plan(subject)
            if plan.changed and not self.module.check_mode:
                plan = self._act(plan.action, subject, result)
        except LifecycleError as exc:
            _refresh(subject)
            return _failed(self._tell(subject, result), exc)
        result.update(self._tell(subject, result, plan))
        result["seconds"] = round(time.monotonic() - began, 3)
        return _Outcome(result, plan.diff(subject.name) if plan.changed else None, plan.warnings)

    def _plan(self, subject: Subject) -> Plan:
        plan = self.decide(self.context, subject)
        journal = subject.instance.journal
        if plan.changed and journal and not journal.ours and plan.action != "reset_state":  # which is the way out
            raise Busy(
                f"VM {subject.name} is busy: {journal.action} since {journal.since}, by process {journal.pid}"
                f" of the machine {journal.node}.",
                hint=f"Run that task again from {journal.node}, or clear it with vm_status if it is dead.",
                running=journal.tell(),
            )
        held = subject.instance.lock
        if plan.changed and held and ACTIONS[plan.action].lock and not self.context.params.get("override_lock"):
            raise Locked(
                f"VM {subject.name} is locked since {held.since}"
                + (f" ({held.reason})" if held.reason else "")
                + f": {plan.action} is refused.",
                hint="Unlock it with vm_lock, or say override_lock: true.",
                since=held.since,
                reason=held.reason,
            )
        return plan

    def _act(self, action: str, subject: Subject, result: Result) -> Plan:
        """Take the VM's operation lock, look again, plan again, carry out."""
        key = lock.key_of(self.context.host.name, subject.name)
        now = stamp(self.context.clock.now())
        with lock.hold(key, {"action": action, "since": now, "pid": os.getpid()}, name=subject.name) as tell:
            subject.tell = tell
            if subject.guest is None:  # somebody else may have made it meanwhile
                found = pick(self.context.host.guests(), [subject.name])[0]
                subject.guest = found if isinstance(found, Guest) else None
            if subject.guest:
                subject.seen = subject.guest.look()
            plan = self._plan(subject)
            if plan.changed:
                self._carry_out(plan, subject, result)
        _refresh(subject)
        return plan

    def _carry_out(self, plan: Plan, subject: Subject, result: Result) -> None:
        taken = result.setdefault("steps", [])
        figures = result.setdefault("figures", {})
        if plan.journaled and subject.journal is None:
            left = subject.instance.journal
            mine = left if left and left.action == plan.action else None
            subject.journal = mine or Journal.begin(plan.action, self.context.clock.now())
        for index, step in enumerate(plan.steps):
            with self._taken_back(plan, index, subject):
                if plan.journaled and subject.journal:
                    subject.journal = subject.journal.at(step.name)
                    _write_journal(subject)
                figures.update(step.do() or {})
            taken.append(step.name)
        if plan.journaled and not plan.unfinished:
            subject.journal = None
            _write_journal(subject)

    @contextlib.contextmanager
    def _taken_back(self, plan: Plan, index: int, subject: Subject) -> t.Iterator[None]:
        """When the body fails, take back the step number *index* and those before it, the newest first, as far as they
        do not last. A plan whose steps cannot be taken back keeps its journal: the next run goes on from there."""
        try:
            yield
        except BaseException as first:
            try:
                self._take_back(plan, index, subject)
            except LifecycleError as exc:
                if isinstance(first, LifecycleError):
                    first.hint = f"Taking it back failed as well: {exc.message} {first.hint}".rstrip()
            raise

    @staticmethod
    def _take_back(plan: Plan, index: int, subject: Subject) -> None:
        first = max((number + 1 for number, step in enumerate(plan.steps[:index]) if step.lasting), default=0)
        undos = [step.undo for step in plan.steps[first : index + 1] if step.undo]
        for undo in reversed(undos):
            undo()
        if plan.journaled and undos:
            subject.journal = None
            _write_journal(subject)

    def _tell(self, subject: Subject, result: Result, plan: Plan | None = None) -> Result:
        """What every result says of its VM: as it is now or, in check mode, as it would be."""
        state = subject.state
        told: Result = dict(result)
        if subject.guest and subject.seen:
            told.update(name=subject.guest.name, uuid=subject.guest.uuid)
        told["status"] = state.status if state else subject.absent
        told["power_state"] = state.power_state if state else "NOSTATE"
        told["task_state"] = state.task_state if state else ""
        told.setdefault("steps", [])
        told["figures"] = dict(told.get("figures", {}))
        told["changed"] = bool(told["steps"])
        if plan:
            told["figures"] = {**plan.figures, **told["figures"]}
            told["changed"] = plan.changed
            if self.module.check_mode and plan.changed:
                told["steps"] = [step.name for step in plan.steps]
                told.update({key: plan.after[key] for key in ("status", "power_state") if key in plan.after})
        return told


def _refresh(subject: Subject) -> None:
    """Look again, for the result: as it is, not as it was planned. A VM may be gone."""
    if subject.guest is None:
        subject.seen = None
        return
    try:
        subject.seen = subject.guest.look(running=subject.guest.running_operation())
    except NotFound:
        subject.guest = subject.seen = None
    except Unreachable:
        return  # what is reported is what was seen last


def _write_journal(subject: Subject) -> None:
    """Write ``subject.journal`` into the VM's metadata; a VM that is not defined yet, or not any more, has none."""
    guest = subject.guest
    if guest is None:
        return
    guest.remember(replace(guest.recall(), journal=subject.journal))


def _failed(result: Result, exc: LifecycleError) -> _Outcome:
    result.update(failed=True, msg=str(exc), code=exc.code, details=exc.details)
    result.setdefault("changed", False)
    return _Outcome(result, error=exc)


def _report(module: AnsibleModule, outcomes: t.Sequence[_Outcome]) -> None:
    told: Result = {
        "changed": any(outcome.result["changed"] for outcome in outcomes),
        "vms": [outcome.result for outcome in outcomes],
    }
    for outcome in outcomes:
        for warning in outcome.warnings:
            module.warn(f"{outcome.result['name']}: {warning}")
    if module._diff:
        told["diff"] = [outcome.diff for outcome in outcomes if outcome.diff]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if not errors:
        module.exit_json(**told)
    summary = (
        str(errors[0])
        if len(outcomes) == 1
        else f"{len(errors)} of {len(outcomes)} VMs failed. " + " ".join(str(error) for error in errors)
    )
    module.fail_json(msg=summary, code=errors[0].code, details=errors[0].details, **told)
