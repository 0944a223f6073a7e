"""`python main.py --check`: what is well and what is not, line by line, before anybody else finds out.

Each step has the service's time-out, and what builds on a step that failed is not tried. The one question that is
asked needs the token and changes nothing.
"""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy

from calendar42.calls import MAX_BODY, headers
from calendar42.transport import Answer, Transport, reason
from operations import settings
from operations.settings import Settings, SettingsError

QUESTION = "events/?limit=1"
MAX_SKEW = 60.0  # seconds between this clock and the upstream's, whose header tells whole seconds

T = TypeVar("T")
Finding = tuple[str, str]  # one of the words below, and the line
OK, WARN, FAIL = "ok", "warn", "FAIL"


class _Failed(Exception):
    """A step failed, and what comes after it makes no sense; says what is wrong and where to look."""


def run(environ: Mapping[str, str]) -> int:
    """Print what is found of each step, and return the exit status: 1 where anything failed."""
    status = 0
    for word, line in _findings(environ):
        print(f"{word:<4}  {line}", flush=True)
        status |= word == FAIL
    return status


def _findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        config = settings.read(environ)
    except SettingsError as error:
        yield from ((FAIL, f"settings: {line}") for line in error.lines)
        return
    yield OK, "settings: none is missing, and all make sense"
    for text in settings.warnings(environ):
        yield WARN, f"settings: {text}"
    try:
        yield from _way(config)
        yield from _question(config)
    except _Failed as failure:
        yield FAIL, str(failure)


def _way(config: Settings) -> Iterator[Finding]:
    """Resolve, connect and shake hands, as the question will: with what the environment says of proxies and CAs."""
    environment = requests.Session().merge_environment_settings(config.base_url, {}, True, None, None)
    proxy = select_proxy(config.base_url, dict(environment["proxies"]))
    url = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}" if proxy else config.base_url)
    host, port = url.hostname or "", url.port or {"https": 443}.get(url.scheme, 80)
    if proxy:
        yield OK, f"proxy: calls go through {host} port {port}, as the environment says"
    try:
        found = _within(config.timeout, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        raise _Failed(f"host: {host} is unknown ({reason(error)}); see C42_BASE_URL, and DNS on this machine") from None
    address = found[0][4][0]
    yield OK, f"host: {host} is {address}"
    began = time.monotonic()
    try:
        connection = socket.create_connection((host, port), config.timeout)
    except OSError as error:
        raise _Failed(f"connection: {host} port {port}: {reason(error)}; see C42_BASE_URL and firewalls") from None
    with connection:
        yield OK, f"connection: port {port} answers in {(time.monotonic() - began) * 1000:.0f} ms"
        if not proxy and url.scheme == "https":
            yield OK, _handshake(connection, host, environment["verify"])
        elif not proxy and host not in ("localhost", "127.0.0.1", "::1"):
            yield WARN, "TLS: none, so that anybody on the way can read the token; see C42_BASE_URL"


def _handshake(connection: socket.socket, host: str, verify: Any) -> str:
    bundle = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
    is_dir = Path(bundle).is_dir()
    context = ssl.create_default_context(cafile=None if is_dir else bundle, capath=bundle if is_dir else None)
    try:
        with context.wrap_socket(connection, server_hostname=host) as secure:
            certificate: Any = secure.getpeercert()
            version = secure.version()
    except OSError as error:
        raise _Failed(f"TLS: {reason(error)}; see C42_BASE_URL, the clock, and REQUESTS_CA_BUNDLE") from None
    left = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
    return f"TLS: {version}, and the certificate holds for {left / 86400:.0f} days"


def _question(config: Settings) -> Iterator[Finding]:
    transport = Transport(base_url=config.base_url, headers=headers(config.token), connections=1)
    began, asked = time.monotonic(), datetime.now(UTC)
    try:
        answer = transport.get(QUESTION, deadline=began + config.timeout, limit=MAX_BODY)
    except TimeoutError:
        raise _Failed(f"answer: none within {config.timeout:g} s; see C42_TIMEOUT, and ask Calendar42") from None
    except ConnectionError as error:
        raise _Failed(f"answer: none, {error}; see C42_BASE_URL, and ask Calendar42") from None
    finally:
        transport.close()
    yield OK, f"answer: came in {(time.monotonic() - began) * 1000:.0f} ms"
    yield _token(answer)
    yield _clock(answer.headers.get("Date", ""), asked)


def _token(answer: Answer) -> Finding:
    if answer.status in (401, 403):
        return FAIL, f"token: Calendar42 refuses it ({answer.status}); see C42_TOKEN"
    if answer.status == 429:
        return FAIL, "token: Calendar42 takes no calls now (429), as too many were made; try again later"
    if answer.status >= 500:
        return FAIL, f"token: not known, as Calendar42 is in trouble ({answer.status}); try again later"
    try:
        is_list = isinstance(json.loads(answer.body)["data"], list)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_list = False
    if answer.status != 200 or not is_list:
        return FAIL, f"token: not known, as what answers ({answer.status}) is not Calendar42's API; see C42_BASE_URL"
    return OK, "token: Calendar42 accepts it"


def _clock(date: str, asked: datetime) -> Finding:
    try:
        skew = (parsedate_to_datetime(date) - asked).total_seconds()
    except (TypeError, ValueError):  # none, no date, or one without a time zone
        return WARN, "clock: not compared, as the answer has no date"
    if abs(skew) > MAX_SKEW:
        way = "behind" if skew > 0 else "ahead of"
        return FAIL, f"clock: this machine is {abs(skew):.0f} s {way} Calendar42; see its time service"
    return OK, f"clock: within {max(1, round(abs(skew)))} s of Calendar42's"


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises, or TimeoutError: some calls take no time-out."""
    future = Future[T]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)
