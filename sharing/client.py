"""The client of Redis: made from a URL, tried out, and its errors in plain words."""

import re
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

PATIENCE = 0.25  # seconds for one exchange, unless the URL has a `socket_timeout`
_MAX_PATIENCE = 3600.0  # seconds, as those of C42_TIMEOUT
# A password ends too early at `/`, `?` or `#`, and the log would show the rest. For a
# database that is no number, redis-py would use 0.
_FORM = re.compile("(rediss?://[^/?#]*(/[0-9]*)?|unix://[^/?#]*/[^?#@]*)([?][^#@]*)?")
_PROBE = Path(__file__).with_name("probe.lua").read_text()
# Named like those that are used, of a scope that no instance has.
_PROBE_KEYS = ("c42c:probe:answer:", "c42c:probe:lock:", "c42c:probe:pause")
# The text of an error is never shown: what answers may not be a Redis, and may send the
# password back. So only a command that c42c uses is named.
_NO_COMMAND = (
    "(?:permissions to|can't) run .*"
    "'(EVAL|GET|SET|DEL|PTTL|PEXPIREAT|TIME|SELECT)' command"
)
# What an error's class or text contains, and what is said of it. The first that fits
# counts.
_REASONS = {
    "NoPermission|NOPERM|can't (run|access)": (
        "its user may not use the keys or commands that c42c needs"
    ),
    "TimeoutError": "no reply in time",
    "can't start new thread": "no thread can be started",
    "AuthenticationError|NOAUTH": "wrong or missing user or password",
    "OutOfMemory|OOM": "it is full",
    "ReadOnly|READONLY": "it is a read-only replica",
    "BusyLoading|LOADING": "it is loading its data",
    "MasterDown|MASTERDOWN": "it is a replica that has lost its master",
    "MISCONF": "it can't save its data to disk, and takes no more",
    "NOREPLICAS": "it has too few replicas",
    "MovedError|AskError|CLUSTER|Cluster|CROSSSLOT": "it is part of a cluster",
    "BUSY": "it is busy with a script",
    "unknown command.{0,2}EVAL": "it has no EVAL, which c42c needs",
    "DENIED": "it takes local clients only (protected mode)",
    "max number of clients": "it has too many clients",
    "DB index": "it has no such database",
    "ConnectionError": "it closed the connection",
}


def make_client(url: str) -> redis.Redis:
    """Make a client that doesn't connect yet.

    Raises ValueError, without showing the URL, if redis-py doesn't understand all of
    it, or takes a part of the password for a path.
    """
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        seconds = options.get("socket_timeout", PATIENCE)
        is_bounded = 0 < seconds <= _MAX_PATIENCE  # False for NaN
        if not is_bounded or not _FORM.fullmatch(url):
            raise ValueError("redis-py would misread it, or wait too long")
        client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=seconds,
            # So that there is time for a name's second address if the first is dead.
            socket_connect_timeout=seconds / 2,
            retry=Retry(NoBackoff(), 0),
        )
        # Options are checked when they are used. This doesn't connect either.
        client.connection_pool.make_connection()
        address(client)
    except Exception:  # redis-py raises several
        raise ValueError(
            "expected redis://, rediss:// or unix:// with an address, "
            "and / ? # @ of a password escaped"
        ) from None
    return client


def address(client: redis.Redis) -> str:
    """Return where Redis is: host and port, or the path of a socket.

    Raises KeyError if the URL doesn't say.
    """
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    host = options["host"]
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{options.get('port', 6379)}"


def patience(client: redis.Redis) -> float:
    """Return how many seconds an exchange may take in all."""
    seconds: float = client.connection_pool.connection_kwargs["socket_timeout"]
    return seconds


def probe(client: redis.Redis) -> None:
    """Use each command that c42c needs; raise if anything is wrong."""
    if client.eval(_PROBE, len(_PROBE_KEYS), *_PROBE_KEYS) != b"usable":
        raise ValueError("the probe's answer is wrong")


def reason_for(error: BaseException) -> str:
    """Return in a few words why Redis can't be used, without what it sent."""
    cause = error.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    said = f"{type(error).__name__}: {error}"
    command = re.search(_NO_COMMAND, said, re.IGNORECASE)
    if command:
        return f"its user may not run {command[1].upper()}"
    for pattern, reason in _REASONS.items():
        if re.search(pattern, said):
            return reason
    return "invalid reply"
