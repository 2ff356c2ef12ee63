# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A page about the maintenance of hosts, from the trace of it: one file of HTML with its pictures in it.

It needs no script and fetches nothing, so it can be mailed, kept as an artefact, and opened in ten years. It is built
as a tree: whatever stands in a name or a message is text. The same trace gives the same page.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from .trace import BEGINNINGS, Event, Load, iso

# What happened, as it is said to people; other words are shown as they are.
WORDS = {
    "look": "looked",
    "plan": "planned",
    "move": "begins to move",
    "moved": "moved",
    "failed": "failed",
    "refused": "refused",
    "skipped": "skipped",
    "cancelled": "cancelled",
    "cordoned": "taken out of scheduling",
    "uncordoned": "put back into scheduling",
    "stopped": "shut down",
    "started": "started",
    "verified": "emptied",
    "drained": "drained",
    "restored": "restored",
    "fence": "fenced",
    "evacuated": "evacuated",
    "roll_begun": "roll begun",
    "tasks": "tasks done",
    "rebooted": "rebooted",
    "rolled": "done",
    "roll_ended": "roll ended",
}
# Which colour a kind of event has; each has a letter too, for those who do not tell colours apart.
_MARKS = {"failed": "F", "refused": "F", "skipped": "?", "cancelled": "?", "stopped": "S", "started": "S"}
_CLASSES = {"F": "bad", "?": "left", "S": "power", "": "good"}
# Hosts that are shown in any case; of more, only those with which something was done.
_MANY_HOSTS = 24

# Of pictures, in the units of their own (about a pixel on the screen).
_WIDTH = 960
_MARGIN = 150
_RIGHT = 90
_LANE = 20
_LETTER = 6.6

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
_TICKS = 8

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #59636e; --line: #d1d9e0; --shade: #f3f5f7;
  --good: #0b6bcb; --bad: #c4342b; --left: #8a6100; --power: #6b4fbb; --free: #e4e8ec; --old: #8c98a4; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaee; --faint: #9aa5b1; --line: #363e47;
  --shade: #1d232a; --good: #5aa9f4; --bad: #ff7b72; --left: #e0b04c; --power: #b39af5; --free: #2a323b;
  --old: #6d7884; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } p.faint, caption, figcaption { color: var(--faint); font-size: .87rem; }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0 0; padding: 0; list-style: none; }
.numbers li { background: var(--shade); border-radius: .4rem; padding: .4rem .9rem; }
.numbers b { font-size: 1.35rem; margin-right: .4rem; } .numbers .bad b { color: var(--bad); }
  .numbers .left b { color: var(--left); }
.problems { padding: 0; list-style: none; } .problems li { border-left: .25rem solid var(--left);
  background: var(--shade);
  margin: .4rem 0; padding: .4rem .8rem; overflow-wrap: anywhere; } .problems .bad { border-color: var(--bad); }
