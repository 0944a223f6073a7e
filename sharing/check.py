"""Tries Redis once, for `python main.py --check`."""

from sharing.client import probe
from sharing.link import Link, Unavailable


def check(url: str) -> str:
    """Ask Redis as a load would; return a line that says that it can be used.

    Raises ValueError that says why it can't, without a password.
    """
    link = Link(url, quiet=True)
    try:
        link.ask(probe)
    except Unavailable as error:
        raise ValueError(f"Redis at {link.address}: {error}") from None
    finally:
        link.close()
    rights = "all commands that c42c needs are permitted"
    return f"connected to Redis at {link.address}; {rights}"
