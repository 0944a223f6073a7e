"""How a log line looks: one line per record, whatever is in it, as text or as one JSON object.

A record may bring values of its own, for programs to read, as `extra={"fields": {…}}`: the JSON object has them as they
are, the text has what its message says. Records of a request also have its id.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime

request_id = ContextVar("request_id", default="")  # of the request that the thread works on


class _Text(logging.Formatter):
    """Escapes control characters, so that no id and no upstream message can forge a line or move a cursor."""

    def __init__(self, secret: str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._secret = secret

    def formatMessage(self, record: logging.LogRecord) -> str:
        its_id = request_id.get()
        return super().formatMessage(record) + (f" request={its_id}" if its_id else "")

    def format(self, record: logging.LogRecord) -> str:
        line = _blank(super().format(record), self._secret)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class _Json(logging.Formatter):
    """Writes ASCII, so that nothing can be forged here either."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        line = getattr(record, "fields", {}) | {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        if its_id := request_id.get():
            line["request_id"] = its_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        blank = {key: _blank(text, self._secret) for key, text in line.items() if isinstance(text, str)}
        return json.dumps(line | blank, default=str)


def _blank(text: str, secret: str) -> str:
    return text.replace(secret, "***") if secret else text


def configure(level: str, form: str, secret: str) -> None:
    """Send log lines from `level` on to stderr, as `form` ("text" or "json"), with `secret` blanked out.

    Of other libraries, nothing below WARNING is shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level)
    handler.setFormatter(_Json(secret) if form == "json" else _Text(secret))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("c42c").setLevel(level)


def complain(lines: Iterable[str], form: str) -> None:
    """Print why the service does not start: as log lines if `form` is "json", otherwise as they are."""
    for line in lines:
        record = logging.LogRecord("c42c", logging.ERROR, "", 0, line, None, None)
        print(_Json("").format(record) if form == "json" else line, file=sys.stderr)
