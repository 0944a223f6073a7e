"""What a run found, as a page with a plot."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata

from bench import contenders, machine, refreshing
from bench.contenders import (
    C42C,
    C42C_CORS,
    CONSTANT,
    HAPROXY,
    NGINX_FILES,
    REQUESTS,
    Round,
)
from bench.figures import Row, spread
from bench.machine import WrkRun
from bench.refreshing import Course

QUIET = (
    0.9  # share of its core that the service must have got, or the figures mean little
)
_PACKAGES = ("uvloop", "httptools", "flask", "werkzeug", "requests", "urllib3")
_PROGRAMS = {"wrk": "-v", "nginx": "-v", "haproxy": "-v", "varnishd": "-V"}
# The least CPU per hit wanted of others, as a multiple of c42c's; the same for rates.
_WANTED = {
    (NGINX_FILES, "bare"): 1.4,
    (NGINX_FILES, "browser"): 1.4,
    (HAPROXY, "bare"): 1.0,
    (HAPROXY, "browser"): 1.0,
}


_HEAD = """\
# How fast c42c is

Written by `make bench`. Every server answers the same request from its cache, with the
same 300 bytes and the same headers, on one core. wrk sends the requests from the other
core, on 32 keep-alive connections, to one server after the other, in turns. *Bare*
requests have a Host header; *browser* requests have twelve more, as Chrome sends them.

Figures are medians, with the least and the greatest in parentheses. Compare figures
within one run only: another machine gives others, and so does the same one when it is
busy. CPU per hit is the user and system time of the server's processes; it varies
least.

{date:%Y-%m-%d}, {machine}, {versions}. {took}

![Hits per second](plot.svg)

- *a constant on the same server*: c42c's server without a cache. It is the limit of
  what c42c can reach, and the origin of nginx, HAProxy and Varnish.
- *plain Flask*: a dict in front of two `requests.get`, on Flask's own server, which
  closes each connection.

"""
_COLUMNS = (
    "server",
    "bare: CPU per hit, µs",
    "hits a second",
    "p99, ms",
    "browser: CPU, µs",
    "hits a second",
    "p99, ms",
)


_REFRESHING = """\
## Hot events

All of them are asked for the same event, 50 times a second each, side by side in one
run. An answer lives for {lifetime:g} s, and the origin takes 300 ms for a new one. The
first request, which everybody waits for, isn't counted. c42c makes two calls for a
load, the others one.

| cache | requests | waited | longest wait, ms | past their lifetime | calls |
|---|---|---|---|---|---|"""


def compared(rounds: Sequence[Round]) -> Iterator[Row]:
    """Make the rows of the figures that compare the service with others."""
    measures: dict[str, Callable[[WrkRun, WrkRun], float]] = {
        "CPU per hit, its / ours": lambda its, ours: its.cost / ours.cost,
        "hits a second, ours / its": lambda its, ours: ours.rate / its.rate,
    }
    for name, measure in measures.items():
        for (other, request), least in _WANTED.items():
            if other in rounds[0].loads:
                yield _row(
                    f"{other}, {request}: {name}",
                    rounds,
                    request,
                    other,
                    measure,
                    least,
                )
    for request in REQUESTS:
        if NGINX_FILES in rounds[0].loads:
            what = f"{NGINX_FILES}, {request}: p99, its / ours"
            yield _row(
                what,
                rounds,
                request,
                NGINX_FILES,
                lambda its, ours: its.p99 / ours.p99,
                1.0,
            )


def _row(
    what: str,
    rounds: Sequence[Round],
    request: str,
    other: str,
    measure: Callable[[WrkRun, WrkRun], float],
    least: float,
) -> Row:
    off, on = (
        [
            measure(one.loads[other], one.loads[ours])
            for one in rounds
            if one.request == request
        ]
        for ours in (C42C, C42C_CORS)
    )
    reached = min(statistics.median(off), statistics.median(on)) >= least
    ours, floor = (
        statistics.median(
            one.loads[name].cost for one in rounds if one.request == request
        )
        for name in (C42C, CONSTANT)
    )
    why = f"{request.capitalize()} hits: of their {ours:.1f} µs, "
    why += f"the server takes {floor:.1f} (the constant)"
    return Row(what, f"≥ {least}", f"{spread(off)}; CORS on {spread(on)}", reached, why)


def refreshed(courses: Sequence[Course]) -> Iterator[Row]:
    """Make the rows of what c42c promises about hot events."""
    ours = next(course for course in courses if course.name == refreshing.C42C)
    what = "a hot event over its lifetimes"
    yield Row(f"{what}: requests that waited", "0", str(ours.waited), not ours.waited)
    late = "answers past their lifetime"
    yield Row(f"{what}: {late}", "0", str(ours.late), not ours.late)
    longest = f"{ours.longest:.1f}"
    yield Row(f"{what}: the longest wait, ms", "≤ 20", longest, ours.longest <= 20)


def refreshing_table(courses: Sequence[Course]) -> str:
    """Write what the clients of a hot event saw, in Markdown."""
    lines = [_REFRESHING.format(lifetime=refreshing.LIFETIME)]
    for course in courses:
        counts = f"{course.requests:,} | {course.waited} | {course.longest:.1f}"
        lines.append(f"| {course.name} | {counts} | {course.late} | {course.calls} |")
    return "\n".join(lines)


def page(
    rounds: Sequence[Round], rows: Sequence[Row], hot_events: str, *, took: str
) -> str:
    """Write the page in Markdown."""
    share = statistics.median(one.loads[C42C].share for one in rounds)
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_line(rounds, name) for name in by_rate(rounds)),
        "",
        f"c42c had {share:.0%} of its core."
        + ("" if share >= QUIET else " **The machine was busy: repeat this.**"),
        *(f"Not installed, so left out: {name}." for name in contenders.missing()),
        "",
        "## What is wanted",
        "",
        "| what | wanted | measured | |",
        "|---|---|---|---|",
        *(
            f"| {row.what} | {row.wanted} | {row.measured} | {_mark(row)} |"
            for row in rows
        ),
        "",
        *(
            f"- {why}."
            for why in dict.fromkeys(
                row.why for row in rows if row.why and not row.reached
            )
        ),
        "",
        hot_events,
        "",
        "Where the CPU of a cold answer goes: [cold-profile.txt](cold-profile.txt).",
        "",
    ]
    return _HEAD.format(
        date=datetime.now(UTC),
        machine=machine.describe(),
        versions=_versions(),
        took=took,
    ) + "\n".join(lines)


def _mark(row: Row) -> str:
    return "" if not row.wanted else "reached" if row.reached else "**not reached**"


def _line(rounds: Sequence[Round], name: str) -> str:
    cells = [f"**{name}**" if name == C42C else name]
    for request in REQUESTS:
        loads = [one.loads[name] for one in rounds if one.request == request]
        cells.append(spread([load.cost for load in loads], 1))
        cells.append(f"{statistics.median(load.rate for load in loads):,.0f}")
        cells.append(spread([load.p99 for load in loads]))
    return f"| {' | '.join(cells)} |"


def by_rate(rounds: Sequence[Round]) -> list[str]:
    """Return the contenders' names, the fastest first."""
    return sorted(rounds[0].loads, key=lambda name: -max(_rates(rounds, name, "bare")))


