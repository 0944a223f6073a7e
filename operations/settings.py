"""Every `C42_…` variable, read and checked once, into one frozen object.

A setting is declared in one place: its field in `Settings`.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from click import ClickException

RESERVED_THREADS = 16  # worker threads that never wait for Calendar42
_YEAR = 525600  # minutes
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# The log redacts the token: it can't be a common word.
_SAFE = "[!-~]{8,}"
_EIGHT = "at least 8 printable ASCII characters without spaces"
_LABEL = "[A-Za-z0-9:_-]{1,63}"
_ORIGIN = r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[1-9][0-9]*)?"
_IMPLIED_PORTS = {"http": 80, "https": 443}

T = TypeVar("T")
# Parsers raise ValueError with what they expect, to follow "… is invalid: ".
Parse = Callable[[str], T]


class SettingsError(ClickException):
    """Settings are missing or invalid.

    The text has a line for each, which names it and says what is expected. `logformat`
    is the format to say it in. The `flask` command prints a `ClickException` as it is,
    without a traceback.
    """

    exit_code = 2

    def __init__(self, mistakes: list[str], logformat: str) -> None:
        super().__init__("\n".join(mistakes))
        self.logformat = logformat


def _matching(pattern: str, expected: str) -> Parse[str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return parse


def _number(unit: str, high: float, factor: float = 1) -> Parse[float]:
    """Parse a number of `unit`, and multiply it by `factor`."""

    def parse(text: str) -> float:
        if re.fullmatch(r"[0-9]*\.?[0-9]+", text):
            value = float(text)
            if 0 < value <= high:
                return value * factor
        raise ValueError(
            f"expected a number of {unit} greater than 0, at most {high:g}"
        )

    return parse


def _integer(low: int, high: int) -> Parse[int]:
    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text):
            value = int(text)
            if low <= value <= high:
                return value
        raise ValueError(f"expected a whole number from {low} to {high}")

    return parse


def _parse_level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise ValueError(f"expected one of {', '.join(_LEVELS)}")
    return text.upper()


def _parse_base_url(text: str) -> str:
    expected = "expected an http:// or https:// URL without user, query or fragment"
    if not re.fullmatch(r"(?i)https?://(?=[!-~]+\Z)[^/?#@]+(/[^?#]*)?", text):
        raise ValueError(expected)
    try:
        requests.Request("GET", text).prepare()  # has its own rules for hosts
    except ValueError:
        raise ValueError(expected) from None
    return text.rstrip("/") + "/"


def _percent(high: int) -> Parse[float]:
    """Parse a whole percentage up to `high`; return it as a share."""
    parse_integer = _integer(0, high)
    return lambda text: parse_integer(text) / 100


def _parse_origins(text: str) -> frozenset[str]:
    if not text or text == "*":
        return frozenset(text)
    return frozenset(_parse_origin(origin.strip(" ")) for origin in text.split(","))


def _parse_origin(origin: str) -> str:
    expected = (
        "expected * or origins such as https://app.example.com, in lower case, "
        "separated by commas"
    )
    if not re.fullmatch(_ORIGIN, origin):
        raise ValueError(expected)
    url = urlsplit(origin)
    try:
        port = url.port
    except ValueError:  # it's greater than 65535
        raise ValueError(expected) from None
    if port == _IMPLIED_PORTS[url.scheme]:
        shorter = origin.removesuffix(f":{port}")
        raise ValueError(f"expected {shorter}, because browsers leave out port {port}")
    return origin


def _setting(
    parse: Parse[T],
    meaning: str,
    default: str = "",
    *,
    secret: bool = False,
    may_differ: bool = False,
) -> T:
    """Declare a setting.

    `default` is written as in the environment, and empty if there is none. A setting
    that changes no answer `may_differ` between instances that share answers.
    """
    usage = meaning
    if default:
        usage = f"{meaning} ({default})"
    metadata = {
        "parse": parse,
        "usage": usage,
        "default": default,
        "may_differ": may_differ,
    }
    declared: T = field(repr=not secret, metadata=metadata)
    return declared


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one service: `C42_TOKEN` is `token` here.

    All times are in seconds.
    """

    token: str = _setting(
        _matching(f"({_SAFE})?", _EIGHT),
        "token for Calendar42; required unless C42_TOKEN_FILE is set",
        secret=True,
    )
    token_file: str = _setting(str, "file to read the token from", may_differ=True)
    expiry: float = _setting(
        _number("minutes", _YEAR, 60), "minutes an answer is cached", "4.2"
    )
    loglevel: str = _setting(
        _parse_level,
        "lowest level of log lines: DEBUG, INFO, WARNING...",
        "INFO",
        may_differ=True,
    )
    logformat: str = _setting(
        _matching("text|json", "text or json"),
        "format of log lines: text or json",
        "text",
        may_differ=True,
    )
    base_url: str = _setting(
        _parse_base_url,
        "address of Calendar42's API",
        "https://demo.calendar42.com/api/v2/",
    )
    host: str = _setting(
        _matching(rf"({_LABEL}\.)*{_LABEL}\.?", "an address or a name of this machine"),
        "address to listen on",
        "127.0.0.1",
        may_differ=True,
    )
    port: int = _setting(
        _integer(1, 65535), "port to listen on", "5000", may_differ=True
    )
    timeout: float = _setting(
        _number("seconds", 3600),
        "seconds within which Calendar42 must answer",
        "10",
        may_differ=True,
    )
    fault_expiry: float = _setting(
        _number("minutes", _YEAR, 60),
        "minutes a fault is cached; at most C42_EXPIRY",
        "0.1",
    )
    refresh_ahead: float = _setting(
        _percent(50),
        "last percent of a lifetime in which a hit refreshes the answer; 0: never",
        "10",
        may_differ=True,
    )
    max_entries: int = _setting(
        _integer(2, 100_000_000),
        "maximum number of cached answers",
        "100000",
        may_differ=True,
    )
    max_mib: int = _setting(
        _integer(1, 1_000_000),
        "maximum MiB that cached answers take",
        "128",
        may_differ=True,
    )
    threads: int = _setting(
        _integer(RESERVED_THREADS + 1, 10_000),
        "maximum number of worker threads",
        "256",
        may_differ=True,
    )
    drain: float = _setting(
        _integer(0, 3600),
        "seconds to keep taking requests after SIGTERM",
        "0",
        may_differ=True,
    )
    cors_origins: frozenset[str] = _setting(
        _parse_origins,
        "origins whose pages may read answers, separated by commas; or *",
        may_differ=True,
    )
    cache_url: str = _setting(
        str,
        "redis://... to share answers with other instances",
        secret=True,
        may_differ=True,
    )


