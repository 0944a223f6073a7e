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
    from when the load began; where it is over when the load ends, those who waited get the value and none is kept.
    """

    value: Hashable
    kind: str
    lifetime: float


class Found(NamedTuple):
    """What a caller gets: the value, and where it came from. `age` and `ttl` are in seconds, at that moment."""

    value: Any
    kind: str
    result: str  # "hit", "miss" (this caller loaded it) or "collapsed" (it waited for another caller's load)
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


class Refused(Exception):
    """Too many callers wait for a load already; nothing was loaded."""


class LoadFailed(Exception):
    """The load that this caller waited for raised; what it raised is the cause."""
