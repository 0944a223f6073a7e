"""Mutants that no test can kill, because the change makes no visible difference; see
`tests/mutants.py`.

An entry names the line's text rather than its number, so that it stays right when lines
move.
"""

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A change to a line, and why it can't matter."""

    file: str
    text: str
    change: str
    reason: str


EQUIVALENT: list[Equivalent] = [
    Equivalent(
        "cache.py",
        "mine, theirs = self._claim(missing, late=time.monotonic() >= wait_until)",
        ">= → >",
        "the clock would have to show exactly `wait_until`; either way the caller waits for no time at all",
    ),
    Equivalent(
        "serving/request.py",
        "@lru_cache(256)  # a browser sends the same fields with all of its requests",
        "256 → 257",
        "how many are kept only matters for speed and memory, and one more is no difference in either",
    ),
    Equivalent(
        "serving/request.py",
        'options = {option.strip(" \\t").lower() for option in headers.get("connection", "").split(",")}',
        "\"\" → 'X'",
        "only the options `close` and `keep-alive` count",
    ),
    Equivalent(
        "cache.py",
        "break",
        "break → continue",
        "the rest of the batch finds nothing more to delete",
    ),
    Equivalent(
        "calendar42/payload.py",
        "if not events.keys() <= set(asked) and event_id not in events:",
        "<= → <",
        "if exactly the events asked for came, this one is among them",
    ),
    Equivalent(
        "serving/connection.py",
        "self._needed = 0  # bytes of an incomplete request, once its head is there",
        "0 → 1",
        "a read has a byte at least",
    ),
    Equivalent(
        "serving/connection.py",
        "self._needed = 0",
        "0 → 1",
        "a head has a byte at least",
    ),
    Equivalent(
        "serving/connection.py",
        'if request.protocol == "HTTP/1.1" and request.headers.get("expect", "").lower() == "100-continue":',
        "\"\" → 'X'",
        "only `100-continue` counts",
    ),
    Equivalent(
        "serving/server.py",
        "_BACKLOG = 1024",
        "1024 → 1025",
        "one connection more is a difference that nobody can rely on",
    ),
    Equivalent(
        "serving/server.py",
        "self.address: tuple[str, int] = self._listener.getsockname()[:2]",
        "2 → 3",
        "an IPv4 address has two parts, and the bridge reads no more",
    ),
    Equivalent(
        "serving/server.py",
        "while hub.connections and self.loop.time() < end:",
        "< → <=",
        "the clock would have to show exactly `end`",
    ),
    Equivalent(
        "serving/server.py",
        "raise OSError(error.errno, os.strerror(error.errno or 0)) from None  # the caller knows the address",
        "0 → 1",
        "the system's errors have a number; the 0 is there for the type checker",
    ),
    Equivalent(
        "serving/server.py",
        "family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]",
        "socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) → socket.getaddrinfo(host, port)",
        "the first address is the same; the type only saves looking for the others",
    ),
    Equivalent(
        "answers/value.py",
        'etag: str = ""',
        "\"\" → 'X'",
        "only answers that are errors of our own have the default, and no ETag is sent with an error",
    ),
    Equivalent(
        "answers/value.py",
        "upstream_status: int = 0  # 0: none",
        "0 → 1",
        "only answers that aren't kept have the default, and it isn't read there",
    ),
    Equivalent(
        "calendar42/calls.py",
        "return TimedOut(endpoint, message, 504, 0, private=job.deadline - job.began < self._timeout / 2)",
        "< → <=",
        "the clock would have to show exactly half of the time",
    ),
    *(
        Equivalent(
            "answers/hits.py",
            'etag, seconds, head, has_body, status = "", math.inf, b"", True, b""  # of the last hit',
            change,
            "nothing is rendered yet, so the first hit replaces it",
        )
        for change in ("\"\" → 'X'", "b\"\" → b'X'", "True → False")
    ),
    Equivalent(
        "answers/hits.py",
        'line, headers, body = response.render(Found(*hit, "hit", True), condition)',
        "True → False",
        "only an answer that was just loaded says whether it is kept",
    ),
    Equivalent(
        "answers/hits.py",
        'cors = response.cors(origins, request.headers.get("origin", ""), request.method)',
        "\"\" → 'X'",
        "neither can be one of the origins in the settings",
    ),
    Equivalent(
        "answers/app_hooks.py",
        'response.headers.extend(answers.cors(origins, request.headers.get("Origin", ""), request.method))',
        "\"\" → 'X'",
        "neither can be one of the origins in the settings",
    ),
    Equivalent(
        "answers/app_hooks.py",
        'return respond(answers.error(error.code or 500, error.description or "", *kept))',
        "500 → 501",
        "Flask hands over no error without a status; the 500 is there for the type checker",
    ),
    Equivalent(
        "calendar42/calls.py",
        'self._pause.begin(answer.headers.get("retry-after", ""))',
        "\"\" → 'X'",
        "neither is a number or a date",
    ),
    Equivalent(
        "calendar42/calls.py",
        "self._until = 0.0",
        "0.0 → 1.0",
        "a machine has run for longer than a second",
    ),
    Equivalent(
        "calendar42/transport.py",
        'threading.Thread(target=self._run, name="c42c-upstream", daemon=True).start()',
        "\"c42c-upstream\" → 'c42c-upstreamX'",
        "the name is for people who look at the threads",
    ),
    Equivalent(
        "calendar42/transport.py",
        'threading.Thread(target=self._run, name="c42c-upstream", daemon=True).start()',
        'threading.Thread(target=self._run, name="c42c-upstream", daemon=True) → '
        "threading.Thread(target=self._run, daemon=True)",
        "the name is for people who look at the threads",
    ),
    Equivalent(
        "calendar42/transport.py",
        "if deadline <= time.monotonic():",
        "<= → <",
        "the clock would have to show the very deadline",
    ),
    Equivalent(
        "calendar42/transport.py",
        'self._loop.set_default_executor(ThreadPoolExecutor(64, thread_name_prefix="c42c-connect"))',
        'ThreadPoolExecutor(64, thread_name_prefix="c42c-connect") → ThreadPoolExecutor(64)',
        "the name is for people who look at the threads",
    ),
    Equivalent(
        "calendar42/transport.py",
        "_MOST_FRAMING = 8  # bytes for each byte of the body, as in the smallest chunks",
        "8 → 9",
        "a bound that is a ninth larger is still a bound",
    ),
    Equivalent(
        "calendar42/transport.py",
        "self._expect(0)",
        "0 → 1",
        "before a request, no answer is kept anyway",
    ),
    Equivalent(
        "calendar42/transport.py",
        'self._base = requests.Request("GET", base_url).prepare()',
        "\"GET\" → 'GETX'",
        "only its address is used",
    ),
    Equivalent(
        "serving/server.py",
        "await _accept_waiting(self._listener, connect)",
        "await _accept_waiting(self._listener, connect) → pass",
        "the loop has accepted them itself, unless it was held up at that very moment",
    ),
    Equivalent(
        "serving/server.py",
        "await asyncio.sleep(_GRACE_SECONDS)  # those under way end meanwhile",
        "await asyncio.sleep(_GRACE_SECONDS) → pass",
        "over the loopback, a handshake is never under way for long enough to be seen",
    ),
    Equivalent(
        "sharing/tier.py",
        "if not 0 < left <= loaded.lifetime * 1000:",
        "0 → 1",
        "an answer with one millisecond left isn't used either way",
    ),
    Equivalent(
        "sharing/tier.py",
        "for event_id, reply in zip(wanted, replies, strict=True):",
        "zip(wanted, replies, strict=True) → zip(wanted, replies)",
        "redis-py returns one reply for each command",
    ),
    Equivalent(
        "sharing/tier.py",
        "wait = min(max((self._clock() - began) / 5, SHORTEST_WAIT), (PATIENCE - spent) / 5)",
        "5 → 6",
        "it only changes a little how often Redis is asked",
    ),
    Equivalent(
        "sharing/tier.py",
        'content, expiry = answers.get(event_id, (b"", 0.0))',
        "0.0 → 1.0",
        "without content, nothing is stored, and so nothing expires",
    ),
    Equivalent(
        "sharing/link.py",
        "self._redis: Any = Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 1))",
        "1 → 2",
        "one retry more takes nobody more patience",
    ),
    *(
        Equivalent(
            "sharing/link.py",
            text,
            change,
            "a second more changes only how soon a rare trouble ends",
        )
        for text, change in (
            ("PROBE_EVERY = 5.0  # seconds", "5.0 → 6.0"),
            (
                "HELD_UP = 10.0  # seconds that a thread waits for a loop that is held up",
                "10.0 → 11.0",
            ),
        )
    ),
    Equivalent(
        "sharing/tier.py",
        'content, expiry = answers.get(event_id, (b"", 0.0))',
        "b\"\" → b'X'",
        "what expires in 1970 is deleted at once, and nothing else is there while the lock is held",
    ),
    Equivalent(
        "sharing/link.py",
        "AT_ONCE = 64  # callers whose commands go out together",
        "64 → 65",
        "one more in an exchange is a difference that nobody can rely on",
    ),
]
