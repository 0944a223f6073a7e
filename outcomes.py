"""The plain types that pass between the modules: what a load returns, what a caller of the cache gets or has raised,
and what the cache counts."""

from collections.abc import Hashable
from typing import Any, Final, NamedTuple

OK: Final = "ok"  # a good answer
NEGATIVE: Final = "negative"  # a definite no
FAULT: Final = "fault"  # something is out of order: worth asking again soon
KINDS: Final = (OK, NEGATIVE, FAULT)


class Loaded(NamedTuple):
    """What a load returns for a key.

    Every caller gets the same `value`, so it must be immutable all the way down: hashable. `lifetime` is in seconds
    from when the value began to be; where it is over when the load ends, those who waited get the value and none is
    kept. A value begins to be when its load begins, or `age` seconds before: it may come from a cache further on.
    """

    value: Hashable
    kind: str
    lifetime: float
    age: float = 0.0  # less than 0 where the value began to be only later, after waiting


class Found(NamedTuple):
    """What a caller gets: the value, and where it came from. `age` and `ttl` are in seconds, at that moment."""

    value: Any
    kind: str
    # "hit", "miss" (this caller loaded it), "shared" (this caller's load found it in a cache further on) or "collapsed"
    # (it waited for another caller's load)
    result: str
    age: float
    ttl: float
    kept: bool


class Stats(NamedTuple):
    """One consistent reading. A key asked for is one of the first four; a miss is a load, ended or under way."""

    hits: int
    misses: int
    collapsed: int
    refused: int
    loads_ok: int
    loads_negative: int
    loads_fault: int
    loads_failed: int  # raised
    evicted_expired: int
    evicted_bound: int
    entries_ok: int
    entries_negative: int
    entries_fault: int
    waiting: int  # callers that run a load or wait for one
    loading: int  # keys that are being loaded


class TierStats(NamedTuple):
    """One consistent reading of the shared tier. An event that was to be loaded, by how that ended: the first four."""

    found: int  # in Redis, at once
    awaited: int  # in Redis, after another process had loaded it
    loaded: int  # here, for all
    alone: int  # here, without Redis
    up: bool


class Refused(Exception):
    """Too many callers wait for a load already; nothing was loaded."""


class LoadFailed(Exception):
    """The load that this caller waited for raised; what it raised is the cause."""