def _rates(rounds: Sequence[Round], name: str, request: str) -> list[float]:
    return [one.loads[name].rate / 1000 for one in rounds if one.request == request]


def _versions() -> str:
    programs = {name: path for name in _PROGRAMS if (path := contenders.program(name))}
    found = {
        name: machine.version([path, _PROGRAMS[name]])
        for name, path in programs.items()
    }
    return ", ".join(
        f"{name} {version}"
        for name, version in (
            found | {n: metadata.version(n) for n in _PACKAGES}
        ).items()
    )


_LEFT, _BAR, _TOP, _STEP = 250, 400, 74, 46  # of the plot, in pixels
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .head { font-size: 15px; font-weight: 600 } .bold { font-weight: 600 }
  .small { font-size: 12px; fill: #59636e } .range { stroke: #1f2328 }
  .card { fill: #ffffff; stroke: #d1d9e0 }
  .own { fill: #1a7f37 } .other { fill: #8c959f } .light { opacity: .55 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .range { stroke: #f0f6fc }
    .card { fill: #0d1117; stroke: #3d444d }
    .own { fill: #3fb950 } .other { fill: #6e7681 }
  }
"""


def plot(rounds: Sequence[Round]) -> str:
    """Draw the hits per second of all contenders as SVG, in light and in dark."""
    names = by_rate(rounds)
    longest = max(
        max(_rates(rounds, name, request)) for name in names for request in REQUESTS
    )
    height = _TOP + _STEP * len(names) + 10
    size = f'width="760" height="{height}" viewBox="0 0 760 {height}"'
    card = f'x="0.5" y="0.5" width="759" height="{height - 1}" rx="8"'
    note = "thousands, 32 connections, median; line: least to greatest. "
    note += "Upper bar: bare requests, lower bar: a browser's"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        "<title>Hits per second on one core</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" {card}/>',
        '<text class="head" x="20" y="30">Hits per second on one core</text>',
        f'<text class="small" x="20" y="50">{note}</text>',
    ]
    for number, name in enumerate(names):
        y = _TOP + _STEP * number
        own = name in (C42C, C42C_CORS)
        weight = ' class="bold"' if own else ""
        place = f'x="{_LEFT - 12}" y="{y + 20}" text-anchor="end"'
        parts.append(f"<text{weight} {place}>{name}</text>")
        kind = "own" if own else "other"
        bare = _rates(rounds, name, "bare")
        parts += _bar(kind, y, bare, longest)
        browser = _rates(rounds, name, "browser")
        parts += _bar(f"{kind} light", y + 17, browser, longest)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(kind: str, y: int, rates: Sequence[float], longest: float) -> Iterator[str]:
    """Draw the median of `rates` as a bar, and their range as a line."""
    median = statistics.median(rates)
    width = median / longest * _BAR
    low = min(rates) / longest * _BAR
    high = max(rates) / longest * _BAR
    box = f'x="{_LEFT}" y="{y}" width="{width:.1f}" height="14" rx="2"'
    yield f'<rect class="{kind}" {box}/>'
    yield f'<path d="M{_LEFT + low:.1f} {y + 7}H{_LEFT + high:.1f}" class="range"/>'
    place = f'x="{_LEFT + max(width, high) + 7:.1f}" y="{y + 11}"'
    yield f'<text class="small" {place}>{median:.1f}</text>'
