"""`python -m bench`: run all, print the page, and write it with the plot beside this file; `--quick` only prints."""

import argparse
import signal
import sys
import time
from pathlib import Path

from bench import contenders, figures, machine, report
from bench.contenders import Round
from bench.figures import Row, Scale
from standin import Standin

HERE = Path(__file__).parent
FULL = Scale(rounds=5, seconds=3, many=1_000_000, cold=1000)
QUICK = Scale(rounds=1, seconds=1, many=50_000, cold=200)


def main() -> int:
    """Run all of the bench, in a few minutes."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="try everything once, briefly; writes nothing")
    parser.add_argument(
        "--only",
        metavar="NAME",
        help="one part only; writes nothing: contest, profile, or " + ", ".join(one.__name__ for one in figures.ALL),
    )
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    for sign in (signal.SIGINT, signal.SIGTERM):  # also where a shell has it ignored in the background
        signal.signal(sign, lambda *_: sys.exit("ended"))
    machine.require()
    began = time.monotonic()
    rounds: list[Round] = []
    rows: list[Row] = []
    profile = None

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s  {what}", file=sys.stderr, flush=True)

    with Standin(machine.TOKEN) as upstream:
        if options.only in (None, "contest"):
            event_ids = {size: figures.new_event(upstream, size) for size in (300, 4096)}
            for one in contenders.contest(upstream.base_url, event_ids, rounds=scale.rounds, seconds=scale.seconds):
                say(f"{one.size} bytes: " + ", ".join(f"{name} {load.rate:,.0f}" for name, load in one.loads.items()))
                rounds.append(one)
            rows += report.compared(rounds)
        for measure in figures.ALL:
            if options.only in (None, measure.__name__):
                for row in measure(upstream, scale):
                    say(f"{row.what}: {row.measured}")
                    rows.append(row)
        if options.only in (None, "profile"):
            profile = figures.profile(upstream, 4 * scale.seconds)
            say("no profile: py-spy is not installed, or must not look" if profile is None else "profile")
    if options.only:
        print(profile or "", *rows, sep="\n")
        return 0
    took = f"It took {(time.monotonic() - began) / 60:.0f} minutes, {scale.rounds} rounds of {scale.seconds} s."
    page = report.page(rounds, rows, remark=took)
    print(page)
    if not options.quick:
        (HERE / "results.md").write_text(page)
        (HERE / "plot.svg").write_text(report.plot(rounds))
        if profile:
            (HERE / "cold-profile.txt").write_text(profile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
