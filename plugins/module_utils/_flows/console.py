# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Looking at a VM's console: what it said, where its display is, what its screen shows. Nothing is changed."""

from __future__ import annotations

import base64
import contextlib
import re
import types
import typing as t
from dataclasses import asdict

from .._console import Ticket, as_png, sign
from .._core.clock import stamp, wait_until
from .._core.errors import Invalid, LifecycleError, NotFound, TimedOut, Unsupported
from .._libvirt.consoles import Log, Terminal, screenshot
from .._libvirt.guest import Guest
from .._model.actions import Verdict, judge, refusal
from .._model.console import (
    WINDOW,
    Console,
    Match,
    Position,
    check_proxy,
    compile_pattern,
    displays,
    has_screen,
    is_anywhere,
    newest,
    page_of,
    position_of,
    read_console,
    search,
    tell,
    url_of,
)
from .._task import Context, Subject

Result = dict[str, t.Any]

# Bytes of a log that are searched at once.
_PIECE = 1 << 20
# Bytes of a console that is not logged which are kept while it is listened to.
_KEPT = 8 << 20


def look(context: Context, vm: Subject, told: Result) -> None:
    """Put into *told* what the task asks of this VM. What is in it already stays true when this fails."""
    {"log": _tell_log, "url": _tell_url, "screenshot": _tell_screen}[context.params["type"]](context, vm, told)


# ---- the log


def _tell_log(context: Context, vm: Subject, told: Result) -> None:
    ask = context.params
    if ask["max_size"] < 1:
        raise Invalid(f"max_size is {ask['max_size']}, but must be 1 or more.")
    if ask["lines"] is not None and ask["lines"] < 0:
        raise Invalid(f"lines is {ask['lines']}, but must be 0 or more.")
    guest, _seen, _state = vm.there()
    pattern = None if ask["wait_for"] is None else compile_pattern(ask["wait_for"])
    after = position_of(guest.uuid, ask["after"], name=vm.name)
    console = read_console(guest.xml())
    told.update(log="", truncated=False, source=console.log, reason="")
    told["position"] = Position(guest.uuid, guest.id).dump()
    if pattern:
        told.update(matched=False, match=None, groups=[])
    if console.log:
        _Logged(context, guest, told, after).read(pattern)
    elif console.terminal:
        with _Heard(context, guest, told) as heard:
            heard.read(pattern)
    elif pattern:
        raise Unsupported(
            f"VM {vm.name} has no console on which anything could be waited for.",
            hint="Give it a serial console with a log: <log file='...' append='on'/>.",
        )
    else:
        told["reason"] = "The VM has no serial console that is logged or can be listened to."


class _Reader:
    """Reads the console of one VM into the result."""

    def __init__(self, context: Context, guest: Guest, told: Result) -> None:
        self.context = context
        self.guest = guest
        self.told = told

    def _wait(self, pattern: re.Pattern[str], ask: t.Callable[[], Match | None]) -> None:
        """Ask until there is a match.

        :raises TimedOut: There is none in time.
        """
        try:
            found = wait_until(
                ask,
                clock=self.context.clock,
                timeout=self.context.params["wait_timeout"],
                doing=f"waiting for {pattern.pattern!r} on the console of VM {self.guest.name}",
            )
        except TimedOut as exc:
            exc.hint = "" if self.guest.active() else "The VM is off."
            raise
        self.told.update(matched=True, match=found.text, groups=list(found.groups))

    def _tell(self, content: bytes, *, whole: bool) -> None:
        ask = self.context.params
        kept, cut = newest(content, size=ask["max_size"], lines=ask["lines"], whole=whole)
        self.told.update(log=tell(kept), truncated=cut or not whole)


class _Logged(_Reader):
    """Reads the files that a console is written to.

    :param after: Where to begin; ``None`` for the newest part.
    """

    def __init__(self, context: Context, guest: Guest, told: Result, after: Position | None) -> None:
        super().__init__(context, guest, told)
        self._after = after
        self._read: Position | None = after  # up to where it was searched
        self._window = b""  # the end of that
        self._end: Position | None = None  # of the match

    def read(self, pattern: re.Pattern[str] | None) -> None:
        """Wait for *pattern*, if there is one, and tell the newest part.

        :raises TimedOut: The pattern did not come. The log is told all the same.
        """
        if not self.context.host.local:
            raise Unsupported(
                f"The console of VM {self.guest.name} is written to {self._console().log} on {self.guest.host.name},"
                " which can be read only there.",
                hint="Run the task on that host, with the default of uri.",
            )
        try:
            if pattern:
                self._wait(pattern, lambda: self._search(pattern))
        finally:
            self._finish()

    def _console(self) -> Console:
        return read_console(self.guest.xml())

    def _begin(self, log: Log, after: Position, run: int, console: Console) -> tuple[int, bool]:
        """Where in *log* that is, and whether nothing is lost that came since."""
        return log.find(after, anew=console.begun_anew and run not in (-1, after.run))

    def _search(self, pattern: re.Pattern[str]) -> Match | None:
        console, run = self._console(), self.guest.id
        with Log(console.log) as log:
            if self._read is None:
                place = max(0, log.size - self.context.params["max_size"])
            else:
                place, _same = self._begin(log, self._read, run, console)
            while place < log.size:
                piece = log.read(place, min(place + _PIECE, log.size))
                place += len(piece)
                self._window += piece
                found = search(pattern, self._window)
                if found:
                    end = max(0, place - len(self._window) + found.end)
                    self._end = log.position(end, uuid=self.guest.uuid, run=run)
                    return found
                self._window = _end_of(self._window)
            self._read = log.position(place, uuid=self.guest.uuid, run=run)
        return None

    def _finish(self) -> None:
        console, run, size = self._console(), self.guest.id, self.context.params["max_size"]
        with Log(console.log) as log:
            start, complete = self._begin(log, self._after, run, console) if self._after else (0, True)
            begin = max(start, log.size - size - 1)
            self._tell(log.read(begin, log.size), whole=begin == start)
            position = self._end or log.position(log.size, uuid=self.guest.uuid, run=run)
            self.told["position"] = position.dump()
            self.told["truncated"] = self.told["truncated"] or not complete
            if not log.there:
                self.told["reason"] = f"There is no file {console.log} on the host: the guest has said nothing yet."


