"""Every `C42_…` variable, read and checked once, into one frozen object.

`main.py` reads `C42_LOGFORMAT` again.
"""

import contextlib
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests

RESERVED_THREADS = 16  # worker threads that never wait for the upstream
_YEAR = 525600  # minutes
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_SAFE = "[!-~]{8,}"
# The log redacts the token: it can't be a common word.
_EIGHT = "at least 8 printable ASCII characters without spaces"
_ORIGIN = r" *https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[1-9][0-9]*)? *"
# redis-py's other options, such as time-outs, would interfere with ours.
_REDIS_OPTIONS = {"db": "[0-9]+", "username": ".*", "password": ".*"}
_TLS_OPTIONS = dict.fromkeys(["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"], ".+")
_TLS_OPTIONS["ssl_cert_reqs"] = "none|optional|required"
_GONE = {
    "C42_WORKERS": "run several instances, which share answers through C42_CACHE_URL (see docs/scaling.md)"
}
Parse = Callable[[str], Any]


class SettingsError(Exception):
    """Settings are missing or invalid.

    The text has a line for each, which names it and says what is expected.
    """


def _kind(
    expected: str,
    pattern: str,
    convert: Parse = str,
    accept: Callable[[Any], bool] = lambda _: True,
) -> Parse:
    """Return a parser for text that matches `pattern` and whose value passes `accept`;
    else it raises ValueError.
    """

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if re.fullmatch(pattern, text) and accept(value := convert(text)):
                return value
        raise ValueError(f"expected {expected}")

    return parse


def _number(unit: str, high: float, factor: float = 1) -> Parse:
    expected = f"a number of {unit} greater than 0, at most {high:g}"
    return _kind(
        expected,
        r"[0-9]*\.?[0-9]+",
        lambda text: float(text) * factor,
        lambda it: 0 < it <= high * factor,
    )


def _integer(low: int, high: int) -> Parse:
    return _kind(
        f"a whole number from {low} to {high}",
        "[0-9]{1,9}",
        int,
        lambda it: low <= it <= high,
    )


def _percent(high: int) -> Parse:
    """Return a parser of whole percents, whose value is the share of one."""
    parse = _integer(0, high)
    return lambda text: parse(text) / 100


def _url(text: str) -> str:
    requests.Request(
        "GET", text
    ).prepare()  # it has its own rules for hosts, and a ValueError for each
    return text.rstrip("/") + "/"


def _is_redis(text: str) -> bool:
    """Tell whether redis-py would understand all of it: it ignores what it doesn't
    understand.
    """
    url = urlsplit(text)
    options = _REDIS_OPTIONS | (_TLS_OPTIONS if url.scheme == "rediss" else {})
    given = parse_qsl(url.query, strict_parsing=True)
    is_socket = url.scheme == "unix" and url.path and not url.hostname
    is_address = (
        url.scheme != "unix"
        and url.hostname
        and url.port != 0
        and re.fullmatch("(/[0-9]*)?", url.path)
    )
    known = all(re.fullmatch(options.get(name, "(?!)"), value) for name, value in given)
    return bool(not text or ((is_socket or is_address) and known))


_token = _kind(_EIGHT, f"({_SAFE})?")
_level = _kind(f"one of {', '.join(_LEVELS)}", f"(?i){'|'.join(_LEVELS)}", str.upper)
_host = _kind(
    "an address or a name of this machine",
    r"[A-Za-z0-9:_-]{1,63}(\.[A-Za-z0-9:_-]{1,63})*\.?",
)
_base_url = _kind(
    "an http:// or https:// URL without user, query or fragment",
    r"(?i)https?://(?=[!-~]+\Z)[^/?#@]+(/[^?#]*)?",
    _url,
)
_origins = _kind(
    "* or origins such as https://app.example.com, in lower case, separated by commas",
    rf"(\*|{_ORIGIN}(,{_ORIGIN})*)?",
    lambda text: frozenset(re.findall("[^, ]+", text)),
    # Browsers leave out a port that the scheme implies.
    lambda origins: (
        not {(url.scheme, url.port) for url in map(urlsplit, origins)}
        & {("http", 80), ("https", 443)}
    ),
)
_cache_url = _kind(
    "redis://, rediss:// or unix:// with an address",
    r"((rediss?|unix)://[^\s#]+)?",
    accept=_is_redis,
)


