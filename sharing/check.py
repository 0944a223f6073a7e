"""Tries Redis once, for `python main.py --check`."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import redis

from sharing.client import PATIENCE, address, explain, make_client, probe

# A prefix of keys that no instance uses.
_PREFIX = "c42c:check:"


class RedisReport(NamedTuple):
    """Whether Redis can be used, and a line that says so or why not."""

    usable: bool
    line: str


def check(url: str) -> RedisReport:
    """Connect to Redis and use each command that c42c needs, in the time that a request
    has for it.

    The line never shows a password.
    """
    try:
        client = make_client(url)
    except ValueError as error:
        return RedisReport(False, str(error))
    thread = ThreadPoolExecutor(1)
    try:
        version = thread.submit(_try, client).result(PATIENCE)
    except Exception as error:
        return RedisReport(False, f"Redis at {address(client)}: {explain(error)}")
    finally:
        thread.shutdown(wait=False)
        client.connection_pool.disconnect()
    rights = "all commands that c42c needs are permitted"
    return RedisReport(True, f"connected to {version} at {address(client)}; {rights}")


def _try(client: redis.Redis) -> str:
    """Return the version, after a successful probe."""
    probe(client, _PREFIX)
    try:
        # No right is needed for it.
        hello = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "Redis 5"  # which doesn't know it
    fields = dict(zip(hello[::2], hello[1::2], strict=True))
    return f"Redis {fields[b'version'].decode()}"
