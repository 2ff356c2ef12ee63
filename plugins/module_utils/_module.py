# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Look, plan, act, report: the only place that knows check mode, diff, ``exit_json`` and ``fail_json``.

A module that acts gives :func:`run_module` one function that looks at one VM and returns a :class:`.Plan`. A module
that only looks gives :func:`run_query` one function that returns the result, or :func:`run_queries` one that looks at
one VM. Those that are about images and not about VMs give theirs to :func:`run_images` and :func:`run_images_query`,
and one that changes a host gives its own to :func:`run_host`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import typing as t
from dataclasses import asdict, dataclass, replace

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ._core import lock
from ._core.clock import Clock, stamp
from ._core.errors import Busy, Invalid, LifecycleError, Locked, NotFound, Unreachable
from ._core.journal import Journal
from ._core.plan import Plan
from ._core.spec import Spec
from ._core.tally import tally
from ._core.workers import spread
from ._images.base import Image
from ._images.stores import open_store
from ._libvirt import records
from ._libvirt.bulk import Bulk
from ._libvirt.errors import MISSING
from ._libvirt.guest import Guest
from ._libvirt.host import open_host, pick
from ._libvirt.storage import storage_of
from ._model.actions import ACTIONS
from ._model.queueing import interleaved
from ._task import Context, StoreContext, Subject

Result = dict[str, t.Any]

# What may be done while a process of another machine has the VM: a human says that it is dead.
_WAYS_OUT = ("reset_state", "recover")
# Seconds after which it is looked again whether a process has ended that does the same.
_TWIN = 0.5

Decide = t.Callable[[Context, Subject], Plan]
Ask = t.Callable[[Context], Result]
Answer = t.Callable[[t.Mapping[str, t.Any]], Result]
Turn = t.Callable[[Context, Subject, Plan], "contextlib.AbstractContextManager[None]"]
AskOne = t.Callable[[Context, Subject, Result], None]
DecideImages = t.Callable[[StoreContext], Plan]
DecideHost = t.Callable[[Context], Plan]
DecideMachine = t.Callable[[t.Mapping[str, t.Any]], Plan]
AskImages = t.Callable[[StoreContext], t.Sequence[Image]]


