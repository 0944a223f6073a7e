"""Measures how long a reader waits while very many entries expire together.

`python -m bench.expire COUNT` prints the longest `get` in milliseconds twice: without
the reaper at work, and with it. The clock is moved, so nothing waits: all entries
except the reader's own expire together.
"""

import sys
import threading
import time

from cache import OK, Cache, Loaded


def main(count: int) -> None:
    """Fill a cache, then read from it in one thread, before and while it is reaped."""
    ahead = 0.0
    cache = Cache(
        max_entries=2 * count,
        max_bytes=2 * count * 1000,
        max_waiting=1,
        clock=lambda: time.monotonic() + ahead,
    )
    value = (200, "application/json", b"x" * 300, '"etag"', 200, 0.0)
    cache.get_or_load(["hot"], lambda keys, _: [(keys[0], Loaded(value, OK, 1e9))])
    for number in range(count):
        cache.get_or_load(
            [f"{number:032x}_14602021609581"],
            lambda keys, _: [(keys[0], Loaded(value, OK, 1e6))],
        )

    longest, stop = [0.0, 0.0], threading.Event()
    phase = 0

    def read() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            assert cache.get("hot")
            longest[phase] = max(longest[phase], time.perf_counter() - began)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(1)
    phase = 1
    cache.get_or_load(
        ["first"], lambda keys, _: [(keys[0], Loaded(value, OK, 0.05))]
    )  # wakes the reaper
    ahead = 1e7
    give_up = time.monotonic() + 60
    while len(cache) > 1 and time.monotonic() < give_up:
        time.sleep(0.01)
    stop.set()
    reader.join()
    assert len(cache) == 1
    cache.close()
    print(*(f"{seconds * 1000:.3f}" for seconds in longest))


if __name__ == "__main__":
    main(int(sys.argv[1]))