def _setting(
    parse: Parse, meaning: str, default: str = "", *, secret: bool = False
) -> Any:
    """Declare a setting; `default` is written as in the environment, and empty if there
    is none.
    """
    usage = f"{meaning} ({default})" if default else meaning
    return field(
        repr=not secret, metadata={"parse": parse, "usage": usage, "default": default}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one service: `C42_TOKEN` is `token` here.

    All times are in seconds.
    """

    token: str = _setting(
        _token,
        "token for Calendar42; required unless C42_TOKEN_FILE is set",
        secret=True,
    )
    token_file: str = _setting(str, "file to read the token from")
    expiry: float = _setting(
        _number("minutes", _YEAR, 60), "minutes an answer is kept", "4.2"
    )
    loglevel: str = _setting(
        _level, "lowest level of log lines: DEBUG, INFO, WARNING...", "INFO"
    )
    logformat: str = _setting(
        _kind("text or json", "text|json"), "format of log lines: text or json", "text"
    )
    base_url: str = _setting(
        _base_url, "address of Calendar42's API", "https://demo.calendar42.com/api/v2/"
    )
    host: str = _setting(_host, "address to listen on", "127.0.0.1")
    port: int = _setting(_integer(1, 65535), "port to listen on", "5000")
    timeout: float = _setting(
        _number("seconds", 3600), "seconds within which Calendar42 must answer", "10"
    )
    fault_expiry: float = _setting(
        _number("minutes", _YEAR, 60),
        "minutes a fault is kept; at most C42_EXPIRY",
        "0.1",
    )
    refresh_ahead: float = _setting(
        _percent(50),
        "last percent of a lifetime in which a hit refreshes the answer; 0: never",
        "10",
    )
    max_entries: int = _setting(
        _integer(2, 100_000_000), "maximum number of answers kept", "100000"
    )
    max_mib: int = _setting(
        _integer(1, 1_000_000), "maximum MiB that the answers kept take", "128"
    )
    threads: int = _setting(
        _integer(RESERVED_THREADS + 1, 10_000),
        "maximum number of worker threads",
        "256",
    )
    drain: float = _setting(
        _integer(0, 3600), "seconds to keep taking requests after SIGTERM", "0"
    )
    cors_origins: frozenset[str] = _setting(
        _origins, "origins whose pages may read answers, separated by commas; or *"
    )
    cache_url: str = _setting(
        _cache_url, "redis://... to share answers with other instances", secret=True
    )


_VARIABLES = {f"C42_{one.name.upper()}": one for one in fields(Settings)}


def usage() -> str:
    """Return a line about each variable, for `--help`."""
    return "\n".join(
        f"  {name:<17} {one.metadata['usage']}" for name, one in _VARIABLES.items()
    )


def read(environ: Mapping[str, str]) -> Settings:
    """Read all settings from `environ`; raise `SettingsError` if any is missing or
    invalid.
    """
    values, mistakes = dict[str, Any](), list[str]()
    for name, one in _VARIABLES.items():
        text = environ.get(name, one.metadata["default"])
        try:
            values[one.name] = one.metadata["parse"](text)
        except ValueError as error:
            shown = (
                f"{name}={_one_line(text)}" if one.repr and "@" not in text else name
            )
            mistakes.append(f"{shown} is invalid: {error}")
    try:
        if "token" in values:
            values["token"] = _find_token(values["token"], values["token_file"])
    except ValueError as error:
        mistakes.append(str(error))
    if values.get("fault_expiry", 0) > values.get("expiry", math.inf):
        values["fault_expiry"] = values["expiry"]  # the default may exceed it
        if text := environ.get("C42_FAULT_EXPIRY"):
            mistakes.append(
                f"C42_FAULT_EXPIRY={text} is invalid: expected at most C42_EXPIRY"
            )
    if values.get("cache_url") and not find_spec("redis"):
        mistakes.append(
            "C42_CACHE_URL needs the redis package: pip install -r requirements-redis.txt"
        )
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return Settings(**values)


def _find_token(token: str, path: str) -> str:
    """Return the token, from the file at `path` if there is one; raise ValueError with
    a whole sentence.
    """
    if token and path:
        raise ValueError(
            "C42_TOKEN and C42_TOKEN_FILE are both set: expected only one of them"
        )
    if not token and not path:
        raise ValueError(
            "C42_TOKEN is missing: expected Calendar42's token, or C42_TOKEN_FILE with the path of a file"
        )
    if path:
        try:  # the path isn't shown, since it may be the token, by mistake
            token = Path(path).read_text("ascii", "replace").rstrip("\n")
        except OSError as error:
            raise ValueError(
                f"C42_TOKEN_FILE can't be read: {error.strerror}"
            ) from None
        if not re.fullmatch(_SAFE, token):
            raise ValueError(
                f"C42_TOKEN_FILE is invalid: expected a file that holds {_EIGHT}"
            )
    return token


def warnings(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each `C42_…` variable that is not a setting: usually a typing
    error.
    """
    lines = []
    for name in sorted(environ):
        if name.startswith("C42_") and name not in _VARIABLES:
            hint = "".join(
                f"; did you mean {other}?"
                for other in difflib.get_close_matches(name, _VARIABLES, 1, 0.8)
            )
            hint = f" any more: {_GONE[name]}" if name in _GONE else hint
            lines.append(f"{_one_line(name)} is not a setting{hint}")
    return lines


def _one_line(text: str) -> str:
    """Make `text` safe to print: no control characters, at most 80 characters."""
    shown = text.encode("unicode_escape").decode()
    return shown if len(shown) <= 80 else shown[:80] + "…"
