"""Tries Redis once, for `python main.py --check`."""

from typing import NamedTuple

import redis

from sharing.link import Link, Unavailable


class RedisReport(NamedTuple):
    """Whether Redis can be used, and a line that says so or why not."""

    usable: bool
    line: str


def check(url: str) -> RedisReport:
    """Ask Redis as a load would, which uses each command that c42c needs.

    The line never shows a password.
    """
    try:
        link = Link(url, quiet=True)
    except ValueError as error:
        return RedisReport(False, str(error))
    try:
        version = link.ask(_read_version)
    except Unavailable as error:
        return RedisReport(False, f"Redis at {link.address}: {error}")
    finally:
        link.close()
    rights = "all commands that c42c needs are permitted"
    return RedisReport(True, f"connected to {version} at {link.address}; {rights}")


def _read_version(client: redis.Redis) -> str:
    try:
        # No right is needed for it.
        hello = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "Redis 5"  # which doesn't know it
    version = hello[hello.index(b"version") + 1]
    return f"Redis {version.decode()}"