code { font-size: .87em; } figure { margin: 0; overflow-x: auto; } svg { display: block; width: 100%;
  min-width: 40rem; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .faint { fill: var(--faint); }
  svg .in { fill: var(--paper); font-weight: 600; }
.axis { stroke: var(--line); } .free { fill: var(--free); } .old { fill: var(--old); } .now { fill: var(--good); }
rect.good { fill: var(--good); } rect.bad { fill: var(--bad); } rect.left { fill: var(--left); }
  rect.power { fill: var(--power); }
.over { fill: none; stroke: var(--left); stroke-width: 2; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
  caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th, td { white-space: nowrap; }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; } .number { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bad { color: var(--bad); } td.left { color: var(--left); } details { margin-top: 1.5rem; }
summary { cursor: pointer; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --faint: #444; --line: #bbb;
  --shade: #f3f3f3; --good: #0b6bcb;
  --bad: #c4342b; --left: #8a6100; --power: #6b4fbb; --free: #e4e8ec; --old: #8c98a4; }
  body { max-width: none; padding: 0; font-size: 11px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  svg { min-width: 0; } li, tr, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""


@dataclass(frozen=True)
class Summary:
    """What a trace comes to.

    :param seconds: From the first beginning to the last end.
    """

    began: float
    seconds: float
    moved: int
    failed: int
    skipped: int
    hosts: tuple[str, ...]

    def tell(self) -> dict[str, t.Any]:
        """As plain values."""
        return {
            "began": iso(self.began),
            "seconds": round(self.seconds, 3),
            "moved": self.moved,
            "failed": self.failed,
            "skipped": self.skipped,
            "hosts": list(self.hosts),
        }


def summarize(events: t.Sequence[Event]) -> Summary:
    """The numbers of a trace, in the order of time."""
    began = min((event.began for event in events), default=0.0)
    named = {event.host for event in events} | {event.dest for event in events}
    return Summary(
        began=began,
        seconds=max((event.at for event in events), default=0.0) - began,
        moved=sum(event.kind in ("moved", "evacuated") and bool(event.vm) for event in events),
        failed=sum(event.kind in ("failed", "refused") for event in events),
        skipped=sum(event.kind in ("skipped", "cancelled") for event in events),
        hosts=tuple(sorted(named - {""})),
    )


def render(events: t.Sequence[Event], *, title: str, broken: int = 0) -> str:
    """The page.

    :param events: In the order of time.
    :param broken: How many lines of the trace could not be read.
    """
    page = ET.Element("html", {"lang": "en"})
    head = _add(page, "head")
    _add(head, "meta", charset="utf-8")
    _add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    _add(head, "meta", {"http-equiv": "Content-Security-Policy"}, content=_POLICY)
    _add(head, "link", rel="icon", href="data:,")
    _add(head, "title", text=title)
    _add(head, "style", text=_STYLE)
    body = _add(_add(page, "body"), "main")
    _heading(body, events, title, broken)
    if events:
        _problems(body, [event for event in events if event.problem])
        _occupancy(body, events)
        _timeline(body, events)
        _vms(body, [event for event in events if event.vm and event.kind not in BEGINNINGS])
        _log(body, events)
    return f"<!DOCTYPE html>\n{ET.tostring(page, encoding='unicode', method='html')}\n"


# ---- the parts of the page


def _heading(body: ET.Element, events: t.Sequence[Event], title: str, broken: int) -> None:
    summary = summarize(events)
    _add(body, "h1", text=title)
    if not events:
        _add(body, "p", text="The trace is empty: nothing has happened.")
    else:
        when = f"{_clock(summary.began, day=True)} UTC, {_lasted(summary.seconds)}"
        _add(body, "p", {"class": "faint"}, text=when)
        numbers = _add(body, "ul", {"class": "numbers"})
        for number, what, kind in (
            (summary.moved, "moved", ""),
            (sum(event.kind == "stopped" and bool(event.vm) for event in events), "shut down", ""),
            (sum(event.kind == "started" and bool(event.vm) for event in events), "started", ""),
            (summary.failed, "failed", "bad" if summary.failed else ""),
            (summary.skipped, "skipped", "left" if summary.skipped else ""),
        ):
            item = _add(numbers, "li", {"class": kind} if kind else {})
            _add(item, "b", text=str(number)).tail = what
    if broken:
        text = f"Lines of the trace that could not be read, and are missing here: {broken}."
        _add(body, "p", {"class": "broken"}, text=text)


def _problems(body: ET.Element, events: t.Sequence[Event]) -> None:
    _add(body, "h2", text="What was not done")
    if not events:
        _add(body, "p", text="Nothing: everything that was begun came to its end.")
        return
    items = _add(body, "ul", {"class": "problems"})
    for event in events:
        item = _add(items, "li", {"class": _class(event)})
        _add(item, "strong", text=_subject(event)).tail = (
            f" {_word(event)}. " if event.code or event.message else f" {_word(event)}."
        )
        if event.code:
            _add(item, "code", text=event.code).tail = f" {_clean(event.message)}"
        else:
            _add(item, "span", text=event.message)


def _occupancy(body: ET.Element, events: t.Sequence[Event]) -> None:
    told = [event.hosts for event in events if event.hosts]
    if not told:
        return
    first: dict[str, Load] = {}
    last: dict[str, Load] = {}
    for hosts in told:
        first = {**hosts, **first}
        last = {**last, **hosts}
    names = sorted(first)
    if len(names) > _MANY_HOSTS:
        touched = set(summarize(events).hosts)
        names = [name for name in names if name in touched or first[name] != last[name]]
    _add(body, "h2", text="Hosts before and after")
    figure = _add(body, "figure")
    wide = (_WIDTH - _MARGIN - 3 * _RIGHT) / 2
    columns = (("Memory", _MARGIN), ("CPUs", _MARGIN + wide + 1.5 * _RIGHT))
    row = 2 * 13 + 18
    text = "; ".join(_say_load(name, first[name], last[name]) for name in names)
    svg = _picture(figure, "occupancy", 24 + row * len(names), "Memory and CPUs of hosts before and after", text)
    for label, left in columns:
        _label(svg, left, 12, label, "faint")
    for index, name in enumerate(names):
        top = 24 + row * index
        _label(svg, 0, top + 18, _short(name, _MARGIN), full=name)
        for column, (label, left) in enumerate(columns):
            for offset, when, load in ((0, "before", first[name]), (13, "after", last[name])):
                used, total, unit = _amount(load, column)
                _bar(
                    svg,
                    (left, top + offset, wide),
                    used,
                    total,
                    "old" if when == "before" else "now",
                    f"{name}, {when}: {label} {unit}",
                )
                _label(svg, left + wide + 6, top + offset + 10, unit, "faint" if when == "before" else "")
    caption = "Grey is before, blue is after. A bar with an edge is more than the host has, which is usual for CPUs."
    if len(names) < len(first):
        caption += f" {len(first) - len(names)} other hosts are as they were."
    _add(figure, "figcaption", text=caption)


def _amount(load: Load, column: int) -> tuple[float, float, str]:
    """What is used, of how much, and both in words: of memory, or of CPUs."""
    if column:
        return load.cpus, load.cpus_total, f"{load.cpus:g} of {load.cpus_total:g}"
    return load.memory, load.memory_total, f"{_some(load.memory)} of {_gib(load.memory_total)} GiB"


def _bar(svg: ET.Element, place: tuple[float, float, float], used: float, total: float, kind: str, text: str) -> None:
    left, top, wide = place
    part = used / total if total else 0.0
    group = _add(svg, "g")
    _add(group, "title", text=text)
    _rect(group, left, top, wide, 11, "free")
    _rect(group, left, top, wide * min(part, 1.0), 11, kind)
    if part > 1:
        _rect(group, left + 1, top + 1, wide - 2, 9, "over")


def _timeline(body: ET.Element, events: t.Sequence[Event]) -> None:
    """For each host what was done with it and with its VMs, each as a bar as long as it took."""
    bars = [event for event in events if event.host and event.kind not in BEGINNINGS and (event.vm or event.seconds)]
    if not bars:
        return
    start, end = min(event.began for event in bars), max(event.at for event in bars)
    span = max(end - start, 1.0)
    scale = (_WIDTH - _MARGIN - _RIGHT) / span
    hosts = sorted({event.host for event in bars}, key=lambda host: min(e.began for e in bars if e.host == host))
    lanes = {host: _pack(_bar_of(event, start, scale) for event in bars if event.host == host) for host in hosts}
    height = 28.0 + sum(_LANE * len(lanes[host]) + 12 for host in hosts)
    _add(body, "h2", text="Timeline")
    figure = _add(body, "figure")
    text = "; ".join(
        f"{host}: {', '.join(_say_bar(event, start) for event in bars if event.host == host)}" for host in hosts
    )
    svg = _picture(figure, "timeline", height, "What was done with each host, and when", text)
    step = next((step for step in _STEPS if span / step <= _TICKS), 86400 * (int(span / 86400 / _TICKS) + 1))
    for tick in range(int(span / step) + 1):
        x = _MARGIN + tick * step * scale
        _add(svg, "line", {"class": "axis"}, x1=_n(x), x2=_n(x), y1="18", y2=_n(height))
        _label(
            svg,
            x,
            12,
            f"+{_lasted(tick * step)}" if tick else _clock(start),
            "faint",
            anchor="middle" if tick else "start",
        )
    top = 28.0
    for host in hosts:
        _label(svg, 0, top + 13, _short(host, _MARGIN), full=host)
        for lane in lanes[host]:
            for strip in lane:
                _span(svg, strip, top)
            top += _LANE
        top += 12
        _add(svg, "line", {"class": "axis"}, x1="0", x2=str(_WIDTH), y1=_n(top - 6), y2=_n(top - 6))
    legend = "Bars are in the row of the host on which the VM was. Blue came to its end, violet (S) was shut down or"
    _add(figure, "figcaption", text=f"{legend} started, red (F) failed, ochre (?) was not tried.")


@dataclass(frozen=True)
class _Bar:
    """A bar of the timeline, in the units of the picture.

    :param begin: Where the bar begins, or its label, when that is on its left.
    :param end: Where the bar ends, or its label, when that is on its right.
    """

    event: Event
    left: float
    wide: float
    begin: float
    end: float


def _bar_of(event: Event, start: float, scale: float) -> _Bar:
    left, wide = _MARGIN + (event.began - start) * scale, max(event.seconds * scale, 3.0)
    label = len(_bar_text(event)) * _LETTER + 10
    if label <= wide:
        return _Bar(event, left, wide, left, left + wide)
    if left + wide + label <= _WIDTH or left - label < _MARGIN:
        return _Bar(event, left, wide, left, left + wide + label)
    return _Bar(event, left, wide, left - label, left + wide)


def _bar_text(event: Event) -> str:
    return " ".join(filter(None, (_MARKS.get(event.kind, ""), event.vm or _word(event))))


def _pack(bars: t.Iterable[_Bar]) -> list[list[_Bar]]:
    """As few lanes as are needed, so that none hides another one. What is about the host comes first."""
    lanes: list[list[_Bar]] = []
    events = sorted(bars, key=lambda each: (bool(each.event.vm), each.event.began, -each.event.seconds, each.event.vm))
    for strip in events:
        for lane in lanes:
            if lane[-1].end + 3 <= strip.begin and bool(lane[-1].event.vm) == bool(strip.event.vm):
                lane.append(strip)
                break
        else:
            lanes.append([strip])
    return lanes


def _span(svg: ET.Element, strip: _Bar, top: float) -> None:
    event = strip.event
    group = _add(svg, "g")
    _add(group, "title", text=f"{_subject(event)} {_word(event)}{_to(event)}, {_lasted(event.seconds)}{_why(event)}")
    _rect(group, strip.left, top, strip.wide, _LANE - 4, _class(event))
    if strip.begin < strip.left:
        _label(group, strip.left - 4, top + 12, _bar_text(event), anchor="end")
    elif strip.end > strip.left + strip.wide:
        _label(group, strip.left + strip.wide + 4, top + 12, _bar_text(event))
    else:
        _label(group, strip.left + 4, top + 12, _bar_text(event), "in")


def _vms(body: ET.Element, events: t.Sequence[Event]) -> None:
    if not events:
        return
    _add(body, "h2", text="VMs")
    rows = [
        (
            "vm",
            [event.vm, _word(event), event.host, event.dest, _clock(event.began), _seconds(event), event.message],
            _class(event),
        )
        for event in sorted(events, key=lambda event: (event.vm, event.at))
    ]
    heads = ["VM", "what", "host", "destination", "began", "seconds", "remark"]
    _table(body, "vms", "Each attempt is a line; times are UTC.", heads, rows)


def _log(body: ET.Element, events: t.Sequence[Event]) -> None:
    details = _add(body, "details")
    _add(_add(details, "summary"), "strong", text=f"All {len(events)} events")
    rows = [
        (
            "event",
            [
                _clock(event.at, day=True),
                event.kind,
                event.host,
                event.vm,
                event.dest,
                _seconds(event),
                event.code,
                event.message,
            ],
            "",
        )
        for event in events
    ]
    heads = ["at", "event", "host", "VM", "destination", "seconds", "code", "message"]
    _table(details, "events", "As the trace tells them; times are UTC.", heads, rows)


def _table(
    body: ET.Element, name: str, caption: str, heads: t.Sequence[str], rows: t.Sequence[tuple[str, list[str], str]]
) -> None:
    table = _add(_add(body, "div", {"class": "scroll"}), "table", id=name)
    _add(table, "caption", text=caption)
    line = _add(_add(table, "thead"), "tr")
    for head in heads:
        _add(line, "th", {"class": "number"} if head == "seconds" else {}, scope="col", text=head)
    content = _add(table, "tbody")
    for kind, cells, colour in rows:
        line = _add(content, "tr", {"class": kind})
        for head, cell in zip(heads, cells):
            classes = {"seconds": "number", "remark": "words", "message": "words", "what": colour}.get(head, "")
            _add(line, "td", {"class": classes} if classes else {}, text=cell)


# ---- words


def _word(event: Event) -> str:
    return WORDS.get(event.kind, event.kind)


def _subject(event: Event) -> str:
    return event.vm or event.host or "The run"


def _to(event: Event) -> str:
    ways = [f"from {event.host}" if event.vm and event.host else "", f"to {event.dest}" if event.dest else ""]
    return "".join(f" {way}" for way in ways if way)


def _why(event: Event) -> str:
    said = " ".join(filter(None, (event.code, event.message)))
    return f": {said}" if said else ""


def _class(event: Event) -> str:
    return _CLASSES[_MARKS.get(event.kind, "")]


def _say_load(name: str, before: Load, after: Load) -> str:
    parts = [
        f"{what} {_amount(before, column)[2]} before, {_amount(after, column)[2]} after"
        for column, what in enumerate(("memory", "CPUs"))
    ]
    return f"{name}: {', '.join(parts)}, VMs {before.vms} before, {after.vms} after"


def _say_bar(event: Event, start: float) -> str:
    return f"{event.vm} {_word(event)}{_to(event)} after {_lasted(event.at - start)}".lstrip()


def _seconds(event: Event) -> str:
    return f"{event.seconds:.1f}" if event.seconds else ""


def _clock(moment: float, *, day: bool = False) -> str:
    date, _t, time = iso(moment).partition("T")
    return f"{date} {time[:8]}" if day else time[:8]


def _lasted(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 05 s``, ``12 s``, ``0.4 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    return f"{seconds:.1f} s" if seconds < 10 and seconds != whole else f"{whole} s"


def _some(mib: float) -> str:
    """As GiB, or with its unit where that would be nothing."""
    return f"{mib:g} MiB" if 0 < mib < 103 else _gib(mib)


def _gib(mib: float) -> str:
    return f"{mib / 1024:.1f}".removesuffix(".0")


def _short(text: str, wide: float) -> str:
    """As much of *text* as has room."""
    letters = int(wide / _LETTER) - 1
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


# ---- the tree


def _clean(text: str) -> str:
    """Without what is no character of HTML."""
    return _CONTROL.sub("\ufffd", text)


def _add(
    parent: ET.Element, tag: str, attributes: t.Mapping[str, str] | None = None, *, text: str = "", **more: str
) -> ET.Element:
    child = ET.SubElement(parent, tag, {key: _clean(value) for key, value in {**(attributes or {}), **more}.items()})
    child.text = text if tag == "style" else _clean(text)
    return child


def _picture(figure: ET.Element, name: str, height: float, title: str, text: str) -> ET.Element:
    """A picture that is told to those who do not see it."""
    named = {"aria-labelledby": f"{name}-title {name}-text"}
    svg = _add(figure, "svg", named, id=name, role="img", viewBox=f"0 0 {_WIDTH} {_n(height)}")
    _add(svg, "title", id=f"{name}-title", text=title)
    _add(svg, "desc", id=f"{name}-text", text=text)
    return svg


def _rect(parent: ET.Element, x: float, y: float, width: float, height: float, kind: str) -> None:
    _add(parent, "rect", {"class": kind}, x=_n(x), y=_n(y), width=_n(width), height=_n(height), rx="2")


def _label(
    parent: ET.Element, x: float, y: float, text: str, kind: str = "", *, full: str = "", anchor: str = "start"
) -> None:
    attributes = {**({"class": kind} if kind else {}), **({"text-anchor": anchor} if anchor != "start" else {})}
    label = _add(parent, "text", attributes, x=_n(x), y=_n(y), text=text)
    if full and full != text:
        _add(label, "title", text=full)


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
