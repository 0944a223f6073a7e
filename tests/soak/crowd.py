"""`python -m tests.soak.crowd`: 400 callers of one event cause one load in all.

They call four instances that share a Redis.

Fifty times in a row, each with another event; `--load 20` waits for that load average
first, which busy loops make. Exit status 1 if there was ever another number of loads,
or a wrong answer.
"""

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Sequence

from tests.soak.checker import Rules
from tests.soak.outages import Instance, Process, SoakRedis, start
from tests.soak.traffic import PATH
from tests.soak.upstream import SoakUpstream, UpstreamCall

RULES = Rules(expiry=252.0, fault_expiry=6.0, timeout=10.0)
CALLERS = 400
# Seconds that the upstream takes, so that all callers come before its answer does.
DELAY = 1.0


async def get(port: int, event_id: str) -> bytes:
    """Return the body of an answer; nothing if it is not a 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"GET {PATH}{event_id} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n"
    )
    writer.write(request.encode())
    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    return body if head.startswith(b"HTTP/1.1 200 ") else b""


async def run(
    rounds: int,
    instances: Sequence[Instance],
    redis: SoakRedis,
    calls: list[UpstreamCall],
) -> int:
    """Return how many of the rounds went wrong."""
    upstream = SoakUpstream(0, calls.append)
    upstream.delay = DELAY
    redis.start()
    await start(instances, upstream, RULES, redis)
    for instance in instances:
        await instance.shares()
    wrong = 0
    for number in range(1, rounds + 1):
        calls.clear()
        ports = [instances[caller % len(instances)].port for caller in range(CALLERS)]
        answers = await asyncio.gather(
            *(get(port, f"small-{number}") for port in ports)
        )
        made = sum(call.endpoint == "events" for call in calls)
        if made != 1 or len(set(answers)) != 1 or not answers[0]:
            wrong += 1
            print(
                f"round {number}: {made} loads, {len(set(answers))} different answers",
                flush=True,
            )
    upstream.close()
    return wrong


async def main() -> int:
    """Do as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.crowd", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--load", type=float, default=0.0, help="the load average to wait for"
    )
    options = parser.parse_args()
    busy = [
        Process(["nice", "-n", "19", sys.executable, "-c", "while True: pass"])
        for _ in range(math.ceil(options.load * 1.1))
    ]
    instances, redis = [Instance() for _ in range(4)], SoakRedis()
    try:
        for process in busy:
            process.start()
        while os.getloadavg()[0] < options.load:
            await asyncio.sleep(1)
        wrong = await run(options.rounds, instances, redis, [])
        load = os.getloadavg()[0]
    finally:
        for process in (*busy, *instances, redis):
            process.kill()
    verdict = "FAILED" if wrong else "ok"
    rounds = f"{options.rounds} rounds of {CALLERS} callers"
    print(f"{verdict}: {rounds}, {wrong} wrong; load {load:.1f}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
