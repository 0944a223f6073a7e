"""Every `C42_…` variable, read and checked once, into one frozen object. Nothing else reads the environment."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

# What may follow the question mark of C42_CACHE_URL; redis-py has more options, which would get in the way.
_CACHE_OPTIONS = {"db", "username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}
_YEAR = 525600  # minutes
# Logs show *** instead of the token: a short one would make them unreadable.
_PRINTABLE = re.compile(r"[!-~]{8,}")
_EXPECTED = "at least 8 printable ASCII characters without spaces"
RESERVED_THREADS = 16  # worker threads that never wait for the upstream
_GONE = {"C42_WORKERS": "run several instances instead, which share answers through C42_CACHE_URL: see docs/scaling.md"}


class SettingsError(Exception):
    """Settings are missing or invalid; `lines` has one sentence for each, which names it and what is expected."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


# The parsers raise ValueError, whose text completes "expected …".


def _token(text: str) -> str:
    if text and not _PRINTABLE.fullmatch(text):
        raise ValueError(_EXPECTED)
    return text


def _number(high: float, unit: str, factor: float = 1, *, zero: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 < value <= high or (zero and value == 0)):
            bounds = f"from 0 to {high:g}" if zero else f"greater than 0, at most {high:g}"
            raise ValueError(f"a number of {unit} {bounds}")
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
    expected = "an http:// or https:// address without user, query and fragment"
    try:
        url = urlsplit(text)
        requests.Request("GET", text).prepare()  # it has its own rules for hosts, and a ValueError for each
    except ValueError:
        raise ValueError(expected) from None
    odd = not text.isprintable() or re.search("[?# ]", text)  # not every urllib3 minds control characters
    if odd or url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
        raise ValueError(expected)
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
    expected = "redis://, rediss:// or unix:// with an address, and a password and a database where it needs them"
    if not text:
        return text
    try:
        url = urlsplit(text)
        options = parse_qs(url.query, strict_parsing=True) if url.query else {}
        database = options.get("db", [""])[0] or (url.path.strip("/") if url.scheme != "unix" else "")
        wrong = (
            url.scheme not in ("redis", "rediss", "unix")
            or not (url.path if url.scheme == "unix" else url.hostname)
            or url.port == 0
            or not re.fullmatch(r"[0-9]{0,9}", database)
            or not options.keys() <= _CACHE_OPTIONS
            or re.search(r"[#\s]", text)
        )
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError(expected)
    return text


def _setting(parse: Callable[[str], Any], meaning: str, default: str = "", *, secret: bool = False) -> Any:
    """Declare a setting; `default` is written as in the environment, and empty if there is none."""
    return field(repr=not secret, metadata={"parse": parse, "meaning": meaning, "default": default, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one service: `C42_TOKEN` is `token` here. All times are in seconds."""

    token: str = _setting(_token, "token for Calendar42: mandatory, unless C42_TOKEN_FILE is set", secret=True)
    token_file: str = _setting(str, "file that holds the token")
    expiry: float = _setting(_number(_YEAR, "minutes", 60), "minutes an answer is kept", "4.2")
    loglevel: str = _setting(_loglevel, "a level name of Python's logging", "INFO")
    logformat: str = _setting(_logformat, "format of log lines: text or json", "text")
    base_url: str = _setting(_base_url, "the upstream", "https://demo.calendar42.com/api/v2/")
    host: str = _setting(_host, "address where the service listens", "127.0.0.1")
    port: int = _setting(_integer(1, 65535), "port where the service listens", "5000")
    timeout: float = _setting(_number(3600, "seconds"), "seconds for all upstream work of one answer", "10")
    fault_expiry: float = _setting(_number(_YEAR, "minutes", 60), "minutes a fault is kept, at most C42_EXPIRY", "0.1")
    max_entries: int = _setting(_integer(1, 100_000_000), "how many answers are kept at most", "100000")
    threads: int = _setting(
        _integer(RESERVED_THREADS + 1, 10_000),
        f"worker threads; all but {RESERVED_THREADS} of them may wait for the upstream",
        "256",
    )
    drain: float = _setting(
        _number(3600, "seconds", zero=True), "seconds for which requests are still taken after SIGTERM", "0"
    )
    cors_origins: frozenset[str] = _setting(_origins, "origins whose pages may read answers, separated by commas; or *")
    cache_url: str = _setting(_cache_url, "redis://...: share answers with other instances", secret=True)

    @property
    def max_waiting(self) -> int:
        """How many requests may wait for the upstream at once."""
        return self.threads - RESERVED_THREADS


_VARIABLES = {f"C42_{one.name.upper()}": one for one in fields(Settings)}


def usage() -> str:
    """Return a line about each variable, for `--help`."""
    lines = []
    for name, one in _VARIABLES.items():
        default = f" ({one.metadata['default']})" if one.metadata["default"] else ""
        lines.append(f"  {name:<17} {one.metadata['meaning']}{default}")
    return "\n".join(lines)


def read(environ: Mapping[str, str]) -> Settings:
    """Read all settings out of `environ`; raise `SettingsError` if any is missing or invalid."""
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, one in _VARIABLES.items():
        text = environ.get(name, one.metadata["default"])
        try:
            values[one.name] = one.metadata["parse"](text)
        except ValueError as error:
            shown = "" if one.metadata["secret"] or "@" in text else f"={_one_line(text)}"
            mistakes.append(f"{name}{shown} is invalid: expected {error}")
    if "token" in values:
        try:
            values["token"] = _find_token(values["token"], values["token_file"])
        except ValueError as error:
            mistakes.append(str(error))
    if values.get("fault_expiry", 0) > values.get("expiry", math.inf):
        if text := environ.get("C42_FAULT_EXPIRY"):
            mistakes.append(f"C42_FAULT_EXPIRY={_one_line(text)} is invalid: expected at most C42_EXPIRY")
        else:
            values["fault_expiry"] = values["expiry"]
    if values.get("cache_url") and not find_spec("redis"):
        mistakes.append("C42_CACHE_URL needs the redis package: pip install -r requirements-redis.txt")
    if mistakes:
        raise SettingsError(mistakes)
    return Settings(**values)


def _find_token(token: str, path: str) -> str:
    """Return the token, out of the file at `path` if there is one; raise ValueError with a whole sentence."""
    if token and path:
        raise ValueError("C42_TOKEN and C42_TOKEN_FILE are both set: expected only one of them")
    if token:
        return token
    if not path:
        raise ValueError("C42_TOKEN is missing: the token for Calendar42, or C42_TOKEN_FILE, a file that holds it")
    shown = f"C42_TOKEN_FILE={_one_line(path)}"
    try:
        token = Path(path).read_bytes().decode("ascii", "replace").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{shown} can't be read: {error.strerror}") from None
    if not _PRINTABLE.fullmatch(token):
        raise ValueError(f"{shown} is invalid: expected a file that holds {_EXPECTED}")
    return token


def warnings(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each `C42_…` variable that is no setting: usually a typing error."""
    lines = []
    for name in sorted(environ):
        if name in _GONE:
            lines.append(f"{name} is gone: {_GONE[name]}")
        elif name.startswith("C42_") and name not in _VARIABLES:
            close = difflib.get_close_matches(name, _VARIABLES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"{_one_line(name)} is not a setting{hint}")
    return lines


def _one_line(text: str) -> str:
    """Make `text` safe to print: no control characters, at most 80 characters."""
    shown = text.encode("unicode_escape").decode()
    return shown if len(shown) <= 80 else shown[:80] + "…"
