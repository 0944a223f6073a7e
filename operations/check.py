"""`python main.py --check`: checks the settings, and asks Calendar42 a harmless
question, as the service would.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

from calendar42.calls import MAX_BODY, read_date
from calendar42.transport import Reply, Transport
from operations import settings
from operations.settings import SettingsError

QUESTION = "events/?limit=1"
# Seconds between this clock and the upstream's, whose Date header has whole seconds.
MAX_SKEW = 60.0
OK, WARN, FAIL = "ok", "warn", "FAIL"

Finding = tuple[str, str]  # one of these words, and the line


def run(environ: Mapping[str, str]) -> int:
    """Print a line for each thing checked, and return the exit status: 1 if anything
    failed.
    """
    status = 0
    for word, line in _findings(environ):
        print(f"{word:<4}  {line}", flush=True)
        status |= word == FAIL
    return status


def _findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        config = settings.read(environ)
    except SettingsError as error:
        yield from ((FAIL, f"settings: {line}") for line in str(error).splitlines())
        return
    yield OK, "settings: all are valid"
    yield from ((WARN, f"settings: {text}") for text in settings.warnings(environ))
    url = urlsplit(config.base_url)
    if url.scheme == "http" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
        yield (
            WARN,
            "encryption: none, so others on the network can read the token; see C42_BASE_URL",
        )
    began, asked = time.monotonic(), datetime.now(UTC)
    try:
        with closing(
            Transport(base_url=config.base_url, token=config.token)
        ) as transport:
            answer = transport.begin(
                transport.get(QUESTION, deadline=began + config.timeout, limit=MAX_BODY)
            ).result()
    except TimeoutError:
        yield (
            FAIL,
            f"answer: none within {config.timeout:g} s; see C42_BASE_URL, C42_TIMEOUT, proxies and firewalls",
        )
    except OSError as error:
        hint = (
            "REQUESTS_CA_BUNDLE and the clock"
            if "certificate" in str(error)
            else "DNS, proxies and firewalls"
        )
        hint = (
            "ulimit -n" if error.errno else f"C42_BASE_URL, {hint}"
        )  # an error of this machine has a number
        yield (
            FAIL,
            f"answer: none from {url.netloc} ({error.strerror or error}); see {hint}",
        )
    else:
        yield (
            OK,
            f"answer: came from {url.netloc} in {(time.monotonic() - began) * 1000:.0f} ms",
        )
        yield _token(answer)
        yield _clock(answer.headers.get("date", ""), asked, datetime.now(UTC))


def _token(answer: Reply) -> Finding:
    if answer.status in (401, 403):
        return FAIL, f"token: Calendar42 rejects it ({answer.status}); see C42_TOKEN"
    why = f"this is not Calendar42's API ({answer.status}); see C42_BASE_URL"
    if answer.status == 429:
        why = "Calendar42 gets too many calls (429); try again later"
    elif answer.status >= 500:
        why = f"Calendar42 has a fault ({answer.status}); try again later"
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        if answer.status == 200 and isinstance(json.loads(answer.body)["data"], list):
            return OK, "token: Calendar42 accepts it"
    return FAIL, f"token: not checked, because {why}"


def _clock(date: str, asked: datetime, answered: datetime) -> Finding:
    if not (told := read_date(date)):
        return WARN, "clock: not compared, because the answer has no date"
    skew = (
        told - min(max(told, asked), answered)
    ).total_seconds()  # it was told sometime between the two
    if abs(skew) > MAX_SKEW:
        way = "behind" if skew > 0 else "ahead of"
        return (
            FAIL,
            f"clock: this machine is {abs(skew):.0f} s {way} Calendar42; see its time service",
        )
    return OK, f"clock: within {max(1, round(abs(skew)))} s of Calendar42's"
