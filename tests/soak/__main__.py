"""`python -m tests.soak`: traffic, faults and outages, with every answer checked.

Half the time one instance of the service, then three that share a Redis. It takes
minutes. Prints a line of figures now and then, and a verdict. Exit status 1 if the
service broke a promise, 2 if a program is missing.
"""

import argparse
import asyncio
import bisect
import contextlib
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from tests.soak.checker import Checker, Rules
from tests.soak.outages import TOKEN, Instance, Outages, Resources, SoakRedis, start
from tests.soak.traffic import SoakClient
from tests.soak.upstream import SoakUpstream, UpstreamCall

RULES = Rules(expiry=3.0, fault_expiry=0.6, timeout=2.0)
CLIENTS = 30
PAUSE = 0.12  # seconds between two requests of a client: some 200 a second in all
# What an instance may hold more at the end than after the first quarter, or minute.
# Threads and connections upstream are kept once they are there, so both follow the
# busiest moment; memory is given back in large pieces only.
GROWTH = Resources(threads=40, descriptors=40, kilobytes=16 * 1024)


class Pulse:
    """Knows how late this process's event loop was."""

    def __init__(self) -> None:
        # Of each delay, when it was noticed and how long it was. A delay is forgotten
        # when a longer one follows.
        self._noticed: list[float] = []
        self._delays: list[float] = []
        self._last = time.monotonic()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self._last = time.monotonic()
            self.note(self._last, self._last - due)

    def note(self, now: float, delay: float) -> None:
        """Note a delay that was noticed now."""
        while self._delays and self._delays[-1] <= delay:
            self._delays.pop()
            self._noticed.pop()
        self._delays.append(delay)
        self._noticed.append(now)

    def lag(self, since: float) -> float:
        """Return the longest delay since then, in seconds."""
        longest = time.monotonic() - self._last - 0.01
        at = bisect.bisect_left(self._noticed, since)
        if at < len(self._delays):
            longest = max(longest, self._delays[at])
        return max(0.0, longest)


