"""Measures everything and prints the results page.

Without --quick or --only, it writes the page, plot and profile too.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import contenders, figures, machine, refreshing, report
from bench.contenders import Round
from bench.figures import Row, Scale, Upstreams
from standin import Standin

HERE = Path(__file__).parent
FULL = Scale(contest=5, rounds=3, seconds=3, many=1_000_000, cold=500, lifetimes=10)
QUICK = Scale(contest=1, rounds=1, seconds=1, many=50_000, cold=200, lifetimes=2)


def _start_upstreams(stack: contextlib.ExitStack) -> Upstreams:
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="c42c-bench-")))
    tls = machine.certificate(place)
    return Upstreams(
        plain=stack.enter_context(Standin(machine.TOKEN)),
        tls=stack.enter_context(Standin(machine.TOKEN, tls=tls)),
        certificate=place / "cert.pem",
    )


def _contest(upstream: Standin, scale: Scale) -> Iterator[Round]:
    return contenders.contest(
        upstream.base_url,
        figures.new_event(upstream),
        rounds=scale.contest,
        seconds=scale.seconds,
    )


def main() -> int:
    """Run the bench, or a part of it."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="measure everything once and briefly; write nothing",
    )
    parts = ["contest", "refreshing", "profile", *(one.__name__ for one in figures.ALL)]
    parser.add_argument(
        "--only",
        metavar="PART",
        choices=parts,
        help=f"print one part only: {', '.join(parts)}",
    )
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    for sign in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also where a shell ignores them for background jobs
        signal.signal(sign, lambda *_: sys.exit("stopped"))
    machine.require_two_cores_and_wrk()
    began = time.monotonic()
    rounds, rows = list[Round](), list[Row]()
    profile, table = None, ""

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s  {what}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        upstreams = _start_upstreams(stack)
        if options.only in (None, "contest"):
            for one in _contest(upstreams.plain, scale):
                costs = [
                    f"{name} {load.cost:.1f} µs" for name, load in one.loads.items()
                ]
                say(f"{one.request}: {', '.join(costs)}")
                rounds.append(one)
            rows += report.compared(rounds)
        for measure in figures.ALL:
            if options.only in (None, measure.__name__):
                for row in measure(upstreams, scale):
                    say(f"{row.what}: {row.measured}")
                    rows.append(row)
        if options.only in (None, "refreshing"):
            courses = refreshing.measure(scale.lifetimes)
            table = report.refreshing_table(courses)
            rows += report.refreshed(courses)
            say("refreshing")
        if options.only in (None, "profile"):
            profile = figures.profile(upstreams, 4 * scale.seconds)
            say("profile" if profile else "no profile: py-spy can't be used")
    if options.only:
        print(profile or "", table, *rows, sep="\n")
        return 0
    minutes = (time.monotonic() - began) / 60
    page = report.page(
        rounds,
        rows,
        table,
        took=f"{scale.contest} rounds of {scale.seconds} s; {minutes:.0f} minutes.",
    )
    print(page)
    if not options.quick:
        (HERE / "results.md").write_text(page)
        (HERE / "plot.svg").write_text(report.plot(rounds))
        if profile:
            (HERE / "cold-profile.txt").write_text(profile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
