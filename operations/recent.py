"""What happened lately: in the last minute, the last ten minutes and the last hour.

Everything here is bounded in memory, whatever happens. `Recent._lock` guards all that
changes in `Recent`, `History._lock` its samples and its thread.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from cache import FAULT, PAUSED
from calendar42 import ENDPOINTS, Endpoint
from calendar42.calls import CallRecord
from calendar42.errors import C42Error
from operations import logs

MINUTE = 60.0  # seconds
HOUR = 3600.0
_MINUTE_STEP = 1.0  # seconds to within which a minute is counted
_HOUR_STEP = 5.0
STEP = 5.0  # seconds between two samples of the history
SPAN = 600.0  # seconds that the history covers
CALLS_KEPT = 500  # of each endpoint, for the median and the 99th percentile
FAULTS_KEPT = 20
TIME = "%Y-%m-%dT%H:%M:%SZ"


class SlidingCount:
    """Counts what happens in the last `span` seconds, to within `step` seconds.

    Needs the memory of `span / step` numbers. Not thread-safe.
    """

    def __init__(self, span: float, step: float, clock: Callable[[], float]) -> None:
        self._span = span
        self._step = step
        self._clock = clock
        self._begins = deque[float]()  # of each bucket, the oldest first
        self._counts = deque[int]()
        self._total = 0

    def __len__(self) -> int:
        """The numbers that it holds."""
        return len(self._counts)

    def add(self) -> None:
        """Count one now."""
        now = self._clock()
        if not self._begins or now >= self._begins[-1] + self._step:
            self._begins.append(now)
            self._counts.append(0)
        self._counts[-1] += 1
        self._total += 1
        self._forget(now)

    def total(self) -> int:
        """Return how many there were in the last `span` seconds."""
        self._forget(self._clock())
        return self._total

    def _forget(self, now: float) -> None:
        while self._begins and self._begins[0] <= now - self._span:
            self._begins.popleft()
            self._total -= self._counts.popleft()


@dataclass
class Fault:
    """Equal faults of Calendar42, each less than a minute after the one before.

    It has nothing that names an event or a person.
    """

    time: str  # of the first
    endpoint: Endpoint
    status: int  # what Calendar42 answered with; 0: no whole answer came
    cause: str
    request_id: str  # of the request whose load met the first
    count: int
    latest: float  # when the latest was found, by the clock


class Latency(NamedTuple):
    """Seconds that the latest calls to an endpoint took; None before the first."""

    median: float | None
    p99: float | None


class LastMinute(NamedTuple):
    """What happened in the last 60 seconds."""

    loads: int  # events that Calendar42 was asked for
    failed: int  # of these, because of a fault
    token_refused: int  # of the failed ones, because of a 401 or 403
    refused: int  # requests, because too many were waiting
    refused_seconds_ago: float | None  # the latest of these; None if there are none


class Recent:
    """What happened lately, by the clock that it is given. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._calls = SlidingCount(HOUR, _HOUR_STEP, clock)
        self._loads = SlidingCount(MINUTE, _MINUTE_STEP, clock)
        self._failed = SlidingCount(MINUTE, _MINUTE_STEP, clock)
        self._token_refused = SlidingCount(MINUTE, _MINUTE_STEP, clock)
        self._refused = SlidingCount(MINUTE, _MINUTE_STEP, clock)
        self._latest_refusal = -math.inf
        # When each load under way began, the oldest first. The keys say nothing.
        self._under_way: dict[object, float] = {}
        self._faults = deque[Fault](maxlen=FAULTS_KEPT)
        self._slowest = 0.0  # seconds of the slowest load since the last sample
        self._seconds: dict[Endpoint, deque[float]] = {}  # of the latest calls
        for endpoint in ENDPOINTS:
            self._seconds[endpoint] = deque(maxlen=CALLS_KEPT)

    def on_call(self, call: CallRecord) -> None:
        """Remember a call to Calendar42."""
        with self._lock:
            self._calls.add()
            self._seconds[call.endpoint].append(call.seconds)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count a load of one or more events as under way during the block."""
        load = object()
        with self._lock:
            self._under_way[load] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                del self._under_way[load]

    def oldest_load(self) -> float | None:
        """Return for how many seconds the oldest load has been under way.

        If there is none, return None.
        """
        with self._lock:
            for began in self._under_way.values():
                return self._clock() - began
        return None

    def on_load(self, kind: str, seconds: float) -> None:
        """Remember the outcome of loading an event. In a pause nothing is loaded."""
        if kind == PAUSED:
            return
        with self._lock:
            self._loads.add()
            self._slowest = max(self._slowest, seconds)
            if kind == FAULT:
                self._failed.add()

    def on_fault(self, error: C42Error) -> None:
        """Remember a fault; equal ones are counted together."""
        with self._lock:
            if error.upstream_status in (401, 403):
                self._token_refused.add()
            fault = self._fault_like(error)
            fault.count += 1
            fault.latest = self._clock()

    def _fault_like(self, error: C42Error) -> Fault:
        """Return the fault that `error` repeats, or a new one. The lock is held."""
        now = self._clock()
        cause = _cause(error)
        for fault in self._faults:
            kind = (fault.endpoint, fault.status, fault.cause)
            same = kind == (error.endpoint, error.upstream_status, cause)
            if same and now < fault.latest + MINUTE:
                return fault
        new = Fault(
            time=datetime.now(UTC).strftime(TIME),
            endpoint=error.endpoint,
            status=error.upstream_status,
            cause=cause,
            request_id=logs.request_id.get(),
            count=0,
            latest=now,
        )
        self._faults.appendleft(new)
        return new

    def on_full(self) -> None:
        """Remember that a request was refused because too many were waiting."""
        with self._lock:
            self._refused.add()
            self._latest_refusal = self._clock()

    def calls_in_the_last_hour(self) -> int:
        """Return how many calls ended in the last 3,600 seconds."""
        with self._lock:
            return self._calls.total()

    def last_minute(self) -> LastMinute:
        """Return what happened in the last 60 seconds."""
        with self._lock:
            refused = self._refused.total()
            refused_seconds_ago = None
            if refused > 0:
                refused_seconds_ago = round(self._clock() - self._latest_refusal, 1)
            return LastMinute(
                loads=self._loads.total(),
                failed=self._failed.total(),
                token_refused=self._token_refused.total(),
                refused=refused,
                refused_seconds_ago=refused_seconds_ago,
            )

    def faults(self) -> list[Fault]:
        """Return the latest faults, newest first."""
        with self._lock:
            return [replace(fault) for fault in self._faults]

    def latency(self) -> dict[Endpoint, Latency]:
        """Return how long the latest calls took."""
        latencies = {}
        with self._lock:
            for endpoint, seconds in self._seconds.items():
                ordered = sorted(seconds)
                latencies[endpoint] = Latency(
                    median=_quantile(ordered, 0.5), p99=_quantile(ordered, 0.99)
                )
        return latencies

    def slowest_load(self) -> float:
        """Return the seconds of the slowest load since `take_slowest_load`."""
        with self._lock:
            return self._slowest

    def take_slowest_load(self) -> float:
        """Return the seconds of the slowest load since the last call of this."""
        with self._lock:
            slowest = self._slowest
            self._slowest = 0.0
        return slowest


class Outcomes(NamedTuple):
    """Events asked for, by what the cache made of them; each has exactly one outcome.

    A hit on a cached error isn't a `hit`: the client didn't get the event.
    """

    hit: int
    cached_error: int
    miss: int
    collapsed: int
    refused: int


class Sample(NamedTuple):
    """The counters of the cache at one moment, and what the calls took."""

    at: float  # by the cache's clock
    outcomes: Outcomes
    failed: int  # events whose callers got an error, whatever their outcome
    refreshes: int
    latency: dict[Endpoint, Latency]
    slowest_load: float  # seconds, of the loads since the sample before


class History:
    """A sample of `read` every five seconds, for the last ten minutes.

    `start` begins it, in a thread of its own. Thread-safe.
    """

    def __init__(self, read: Callable[[], Sample]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._samples = deque[Sample](maxlen=int(SPAN / STEP) + 1)
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self.sample()

    def sample(self) -> None:
        """Take a sample now."""
        sample = self._read()
        with self._lock:
            self._samples.append(sample)

    def samples(self) -> list[Sample]:
        """Return the samples, the oldest first."""
        with self._lock:
            return list(self._samples)

    def start(self) -> None:
        """Take samples from now on, unless that has begun.

        Called with each request, so that the thread is in the process that serves, and
        not in one that forks.
        """
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is not None:
                return
            thread = threading.Thread(
                target=self._sample_forever, name="c42c-history", daemon=True
            )
            # The system may have no thread left. The next request tries again.
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _sample_forever(self) -> None:
        while not self._closed.wait(STEP):
            self.sample()

    def close(self) -> None:
        """Stop taking samples."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()


def _cause(error: C42Error) -> str:
    """Return what went wrong, with the reason if no reply came."""
    if not error.trouble:
        return error.message
    return f"{error.message} ({error.trouble})"


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that is at least as large as `share` of all values.

    If there are none, return None.
    """
    if not ordered:
        return None
    at = math.ceil(share * len(ordered)) - 1
    return round(ordered[at], 4)
