"""Tries Redis once, for `python main.py --check`."""

from concurrent.futures import ThreadPoolExecutor

import redis

from sharing.client import address, make_client, patience, probe, reason_for


def check(url: str) -> str:
    """Ask Redis as a load would; return a line that says that it can be used.

    Raises ValueError that says why it can't, without a password.
    """
    client = make_client(url)
    where = address(client)
    threads = ThreadPoolExecutor(1)
    try:
        exchange = threads.submit(_try_out, client)
        version = exchange.result(patience(client))
    except Exception as error:
        raise ValueError(f"Redis at {where}: {reason_for(error)}") from None
    finally:
        threads.shutdown(wait=False)
        client.connection_pool.disconnect()
    rights = "all commands that c42c needs are permitted"
    return f"connected to Redis {version} at {where}; {rights}"


def _try_out(client: redis.Redis) -> str:
    """Return the version of Redis; raise if anything is wrong."""
    probe(client)
    try:
        # No right is needed for it.
        hello = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except redis.ResponseError:
        return "5"  # which doesn't know it
    version: bytes = hello[hello.index(b"version") + 1]
    return version.decode()
