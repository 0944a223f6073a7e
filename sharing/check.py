"""Tries Redis once, for `python main.py --check`."""

from typing import NamedTuple

from sharing.client import probe
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
        link.ask(probe)
    except Unavailable as error:
        return RedisReport(False, f"Redis at {link.address}: {error}")
    finally:
        link.close()
    rights = "all commands that c42c needs are permitted"
    return RedisReport(True, f"connected to Redis at {link.address}; {rights}")