def _end_of(window: bytes) -> bytes:
    """What of a window is searched again together with what comes, from the beginning of a line if it has one."""
    if len(window) <= WINDOW:
        return window
    _rest, end, kept = window[-WINDOW:].partition(b"\n")
    return kept if end else window[-WINDOW:]


class _Heard(_Reader):
    """Listens to a console that is not logged. For a ``with``."""

    def __init__(self, context: Context, guest: Guest, told: Result) -> None:
        super().__init__(context, guest, told)
        self._said = b""
        self._terminals = contextlib.ExitStack()
        self._terminal: Terminal | None = None

    def read(self, pattern: re.Pattern[str] | None) -> None:
        """Listen until *pattern* came or, without one, for a time; and tell what was heard.

        :raises TimedOut: The pattern did not come. What was heard is told all the same.
        """
        if not pattern and not self.guest.active():
            self.told["reason"] = "The VM is off, and its console is not logged."
            return
        try:
            if pattern:
                self._wait(pattern, lambda: search(pattern, self._said) if self._hear() else None)
            else:
                with contextlib.suppress(TimedOut):
                    wait_until(
                        lambda: self._hear() and None,
                        clock=self.context.clock,
                        timeout=self.context.params["listen"],
                        doing="listening",
                    )
        finally:
            self._tell(self._said, whole=True)
        if not self._said:
            self.told["reason"] = "The console is not logged, and the guest said nothing while it was listened to."

    def _hear(self) -> bool:
        """Whether anything was said since; a VM that is off says nothing."""
        if self._terminal is None:
            self._terminal = self._open()
        heard = False
        while self._terminal:
            said = self._terminal.read()
            if said is None:
                break
            if not said:
                self._terminals.close()
                self._terminal = None
            self._said = (self._said + said)[-_KEPT:]
            heard = heard or bool(said)
        return heard

    def _open(self) -> Terminal | None:
        try:
            return self._terminals.enter_context(Terminal(self.guest)) if self.guest.active() else None
        except LifecycleError as exc:
            if self.guest.active() and not isinstance(exc, NotFound):
                raise
            return None

    def __enter__(self) -> _Heard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._terminals.close()


# ---- display and screen


def _running(vm: Subject) -> Guest:
    """The VM, which must be running.

    :raises Refused: It is off.
    """
    guest, _seen, state = vm.there()
    if not guest.active():
        start = judge("start", state.vm_state) is Verdict.ALLOWED
        raise refusal(
            "console",
            state,
            name=vm.name,
            why=" while it is off: it has no display then",
            hint="Use vm_power with state: running first." if start else "",
        )
    return guest


def _tell_url(context: Context, vm: Subject, told: Result) -> None:
    guest = _running(vm)
    found = displays(guest.xml())
    told["displays"] = [{**asdict(each), "url": url_of(each, host=context.host.name)} for each in found]
    if not found:
        raise Unsupported(
            f"VM {vm.name} has no display that could be reached.",
            hint="Give it one, for example <graphics type='vnc' listen='127.0.0.1'/>, and start it anew.",
        )
    proxy = context.params["proxy"]
    if proxy is None:
        told["url"] = told["displays"][0]["url"]
        return
    address = check_proxy(proxy["url"], proxy["ttl"])
    display = next((each for each in found if each.type == "vnc" and each.port), None)
    if display is None or display.port is None:
        raise Unsupported(
            f"VM {vm.name} has no VNC display at a port, and the console proxy shows no other.",
            hint="Give it one, for example <graphics type='vnc' listen='127.0.0.1'/>, and start it anew.",
        )
    host = proxy["host"] or display.listen
    if is_anywhere(host):
        raise Invalid(
            f"The display of VM {vm.name} listens at all addresses of {context.host.name}.",
            hint="Say in proxy.host at which of them the proxy reaches it.",
        )
    ticket = Ticket.of(vm.name, host, display.port, context.clock.now(), proxy["ttl"])
    told["url"] = page_of(address, sign(ticket, proxy["key"]))
    told["expires"] = stamp(ticket.expires)


def _tell_screen(context: Context, vm: Subject, told: Result) -> None:
    guest = _running(vm)
    if not has_screen(guest.xml()):
        raise Unsupported(
            f"VM {vm.name} has no screen: it has no video device.",
            hint="Its serial console may tell more, see type: log.",
        )
    told["png"] = base64.b64encode(as_png(screenshot(guest), called=f"VM {vm.name}")).decode()
