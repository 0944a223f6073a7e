"""`python main.py --check` tells whether the service could work as it is set up.

It checks the settings, asks Calendar42 a harmless question as the service would, and
tries Redis. `main.py` hands in how to ask.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import urlsplit

from calendar42.calls import read_date
from calendar42.errors import C42Error, Exhausted, TimedOut
from calendar42.replies import Reply
from operations import logs, settings
from operations.settings import Settings, SettingsError

QUESTION = "events/?limit=1"
# Seconds between this clock and Calendar42's, whose Date header has whole seconds.
MAX_SKEW = 60.0
PASSED = "ok"
WARNED = "warn"
FAILED = "FAIL"


class Finding(NamedTuple):
    """What is to be said about one thing that was checked."""

    verdict: str  # one of the three above
    line: str


class Means(NamedTuple):
    """How to read the settings and to ask others."""

    # Raises SettingsError.
    read: Callable[[Mapping[str, str]], Settings]
    # Gets a path from Calendar42. Raises C42Error.
    ask_calendar42: Callable[[Settings, str], Reply]
    # Tries the Redis at a URL, and returns a line about it. Raises ValueError.
    ask_redis: Callable[[str], str]


def run(environ: Mapping[str, str], means: Means) -> int:
    """Print a line for each thing checked, and return the exit status.

    It is 1 if anything failed, or can't be printed.
    """
    status = 0
    for finding in _findings(environ, means):
        try:
            print(f"{finding.verdict:<4}  {finding.line}", flush=True)
        except OSError as error:
            logs.complain(f"cannot print: {error.strerror}", "text")
            return 1
        if finding.verdict == FAILED:
            status = 1
    return status


def _findings(environ: Mapping[str, str], means: Means) -> Iterator[Finding]:
    try:
        config = means.read(environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield Finding(FAILED, f"settings: {line}")
        return
    yield Finding(PASSED, "settings: all are valid")
    for line in settings.warnings(environ):
        yield Finding(WARNED, f"settings: {line}")
    yield from _check_calendar42(config, means.ask_calendar42)
    if config.cache_url:
        yield _check_redis(config, means.ask_redis)


def _check_calendar42(
    config: Settings, ask: Callable[[Settings, str], Reply]
) -> Iterator[Finding]:
    url = urlsplit(config.base_url)
    if url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        yield Finding(
            WARNED,
            "encryption: none, so others on the network can read the token; "
            "see C42_BASE_URL",
        )
    asked = datetime.now(UTC)
    began = time.monotonic()
    try:
        reply = ask(config, QUESTION)
    except C42Error as error:
        yield Finding(FAILED, f"answer: none {_hint(error, config)}")
        return
    milliseconds = (time.monotonic() - began) * 1000
    answered = datetime.now(UTC)
    yield Finding(PASSED, f"answer: came from {url.netloc} in {milliseconds:.0f} ms")
    yield _check_token(reply)
    yield _check_clock(reply.headers.get("date", ""), asked, answered)


def _hint(error: C42Error, config: Settings) -> str:
    """Say why no answer came, and what to look at."""
    if isinstance(error, TimedOut):
        see = "C42_BASE_URL, C42_TIMEOUT, proxies and firewalls"
        return f"within {config.timeout:g} s; see {see}"
    if isinstance(error, Exhausted):
        see = "ulimit -a"
    elif "certificate" in error.trouble:
        see = "C42_BASE_URL, REQUESTS_CA_BUNDLE and the clock"
    else:
        see = "C42_BASE_URL, DNS, proxies and firewalls"
    return f"from {urlsplit(config.base_url).netloc} ({error.trouble}); see {see}"


def _check_token(reply: Reply) -> Finding:
    if reply.status in (401, 403):
        line = f"token: Calendar42 rejects it ({reply.status}); see C42_TOKEN"
        return Finding(FAILED, line)
    if reply.status == 200 and _is_list(reply.body):
        return Finding(PASSED, "token: Calendar42 accepts it")
    if reply.status == 429:
        why = "Calendar42 gets too many calls (429); try again later"
    elif reply.status >= 500:
        why = f"Calendar42 has a fault ({reply.status}); try again later"
    else:
        why = f"this is not Calendar42's API ({reply.status}); see C42_BASE_URL"
    return Finding(FAILED, f"token: not checked, because {why}")


def _is_list(body: bytes | bytearray) -> bool:
    """Tell whether this is a list of Calendar42's."""
    try:
        return isinstance(json.loads(body)["data"], list)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _check_clock(date: str, asked: datetime, answered: datetime) -> Finding:
    """Compare Calendar42's clock with this machine's.

    Calendar42 wrote its `date` sometime between the two moments.
    """
    told = read_date(date)
    if told is None:
        return Finding(WARNED, "clock: not compared, because the answer has no date")
    ahead = (asked - told).total_seconds()
    behind = (told - answered).total_seconds()
    for skew, way in (ahead, "ahead of"), (behind, "behind"):
        if skew > MAX_SKEW:
            line = f"clock: this machine is {skew:.0f} s {way} Calendar42"
            return Finding(FAILED, f"{line}; see its time service")
    line = f"clock: within {max(1, round(ahead), round(behind))} s of Calendar42's"
    return Finding(PASSED, line)


def _check_redis(config: Settings, ask: Callable[[str], str]) -> Finding:
    try:
        line = ask(config.cache_url)
    except ValueError as error:
        return Finding(FAILED, f"redis: {error}; see C42_CACHE_URL")
    return Finding(PASSED, f"redis: {line}")
