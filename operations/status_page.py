"""The status page at `/`: the service's numbers as HTML, which moves once a second where the browser runs JavaScript.

The numbers are those of `/status.json`. Every number has one place in the template, which names its path and its
format; here it is filled in once, and `static/status.js`, which has the same formats, keeps it up to date. The page
takes nothing from outside and runs nothing inline, and the browser is told to hold it to that (CSP level 3).
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial, reduce
from math import ceil, floor
from typing import Any

from flask import Blueprint, Flask, Response, render_template

RECENT = timedelta(minutes=1)  # for which a fault counts as trouble

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Numbers = Mapping[str, Any]


def register(app: Flask, numbers: Callable[[], Numbers]) -> None:
    """Give `app` the page and its static files; `numbers` returns what `/status.json` says."""
    page = Blueprint("status_page", __name__, static_folder="static", template_folder="templates")

    @page.get("/")
    def status() -> Response:
        view = _view(numbers())
        text = render_template("status.html", text=partial(_text, view), troubles=_troubles(view), **view)
        return Response(text, headers={"Cache-Control": "no-store"}, mimetype="text/html")

    @page.after_request
    def protect(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    app.register_blueprint(page)


def _view(numbers: Numbers) -> dict[str, Any]:
    """Add what the page shows and follows from the other numbers."""
    cache = numbers["cache"]
    asked = cache["hits"] + cache["misses"] + cache["collapsed"] + cache["refused"]
    held = cache["entries_ok"] + cache["entries_negative"] + cache["entries_fault"]
    return {**numbers, "asked": asked, "held": held, "hit_ratio": cache["hits"] / asked if asked else None}


def _troubles(view: Numbers) -> set[str]:
    """Return the names of what is wrong, as the template has them."""
    cache, upstream = view["cache"], view["upstream"]
    now = datetime.fromisoformat(view["now"])
    troubles = {
        "stopping": view["stopping"],
        "reaper": not view["reaper_alive"],
        "full": cache["waiting"] >= cache["max_waiting"],
        "pause": upstream["pause_seconds"] > 0,
        "faults": any(now - datetime.fromisoformat(one["time"]) < RECENT for one in upstream["faults"]),
    }
    return {name for name, is_so in troubles.items() if is_so}


def _text(view: Numbers, path: str, form: str) -> str:
    """Return the number at `path`, such as "cache.hits", as a reader wants it; a dash where there is none."""
    value = reduce(lambda inner, name: inner[name], path.split("."), view)
    return "–" if value is None else _FORMATS[form](value)


def _percent(ratio: float) -> str:
    return f"{floor(ratio * 1000) / 10:.1f} %"  # rounded down: 100 % are all


def _duration(seconds: float) -> str:
    """Two units are enough: 4 min 12 s, 3 d 2 h."""
    rest, parts = floor(seconds), []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, rest = divmod(rest, size)
        parts.append((amount, unit))
    while len(parts) > 1 and not parts[0][0]:
        del parts[0]
    return " ".join(f"{amount} {unit}" for amount, unit in parts[:2])


def _pause(seconds: float) -> str:
    return _duration(ceil(seconds)) if seconds > 0 else "none"


def _latency(seconds: float) -> str:
    if seconds >= 0.9995:
        return f"{_rounded(seconds, 2)} s"
    return f"{_rounded(seconds * 1000, 0 if seconds >= 0.01 else 1)} ms"


def _rounded(number: float, digits: int) -> str:
    """Round halves upwards, as people and the script do."""
    return f"{floor(number * 10**digits + 0.5) / 10**digits:.{digits}f}"


def _clock(stamp: str) -> str:
    return stamp[:19].replace("T", " ")


_FORMATS: Mapping[str, Callable[[Any], str]] = {
    "count": "{:,}".format,
    "percent": _percent,
    "duration": _duration,
    "pause": _pause,
    "latency": _latency,
    "clock": _clock,  # of UTC
    "plain": str,
}
