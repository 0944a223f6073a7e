"""Every `C42_…` variable, read and checked once, into one frozen object. Nothing else reads the environment."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import requests

# What may stand behind the question mark of C42_CACHE_URL; redis-py knows more, which would get in the way.
_CACHE_OPTIONS = {"db", "username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
RESERVED_THREADS = 16  # worker threads that never wait for the upstream, so that hits are always served


class SettingsError(Exception):
    """A variable is missing or senseless; the text is one line that names it and says what would be right."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one service. All times are in seconds."""

    token: str = field(repr=False)
    expiry: float
    loglevel: str
    logformat: str
    base_url: str
    host: str
    port: int
    timeout: float
    fault_expiry: float
    max_entries: int
    threads: int
    cors_origins: frozenset[str]
    cache_url: str = field(repr=False)
    workers: int

    @property
    def max_waiting(self) -> int:
        """How many requests may wait for the upstream at once."""
        return self.threads - RESERVED_THREADS


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("printable ASCII without spaces")
    return text


def _number(low: float, high: float, unit: str, factor: float = 1) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value <= high:
            raise ValueError(f"a number of {unit} above {low:g}, and {high:g} at most")
        return value * factor

    return parse


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _loglevel(text: str) -> str:
    names = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if text.upper() not in names:
        raise ValueError("one of " + ", ".join(names))
    return text.upper()


def _logformat(text: str) -> str:
    if text not in ("text", "json"):
        raise ValueError("text or json")
    return text


def _base_url(text: str) -> str:
    right = "an http:// or https:// address without user, query and fragment"
    try:
        url = urlsplit(text)
        requests.Request("GET", text).prepare()  # it has its own rules for hosts, and a ValueError for each
    except ValueError:
        raise ValueError(right) from None
    odd = not text.isprintable() or re.search("[?# ]", text)  # not every urllib3 minds control characters
    if odd or url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise ValueError(right)
    return text.rstrip("/") + "/"


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", text):
        raise ValueError("an address or a name of this machine")
    return text


def _origins(text: str) -> frozenset[str]:
    origins = frozenset(origin.strip(" ") for origin in text.split(",")) if text else frozenset()
    for origin in origins - {"*"}:
        # As browsers write it: without a port that the scheme implies, and nothing after it.
        written = re.fullmatch(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[1-9][0-9]{0,4})?", origin)
        port = int((written[3] or ":0")[1:]) if written else 0
        if not written or port == {"http": 80, "https": 443}[written[1]] or port > 65535:
            raise ValueError("* or origins such as https://app.example.com, in lower case, separated by commas")
    if "*" in origins and len(origins) > 1:
        raise ValueError("either * or a list of origins")
    return origins


def _cache_url(text: str) -> str:
    right = "redis://, rediss:// or unix:// with an address, and a password and a database where it needs them"
    if not text:
        return text
    try:
        url = urlsplit(text)
        options = parse_qs(url.query, strict_parsing=True) if url.query else {}
        database = options.get("db", [""])[0] or (url.path.strip("/") if url.scheme != "unix" else "")
        senseless = (
            url.scheme not in ("redis", "rediss", "unix")
            or not (url.path if url.scheme == "unix" else url.hostname)
            or url.port == 0
            or not re.fullmatch(r"[0-9]{0,9}", database)
            or not options.keys() <= _CACHE_OPTIONS
            or re.search(r"[#\s]", text)
        )
    except ValueError:
        senseless = True
    if senseless:
        raise ValueError(right)
    return text


class _Variable(NamedTuple):
    default: str | None  # None: mandatory
    meaning: str
    parse: Callable[[str], Any]  # raises ValueError, saying what would be right
    secret: bool = False


_YEAR = 525600  # minutes
VARIABLES: Mapping[str, _Variable] = {
    "C42_TOKEN": _Variable(None, "token for Calendar42", _token, secret=True),
    "C42_EXPIRY": _Variable("4.2", "minutes an answer is kept", _number(0, _YEAR, "minutes", 60)),
    "C42_LOGLEVEL": _Variable("INFO", "a level name of Python's logging", _loglevel),
    "C42_LOGFORMAT": _Variable("text", "how a log line looks: text or json", _logformat),
    "C42_BASE_URL": _Variable("https://demo.calendar42.com/api/v2/", "the upstream", _base_url),
    "C42_HOST": _Variable("127.0.0.1", "address where the service listens", _host),
    "C42_PORT": _Variable("5000", "port where the service listens", _integer(1, 65535)),
    "C42_TIMEOUT": _Variable("10", "seconds for all upstream work of one answer", _number(0, 3600, "seconds")),
    "C42_FAULT_EXPIRY": _Variable(
        "0.1", "minutes a fault is kept, at most C42_EXPIRY", _number(0, _YEAR, "minutes", 60)
    ),
    "C42_MAX_ENTRIES": _Variable("100000", "bound of the cache", _integer(1, 100_000_000)),
    "C42_THREADS": _Variable(
        "256",
        f"worker threads; all but {RESERVED_THREADS} of them may wait for the upstream",
        _integer(RESERVED_THREADS + 1, 10_000),
    ),
    "C42_CORS_ORIGINS": _Variable("", "origins whose pages may read answers, separated by commas; or *", _origins),
    "C42_CACHE_URL": _Variable("", "redis://...: share answers with other processes", _cache_url, secret=True),
    "C42_WORKERS": _Variable("1", "processes; more than one needs C42_CACHE_URL", _integer(1, 256)),
}


def read(environ: Mapping[str, str]) -> Settings:
    """Read all settings out of `environ`; raise `SettingsError` at the first that is missing or senseless."""
    values: dict[str, Any] = {}
    for name, variable in VARIABLES.items():
        text = environ.get(name, variable.default)
        if not text and variable.default is None:
            raise SettingsError(f"{name} is missing: {variable.meaning}")
        assert text is not None
        try:
            values[name.removeprefix("C42_").lower()] = variable.parse(text)
        except ValueError as error:
            shown = "" if variable.secret or "@" in text else f"={_one_line(text)}"
            raise SettingsError(f"{name}{shown} makes no sense: it takes {error}") from None
    if values["fault_expiry"] > values["expiry"]:
        if "C42_FAULT_EXPIRY" in environ:
            raise SettingsError(
                f"C42_FAULT_EXPIRY={_one_line(environ['C42_FAULT_EXPIRY'])} makes no sense: it takes C42_EXPIRY at most"
            )
        values["fault_expiry"] = values["expiry"]
    if values["workers"] > 1 and not values["cache_url"]:
        raise SettingsError(
            f"C42_WORKERS={values['workers']} needs C42_CACHE_URL: else each process would ask Calendar42 by itself"
        )
    return Settings(**values)


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each `C42_…` variable that is no setting: it is usually a typing error."""
    lines = []
    for name in sorted(environ):
        if name.startswith("C42_") and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"{_one_line(name)} is not a setting{hint}")
    return lines


def _one_line(text: str) -> str:
    """Make `text` safe to print: no control characters, at most 80 characters."""
    shown = text.encode("unicode_escape").decode()
    return shown if len(shown) <= 80 else shown[:80] + "…"
