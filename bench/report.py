"""What a run found, as a page with a plot."""

import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata

from bench import contenders, machine
from bench.contenders import Round
from bench.figures import Row, spread

QUIET = 0.9  # of its core, that the service must have had for a run to mean much
_PACKAGES = ("granian", "flask", "werkzeug", "requests", "flask-caching", "requests-cache")


def ratio(rounds: Sequence[Round], size: int, of: str, to: str, *, p99: bool = False) -> list[float]:
    """Return one contender's rate, or p99, by another's, in each round."""
    pairs = [(one.loads[of], one.loads[to]) for one in rounds if one.size == size and to in one.loads]
    return [(a.p99 / b.p99 if p99 else a.rate / b.rate) for a, b in pairs]


def compared(rounds: Sequence[Round]) -> Iterator[Row]:
    """Make the rows of the figures that compare the service with the others."""
    wanted = [
        ("nginx `proxy_cache`", contenders.NGINX, 0.8, "≥ 1.0 is the goal; < 0.8 is not done", (300, 4096)),
        ("the bare server with a constant", contenders.BARE, 0.85, "≥ 0.85", (300, 4096)),
        ("the plain Flask app", contenders.PLAIN, 20, "≥ 20", (300,)),
    ]
    for name, other, least, text, sizes in wanted:
        for size in sizes:
            if found := ratio(rounds, size, contenders.SERVICE, other):
                reached = statistics.median(found) >= least
                what = f"hits, 32 connections, {size} bytes: service / {name}"
                bare = spread(ratio(rounds, size, contenders.BARE, other), 2)
                limit = f"the bare server, which only answers, is at {bare} of it; the service can't be above that"
                yield Row(what, text, spread(found, 2), reached, "" if other == contenders.BARE else limit)
    for size in (300, 4096):
        if found := ratio(rounds, size, contenders.SERVICE, contenders.NGINX, p99=True):
            what = f"p99 of hits at 32 connections, {size} bytes: service / nginx"
            yield Row(what, "≤ 2", spread(found, 2), statistics.median(found) <= 2)


def page(rounds: Sequence[Round], rows: Sequence[Row], *, remark: str) -> str:
    """Write the page in Markdown."""
    programs = contenders.versions() | {name: _version(name) for name in _PACKAGES}
    versions = ", ".join(f"{name} {version}" for name, version in programs.items() if version)
    lines = [
        "# How fast it is",
        "",
        "Written by `make bench`; `bench/__init__.py` says where to read how. All servers run on one and the same",
        "core, `wrk` with 32 keep-alive connections on another, in turns; figures are medians, with the least and",
        "the greatest in parentheses. Ratios within one run are the result; absolute figures are context.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine.describe()}, {machine.python()}, {versions}. {remark}",
        "",
        "![Hits per second of all contenders](plot.svg)",
        "",
        *_contest(rounds),
        "",
        f"CPU is the server's per hit, user and system; the service had {_share(rounds):.0%} of its core meanwhile.",
        f"All but {contenders.PLAIN} keep connections alive; that one runs on Flask's own server, which does not and",
        "logs each request. nginx and Varnish are in front of the bare server, with the same answers.",
        *(["**Something else used that core: repeat it on a quiet machine.**"] if _share(rounds) < QUIET else []),
        *[f"Not installed here, and left out: {name}." for name in contenders.missing()],
        "",
        "## Figures to reach",
        "",
        "| what | wanted | measured | |",
        "|---|---|---|---|",
        *(f"| {row.what} | {row.wanted} | {row.measured} | {_mark(row)} |" for row in rows),
        "",
        *(f"*{row.what}*: {row.limit}.\n" for row in rows if row.reached is False and row.limit),
        "Where the CPU of a cold answer goes: [cold-profile.txt](cold-profile.txt).",
    ]
    return "\n".join(lines) + "\n"


def _mark(row: Row) -> str:
    return "" if row.reached is None else "reached" if row.reached else "**not reached**"


def _contest(rounds: Sequence[Round]) -> Iterator[str]:
    yield "| contender | 300 bytes: k/s | p99, ms | CPU, µs | 4 KB: k/s | p99, ms | CPU, µs | service / it, 300 bytes |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in _by_rate(rounds):
        cells = []
        for size in (300, 4096):
            loads = [one.loads[name] for one in rounds if one.size == size]
            cells += [spread([load.rate / 1000 for load in loads]), spread([load.p99 for load in loads], 2)]
            cells.append(f"{statistics.median(load.cost for load in loads):.1f}")
        by = statistics.median(ratio(rounds, 300, contenders.SERVICE, name))
        shown = f"**{name}**" if name == contenders.SERVICE else name
        yield f"| {shown} | {' | '.join(cells)} | {by:.2f} |"


def _by_rate(rounds: Sequence[Round]) -> list[str]:
    rates = {name: _rate(rounds, name, 300) for name in rounds[0].loads}
    return sorted(rates, key=lambda name: -rates[name])


def _rate(rounds: Sequence[Round], name: str, size: int) -> float:
    return statistics.median(one.loads[name].rate / 1000 for one in rounds if one.size == size)


def _share(rounds: Sequence[Round]) -> float:
    return statistics.median(one.loads[contenders.SERVICE].share for one in rounds)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 } .head { font-size: 15px; font-weight: 600 }
  .small { font-size: 12px; fill: #59636e } .card { fill: #ffffff; stroke: #d1d9e0 }
  .range { stroke: #1f2328 }
  .own { fill: #1a7f37 } .other { fill: #8c959f } .light { opacity: .55 } .bold { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .range { stroke: #f0f6fc } .small { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d }
    .range { stroke: #1f2328 }
  .own { fill: #3fb950 } .other { fill: #6e7681 }
  }
"""


def plot(rounds: Sequence[Round]) -> str:
    """Draw the hits per second of all contenders as SVG, readable in light and in dark."""
    left, bar, top, step = 270, 380, 74, 46
    names = _by_rate(rounds)
    longest = max(_rate(rounds, name, size) for name in names for size in (300, 4096))
    height = top + step * len(names) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" viewBox="0 0 760 {height}" role="img">',
        "<title>Hits per second on one core</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="759" height="{height - 1}" rx="8"/>',
        '<text class="head" x="20" y="30">Hits per second on one core</text>',
        '<text class="small" x="20" y="50">thousands, 32 connections, median; line: least to greatest. '
        "Upper bar 300 bytes, lower bar 4 KB</text>",
    ]
    for at, name in enumerate(names):
        y = top + step * at
        kind = "own" if name == contenders.SERVICE else "other"
        weight = ' class="bold"' if kind == "own" else ""
        parts.append(f'<text{weight} x="{left - 12}" y="{y + 20}" text-anchor="end">{name}</text>')
        for below, size, light in ((0, 300, ""), (17, 4096, " light")):
            rates = [one.loads[name].rate / 1000 for one in rounds if one.size == size]
            median, middle = statistics.median(rates), y + below + 7
            low, high, width = (value / longest * bar for value in (min(rates), max(rates), median))
            parts += [
                f'<rect class="{kind}{light}" x="{left}" y="{y + below}" width="{width:.1f}" height="14" rx="2"/>',
                f'<path d="M{left + low:.1f} {middle}H{left + high:.1f}" class="range"/>',
                f'<text class="small" x="{left + max(width, high) + 7:.1f}" y="{middle + 4}">{median:.1f}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"
