# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Add to the trace of a maintenance, and make a page of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import typing as t

from .._core.clock import Clock
from .._core.errors import NotFound
from .._core.files import working
from .._core.plan import Plan, Step
from .._model.report import render, summarize
from .._model.trace import done_hosts, line_of, read_lines

# A new file may be read by everybody whom the umask lets.
_MODE = 0o666


def report(params: t.Mapping[str, t.Any], clock: Clock) -> Plan:
    """What a task adds to the trace, and whether its page becomes another one.

    :param params: The options of the module ``maintenance_report``.
    """
    trace, html, title = params["trace"], params["html"], params["title"]
    now = clock.now()
    added = "".join(f"{line_of(each, now)}\n" for each in params["events"])
    there = _read(trace)
    if there is None and html and not added:
        raise NotFound(f"There is no trace {trace}, so there is nothing to report.")
    old = there or ""
    whole = _joined(old, added)
    events, broken = read_lines(whole)
    page = render(events, title=title, broken=broken) if html else ""
    shown = _read(html) if html else None
    steps: list[Step] = []
    before: dict[str, t.Any] = {"events": len(read_lines(old)[0])}
    after: dict[str, t.Any] = {"events": len(events)}
    if added:
        steps.append(Step("add to trace", lambda: _append(trace, added)))
    if html and page != shown:
        before["html"], after["html"] = _digest(shown), _digest(page)
        steps.append(Step("write report", lambda: _write(html, trace, title)))
    figures = {
        "events": len(events),
        "broken": broken,
        "summary": summarize(events).tell(),
        "done": done_hosts(events),
    }
    return Plan(before, after, steps, figures=figures)


def _joined(old: str, added: str) -> str:
    """Who was killed in the middle of a line has left it without an end."""
    return f"{old}\n{added}" if added and old and not old.endswith("\n") else f"{old}{added}"


def _digest(page: str | None) -> str:
    return "" if page is None else f"sha256:{hashlib.sha256(page.encode()).hexdigest()}"


def _read(path: str) -> str | None:
    with working(f"read {path}"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return None


def _append(path: str, added: str) -> None:
    """At the end, in one piece, whoever else adds lines at the same time."""
    with working(f"add to the trace {path}"), open(path, "a+b") as file:
        length = file.seek(0, os.SEEK_END)
        if length:
            file.seek(length - 1)
            added = added if file.read(1) == b"\n" else f"\n{added}"
        file.write(added.encode())


def _write(path: str, trace: str, title: str) -> None:
    """Whole or not at all, and of what the trace has by now."""
    events, broken = read_lines(_read(trace) or "")
    page = render(events, title=title, broken=broken)
    with working(f"write the report {path}"):
        handle, name = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path) or ".")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(name, _MODE & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