_VARIABLES = {f"C42_{one.name.upper()}": one for one in fields(Settings)}


def usage() -> str:
    """Return a line about each variable, for `--help`."""
    lines = []
    for name, one in _VARIABLES.items():
        lines.append(f"  {name:<17} {one.metadata['usage']}")
    return "\n".join(lines)


def read(
    environ: Mapping[str, str],
    check_cache_url: Callable[[str], object] = lambda url: None,
) -> Settings:
    """Read all settings from `environ`.

    `check_cache_url` raises ValueError, saying what it expects, for a URL that the
    client of Redis can't use. Raises `SettingsError` if any setting is missing or
    invalid.
    """
    values: dict[str, Any] = {}  # each has the type of its field
    mistakes: list[str] = []
    for name, one in _VARIABLES.items():
        text = environ.get(name, one.metadata["default"])
        try:
            values[one.name] = one.metadata["parse"](text)
        except ValueError as error:
            shown = name
            if one.repr and "@" not in text:
                shown = f"{name}={_one_line(text)}"
            mistakes.append(f"{shown} is invalid: {error}")
    check_redis = partial(_check_redis, check_cache_url)
    for rule in _complete_token, _limit_fault_expiry, check_redis:
        try:
            rule(values, environ)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise SettingsError(mistakes, values.get("logformat", "text"))
    return Settings(**values)