def run_module(
    spec: Spec,
    decide: Decide,
    *,
    may_be_missing: bool = False,
    everything: t.Callable[[Subject], bool] | None = None,
    elsewhere: t.Callable[[Context], t.Iterable[str]] | None = None,
    each: str = "",
    turn: Turn | None = None,
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
    :param each: An option that names VMs in place of ``name``: a list of ``name`` with options for that VM alone.
    :param turn: A VM for which there is something to do waits for its turn, which lasts as long as this context.
    :param options: For ``AnsibleModule``: ``required_if`` and the like.
    """
    module = _module(spec, **options)
    context = _connect(module)
    runner = _Runner(module, context, decide, may_be_missing, turn)
    try:
        outcomes = runner.run(_select(context, may_be_missing, everything, elsewhere, each))
        # libvirt calls no hook for a definition that comes, goes or changes without a start.
        if context.host.local and not module.check_mode and any(outcome.result["changed"] for outcome in outcomes):
            problem = records.update()
            if problem:
                module.warn(problem)
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


def run_pure(spec: Spec, answer: Answer, **options: t.Any) -> None:
    """Run a module that works from its options alone: it needs no libvirt and changes nothing.

    :param answer: Takes the options and returns the result, which may have ``changed`` and ``diff``.
    """
    module = _module(spec, libvirt=False, **options)
    try:
        found = answer(module.params)
    except LifecycleError as exc:
        _fail(module, exc)
    module.exit_json(**{"changed": False, **found})


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


def run_host(spec: Spec, decide: DecideHost, **options: t.Any) -> None:
    """Run a module that acts on a host.

    :param spec: Argument spec; it has the part ``connection`` of :mod:`._core.spec`.
    :param decide: Looks at the host, and returns the plan, whose figures are the result.
    """
    _run_on_host(_module(spec, **options), decide)


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
    for warning in plan.warnings:
        module.warn(warning)
    module.exit_json(**{**told, "changed": plan.changed}, **plan.figures)


def run_machine(spec: Spec, decide: DecideMachine, **options: t.Any) -> None:
    """Run a module that acts on the machine that it runs on, and needs no libvirt.

    :param decide: Takes the options, looks, and returns the plan. Its figures, to which steps may add, are the result.
    """
    module = _module(spec, libvirt=False, **options)
    told: Result = {"changed": False, "steps": []}
    try:
        plan = decide(module.params)
        _do(module, plan, told)
    except LifecycleError as exc:
        _fail(module, exc, **told)
    if module._diff:
        told["diff"] = [plan.diff(platform.node())] if plan.changed else []
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
    each: str = "",
) -> list[Subject | LifecycleError]:
    guests = context.host.guests()
    orders = (context.params[each] if each else None) or []
    names = [order["name"] for order in orders] or context.params["name"]
    said = _said(orders, guests, each)
    wanted = pick(guests, names) if names is not None else list(guests)
    seen = Bulk(context.host).look([guest for guest in wanted if isinstance(guest, Guest)])
    subjects: list[Subject | LifecycleError] = []
    for found in wanted:
        if isinstance(found, Guest):
            look = seen[found.uuid]
            mine = said.get(found.uuid, {})
            subjects.append(look if isinstance(look, LifecycleError) else Subject(found.name, found, look, said=mine))
        elif may_be_missing and found.code == "not_found":
            name = found.details["name"]
            subjects.append(Subject(name, said=said.get(name, {})))
        else:
            subjects.append(found)
    if names is None and everything:
        here = {guest.uuid for guest in guests}
        gone = [Subject(uuid) for uuid in (elsewhere(context) if elsewhere else ()) if uuid not in here]
        return [*(each for each in subjects if isinstance(each, Subject) and everything(each)), *gone]
    return subjects


def _said(orders: t.Sequence[Result], guests: t.Sequence[Guest], each: str) -> dict[str, Result]:
    """What a task gives for single VMs, by UUID, or by name for those that are not here."""
    said: dict[str, Result] = {}
    for order in orders:
        found = pick(guests, [order["name"]])[0]
        key = found.uuid if isinstance(found, Guest) else str(order["name"])
        if key in said:
            raise Invalid(f"VM {order['name']!r} stands twice in {each}.")
        said[key] = {option: value for option, value in order.items() if option != "name" and value is not None}
    return said


@dataclass
class _Outcome:
    """What came of one VM."""

    result: Result
    diff: Result | None = None
    warnings: t.Sequence[str] = ()
    error: LifecycleError | None = None


class _Runner:
    """Carries out one task on many VMs."""

    def __init__(
        self, module: AnsibleModule, context: Context, decide: Decide, may_be_missing: bool, turn: Turn | None
    ) -> None:
        self.module = module
        self.context = context
        self.decide = decide
        self.may_be_missing = may_be_missing
        self.turn = turn

    def run(self, subjects: t.Sequence[Subject | LifecycleError]) -> list[_Outcome]:
        """All of them, at most ``concurrency`` at once; one that fails does not stop the others."""
        order = interleaved([repr(each.said) if isinstance(each, Subject) else "" for each in subjects])
        with tally(len(subjects)) as ended:

            def one(subject: Subject | LifecycleError) -> _Outcome:
                outcome = self._one(subject)
                ended(outcome.error is not None)
                return outcome

            done = spread(one, [subjects[index] for index in order], workers=self.context.params["concurrency"])
        return [outcome for _index, outcome in sorted(zip(order, done), key=lambda each: each[0])]

    def _context(self, subject: Subject) -> Context:
        """The task's, with what it says of this VM alone."""
        params = self.context.params
        return replace(self.context, params={**params, **subject.said}) if subject.said else self.context

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
                with self.turn(self._context(subject), subject, plan) if self.turn else contextlib.nullcontext():
                    plan = self._act(plan, subject, result)
        except LifecycleError as exc:
            _refresh(subject)
            return _failed(self._tell(subject, result), exc)
        result.update(self._tell(subject, result, plan))
        result["seconds"] = round(time.monotonic() - began, 3)
        return _Outcome(result, plan.diff(subject.name) if plan.changed else None, plan.warnings)

    def _plan(self, subject: Subject) -> Plan:
        plan = self.decide(self._context(subject), subject)
        journal = subject.instance.journal
        if plan.changed and journal and not journal.ours and plan.action not in _WAYS_OUT:
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

    def _act(self, plan: Plan, subject: Subject, result: Result) -> Plan:
        """Take the VM's operation lock, look again, plan again, carry out."""
        if plan.beside:
            self._carry_out(plan, subject, result)
            _refresh(subject)
            return plan
        with self._held(plan, subject) as tell:
            subject.tell = tell
            self._look_again(subject)
            plan = self._plan(subject)
            if plan.changed:
                self._carry_out(plan, subject, result)
        _refresh(subject)
        return plan

    @contextlib.contextmanager
    def _held(self, plan: Plan, subject: Subject) -> t.Iterator[lock.Tell]:
        """Hold the VM's operation lock, when a holder has ended that does the same, if the plan waits for that."""
        key = lock.key_of(self.context.host.name, subject.name)
        with contextlib.ExitStack() as stack:
            while True:
                now = stamp(self.context.clock.now())
                told = {"action": plan.action, "since": now, "pid": os.getpid(), **plan.tells}
                try:
                    tell = stack.enter_context(lock.hold(key, told, name=subject.name))
                    break
                except Busy as exc:
                    if not plan.waits or not plan.same(exc.details["running"]):
                        raise
                self.context.clock.sleep(_TWIN)
            yield tell

    def _look_again(self, subject: Subject) -> None:
        """Somebody else may have made the VM meanwhile, changed it, or taken it elsewhere."""
        if subject.guest is None:
            found = pick(self.context.host.guests(), [subject.name])[0]
            subject.guest = found if isinstance(found, Guest) else None
        if subject.guest is None:
            return
        try:
            subject.seen = subject.guest.look()
        except NotFound:
            if not self.may_be_missing:
                raise
            subject.guest = subject.seen = None

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
            told.update(name=subject.guest.name, uuid=subject.guest.uuid, host=subject.guest.host.name)
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
    """Write ``subject.journal`` into the VM's metadata, unless it is there: while a VM is being migrated, nothing can
    be written. A VM that is not defined yet, or not any more, has none."""
    guest = subject.guest
    if guest is None:
        return
    instance = guest.recall()
    if instance.journal != subject.journal:
        guest.remember(replace(instance, journal=subject.journal))


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
