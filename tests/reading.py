"""Reads the headers of answers, as caches do."""

import re
from typing import Any

import http_sf


def cache_status(answer: Any) -> dict[str, Any]:
    """Parse `Cache-Status`, check that it is c42c's, and return its parameters.

    RFC 8941 says how it is parsed.
    """
    parsed: Any = http_sf.parse(answer.headers["Cache-Status"].encode(), tltype="list")
    ((name, parameters),) = parsed
    assert str(name) == "c42c"
    return {
        key: value if isinstance(value, bool | int) else str(value)
        for key, value in parameters.items()
    }


def lifetime(answer: Any) -> int | None:
    """Return the seconds that `Cache-Control` gives; None: don't store."""
    if answer.headers["Cache-Control"] == "no-store":
        return None
    (seconds,) = re.fullmatch(
        "max-age=([0-9]+)", answer.headers["Cache-Control"]
    ).groups()  # type: ignore[union-attr]
    return int(seconds)
