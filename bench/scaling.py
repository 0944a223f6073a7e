"""Simulates how often several instances ask Calendar42, with and without Redis.

`python bench/scaling.py` prints the table of `scaling.md`, with the formula's result
after each simulated figure. Every caller picks an instance and an event at random;
callers come independently of each other. A load is two calls.
"""

import random
from collections.abc import Iterator

HOURS = 3
LIFETIME = 252.0  # seconds
CALLS = 2


def simulate(
    events: int, instances: int, per_minute: float, lifetime: float, *, shared: bool
) -> float:
    """Return the upstream calls per hour, by a simulation.

    `per_minute` says how often each event is asked for, of all instances together.
    """
    # The same arrivals for both ways.
    rng = random.Random(f"{events} {instances} {per_minute} {lifetime}")  # noqa: S311
    expiry: dict[tuple[int, int], float] = {}
    loads = 0
    for now in _arrivals(rng, events * per_minute / 60, (HOURS + 1) * 3600):
        key = (rng.randrange(events), rng.randrange(instances))
        key = (key[0], 0) if shared else key
        if expiry.get(key, 0.0) <= now:
            expiry[key] = now + lifetime
            loads += now >= 3600  # the first hour is for filling the caches
    return CALLS * loads / HOURS


def formula(
    events: int, instances: int, per_minute: float, lifetime: float, *, shared: bool
) -> float:
    """Return the upstream calls per hour, by a formula.

    After each load, none is needed until it expires and somebody asks again.
    """
    caches = 1 if shared else instances
    return CALLS * events * caches * 3600 / (lifetime + caches * 60 / per_minute)


def _arrivals(rng: random.Random, rate: float, end: float) -> Iterator[float]:
    now = rng.expovariate(rate)
    while now < end:
        yield now
        now += rng.expovariate(rate)


def main() -> None:
    """Print the table."""
    print(
        "| events | requests a minute for each | lifetime, min | instances "
        "| calls an hour, no Redis | with Redis |"
    )
    print("|---|---|---|---|---|---|")
    for events, per_minute, lifetime in [
        (20, 10.0, 252.0),
        (100, 10.0, 252.0),
        (100, 1.0, 252.0),
        (100, 10.0, 60.0),
    ]:
        for instances in (1, 2, 4, 16):
            case = (events, instances, per_minute, lifetime)
            cells = [
                f"{events}",
                f"{per_minute:g}",
                f"{lifetime / 60:g}",
                f"{instances}",
            ]
            for shared in (False, True):
                simulated = simulate(*case, shared=shared)
                computed = formula(*case, shared=shared)
                cells.append(f"{simulated:,.0f} ({computed:,.0f})")
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