class Soak:
    """One soak test, with one instance or with three that share a Redis."""

    def __init__(self, seconds: float, seed: int, shared: bool) -> None:
        self._seconds = seconds
        self._seed = seed
        self._redis = SoakRedis() if shared else None
        self._instances: list[Instance] = [
            Instance() for _ in range(3 if shared else 1)
        ]
        self._pulse = Pulse()
        self._upstream = SoakUpstream(seed, self._on_call)
        self._checker = Checker(
            RULES, self._upstream.calls, self._upstream.by_event, self._pulse.lag
        )
        self._outages: Outages | None = None
        self._held: dict[
            int, Resources
        ] = {}  # by process id, once it has been at work for a while

    def _on_call(self, call: UpstreamCall) -> None:
        self._checker.called(call)

    async def run(self) -> bool:
        """Return whether the service kept its promises."""
        try:
            if self._redis:
                self._redis.start()
            await start(self._instances, self._upstream, RULES, self._redis)
            async with _in_background(self._pulse.run(), self._upstream.change()):
                async with _in_background(self._report(), *self._load()):
                    await asyncio.sleep(self._seconds)
                await asyncio.sleep(
                    RULES.timeout + RULES.expiry + 1
                )  # all work ends, all answers expire
                self._compare()
                await asyncio.to_thread(self._stop)
        finally:
            for process in (*self._instances, *filter(None, [self._redis])):
                process.kill()
            self._upstream.close()
        return self._verdict()

    def _load(self) -> list[Coroutine[Any, Any, None]]:
        ports = [instance.port for instance in self._instances]
        rng = random.Random(self._seed)
        clients = [
            SoakClient(ports, self._checker, number, random.Random(rng.random()), PAUSE)
            for number in range(CLIENTS)
        ]
        load = [client.run() for client in clients]
        if self._redis:
            self._outages = Outages(self._redis, self._instances, self._checker, rng)
            load.append(self._outages.run())
        return load

    async def _report(self) -> None:
        """Print a line of figures every minute, or every ten seconds of a short run."""
        began, every = time.monotonic(), 60.0 if self._seconds >= 300 else 10.0
        first = min(60.0, self._seconds / 4)
        due, answers = began + every, 0
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for instance in self._instances:
                if now > instance.started + first:
                    self._held.setdefault(instance.pid, instance.resources())
            if now > due:
                due += every
                counts = self._checker.counts
                held = [tuple(instance.resources()) for instance in self._instances]
                shown = [f"{now - began:4.0f} s"]
                shown += [f"{(counts.total() - answers) / every:.0f}/s"]
                shown += [f"{status}:{many}" for status, many in sorted(counts.items())]
                shown += [f" calls:{self._upstream.played.total()}"]
                shown += [f"faults:{self._upstream.faults}"]
                shown += [f"outages:{self._outages_happened}"]
                shown += [f" lag:{self._pulse.lag(now - every) * 1000:.0f} ms"]
                shown += [f" threads/files/KB:{held}"]
                shown += [f" violations:{self._checker.found.total()}"]
                print(*shown, flush=True)
                answers = counts.total()

    def _compare(self) -> None:
        """Check that nothing has grown since the first readings."""
        for number, instance in enumerate(self._instances):
            before, now = (
                self._held.get(instance.pid, instance.resources()),
                instance.resources(),
            )
            if any(
                more > most
                for more, most in zip(_difference(now, before), GROWTH, strict=True)
            ):
                self._checker.violation(
                    "grown", f"instance {number}: {before}, at the end {now}"
                )

    def _stop(self) -> None:
        """Check that each instance ends when told to.

        Its log must tell no failure and no token.
        """
        for number, instance in enumerate(self._instances):
            instance.send(signal.SIGTERM)
            if (status := instance.wait()) != 0:
                self._checker.violation(
                    "wrong end", f"instance {number}: exit status {status}"
                )
            log = instance.log
            for wrong in ("Traceback", TOKEN):
                if wrong in log:
                    around = log[max(0, log.index(wrong) - 500) :][:3000]
                    self._checker.violation(
                        "wrong log", f"instance {number}: {wrong}\n{around}"
                    )

    def _verdict(self) -> bool:
        found = self._checker.found
        for text in self._checker.shown:
            print(f"violation: {text}")
        kinds = "".join(f"; {kind}: {many}" for kind, many in found.most_common())
        print(
            f"{'FAILED' if found else 'ok'}: {len(self._instances)} instance(s),"
            f" {self._seconds:.0f} s, --seed {self._seed}:"
            f" {self._checker.counts.total()} answers,"
            f" {self._upstream.faults} upstream faults,"
            f" {self._outages_happened} outages, {found.total()} violations{kinds}",
            flush=True,
        )
        return not found

    @property
    def _outages_happened(self) -> int:
        return len(self._outages.happened) if self._outages else 0


def _difference(now: Resources, before: Resources) -> list[int]:
    return [after - earlier for after, earlier in zip(now, before, strict=True)]


@contextlib.asynccontextmanager
async def _in_background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do some work until the block ends; a failure of it ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
        yield
        for task in tasks:
            task.cancel()


async def _main(seconds: float, seed: int, parts: list[bool]) -> int:
    task = asyncio.current_task()
    assert task
    for what in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(what, task.cancel)
    results = [await Soak(seconds / len(parts), seed, shared).run() for shared in parts]
    return 0 if all(results) else 1


def main() -> int:
    """Run the soak test as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__.partition("\n\n")[2]
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=600,
        help="how long, in all (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="repeats a run's choices, though not its timing",
    )
    parser.add_argument("--alone", action="store_true", help="one instance only")
    parser.add_argument(
        "--redis", action="store_true", help="three instances that share a Redis only"
    )
    options = parser.parse_args()
    parts = [
        shared
        for shared, chosen in ((False, options.alone), (True, options.redis))
        if chosen
    ] or [False, True]
    if True in parts and not shutil.which("redis-server"):
        print("redis-server is not installed; --alone needs none", file=sys.stderr)
        return 2
    try:
        seed = random.randrange(10**6) if options.seed is None else options.seed
        return asyncio.run(_main(options.seconds, seed, parts))
    except asyncio.CancelledError:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
