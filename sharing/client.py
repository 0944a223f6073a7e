"""The client of Redis: made from a URL, tried out, and its errors in plain words."""

import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE = 0.25  # seconds that a caller waits for one exchange
# The commands that Redis's user needs, beside SELECT for another database than 0.
COMMANDS = ("EVAL", "GET", "SET", "DEL", "PTTL", "PEXPIREAT", "TIME")
_PROBE = Path(__file__).with_name("probe.lua").read_text()
# What an error's class or text contains, and what is said of it. The text itself is
# never shown: what answers may not be a Redis, and may send the password back.
_NO_RIGHT = r"NoPermission|NOPERM|can't (run|access)"
_REASONS = (
    ("TimeoutError", "no reply in time"),
    ("AuthenticationError|NOAUTH", "wrong or missing user or password"),
    ("OutOfMemory|OOM", "it is full"),
    ("ReadOnly|READONLY", "it is a read-only replica"),
    ("BusyLoading|LOADING", "it is loading its data"),
    ("MasterDown|MASTERDOWN", "it is a replica that has lost its master"),
    ("MISCONF", "it can't save its data to disk, and takes no more"),
    ("NOREPLICAS", "it has too few replicas"),
    ("MovedError|AskError|CLUSTER|Cluster|CROSSSLOT", "it is part of a cluster"),
    ("BUSY", "it is busy with a script"),
    ("unknown command.{0,2}EVAL", "it has no EVAL, which c42c needs"),
    ("DENIED", "it takes local clients only (protected mode)"),
    ("max number of clients", "it has too many clients"),
    ("ConnectionError", "it closed the connection"),
)


def make_client(url: str, patience: float = PATIENCE) -> redis.Redis:
    """Make a client for callers with that many seconds. It doesn't connect yet.

    Raises ValueError, without showing the URL, if redis-py doesn't understand it, or
    takes a part of the password for a path.
    """
    try:
        _check_password(url)
        client = redis.Redis.from_url(
            url,
            protocol=2,
            # Callers don't wait as long. This ends the thread if nobody disconnects it.
            socket_timeout=4 * patience,
            # So that there is time for a name's second address if the first is dead.
            socket_connect_timeout=patience / 2,
            retry=Retry(NoBackoff(), 0),
        )
        # Options are checked when they are used. This doesn't connect either.
        client.connection_pool.make_connection()
        address(client)
    except (ValueError, TypeError, KeyError, redis.RedisError):
        message = (
            "expected redis://, rediss:// or unix:// with an address, "
            "and / ? # @ of a password escaped"
        )
        raise ValueError(message) from None
    return client


def _check_password(url: str) -> None:
    """Raise ValueError if `/`, `?` or `#` of a password ends the address too early: the
    rest would be shown in the log.
    """
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("a password that isn't escaped")


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


def probe(client: redis.Redis, prefix: str) -> None:
    """Use each command on keys with this prefix; raise if anything is wrong."""
    token = secrets.token_hex(8)
    key = f"{prefix}{{:probe}}"  # no event has such an id
    keys = (key, f"{key}:lock", f"{prefix}pause")
    if client.eval(_PROBE, len(keys), *keys, token) != token.encode():
        raise ValueError("the probe's answer is wrong")


def explain(error: BaseException) -> str:
    """Say in a few words why Redis can't be used, without what it sent."""
    cause = error.__context__
    if isinstance(error, redis.ConnectionError) and isinstance(cause, OSError):
        return cause.strerror or type(cause).__name__
    said = f"{type(error).__name__}: {error}"
    if re.search(_NO_RIGHT, said):
        return _missing_right(said)
    for pattern, reason in _REASONS:
        if re.search(pattern, said):
            return reason
    return "invalid reply"


def _missing_right(said: str) -> str:
    """Name the command that a user may not run, if it's one of ours."""
    names = "|".join((*COMMANDS, "SELECT"))
    match = re.search(f"'({names})' command", said, re.IGNORECASE)
    if match is None:
        return "its user may not use the keys or commands that c42c needs"
    return f"its user may not run {match[1].upper()}"
