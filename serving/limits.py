"""What clients may take: memory, descriptors, turns and time, all in one place.

Memory that clients can make the server hold, with these defaults:

| what | at most |
|---|---|
| connections: 8,192 of about 3 KiB | 24 MiB |
| requests that are remembered: 4 MiB, and copies of parts of them | 6 MiB |
| requests that have arrived, in whole or in part, and wait for their answers | 8 MiB |
| answers that clients haven't taken | 32 MiB |
| **in all** | **70 MiB** |

One answer may be larger than the 32 MiB: then it is the only one. The app's own memory
comes on top: its worker threads, its cache, and what it reads from others.
"""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
# If a bound is exceeded, this part of it is freed at once: a sixteenth. Otherwise each
# new connection or answer would cause a search.
FREED_PART = 16


@dataclass(frozen=True)
class Limits:
    """The bounds of one server. Sizes are in bytes, times in seconds."""

    # Of one request. A larger one is rejected.
    max_head: int = 32 * KIB
    max_fields: int = 100  # header lines; each takes much more memory than its text
    max_body: int = 64 * KIB

    # Of all clients together
    max_connections: int = 8192
    max_remembered: int = 4 * MIB  # requests that are remembered, as estimated
    max_pending: int = 8 * MIB  # requests without an answer, complete or not
    max_unsent: int = 32 * MIB  # answers that clients haven't taken

    # Of one client in one turn of the event loop
    max_read: int = 16 * KIB
    max_requests: int = 32
    max_answers: int = 64 * KIB

    # A request is only remembered up to this size. Larger ones are unusual.
    max_remembered_head: int = 2 * KIB

    request_seconds: float = 10.0  # for a request to arrive, from its first byte
    # Without a request. Load balancers keep their connections for 600 s or less, and
    # must be the first to close them: otherwise they use some that are just closing.
    idle_seconds: float = 620.0
    stuck_seconds: float = 30.0  # without taking a byte of an answer
    linger_seconds: float = 2.0  # to close its side after the last answer
    tick_seconds: float = 1.0  # between two checks of all these
    # How long those that have more requests wait for newcomers.
    yield_seconds: float = 0.02
