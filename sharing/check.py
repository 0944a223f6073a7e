"""Tries Redis once, for `python main.py --check`."""

import redis

from sharing.link import Link, Unavailable


def check(url: str) -> str:
    """Ask Redis as a load would; return a line that says that it can be used.

    Raises ValueError that says why it can't, without a password.
    """
    link = Link(url, quiet=True)
    try:
        version = link.ask(_read_version)
    except Unavailable as error:
        raise ValueError(f"Redis at {link.address}: {error}") from None
    finally:
        link.close()
    rights = "all commands that c42c needs are permitted"
    return f"connected to Redis {version} at {link.address}; {rights}"


def _read_version(client: redis.Redis) -> str:
    try:
        # No right is needed for it.
        hello = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "5"  # which doesn't know it
    version: bytes = hello[hello.index(b"version") + 1]
    return version.decode()