def scope(config: Settings) -> tuple[tuple[str, object], ...]:
    """Return what must be equal in instances that share answers.

    These are all settings that may not differ, the token included.
    """
    decisive = [one.name for one in fields(config) if not one.metadata["may_differ"]]
    return tuple((name, getattr(config, name)) for name in decisive)


def facts(config: Settings) -> dict[str, object]:
    """Return what the log says about the settings: nothing secret, times in seconds."""
    variable = "C42_TOKEN"
    if config.token_file:
        variable = "C42_TOKEN_FILE"
    redis = urlsplit(config.cache_url)
    netloc = redis.netloc.rpartition("@")[2]
    redis = redis._replace(netloc=netloc, query="")
    return {
        "upstream": config.base_url,
        "timeout": config.timeout,
        "expiry": config.expiry,
        "fault_expiry": config.fault_expiry,
        "refresh_ahead": config.refresh_ahead,
        "token_from": variable,
        "redis": redis.geturl() or None,
    }


# What depends on several settings: each completes or checks `values`, or raises
# ValueError with a whole sentence.


def _complete_token(values: dict[str, Any], _: Mapping[str, str]) -> None:
    """Check that one token is given, and read it if it is in a file."""
    if "token" not in values:
        return  # it's invalid
    token = values["token"]
    path = values["token_file"]
    if token and path:
        raise ValueError(
            "C42_TOKEN and C42_TOKEN_FILE are both set: expected only one of them"
        )
    if path:
        values["token"] = _read_token(path)
    elif not token:
        raise ValueError(
            "C42_TOKEN is missing: expected Calendar42's token, "
            "or C42_TOKEN_FILE with the path of a file"
        )


def _limit_fault_expiry(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Have faults be cached no longer than good answers."""
    if values.get("fault_expiry", 0) <= values.get("expiry", math.inf):
        return
    values["fault_expiry"] = values["expiry"]
    given = environ.get("C42_FAULT_EXPIRY")
    if given:  # the default may be longer
        raise ValueError(
            f"C42_FAULT_EXPIRY={given} is invalid: expected at most C42_EXPIRY"
        )


def _check_redis(
    check_url: Callable[[str], object], values: dict[str, Any], _: Mapping[str, str]
) -> None:
    url = values["cache_url"]
    if not url:
        return
    if not find_spec("redis"):
        raise ValueError(
            "C42_CACHE_URL needs the redis package: "
            "pip install -r requirements-redis.txt"
        )
    try:
        check_url(url)
    except ValueError as error:
        raise ValueError(f"C42_CACHE_URL is invalid: {error}") from None


def _read_token(path: str) -> str:
    """Read the token from a file.

    No error shows the path: it may be the token, by mistake.
    """
    try:
        token = Path(path).read_text("ascii", "replace").rstrip("\n")
    except OSError as error:
        raise ValueError(f"C42_TOKEN_FILE can't be read: {error.strerror}") from None
    if not re.fullmatch(_SAFE, token):
        raise ValueError(
            f"C42_TOKEN_FILE is invalid: expected a file that holds {_EIGHT}"
        )
    return token


def warnings(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each `C42_…` variable that is not a setting.

    Usually it is a typing error.
    """
    lines = []
    for name in sorted(environ):
        if name.startswith("C42_") and name not in _VARIABLES:
            line = f"{_one_line(name)} is not a setting"
            for similar in difflib.get_close_matches(name, _VARIABLES, 1, 0.8):
                line += f"; did you mean {similar}?"
            lines.append(line)
    return lines


def _one_line(text: str) -> str:
    """Make `text` safe to print: no control characters, at most 80 characters."""
    shown = text.encode("unicode_escape").decode()
    if len(shown) > 80:
        shown = shown[:80] + "…"
    return shown
